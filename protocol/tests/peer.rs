//! What always holds for frames between nodes: they come back as they were, whatever the splitting
//! of the stream, and no damaged one comes at all.

use kiln_protocol::{
    Parsed,
    peer::{
        BODY_LEN_MAX, FrameError, FrameKind, Frames, HEAD_LEN, INFLATED_LEN_MAX, Label, Packer,
        begin, preface, read_preface, seal,
    },
};
use proptest::{collection::vec, prelude::*};

const FRAMES: Frames = Frames { body_len_max: BODY_LEN_MAX };

const KINDS: [FrameKind; 9] = [
    FrameKind::Hello,
    FrameKind::Welcome,
    FrameKind::Refusal,
    FrameKind::Batch,
    FrameKind::Call,
    FrameKind::Answer,
    FrameKind::Failure,
    FrameKind::Ping,
    FrameKind::Pong,
];

#[derive(Clone, Debug, PartialEq)]
struct Sent {
    label: Label,
    body: Vec<u8>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let body = prop_oneof![
        4 => vec(any::<u8>(), 0..300),
        // What a compressor makes smaller, and what it does not.
        1 => (any::<u8>(), 0..40_000_usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => vec(any::<u8>(), 16_000..20_000),
    ];
    (0..KINDS.len(), any::<u8>(), any::<u32>(), body).prop_map(|(kind, detail, number, body)| {
        Sent { label: Label { kind: KINDS[kind], detail, number }, body }
    })
}

fn encode(all: &[Sent]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut packer = Packer::default();
    for Sent { label, body } in all {
        let start = begin(&mut out);
        out.extend_from_slice(body);
        seal(&mut out, start, *label, Some(&mut packer)).expect("no body is that long");
    }
    out
}

/// Takes all whole frames off the front of `held`.
fn take(held: &mut Vec<u8>, found: &mut Vec<Sent>) -> Result<(), FrameError> {
    let mut scratch = Vec::new();
    let mut at = 0;
    loop {
        match FRAMES.next(&held[at..])? {
            Parsed::Complete { message: frame, consumed } => {
                assert_eq!(consumed, HEAD_LEN + frame.body.len());
                let body = frame.plain(&mut scratch)?.to_vec();
                found.push(Sent { label: frame.label, body });
                at += consumed;
            }
            Parsed::NeedMore { at_least, consumed } => {
                assert_eq!(consumed, 0);
                assert!(at_least > held.len() - at);
                held.drain(..at);
                return Ok(());
            }
            Parsed::ScratchFull => panic!("there is no scratch"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn frames_come_back_as_they_were_in_any_splitting(
        all in vec(sent(), 1..6),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let stream = encode(&all);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let (mut held, mut found) = (Vec::new(), Vec::new());
        for piece in cuts.windows(2) {
            held.extend_from_slice(&stream[piece[0]..piece[1]]);
            take(&mut held, &mut found).unwrap();
        }
        prop_assert_eq!(found, all);
        prop_assert!(held.is_empty());
    }

    #[test]
    fn a_changed_bit_is_noticed_and_frames_before_it_stand(
        before in sent(),
        damaged in sent(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let first = encode(std::slice::from_ref(&before));
        let mut stream = first.clone();
        stream.extend_from_slice(&encode(std::slice::from_ref(&damaged)));
        let at = first.len() + at.index(stream.len() - first.len());
        stream[at] ^= 1 << bit;
        let mut found = Vec::new();
        let error = take(&mut stream, &mut found).unwrap_err();
        prop_assert!(error.is_damage(), "{:?}", error);
        prop_assert_eq!(found, vec![before]);
    }

    #[test]
    fn any_bytes_are_read_without_harm(mut bytes in vec(any::<u8>(), 0..200)) {
        let len = bytes.len();
        let mut found = Vec::new();
        match take(&mut bytes, &mut found) {
            Ok(()) => prop_assert!(len < HEAD_LEN),
            Err(error) => prop_assert_eq!(error, FrameError::Head),
        }
        prop_assert_eq!(found, vec![]);
    }
}

#[test]
fn a_body_at_the_limit_passes_and_one_beyond_it_is_refused_before_it_is_sent() {
    let label = Label { kind: FrameKind::Batch, detail: 0, number: 0 };
    let mut out = vec![1, 2, 3];
    for (len, fits) in [(BODY_LEN_MAX, true), (BODY_LEN_MAX + 1, false)] {
        out.truncate(3);
        let start = begin(&mut out);
        out.resize(start + HEAD_LEN + len, 0);
        let sealed = seal(&mut out, start, label, Some(&mut Packer::default()));
        if fits {
            assert_eq!(sealed, Ok(()));
            assert!(matches!(FRAMES.next(&out[3..]), Ok(Parsed::Complete { .. })));
        } else {
            assert_eq!(sealed, Err(FrameError::TooLarge { len, limit: BODY_LEN_MAX }));
            assert_eq!(out, [1, 2, 3], "nothing is left of it");
        }
    }
}

#[test]
fn a_frame_beyond_the_readers_limit_is_refused_at_its_head() {
    let sent =
        Sent { label: Label { kind: FrameKind::Hello, detail: 0, number: 0 }, body: vec![0; 301] };
    let stream = encode(&[sent]);
    let frames = Frames { body_len_max: 300 };
    let error = FrameError::TooLarge { len: 301, limit: 300 };
    assert_eq!(frames.next(&stream[..HEAD_LEN]), Err(error));
}

#[test]
fn bodies_are_compressed_only_between_16_kib_and_1_mib() {
    for (len, packed) in [
        (Packer::FROM_DEFAULT - 1, false),
        (Packer::FROM_DEFAULT, true),
        (INFLATED_LEN_MAX, true),
        (INFLATED_LEN_MAX + 1, false),
    ] {
        let label = Label { kind: FrameKind::Call, detail: 0, number: 0 };
        let stream = encode(&[Sent { label, body: vec![b'x'; len] }]);
        assert_eq!(stream.len() < len / 50, packed, "{len}");
        let Ok(Parsed::Complete { message: frame, .. }) = FRAMES.next(&stream) else { panic!() };
        assert_eq!(frame.packed, packed);
        assert_eq!(frame.plain(&mut Vec::new()).unwrap(), vec![b'x'; len]);
    }
}

#[test]
fn the_bytes_of_a_frame_stay_what_they_are() {
    let label = Label { kind: FrameKind::Call, detail: 0x42, number: 0x0102_0304 };
    let stream = encode(&[Sent { label, body: b"kiln".to_vec() }]);
    assert_eq!(stream[..12], [0, 0, 0, 4, 5, 0x42, 0, 0, 1, 2, 3, 4]);
    assert_eq!(stream[12..24], CHECKS, "head check, body check");
    assert_eq!(&stream[24..], b"kiln");
}

/// As computed when the format was fixed. Other numbers here are another protocol version.
const CHECKS: [u8; 12] = [148, 42, 238, 36, 17, 23, 61, 117, 247, 185, 134, 52];

#[test]
fn the_preface_tells_a_node_from_a_stranger() {
    assert_eq!(read_preface(preface()), Ok(kiln_protocol::peer::VERSION));
    assert_eq!(read_preface([0x91, b'k', b'i', b'l', b'n', b'p', 1, 2]), Ok(0x0102));
    assert!(read_preface(*b"GET / HT").is_err());
}
