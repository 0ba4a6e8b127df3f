//! Streams cut anywhere, and bytes that nobody meant.

use kiln_protocol::Parsed;
use kiln_protocol::native::{Data, FrameError, Frames, Request, Response, encode, respond};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::{cache, cache_ref, item};
use crate::write_again;

const FRAMES: Frames = Frames { body_len_max: 1 << 20 };

/// Bodies found when the stream arrives in these pieces.
fn bodies(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut held: Vec<u8> = Vec::new();
    let mut found = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            match FRAMES.next(&held).unwrap() {
                Parsed::Complete { message, consumed } => {
                    found.push(message.to_vec());
                    held.drain(..consumed);
                }
                Parsed::NeedMore { at_least, consumed } => {
                    assert!(consumed == 0 && at_least > held.len());
                    break;
                }
                Parsed::ScratchFull => panic!("frames need no scratch"),
            }
        }
    }
    assert!(held.is_empty(), "all frames were whole");
    found
}

proptest! {
    #[test]
    fn every_cutting_of_a_stream_gives_the_same_frames(
        items in vec((item(), cache()), 1..12),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut stream = Vec::new();
        for (item, cache) in &items {
            let data = Data { cache: cache_ref(cache), item: item.item() };
            encode::data(&mut stream, 1, &data);
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
        let whole = bodies(&[&stream]);
        prop_assert_eq!(whole.len(), items.len());
        prop_assert_eq!(bodies(&pieces), whole);
    }

    #[test]
    fn a_message_that_is_cut_off_is_refused(item in item(), at in any::<prop::sample::Index>()) {
        let mut out = Vec::new();
        encode::data(&mut out, 4, &Data { cache: cache_ref(&None), item: item.item() });
        let body = &out[4..];
        prop_assert!(Request::decode(&body[..at.index(body.len())]).is_err());
    }

    #[test]
    fn bytes_that_nobody_meant_are_refused_or_read_but_never_worse(
        bytes in vec(any::<u8>(), 0..300),
    ) {
        let _ = Request::decode(&bytes);
        let _ = Response::decode(&bytes);
        let _ = FRAMES.next(&bytes);
    }

    #[test]
    fn a_damaged_message_is_refused_or_reads_as_something_that_can_be_written(
        items in vec(item(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut out = Vec::new();
        encode::batch(&mut out, 4, cache_ref(&None), items.iter().map(|item| item.item()));
        let mut body = out[4..].to_vec();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(request) = Request::decode(&body)
            && !matches!(request.body, kiln_protocol::native::Body::Unknown { .. })
        {
            let mut again = Vec::new();
            write_again(&mut again, &request);
            prop_assert_eq!(Request::decode(&again[4..]), Ok(request));
        }
        let _ = Response::decode(&body);
    }
}

#[test]
fn a_frame_over_the_limit_is_refused_before_it_is_there() {
    let frames = Frames { body_len_max: 1000 };
    assert_eq!(
        frames.next(&1001_u32.to_be_bytes()),
        Err(FrameError::TooLarge { len: 1001, limit: 1000 })
    );
    assert_eq!(
        frames.next(&1000_u32.to_be_bytes()),
        Ok(Parsed::NeedMore { at_least: 1004, consumed: 0 })
    );
    assert_eq!(frames.next(&[0; 4]), Err(FrameError::Empty));
    // The first bytes of other protocols are absurd lengths.
    for stray in [&b"GET / HTTP/1.1\r\n"[..], b"get key\r\n", b"\x16\x03\x01\x02\0aaaaaaaaaaa"] {
        assert!(matches!(
            Frames { body_len_max: 64 << 20 }.next(stray),
            Err(FrameError::TooLarge { .. })
        ));
    }
}

#[test]
fn lengths_that_are_not_there_are_not_believed() {
    for message in [
        // A batch of four billion operations, and one in a map of as many options.
        &b"\x94\x14\x01\x00\xdd\xff\xff\xff\xff"[..],
        b"\x95\x01\x01\x00\xc4\x01k\xdf\xff\xff\xff\xff",
        b"\x94\x01\x01\x00\xc6\xff\xff\xff\xff",
        b"\x93\x00\x01\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff\x63\x01",
    ] {
        assert!(Request::decode(message).is_err(), "{message:02x?}");
    }
    // Deeper than anyone needs, in an element that is skipped.
    let mut deep = b"\x94\x1e\x01".to_vec();
    deep.extend([0x91; 100]);
    deep.extend([0xc0; 2]);
    assert!(Request::decode(&deep).is_err());
}

#[test]
fn an_answer_to_a_batch_holds_no_batches() {
    let mut out = Vec::new();
    let start = respond::begin_batch(&mut out, 1, 1);
    out.extend_from_slice(b"\x92\x09\x90");
    kiln_protocol::native::end_frame(&mut out, start);
    assert!(Response::decode(&out[4..]).is_err());
}
