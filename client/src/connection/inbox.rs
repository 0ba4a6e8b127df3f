//! The receive buffer of a connection.
//!
//! It grows with the bytes that are there, never to a length that was only claimed, and shrinks
//! again after a long frame. Cost: one copy of the tail of a read when a frame is cut by its end.

use kiln_protocol::{
    Parsed,
    native::{FRAME_HEAD_LEN, FrameError, Frames},
};
use tokio::io::ReadBuf;

/// Capacity of an idle buffer, in bytes.
const IDLE_LEN: usize = 32 * 1024;

/// Length from which a buffer is given back once it is empty, in bytes.
const KEPT_LEN_MAX: usize = 512 * 1024;

pub(super) struct Inbox {
    buffer: Vec<u8>,
    /// Bytes that are there.
    filled: usize,
    frames: Frames,
}

impl Inbox {
    pub(super) fn new(body_len_max: usize) -> Self {
        Self { buffer: vec![0; IDLE_LEN], filled: 0, frames: Frames { body_len_max } }
    }

    /// Room to read into. Never empty.
    pub(super) fn room(&mut self) -> ReadBuf<'_> {
        if self.filled == self.buffer.len() {
            let most = FRAME_HEAD_LEN + self.frames.body_len_max;
            let len = (self.buffer.len() * 2).min(most.max(self.filled + 1));
            self.buffer.resize(len, 0);
        }
        ReadBuf::new(&mut self.buffer[self.filled..])
    }

    /// So many bytes were read into the room.
    pub(super) fn advance(&mut self, len: usize) {
        self.filled += len;
        debug_assert!(self.filled <= self.buffer.len());
    }

    /// Hands each whole frame to `each`, and forgets them.
    pub(super) fn drain<E: From<FrameError>>(
        &mut self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut start = 0;
        while let Parsed::Complete { message, consumed } =
            self.frames.next(&self.buffer[start..self.filled])?
        {
            each(message)?;
            start += consumed;
        }
        if start > 0 {
            self.buffer.copy_within(start..self.filled, 0);
            self.filled -= start;
        }
        if self.buffer.len() > KEPT_LEN_MAX && self.filled < IDLE_LEN {
            self.buffer.truncate(IDLE_LEN);
            self.buffer.shrink_to_fit();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(inbox: &mut Inbox, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut room = inbox.room();
            let len = room.remaining().min(bytes.len());
            room.put_slice(&bytes[..len]);
            inbox.advance(len);
            bytes = &bytes[len..];
        }
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    }

    fn taken(inbox: &mut Inbox) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        inbox
            .drain(|body| {
                frames.push(body.to_vec());
                Ok::<_, FrameError>(())
            })
            .unwrap();
        frames
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let stream = [frame(b"one"), frame(b"two"), frame(&[3; 300])].concat();
        for cut in 0..stream.len() {
            let mut inbox = Inbox::new(1024);
            put(&mut inbox, &stream[..cut]);
            let mut frames = taken(&mut inbox);
            put(&mut inbox, &stream[cut..]);
            frames.extend(taken(&mut inbox));
            assert_eq!(frames, [b"one".to_vec(), b"two".to_vec(), vec![3; 300]], "cut at {cut}");
        }
    }

    #[test]
    fn a_claimed_length_takes_no_memory_and_a_long_frame_gives_its_memory_back() {
        let len = 4 << 20;
        let mut inbox = Inbox::new(len);
        put(&mut inbox, &(len as u32).to_be_bytes());
        assert_eq!(taken(&mut inbox).len(), 0);
        inbox.room();
        assert_eq!(inbox.buffer.len(), IDLE_LEN);

        put(&mut inbox, &vec![7; len]);
        assert_eq!(taken(&mut inbox), [vec![7; len]]);
        assert_eq!(inbox.buffer.len(), IDLE_LEN);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_head() {
        let mut inbox = Inbox::new(10);
        put(&mut inbox, &11_u32.to_be_bytes());

        let result = inbox.drain(|_| Ok::<_, FrameError>(()));

        assert_eq!(result, Err(FrameError::TooLarge { len: 11, limit: 10 }));
    }
}
