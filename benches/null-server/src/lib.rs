//! A server that does nothing: what the kernel, the runtime and finding a request's end cost.
//!
//! A real cache can only add to this, so its processor time per operation is the floor against
//! which Kiln's is judged. It speaks just enough memcached text to be driven by a load generator:
//! a line that is not a `set` is answered with one constant `VALUE`, a `set` with `STORED` once its
//! data went by. Nothing is stored, no key is looked at.
//!
//! What always holds:
//! - each batch costs one read and one write, whatever the number of requests in it;
//! - a connection holds one input buffer of fixed size and the replies of one batch; a line longer
//!   than the input buffer, or a `set` whose length cannot be read, ends the connection.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What every `get` is answered with: a value of 100 bytes under a constant key.
pub const HIT: &[u8] = b"VALUE null 0 100\r\n\
    0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\r\n\
    END\r\n";

/// What every `set` is answered with.
pub const STORED: &[u8] = b"STORED\r\n";

/// Accepts connections for ever, each served by its own task on the current thread.
///
/// # Errors
/// Only when the listener itself fails; a failing connection ends alone.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The peer left before it was accepted; the next one may be fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        tokio::spawn(connection(stream));
    }
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = vec![0; INPUT_LEN];
    let mut filled = 0;
    let mut output = Vec::with_capacity(INPUT_LEN);
    let mut scanner = Scanner::default();
    loop {
        let read = stream.read(&mut input[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let Ok(consumed) = scanner.answer(&input[..filled], &mut output) else { return Ok(()) };
        input.copy_within(consumed..filled, 0);
        filled -= consumed;
        if filled == input.len() {
            return Ok(());
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
    }
}

/// Finds where requests end, across any split of the byte stream.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Bytes of a `set`'s data block, line end included, that have yet to go by.
    body_left: usize,
}

/// The byte stream cannot be followed further.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost;

impl Scanner {
    /// Appends the replies to all requests complete in `input`; returns how many bytes it is done
    /// with.
    ///
    /// # Errors
    /// [`Lost`] when a `set` line does not say how long its data is.
    pub fn answer(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Lost> {
        let mut rest = input;
        loop {
            if self.body_left > 0 {
                let passed = self.body_left.min(rest.len());
                rest = &rest[passed..];
                self.body_left -= passed;
                if self.body_left > 0 {
                    break;
                }
                output.extend_from_slice(STORED);
            }
            let Some(end) = memchr::memchr(b'\n', rest) else { break };
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            if line.starts_with(b"set ") {
                self.body_left = body_len(line).ok_or(Lost)? + b"\r\n".len();
            } else {
                output.extend_from_slice(HIT);
            }
        }
        Ok(input.len() - rest.len())
    }
}

/// The fourth argument of `set <key> <flags> <exptime> <bytes>`.
fn body_len(line: &[u8]) -> Option<usize> {
    let token = line.trim_ascii_end().split(|&b| b == b' ').nth(4)?;
    let digits = (!token.is_empty() && token.len() <= BODY_DIGITS_MAX).then_some(token)?;
    digits.iter().try_fold(0, |len, b| b.is_ascii_digit().then(|| len * 10 + usize::from(b - b'0')))
}

/// One read never brings more than this; also the longest line.
const INPUT_LEN: usize = 64 * 1024;

/// Lengths below a thousand million: far above any value, far below overflow.
const BODY_DIGITS_MAX: usize = 9;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer_in_pieces(stream: &[u8], cuts: &[usize]) -> Result<Vec<u8>, Lost> {
        let (mut scanner, mut output, mut pending) = (Scanner::default(), Vec::new(), Vec::new());
        let mut start = 0;
        for cut in cuts.iter().copied().chain([stream.len()]) {
            let cut = cut.clamp(start, stream.len());
            pending.extend_from_slice(&stream[start..cut]);
            start = cut;
            let consumed = scanner.answer(&pending, &mut output)?;
            pending.drain(..consumed);
        }
        assert_eq!(pending, b"", "complete requests leave nothing behind");
        Ok(output)
    }

    #[test]
    fn a_get_is_answered_with_a_value_of_a_hundred_bytes() {
        let output = answer_in_pieces(b"get some-key\r\n", &[]).unwrap();

        let data = output.split(|&b| b == b'\n').nth(1).unwrap();
        assert_eq!(data.len(), 100 + 1);
        assert!(output.starts_with(b"VALUE null 0 100\r\n") && output.ends_with(b"\r\nEND\r\n"));
    }

    #[test]
    fn line_ends_inside_the_data_of_a_set_are_not_requests() {
        let output = answer_in_pieces(b"set k 0 0 8\r\n\r\nget k\n\r\nget k\r\n", &[]).unwrap();

        assert_eq!(output, [STORED, HIT].concat());
    }

    #[test]
    fn a_set_without_a_readable_length_is_lost() {
        for line in
            ["set k 0 0\r\n", "set k 0 0 x\r\n", "set k 0 0 -1\r\n", "set k 0 0 1234567890\r\n"]
        {
            assert_eq!(answer_in_pieces(line.as_bytes(), &[]), Err(Lost), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_replies(
            requests in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), 1..20),
            mut cuts in prop::collection::vec(0usize..1000, 0..30),
        ) {
            let (mut stream, mut expected) = (Vec::new(), Vec::new());
            for request in requests {
                match request {
                    None => {
                        stream.extend_from_slice(b"get key\r\n");
                        expected.extend_from_slice(HIT);
                    }
                    Some(data) => {
                        stream.extend_from_slice(format!("set key 0 0 {}\r\n", data.len()).as_bytes());
                        stream.extend_from_slice(&data);
                        stream.extend_from_slice(b"\r\n");
                        expected.extend_from_slice(STORED);
                    }
                }
            }
            cuts.sort_unstable();
            prop_assert_eq!(answer_in_pieces(&stream, &cuts).unwrap(), expected);
        }
    }
}
