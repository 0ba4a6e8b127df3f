//! Any bytes from a client: the parser keeps its bounds and its promises, and every outcome can
//! be answered.

#![no_main]

use kiln_protocol::Parsed;
use kiln_protocol::command::{Command, ItemMeta, Outcome, RefillRight};
use kiln_protocol::memcached::{KeyScratch, Limits, Op, Parser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&options, mut input)) = data.split_first() else { return };
    let limits = Limits {
        value_len_max: usize::from(options & 0x3f),
        auth_required: options & 0x40 != 0,
        shutdown_enabled: options & 0x80 != 0,
        flush_enabled: options & 0x80 == 0,
    };
    let mut parser = Parser::new(limits);
    let mut scratch = KeyScratch::new(2);
    let mut out = Vec::new();
    loop {
        match parser.parse(input, &scratch) {
            Parsed::Complete { message, consumed } => {
                assert!(0 < consumed && consumed <= input.len());
                look_at(&message, limits, &mut out);
                if let Op::Authenticate { .. } = message {
                    parser.authenticated();
                }
                input = &input[consumed..];
            }
            Parsed::NeedMore { at_least, consumed } => {
                assert!(consumed <= input.len());
                assert!(at_least > input.len() - consumed);
                if consumed == 0 {
                    break;
                }
                input = &input[consumed..];
            }
            Parsed::ScratchFull => scratch.clear(),
        }
    }
});

fn look_at(op: &Op<'_>, limits: Limits, out: &mut Vec<u8>) {
    match op {
        Op::Data { command, reply } => {
            assert!((1..=250).contains(&command.key().len()));
            if let Command::Store(store) = command {
                assert!(store.value.len() <= limits.value_len_max);
            }
            let item = ItemMeta {
                value_len: 1,
                flags: 1,
                version: command.key().len() as u64,
                ttl_ms: Some(1500),
                idle_s: 1,
                fetched: true,
                stale: true,
                refill: RefillRight::Won,
            };
            for outcome in [
                Outcome::Hit(item),
                Outcome::NotFound,
                Outcome::Stored(item),
                Outcome::NotStored,
                Outcome::Exists,
                Outcome::Deleted,
                Outcome::Touched(item),
                Outcome::Number(7, item),
                Outcome::NotANumber,
                Outcome::TooLarge,
                Outcome::OutOfMemory,
            ] {
                out.clear();
                let tail = reply.encode(&outcome, out);
                assert!(out.is_empty() || out.ends_with(b"\r\n"));
                assert!(tail.is_none() || matches!(outcome, Outcome::Hit(_)));
                // No more than the request line gave back, and some numbers.
                assert!(out.len() < 2048 + 256);
            }
        }
        Op::TooLarge { key, .. } | Op::MetaDebug { key, .. } => {
            assert!((1..=250).contains(&key.len()));
        }
        Op::Reject { reply, .. } | Op::Answer { reply } => {
            assert!(reply.is_empty() || reply.ends_with(b"\r\n"));
        }
        Op::Authenticate { credentials } => assert!(credentials.len() <= 16 * 1024),
        _ => {}
    }
}
