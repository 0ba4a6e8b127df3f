//! Which op each request becomes, to the last field.

use kiln_protocol::Parsed;
use kiln_protocol::command::{
    Arithmetic, Command, Delete, Direction, Get, ItemMeta, Outcome, Store, StoreMode, Touch, Ttl,
};
use kiln_protocol::memcached::{FlushTime, KeyScratch, Limits, Op, Parser, Reply, Stats};

/// The first op of a request, given all at once.
#[track_caller]
fn with_op<T>(request: &str, look: impl FnOnce(Op<'_>) -> T) -> T {
    let scratch = KeyScratch::new(1);
    match Parser::new(Limits::default()).parse(request.as_bytes(), &scratch) {
        Parsed::Complete { message, .. } => look(message),
        other => panic!("{request:?} gives {other:?}"),
    }
}

#[track_caller]
fn assert_command(request: &str, expected: Command<'_>) {
    with_op(request, |op| match op {
        Op::Data { command, .. } => assert_eq!(command, expected, "{request:?}"),
        other => panic!("{request:?} gives {other:?}"),
    });
}

#[track_caller]
fn with_reply<T>(request: &str, look: impl FnOnce(Reply<'_>) -> T) -> T {
    with_op(request, |op| match op {
        Op::Data { reply, .. } => look(reply),
        other => panic!("{request:?} gives {other:?}"),
    })
}

#[track_caller]
fn answer(request: &str, outcome: &Outcome) -> String {
    with_reply(request, |reply| {
        let mut out = Vec::new();
        assert_eq!(reply.encode(outcome, &mut out), None);
        String::from_utf8_lossy(&out).into_owned()
    })
}

#[test]
fn reads_become_gets() {
    let get = Get::plain(b"k");
    assert_command("get k\r\n", Command::Get(get));
    assert_command("gets k\r\n", Command::Get(get));
    assert_command("gat 10 k\r\n", Command::Get(Get { touch: Some(Ttl::After(10_000)), ..get }));
    assert_command("gats 0 k\r\n", Command::Get(Get { touch: Some(Ttl::Never), ..get }));
    assert_command("gat -1 k a\r\n", Command::Get(Get { touch: Some(Ttl::Expired), ..get }));
    let mget = Get { may_refill: true, ..get };
    assert_command("mg k v k O1 q h l t s c f C1\r\n", Command::Get(mget));
    assert_command("mg k u\r\n", Command::Get(Get { no_bump: true, ..mget }));
    assert_command(
        "mg aw== b N30 R60 T2592001 E7\r\n",
        Command::Get(Get {
            touch: Some(Ttl::At(2_592_001_000)),
            vivify: Some(Ttl::After(30_000)),
            recache_below_ms: Some(60_000),
            version: Some(7),
            ..mget
        }),
    );
    assert_command("mg k R0 E0\r\n", Command::Get(mget));
    assert_command("mg k R-1\r\n", Command::Get(mget));
}

#[test]
fn writes_become_stores() {
    let set = Store::set(b"k", b"ab");
    let all = Store { flags: 7, ttl: Ttl::After(9_000), ..set };
    for (name, mode) in [
        ("set", StoreMode::Set),
        ("add", StoreMode::Add),
        ("replace", StoreMode::Replace),
        ("append", StoreMode::Append),
        ("prepend", StoreMode::Prepend),
    ] {
        let request = format!("{name} k 7 9 2\r\nab\r\n");
        assert_command(&request, Command::Store(Store { mode, ..all }));
    }
    assert_command("cas k 7 9 2 0\r\nab\r\n", Command::Store(Store { compare: Some(0), ..all }));
    assert_command("ms k 2 F7 T9\r\nab\r\n", Command::Store(all));
    assert_command("ms aw== 2 b\r\nab\r\n", Command::Store(set));
    assert_command(
        "ms k 2 C5 E6 I\r\nab\r\n",
        Command::Store(Store { compare: Some(5), version: Some(6), invalidate: true, ..set }),
    );
    // A replace that compares needs the item, as a set that compares does.
    assert_command("ms k 2 MR C0\r\nab\r\n", Command::Store(Store { compare: Some(0), ..set }));
    assert_command(
        "ms k 2 MA N30 T9 C5 I\r\nab\r\n",
        Command::Store(Store {
            mode: StoreMode::Append,
            ttl: Ttl::After(9_000),
            vivify: Some(Ttl::After(30_000)),
            compare: Some(5),
            ..set
        }),
    );
    // Flags that say nothing in this mode, or nothing at all.
    assert_command("ms k 2 N30 I E0 MS\r\nab\r\n", Command::Store(set));
    assert_command(
        "ms k 2 ME C5 I N1\r\nab\r\n",
        Command::Store(Store { mode: StoreMode::Add, ..set }),
    );
    assert_command(
        "ms k 2 MP C0\r\nab\r\n",
        Command::Store(Store { mode: StoreMode::Prepend, ..set }),
    );
}

#[test]
fn the_rest_becomes_what_it_says() {
    let delete = Delete::plain(b"k");
    assert_command("delete k 0 noreply\r\n", Command::Delete(delete));
    assert_command("md k q T30 E0\r\n", Command::Delete(delete));
    assert_command(
        "md k I T30 C0 E5\r\n",
        Command::Delete(Delete {
            invalidate: true,
            ttl: Some(Ttl::After(30_000)),
            compare: Some(0),
            version: Some(5),
            ..delete
        }),
    );
    assert_command("md k x\r\n", Command::Delete(Delete { keep_empty: true, ..delete }));
    assert_command("touch k -1\r\n", Command::Touch(Touch { key: b"k", ttl: Ttl::Expired }));
    let increment = Arithmetic {
        key: b"k",
        direction: Direction::Increment,
        delta: 1,
        compare: None,
        version: None,
        create: None,
        touch: None,
    };
    let decrement = Arithmetic { direction: Direction::Decrement, ..increment };
    assert_command("incr k 5\r\n", Command::Arithmetic(Arithmetic { delta: 5, ..increment }));
    assert_command("decr k 0\r\n", Command::Arithmetic(Arithmetic { delta: 0, ..decrement }));
    assert_command("ma k J5 C0 E0\r\n", Command::Arithmetic(increment));
    assert_command(
        "ma k MD D5 N0 J7 T9 C3 E4\r\n",
        Command::Arithmetic(Arithmetic {
            delta: 5,
            create: Some((Ttl::Never, 7)),
            touch: Some(Ttl::After(9_000)),
            compare: Some(3),
            version: Some(4),
            ..decrement
        }),
    );
    for (request, expected) in [
        (
            "flush_all 10 noreply\r\n",
            Op::FlushAll { when: FlushTime::After(10_000), noreply: true },
        ),
        (
            "flush_all 2592001\r\n",
            Op::FlushAll { when: FlushTime::At(2_592_001_000), noreply: false },
        ),
        ("flush_all\r\n", Op::FlushAll { when: FlushTime::Now, noreply: false }),
        ("verbosity 2\r\n", Op::Verbosity { level: 2, noreply: false }),
        ("cache_memlimit 64 noreply\r\n", Op::CacheMemlimit { mebibytes: 64, noreply: true }),
        ("stats cachedump 3 9\r\n", Op::Stats(Stats::Cachedump { class: 3, limit: 9 })),
        ("stats conns\r\n", Op::Stats(Stats::Connections)),
    ] {
        with_op(request, |op| assert_eq!(op, expected, "{request:?}"));
    }
}

#[test]
fn a_missing_item_is_told_in_the_words_of_the_command() {
    let missing = Outcome::NotFound;
    assert_eq!(answer("append k 0 0 1\r\n1\r\n", &missing), "NOT_STORED\r\n");
    assert_eq!(answer("ms k 1 MA q\r\n1\r\n", &missing), "NS\r\n");
    assert_eq!(answer("cas k 0 0 1 1\r\n1\r\n", &missing), "NOT_FOUND\r\n");
    assert_eq!(answer("ms k 1 C1 q\r\n1\r\n", &missing), "NF\r\n");
    assert_eq!(answer("mg k\r\n", &missing), "EN\r\n");
    assert_eq!(answer("md k q\r\n", &missing), "NF\r\n");
    assert_eq!(answer("ma k q\r\n", &missing), "NF\r\n");
}

#[test]
fn want_of_memory_is_told_in_the_words_of_the_command() {
    let full = Outcome::OutOfMemory;
    let storing = "SERVER_ERROR out of memory storing object\r\n";
    assert_eq!(answer("set k 0 0 1\r\n1\r\n", &full), storing);
    assert_eq!(answer("set k 0 0 1 noreply\r\n1\r\n", &full), "");
    assert_eq!(answer("ms k 1 q\r\n1\r\n", &full), storing);
    assert_eq!(answer("incr k 1\r\n", &full), "SERVER_ERROR out of memory\r\n");
    assert_eq!(answer("ma k N0 q\r\n", &full), "SERVER_ERROR out of memory\r\n");
    assert_eq!(answer("md k x q\r\n", &full), "SERVER_ERROR out of memory\r\n");
    // The reader has its answer: there is none.
    assert_eq!(answer("mg k N30 v\r\n", &full), "EN\r\n");
}

#[test]
fn an_outcome_that_cannot_be_is_an_error_and_no_panic() {
    let odd = "SERVER_ERROR Unhandled storage type.\r\n";
    let hit = Outcome::Hit(ItemMeta::default());
    assert_eq!(answer("set k 0 0 1\r\n1\r\n", &hit), odd);
    assert_eq!(answer("delete k noreply\r\n", &hit), "");
    assert_eq!(answer("ma k q\r\n", &hit), odd);
    assert_eq!(answer("get k\r\n", &Outcome::Deleted), odd);
    assert_eq!(answer("mg k\r\n", &Outcome::Exists), odd);
    assert_eq!(answer("touch k 1\r\n", &Outcome::NotANumber), odd);
}

#[test]
fn an_error_is_kept_from_those_who_want_no_reply_and_told_to_the_quiet() {
    let line = b"SERVER_ERROR try again\r\n";
    for (request, told) in [
        ("set k 0 0 1\r\n1\r\n", true),
        ("set k 0 0 1 noreply\r\n1\r\n", false),
        ("get k\r\n", true),
        ("ms k 1 q\r\n1\r\n", true),
    ] {
        with_reply(request, |reply| {
            let mut out = Vec::new();
            reply.error(line, &mut out);
            assert_eq!(out, if told { &line[..] } else { b"" }, "{request:?}");
        });
    }
}

#[test]
fn a_part_of_a_second_left_counts_as_a_second() {
    let item = ItemMeta { ttl_ms: Some(1), ..ItemMeta::default() };
    assert_eq!(answer("mg k t\r\n", &Outcome::Hit(item)), "HD t1\r\n");
    let item = ItemMeta { ttl_ms: Some(99_001), ..ItemMeta::default() };
    assert_eq!(answer("mg k t\r\n", &Outcome::Hit(item)), "HD t100\r\n");
    assert_eq!(answer("ma k t\r\n", &Outcome::Number(1, item)), "HD t100\r\n");
}

#[test]
fn nothing_is_parsed_behind_the_end_of_a_connection() {
    for last in ["quit\r\n", "shutdown\r\n", "GET / HTTP/1.1\r\n", "\u{80}"] {
        let limits = Limits { shutdown_enabled: true, ..Limits::default() };
        let mut parser = Parser::new(limits);
        let scratch = KeyScratch::new(1);
        let mut input = last.as_bytes().to_vec();
        if last == "\u{80}" {
            input = vec![0x80];
        }
        input.extend_from_slice(b"get k\r\n");
        let Parsed::Complete { consumed, .. } = parser.parse(&input, &scratch) else {
            panic!("{last:?} is an op");
        };
        let rest = &input[consumed..];
        let nothing = Parsed::NeedMore { at_least: 1, consumed: rest.len() };
        assert_eq!(parser.parse(rest, &scratch), nothing, "{last:?}");
        assert_eq!(
            parser.parse(b"get k\r\n", &scratch),
            Parsed::NeedMore { at_least: 1, consumed: 7 }
        );
    }
}

#[test]
fn a_waiting_parser_says_how_much_it_waits_for() {
    let mut parser = Parser::new(Limits { value_len_max: 1 << 30, ..Limits::default() });
    let scratch = KeyScratch::new(1);
    let line = b"set k 0 0 1000000000\r\n";
    let whole = line.len() + 1_000_000_002;
    let waiting = Parsed::NeedMore { at_least: whole, consumed: 0 };
    assert_eq!(parser.parse(line, &scratch), waiting);
    assert_eq!(parser.parse(line, &scratch), waiting);

    // A refused value is dropped as it comes: nothing has to be kept for it.
    let mut parser = Parser::new(Limits::default());
    let Parsed::Complete { message: Op::TooLarge { key: b"k", delete: true, .. }, consumed } =
        parser.parse(line, &scratch)
    else {
        panic!("too large");
    };
    assert_eq!(consumed, line.len());
    assert_eq!(parser.parse(b"", &scratch), Parsed::NeedMore { at_least: 1, consumed: 0 });
    let piece = Parsed::NeedMore { at_least: 1, consumed: 1000 };
    assert_eq!(parser.parse(&[b'x'; 1000], &scratch), piece);
}

#[test]
fn a_full_scratch_stops_the_parser_where_it_is() {
    let mut parser = Parser::new(Limits { value_len_max: 0, ..Limits::default() });
    let mut scratch = KeyScratch::new(1);
    assert!(matches!(parser.parse(b"mg AAAA b\r\n", &scratch), Parsed::Complete { .. }));
    assert!(matches!(parser.parse(b"set k 0 0 3\r\n", &scratch), Parsed::Complete { .. }));

    // Behind a value that is being skipped it comes again with that value.
    let input = b"abc\r\nmg Zm9v b\r\n";
    assert_eq!(parser.parse(input, &scratch), Parsed::ScratchFull);
    scratch.clear();
    let Parsed::Complete { message: Op::Data { command, .. }, consumed } =
        parser.parse(input, &scratch)
    else {
        panic!("there is room now");
    };
    assert_eq!((command.key(), consumed), (&b"foo"[..], input.len()));
}
