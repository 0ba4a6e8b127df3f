//! What holds for every byte stream: sensible, nearly sensible, and garbage.

mod common;

use std::cell::RefCell;

use common::{Map, Server, run};
use kiln_protocol::Parsed;
use kiln_protocol::command::{Command, ItemMeta, Outcome, RefillRight};
use kiln_protocol::memcached::{KeyScratch, Limits, Op, Parser};
use proptest::collection::vec;
use proptest::prelude::*;

/// The ops of a stream that comes in pieces, as text, with what the answers to them would be; the
/// contract of `parse` is checked on the way.
fn ops_of(pieces: &[&[u8]], limits: Limits, scratch_keys: usize) -> (Vec<String>, Vec<u8>) {
    let mut parser = Parser::new(limits);
    let mut scratch = KeyScratch::new(scratch_keys);
    let (mut ops, mut store, mut out) = (Vec::new(), Map::default(), Vec::new());
    let mut pending = Vec::new();
    let mut at_least = 0;

    for piece in pieces {
        pending.extend_from_slice(piece);
        // Before so much is there, another try must not get further.
        let early = pending.len() < at_least;
        let mut at = 0;
        loop {
            let input = &pending[at..];
            match parser.parse(input, &scratch) {
                Parsed::Complete { message, consumed } => {
                    assert!(!early, "an op before {at_least} bytes: {message:?}");
                    assert!(0 < consumed && consumed <= input.len());
                    if let Op::FlushAll { .. } = message {
                        store.items.clear();
                    } else if run(&mut store, &message, &mut out) {
                        parser.authenticated();
                    }
                    ops.push(format!("{message:?}"));
                    at += consumed;
                }
                Parsed::NeedMore { at_least: more, consumed } => {
                    assert!(consumed <= input.len());
                    assert!(more > input.len() - consumed);
                    assert!(more <= (1 << 20) + 2 * limits.value_len_max + 32 * 1024);
                    at_least = more;
                    at += consumed;
                    break;
                }
                Parsed::ScratchFull => scratch.clear(),
            }
        }
        pending.drain(..at);
    }
    (ops, out)
}

/// Cuts a stream at the given places.
fn cut<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

fn limits() -> impl Strategy<Value = Limits> {
    (0usize..40, prop::bool::weighted(0.1), any::<bool>(), any::<bool>()).prop_map(
        |(value_len_max, auth_required, shutdown_enabled, flush_enabled)| Limits {
            value_len_max,
            auth_required,
            shutdown_enabled,
            flush_enabled,
        },
    )
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-d]{1,2}",
        1 => "[!-~]{1,30}",
        1 => Just("k".repeat(250)),
        1 => Just("k".repeat(251)),
        2 => prop::sample::select(vec!["Zm9v", "AAECAw==", "Zg=", "noreply"]).prop_map(str::to_owned),
    ]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0u64..12).prop_map(|n| n.to_string()),
        1 => any::<u64>().prop_map(|n| n.to_string()),
        1 => any::<i32>().prop_map(|n| n.to_string()),
        1 => prop::sample::select(vec!["x", "-1", "18446744073709551616", "007"]).prop_map(str::to_owned),
    ]
}

fn meta_flag() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[bcfhklqstuvxI]",
        3 => ("[NTRCEFJDMO]", number()).prop_map(|(flag, token)| flag + &token),
        1 => "[A-Za-z0-9!]{1,40}",
        1 => "M[EAPRSID+-]",
    ]
}

fn end() -> impl Strategy<Value = &'static str> {
    prop_oneof![9 => Just("\r\n"), 1 => Just("\n")]
}

fn noreply() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just(""), 1 => Just(" noreply"), 1 => Just(" ")]
}

/// A request that is right, or wrong in one way or another.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let storage = (
        prop::sample::select(vec!["set", "add", "replace", "append", "prepend", "cas"]),
        (key(), number(), number(), number()),
        vec(any::<u8>(), 0..48),
        prop::option::weighted(0.1, number()),
        (noreply(), end(), prop_oneof![9 => Just("\r\n"), 1 => Just("xy")]),
    )
        .prop_map(|(name, (key, flags, exptime, cas), value, lie, (noreply, end, tail))| {
            let len = lie.unwrap_or_else(|| value.len().to_string());
            let cas = if name == "cas" { format!(" {cas}") } else { String::new() };
            let line = format!("{name} {key} {flags} {exptime} {len}{cas}{noreply}{end}");
            [line.as_bytes(), &value, tail.as_bytes()].concat()
        });
    let retrieval = (
        prop_oneof![
            Just("get".to_owned()),
            Just("gets".to_owned()),
            number().prop_map(|n| format!("gat {n}")),
            number().prop_map(|n| format!("gats {n}")),
        ],
        vec(key(), 0..6),
        end(),
    )
        .prop_map(|(name, keys, end)| format!("{name} {}{end}", keys.join(" ")).into_bytes());
    let simple = (
        prop::sample::select(vec!["delete", "incr", "decr", "touch"]),
        (key(), prop::option::of(number())),
        (noreply(), end()),
    )
        .prop_map(|(name, (key, number), (noreply, end))| {
            let number = number.map(|n| format!(" {n}")).unwrap_or_default();
            format!("{name} {key}{number}{noreply}{end}").into_bytes()
        });
    let meta =
        (prop::sample::select(vec!["mg", "md", "ma", "me"]), key(), vec(meta_flag(), 0..5), end())
            .prop_map(|(name, key, flags, end)| {
                format!("{name} {key} {}{end}", flags.join(" ")).into_bytes()
            });
    let meta_set = (key(), vec(meta_flag(), 0..4), vec(any::<u8>(), 0..48), end()).prop_map(
        |(key, flags, value, end)| {
            let line = format!("ms {key} {} {}{end}", value.len(), flags.join(" "));
            [line.as_bytes(), &value, b"\r\n"].concat()
        },
    );
    let other = prop::sample::select(vec![
        "version\r\n",
        "mn\r\n",
        "stats\r\n",
        "stats cachedump 1 2\r\n",
        "flush_all\r\n",
        "flush_all 10 noreply\r\n",
        "verbosity 1\r\n",
        "cache_memlimit 100\r\n",
        "shutdown x\r\n",
        "lru_crawler sleep 5\r\n",
        "slabs automove 0 noreply\r\n",
        "set auth 0 0 13\r\nuser password\r\n",
        "set auth 0 0 8\r\nuser bad\r\n",
        "nonsense\r\n",
        "\r\n",
        "quit x\r\n",
    ])
    .prop_map(|line| line.as_bytes().to_vec());
    let last = prop::sample::select(vec!["quit\r\n", "GET / HTTP/1.1\r\n", "shutdown\r\n"])
        .prop_map(|line| line.as_bytes().to_vec());
    prop_oneof![
        6 => storage,
        4 => retrieval,
        3 => simple,
        6 => meta,
        4 => meta_set,
        3 => other,
        1 => last,
        1 => vec(any::<u8>(), 0..30),
        1 => prop::sample::select(vec![2047usize, 2048, 2049]).prop_map(|len| vec![b'g'; len]),
    ]
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    vec(request(), 0..12).prop_map(|requests| requests.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_requests_gives_the_same_ops_and_answers(
        stream in stream(),
        limits in limits(),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
        scratch_keys in 1usize..4,
    ) {
        let whole = ops_of(&[&stream], limits, 64);
        prop_assert_eq!(&ops_of(&cut(&stream, &cuts), limits, scratch_keys), &whole);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        prop_assert_eq!(&ops_of(&bytes, limits, scratch_keys), &whole);
    }

    #[test]
    fn any_split_of_garbage_gives_the_same_ops(
        stream in vec(prop_oneof![
            3 => prop::sample::select(b" \r\n01kvq".to_vec()),
            1 => any::<u8>(),
            1 => prop::sample::select(b"getsmad".to_vec()),
        ], 0..200),
        limits in limits(),
        cuts in vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let whole = ops_of(&[&stream], limits, 64);
        prop_assert_eq!(ops_of(&cut(&stream, &cuts), limits, 1), whole);
    }

    #[test]
    fn every_op_borrows_what_the_client_sent_and_keeps_its_bounds(
        stream in stream(),
        limits in limits(),
    ) {
        let mut parser = Parser::new(limits);
        let scratch = KeyScratch::new(64);
        let mut at = 0;
        while let Parsed::Complete { message, consumed } = parser.parse(&stream[at..], &scratch) {
            at += consumed;
            match message {
                Op::Data { command, .. } => {
                    prop_assert!((1..=250).contains(&command.key().len()));
                    if let Command::Store(store) = command {
                        prop_assert!(store.value.len() <= limits.value_len_max);
                    }
                }
                Op::TooLarge { key, .. } | Op::MetaDebug { key, .. } => {
                    prop_assert!((1..=250).contains(&key.len()));
                }
                Op::Reject { reply, .. } | Op::Answer { reply } => {
                    prop_assert!(reply.is_empty() || reply.ends_with(b"\r\n"));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_outcome_of_every_command_is_one_line_or_none(
        stream in stream(),
        number in any::<u64>(),
        ttl_ms in prop::option::of(any::<u64>()),
    ) {
        let item = ItemMeta {
            value_len: 3,
            flags: u32::MAX,
            version: number,
            ttl_ms,
            idle_s: 9,
            fetched: true,
            stale: number % 2 == 0,
            refill: [RefillRight::None, RefillRight::Won, RefillRight::Taken][(number % 3) as usize],
        };
        let outcomes = [
            Outcome::Hit(item), Outcome::NotFound, Outcome::Stored(item), Outcome::NotStored,
            Outcome::Exists, Outcome::Deleted, Outcome::Touched(item),
            Outcome::Number(number, item), Outcome::NotANumber, Outcome::TooLarge,
            Outcome::OutOfMemory,
        ];
        let out = RefCell::new(Vec::new());
        let mut parser = Parser::new(Limits::default());
        let scratch = KeyScratch::new(64);
        let mut at = 0;
        while let Parsed::Complete { message, consumed } = parser.parse(&stream[at..], &scratch) {
            at += consumed;
            let Op::Data { reply, .. } = message else { continue };
            for outcome in &outcomes {
                let mut out = out.borrow_mut();
                out.clear();
                let tail = reply.encode(outcome, &mut out);
                prop_assert!(out.is_empty() || out.ends_with(b"\r\n"));
                let lines = out.iter().filter(|&&byte| byte == b'\n').count();
                // The number of a meta arithmetic is a value.
                prop_assert!(lines <= 1 + usize::from(out.starts_with(b"VA ") && tail.is_none()));
                if tail.is_some() {
                    prop_assert!(matches!(outcome, Outcome::Hit(_)));
                    prop_assert!(out.starts_with(b"VA 3") || out.starts_with(b"VALUE "));
                }
                if reply.is_quiet() {
                    let unexpected = [&b"EX"[..], b"NF", b"NS", b"CLIENT_ERROR", b"SERVER_ERROR"];
                    let read = matches!(outcome, Outcome::Hit(_));
                    let told = unexpected.iter().any(|start| out.starts_with(start));
                    prop_assert!(out.is_empty() || read || told);
                }
            }
        }
    }
}

#[test]
fn a_line_that_comes_byte_by_byte_is_searched_once() {
    // A million bytes: searching from the start each time would take hours.
    let mut server = Server::new(Limits::default());
    let line = format!("get {}\r\n", "key ".repeat(250_000));
    let mut parser = Parser::new(Limits::default());
    let scratch = KeyScratch::new(1);
    let line = line.as_bytes();
    for len in 1..line.len() {
        let parsed = parser.parse(&line[..len], &scratch);
        assert_eq!(parsed, Parsed::NeedMore { at_least: len + 1, consumed: 0 });
    }
    assert_eq!(server.feed(line), b"END\r\n");
}

#[test]
fn an_op_is_small_enough_to_gather_many() {
    assert!(size_of::<Op<'_>>() <= 136, "{}", size_of::<Op<'_>>());
    assert!(size_of::<Parsed<Op<'_>>>() <= 144, "{}", size_of::<Parsed<Op<'_>>>());
    assert!(size_of::<Parser>() <= 96, "{}", size_of::<Parser>());
}
