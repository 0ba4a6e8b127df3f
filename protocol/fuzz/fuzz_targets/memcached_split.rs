//! The same bytes whole and in pieces give the same ops.
//!
//! The first byte of the data chooses the limits, the second how many of the following bytes say
//! where to cut.

#![no_main]

use kiln_protocol::Parsed;
use kiln_protocol::memcached::{KeyScratch, Limits, Op, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [options, cuts, rest @ ..] = data else { return };
    let Some((cuts, stream)) = rest.split_at_checked(usize::from(*cuts)) else { return };
    let limits = Limits {
        value_len_max: usize::from(options & 0x3f),
        auth_required: options & 0x40 != 0,
        shutdown_enabled: options & 0x80 != 0,
        flush_enabled: options & 0x80 == 0,
    };

    let mut whole = Collector::new(limits, 64);
    whole.feed(stream);

    let mut pieces = Collector::new(limits, 1);
    let mut left = stream;
    for &cut in cuts {
        let (piece, rest) = left.split_at(usize::from(cut).min(left.len()));
        pieces.feed(piece);
        left = rest;
    }
    pieces.feed(left);

    assert_eq!(whole.ops, pieces.ops);
    assert_eq!(whole.pending, pieces.pending);
});

struct Collector {
    parser: Parser,
    scratch: KeyScratch,
    pending: Vec<u8>,
    ops: Vec<String>,
}

impl Collector {
    fn new(limits: Limits, scratch_keys: usize) -> Self {
        Self {
            parser: Parser::new(limits),
            scratch: KeyScratch::new(scratch_keys),
            pending: Vec::new(),
            ops: Vec::new(),
        }
    }

    fn feed(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match self.parser.parse(&self.pending[at..], &self.scratch) {
                Parsed::Complete { message, consumed } => {
                    assert!(consumed > 0);
                    at += consumed;
                    // Some credentials are good.
                    if let Op::Authenticate { credentials: [.., b'd'] } = message {
                        self.parser.authenticated();
                    }
                    self.ops.push(format!("{message:?}"));
                }
                Parsed::NeedMore { at_least, consumed } => {
                    at += consumed;
                    assert!(at_least > self.pending.len() - at);
                    break;
                }
                Parsed::ScratchFull => self.scratch.clear(),
            }
        }
        self.pending.drain(..at);
    }
}
