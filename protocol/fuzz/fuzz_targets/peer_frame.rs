//! Any bytes from another node, whole and in two pieces: the same frames, no memory beyond what is
//! allowed, and what is read can be said again in the same words.
//!
//! A fuzzer does not guess checksums, so the bytes behind the first three are also made into the
//! body of a frame, plain and as if compressed.

#![no_main]

use kiln_protocol::{
    Parsed,
    peer::{
        FrameError, FrameKind, Frames, HEAD_LEN, INFLATED_LEN_MAX, Label, Packer, Records, begin,
        seal,
    },
};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const FRAMES: Frames = Frames { body_len_max: 1 << 16 };

type Found = (Vec<(Label, Vec<u8>)>, Option<FrameError>);

fn frames(pieces: &[&[u8]]) -> Found {
    let mut held = Vec::new();
    let mut found = Vec::new();
    let mut scratch = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            match FRAMES.next(&held) {
                Ok(Parsed::Complete { message: frame, consumed }) => {
                    assert_eq!(consumed, HEAD_LEN + frame.body.len());
                    match frame.plain(&mut scratch) {
                        Ok(plain) => found.push((frame.label, plain.to_vec())),
                        Err(error) => return (found, Some(error)),
                    }
                    held.drain(..consumed);
                }
                Ok(Parsed::NeedMore { at_least, consumed: 0 }) => {
                    assert!(held.len() < at_least && at_least <= HEAD_LEN + FRAMES.body_len_max);
                    break;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => return (found, Some(error)),
            }
            assert!(scratch.capacity() <= 2 * INFLATED_LEN_MAX);
        }
    }
    (found, None)
}

/// A frame around `body` with right checksums, whatever else it says.
fn whole(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(&[kind, 0, flags, 0, 0, 0, 0, 9]);
    let hash = xxh3_64(&out);
    out.extend_from_slice(&((hash >> 32) as u32).to_be_bytes());
    out.extend_from_slice(&xxh3_64_with_seed(body, hash).to_be_bytes());
    out.extend_from_slice(body);
    out
}

fuzz_target!(|data: &[u8]| {
    let [at, kind, flags, rest @ ..] = data else { return };

    let mut streams = vec![rest.to_vec(), whole(*kind, *flags, rest)];
    let mut sealed = Vec::new();
    let start = begin(&mut sealed);
    sealed.extend_from_slice(rest);
    let label = Label { kind: FrameKind::Batch, detail: *kind, number: 7 };
    if seal(&mut sealed, start, label, Some(&mut Packer::new(usize::from(*flags)))).is_ok()
        && rest.len() <= FRAMES.body_len_max
    {
        assert_eq!(frames(&[&sealed]), (vec![(label, rest.to_vec())], None));
        streams.push(sealed);
    }

    for stream in streams {
        let (first, second) = stream.split_at(usize::from(*at).min(stream.len()));
        let found = frames(&[&stream]);
        assert_eq!(found, frames(&[first, second]));
        for (_, body) in found.0 {
            let mut len = 0;
            for record in Records::new(&body) {
                len += record.map_or(0, |record| record.len() + 4);
            }
            assert!(len <= body.len());
        }
    }
});
