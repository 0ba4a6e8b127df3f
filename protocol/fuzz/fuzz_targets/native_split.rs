//! A stream cut in two anywhere gives the frames that it gives whole.

#![no_main]

use kiln_protocol::Parsed;
use kiln_protocol::native::Frames;
use libfuzzer_sys::fuzz_target;

const FRAMES: Frames = Frames { body_len_max: 300 };

/// Lengths of the frames found, and whether the stream is broken behind them.
fn frames(pieces: &[&[u8]]) -> (Vec<usize>, bool) {
    let mut held = Vec::new();
    let mut found = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            match FRAMES.next(&held) {
                Ok(Parsed::Complete { message, consumed }) => {
                    assert_eq!(consumed, message.len() + 4);
                    found.push(message.len());
                    held.drain(..consumed);
                }
                Ok(Parsed::NeedMore { at_least, consumed: 0 }) => {
                    assert!(held.len() < at_least && at_least <= 304);
                    break;
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((&at, stream)) = data.split_first() else { return };
    let (first, second) = stream.split_at(usize::from(at).min(stream.len()));
    assert_eq!(frames(&[stream]), frames(&[first, second]));
});
