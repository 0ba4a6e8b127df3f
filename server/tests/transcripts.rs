//! Whole conversations with the real node: what is sent and what must come back.
//!
//! Each runs through TCP and through the Unix socket, and on each in one write, byte by byte and
//! split at random places: how the bytes arrive must never show in the replies. In an expected
//! reply `§` stands for a number that differs from run to run: a version, or a time that may just
//! have turned.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use common::{Client, Node, SOON, eventually};

const BAD: &str = "CLIENT_ERROR bad command line format\r\n";
const NOT_A_NUMBER: &str = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
const TOO_LARGE: &str = "SERVER_ERROR object too large for cache\r\n";

/// Random splits, besides the two extremes.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Asked at the end of each conversation: its answer occurs nowhere else.
const LAST_REQUEST: &str = "mg last k Oend-of-the-talk\r\n";
const LAST_REPLY: &str = "EN klast Oend-of-the-talk\r\n";

/// A node with small values, so that long ones are soon sent byte by byte.
struct Stage {
    node: Node,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("kiln.sock");
        let mut all = vec!["--max-item-size", "2KiB"];
        all.extend(["--listen-memcached-unix", socket.to_str().unwrap()]);
        all.extend(flags);
        Self { node: Node::start(&all), dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("kiln.sock")
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.node.address("memcached")).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Runs a conversation in every way, each time from an empty cache.
    #[track_caller]
    fn talk(&self, steps: &[(&str, &str)]) {
        let request: String = steps.iter().map(|(request, _)| *request).collect();
        let reply: String = steps.iter().map(|(_, reply)| *reply).collect();
        self.each_way(&(request + LAST_REQUEST), &(reply + LAST_REPLY), false);
        // Reply by reply as well: a sum may be right where its parts are not.
        assert_eq!(self.node.connect().ask("flush_all\r\n"), "OK\r\n");
        let mut stream = self.tcp();
        for (request, reply) in steps {
            stream.write_all(request.as_bytes()).unwrap();
            stream.write_all(LAST_REQUEST.as_bytes()).unwrap();
            let got = read_to_the_last_reply(&mut stream);
            assert_like(&got, &format!("{reply}{LAST_REPLY}"), request);
        }
    }

    /// The same for conversations at whose end the node closes the connection.
    #[track_caller]
    fn talk_until_closed(&self, request: &str, reply: &str) {
        self.each_way(request, reply, true);
    }

    #[track_caller]
    fn each_way(&self, request: &str, reply: &str, closes: bool) {
        for split in ways(request.len()) {
            assert_eq!(self.node.connect().ask("flush_all\r\n"), "OK\r\n");
            let got = exchange(self.tcp(), request, &split, closes);
            assert_like(&got, reply, &format!("TCP, split {}", split.name));
            assert_eq!(self.node.connect().ask("flush_all\r\n"), "OK\r\n");
            let got = exchange(self.unix(), request, &split, closes);
            assert_like(&got, reply, &format!("Unix socket, split {}", split.name));
        }
    }
}

/// Where a request is cut, and what to call it when it fails.
struct Split {
    name: String,
    ends: Vec<usize>,
}

fn ways(len: usize) -> Vec<Split> {
    let mut ways = vec![
        Split { name: "nowhere".to_owned(), ends: vec![len] },
        Split { name: "everywhere".to_owned(), ends: (1..=len).collect() },
    ];
    for seed in SEEDS {
        let mut state = seed;
        let mut ends = Vec::new();
        let mut at = 0;
        while at < len {
            at = (at + 1 + (next(&mut state) % 40) as usize).min(len);
            ends.push(at);
        }
        ways.push(Split { name: format!("at random, seed {seed}"), ends });
    }
    ways
}

/// SplitMix64: a few lines rather than a dependency, and the same on every machine.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn exchange(mut stream: impl Read + Write, request: &str, split: &Split, closes: bool) -> Vec<u8> {
    let mut from = 0;
    for &to in &split.ends {
        match stream.write_all(&request.as_bytes()[from..to]) {
            Ok(()) => {}
            // The node may have closed before the last byte came.
            Err(error) if closes => {
                assert!(is_closed(&error), "{error}");
                break;
            }
            Err(error) => panic!("{error}"),
        }
        from = to;
    }
    if !closes {
        return read_to_the_last_reply(&mut stream);
    }
    let mut got = Vec::new();
    // What was sent after the end is unread when the node closes: the system then resets.
    if let Err(error) = stream.read_to_end(&mut got) {
        assert!(is_closed(&error), "{error}");
    }
    got
}

fn is_closed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

fn read_to_the_last_reply(stream: &mut impl Read) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    while !got.ends_with(LAST_REPLY.as_bytes()) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => got.extend_from_slice(&buffer[..len]),
            Err(error) => panic!("{error}, after {:?}", String::from_utf8_lossy(&got)),
        }
    }
    got
}

#[track_caller]
fn assert_like(got: &[u8], pattern: &str, what: &str) {
    let got = String::from_utf8_lossy(got);
    let mut rest: &str = &got;
    let mut pieces = pattern.split('§');
    let mut alike = pieces.next().is_some_and(|first| match rest.strip_prefix(first) {
        Some(after) => {
            rest = after;
            true
        }
        None => false,
    });
    for piece in pieces {
        let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        alike = alike && after.len() < rest.len();
        match after.strip_prefix(piece) {
            Some(after) => rest = after,
            None => alike = false,
        }
    }
    assert!(alike && rest.is_empty(), "{what}\n got: {got:?}\nwant: {pattern:?}");
}

#[test]
fn values_are_set_and_got_with_their_flags() {
    let longest = "x".repeat(2048);
    Stage::new(&[]).talk(&[
        ("get k\r\n", "END\r\n"),
        ("set k 7 0 5\r\nhello\r\n", "STORED\r\n"),
        ("get k\r\n", "VALUE k 7 5\r\nhello\r\nEND\r\n"),
        ("gets k\r\n", "VALUE k 7 5 §\r\nhello\r\nEND\r\n"),
        ("set empty 0 0 0\r\n\r\n", "STORED\r\n"),
        ("get empty\r\n", "VALUE empty 0 0\r\n\r\nEND\r\n"),
        ("set lines 4294967295 0 12\r\nget k\r\nEND\r\n\r\n", "STORED\r\n"),
        ("get k lines none k\r\n", "VALUE k 7 5\r\nhello\r\nVALUE lines 4294967295 12\r\nget k\r\nEND\r\n\r\nVALUE k 7 5\r\nhello\r\nEND\r\n"),
        (&format!("set longest 0 0 2048\r\n{longest}\r\n"), "STORED\r\n"),
        ("get longest\r\n", &format!("VALUE longest 0 2048\r\n{longest}\r\nEND\r\n")),
        ("set  k   0 0  1 \n1\r\n", "STORED\r\n"),
        ("get  k \n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
    ]);
}

#[test]
fn every_storage_command_keeps_its_condition() {
    Stage::new(&[]).talk(&[
        ("replace k 0 0 1\r\n1\r\n", "NOT_STORED\r\n"),
        ("append k 0 0 1\r\n1\r\n", "NOT_STORED\r\n"),
        ("prepend k 0 0 1\r\n1\r\n", "NOT_STORED\r\n"),
        ("cas k 0 0 1 1\r\n1\r\n", "NOT_FOUND\r\n"),
        ("add k 5 0 1\r\nb\r\n", "STORED\r\n"),
        ("add k 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("append k 9 9 1\r\nc\r\n", "STORED\r\n"),
        ("prepend k 9 9 1\r\na\r\n", "STORED\r\n"),
        ("get k\r\n", "VALUE k 5 3\r\nabc\r\nEND\r\n"),
        ("replace k 6 0 1\r\nr\r\n", "STORED\r\n"),
        ("get k\r\n", "VALUE k 6 1\r\nr\r\nEND\r\n"),
        // A version of our own choice, so that it can be named below.
        ("ms k 1 E1234567\r\ns\r\n", "HD\r\n"),
        ("gets k\r\n", "VALUE k 0 1 1234567\r\ns\r\nEND\r\n"),
        ("cas k 3 0 1 1234566\r\nx\r\n", "EXISTS\r\n"),
        ("cas k 3 0 1 1234567\r\nt\r\n", "STORED\r\n"),
        ("cas k 3 0 1 1234567\r\nx\r\n", "EXISTS\r\n"),
        ("get k\r\n", "VALUE k 3 1\r\nt\r\nEND\r\n"),
    ]);
}

#[test]
fn noreply_keeps_every_classic_command_quiet_and_done() {
    Stage::new(&[]).talk(&[
        ("flush_all noreply\r\nflush_all 0 noreply\r\nverbosity 0 noreply\r\n", ""),
        ("add k 0 0 1 noreply\r\n1\r\nadd k 0 0 1 noreply\r\n1\r\n", ""),
        ("set k 0 0 1 noreply\r\n2\r\nreplace k 0 0 1 noreply\r\n3\r\n", ""),
        ("append k 0 0 1 noreply\r\n4\r\nprepend k 0 0 1 noreply\r\n5\r\n", ""),
        ("get k\r\n", "VALUE k 0 3\r\n534\r\nEND\r\n"),
        ("ms k 1 E55 q\r\n6\r\ncas k 0 0 1 55 noreply\r\n7\r\n", ""),
        ("cas k 0 0 1 55 noreply\r\n8\r\n", ""),
        ("incr k 3 noreply\r\ndecr k 2 noreply\r\ntouch k 0 noreply\r\n", ""),
        ("get k\r\n", "VALUE k 0 1\r\n8\r\nEND\r\n"),
        ("delete k noreply\r\ndelete k noreply\r\nincr k 1 noreply\r\n", ""),
        ("nonsense noreply\r\ntouch k x noreply\r\nincr k x noreply\r\n", ""),
        ("get k\r\n", "END\r\n"),
    ]);
}

#[test]
fn numbers_count_within_64_bits() {
    Stage::new(&[]).talk(&[
        ("incr n 1\r\n", "NOT_FOUND\r\n"),
        ("decr n 1\r\n", "NOT_FOUND\r\n"),
        ("set n 9 0 2\r\n10\r\n", "STORED\r\n"),
        ("incr n 5\r\n", "15\r\n"),
        ("decr n 6\r\n", "9\r\n"),
        ("decr n 16\r\n", "0\r\n"),
        ("incr n 18446744073709551615\r\n", "18446744073709551615\r\n"),
        ("incr n 2\r\n", "1\r\n"),
        ("incr n -1\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
        ("decr n x\r\n", "CLIENT_ERROR invalid numeric delta argument\r\n"),
        ("incr n\r\n", BAD),
        ("set n 0 0 3\r\nabc\r\n", "STORED\r\n"),
        ("incr n 1\r\ndecr n 1\r\n", &NOT_A_NUMBER.repeat(2)),
        ("get n\r\n", "VALUE n 0 3\r\nabc\r\nEND\r\n"),
    ]);
}

#[test]
fn delete_touch_and_get_and_touch() {
    Stage::new(&[]).talk(&[
        ("delete k\r\n", "NOT_FOUND\r\n"),
        ("touch k 10\r\n", "NOT_FOUND\r\n"),
        ("gat 10 k\r\n", "END\r\n"),
        ("set k 1 0 1\r\nv\r\nset l 2 0 1\r\nw\r\n", "STORED\r\nSTORED\r\n"),
        ("touch k 100\r\n", "TOUCHED\r\n"),
        ("mg k t\r\n", "HD t§\r\n"),
        ("gat 0 k none l\r\n", "VALUE k 1 1\r\nv\r\nVALUE l 2 1\r\nw\r\nEND\r\n"),
        ("mg k t\r\n", "HD t-1\r\n"),
        ("gats 1000 l k\r\n", "VALUE l 2 1 §\r\nw\r\nVALUE k 1 1 §\r\nv\r\nEND\r\n"),
        ("gat -1 k\r\n", "VALUE k 1 1\r\nv\r\nEND\r\n"),
        ("get k\r\n", "END\r\n"),
        ("delete l 0\r\n", "DELETED\r\n"),
        ("set gone 0 -1 1\r\n1\r\nget gone\r\n", "STORED\r\nEND\r\n"),
        ("set past 0 1600000000 1\r\n1\r\nget past\r\n", "STORED\r\nEND\r\n"),
        ("touch k x\r\n", "CLIENT_ERROR invalid exptime argument\r\n"),
        ("gat x k\r\n", "CLIENT_ERROR invalid exptime argument\r\n"),
        ("flush_all x\r\n", "CLIENT_ERROR invalid exptime argument\r\n"),
        ("touch k\r\ngat 10\r\n", &BAD.repeat(2)),
        (
            "delete a b\r\n",
            "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n",
        ),
    ]);
}

#[test]
fn a_value_over_the_limit_is_refused_and_the_old_one_is_gone() {
    let long = "get k\r\n".repeat(300);
    let with = |line: &str| format!("{line} {}\r\n{long}\r\n", long.len());
    Stage::new(&[]).talk(&[
        ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
        (&with("set k 0 0"), TOO_LARGE),
        ("get k\r\n", "END\r\n"),
        ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
        (&with("ms k"), TOO_LARGE),
        ("get k\r\n", "END\r\n"),
        ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
        (&with("append k 0 0"), TOO_LARGE),
        (&with("add k 0 0"), TOO_LARGE),
        ("get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
        (&format!("set half 0 0 1500\r\n{}\r\n", "h".repeat(1500)), "STORED\r\n"),
        (&format!("append half 0 0 1500\r\n{}\r\n", "h".repeat(1500)), "NOT_STORED\r\n"),
        ("mg half s\r\n", "HD s1500\r\n"),
    ]);
}

#[test]
fn what_is_malformed_is_refused_and_the_connection_goes_on() {
    let (long, longer) = ("k".repeat(250), "k".repeat(251));
    Stage::new(&[]).talk(&[
        (&format!("set {long} 0 0 1\r\n1\r\n"), "STORED\r\n"),
        (&format!("get {long}\r\n"), &format!("VALUE {long} 0 1\r\n1\r\nEND\r\n")),
        (&format!("get {longer}\r\ndelete {longer}\r\nincr {longer} 1\r\n"), &BAD.repeat(3)),
        (&format!("touch {longer} 1\r\nmg {longer} v\r\n"), &BAD.repeat(2)),
        // The value of a refused line is skipped, not run.
        (&format!("set {longer} 0 0 7\r\nversion\r\n"), BAD),
        ("set k x 0 7\r\nversion\r\n", BAD),
        ("set k 0 x 7\r\nversion\r\n", BAD),
        ("set k 0 0\r\n", BAD),
        ("set k 0 0 -1\r\n", BAD),
        ("set k 0 0 3\r\nabcde", "CLIENT_ERROR bad data chunk\r\n"),
        ("ms k 3\r\nabcde", "CLIENT_ERROR bad data chunk\r\n"),
        ("set k 0 0 3\r\nabcdefgh\r\n", "CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
        ("get k\r\n", "END\r\n"),
        ("nonsense\r\nGET k\r\nmx k\r\n", "ERROR\r\nERROR\r\nERROR\r\n"),
        ("get\r\n\r\n", &BAD.repeat(2)),
        ("version with words\r\n", "VERSION 1.6.45\r\n"),
        ("quit with words\r\n", "ERROR\r\n"),
    ]);
}

#[test]
fn a_meta_get_answers_what_its_flags_ask_in_their_order() {
    Stage::new(&[]).talk(&[
        ("mg k v\r\nmg k v q\r\nmg k v k O9\r\n", "EN\r\nEN kk O9\r\n"),
        ("set k 7 100 5\r\nhello\r\n", "STORED\r\n"),
        ("mg k\r\nmg k v\r\n", "HD\r\nVA 5\r\nhello\r\n"),
        ("mg k k s c f t Oab v\r\n", "VA 5 kk s5 c§ f7 t§ Oab\r\nhello\r\n"),
        ("mg k q v\r\n", "VA 5\r\nhello\r\n"),
        ("mg k T0 t\r\n", "HD t-1\r\n"),
        ("ms new 3\r\nhit\r\n", "HD\r\n"),
        ("mg new h l t u\r\nmg new h\r\nmg new h u\r\n", "HD h0 l§ t-1\r\nHD h0\r\nHD h1\r\n"),
        ("mg k N30 R5 Pa/b Lc v\r\n", "VA 5\r\nhello\r\n"),
        ("mg k v v\r\n", "CLIENT_ERROR duplicate flag\r\n"),
        ("mg k _\r\n", "CLIENT_ERROR invalid flag\r\n"),
        ("mg k Tx\r\n", "CLIENT_ERROR bad token in command line format\r\n"),
        ("mg k O123456789012345678901234567890123\r\n", "CLIENT_ERROR opaque token too long\r\n"),
        ("mg\r\n", BAD),
    ]);
}

#[test]
fn a_meta_set_has_every_mode_and_tells_its_flags() {
    Stage::new(&[]).talk(&[
        ("ms m 2 MR\r\nzz\r\nms m 2 MA\r\nzz\r\n", "NS\r\nNS\r\n"),
        ("ms m 2 MP N0 s\r\nbb\r\n", "HD s2\r\n"),
        ("ms m 2 ME\r\nxx\r\n", "NS\r\n"),
        ("ms m 2 MA s\r\ncc\r\nms m 2 Mp s\r\naa\r\n", "HD s4\r\nHD s6\r\n"),
        ("mg m v\r\n", "VA 6\r\naabbcc\r\n"),
        ("ms m 2 E77 F9 T50 k b\r\nxx\r\n", "CLIENT_ERROR error decoding key\r\n"),
        ("ms m 2 E77 F9 T50 k c s Oz\r\nxx\r\n", "HD km c77 s2 Oz\r\n"),
        ("mg m f t c v\r\n", "VA 2 f9 t§ c77\r\nxx\r\n"),
        ("ms m 2 C76 q\r\nno\r\n", "EX\r\n"),
        ("ms m 2 C77 E78 q\r\nok\r\n", ""),
        ("ms none 2 C1\r\nno\r\n", "NF\r\n"),
        ("ms m 2 I C70\r\nst\r\n", "HD\r\n"),
        ("mg m v\r\nmg m v\r\n", "VA 2 X W\r\nst\r\nVA 2 Z X\r\nst\r\n"),
        ("ms m 7 MZ\r\nversion\r\n", "CLIENT_ERROR invalid mode for ms M token\r\n"),
        ("ms m\r\nms m x\r\n", &BAD.repeat(2)),
        ("ms m 2\r\nok\r\nmn\r\n", "HD\r\nMN\r\n"),
    ]);
}

#[test]
fn meta_deletes_counts_keys_in_base64_and_debugging() {
    Stage::new(&[]).talk(&[
        ("md k\r\nmd k q\r\nmd k k O1\r\n", "NF\r\nNF\r\nNF kk O1\r\n"),
        ("ms k 2 E5\r\nhi\r\nmd k C6\r\nmd k C5 q\r\nmg k\r\n", "HD\r\nEX\r\nEN\r\n"),
        ("ms k 2\r\nhi\r\nmd k I T30 E99\r\n", "HD\r\nHD\r\n"),
        ("mg k c t v\r\nmg k c v\r\n", "VA 2 c99 t§ X W\r\nhi\r\nVA 2 c99 Z X\r\nhi\r\n"),
        ("ms k 1 T90\r\ng\r\nmg k v\r\n", "HD\r\nVA 1\r\ng\r\n"),
        ("md k x\r\nmg k s v\r\n", "HD\r\nVA 0 s0\r\n\r\n"),
        ("mg w N30 v\r\nmg w N30 v\r\n", "VA 0 W\r\n\r\nVA 0 Z\r\n\r\n"),
        ("ma n\r\nma n N0 J13 v\r\nma n N0 J13 v\r\n", "NF\r\nVA 2\r\n13\r\nVA 2\r\n14\r\n"),
        ("ma n D30 v k Oa\r\nma n MD D40 v\r\n", "VA 2 kn Oa\r\n44\r\nVA 1\r\n4\r\n"),
        ("ma n E77 c v\r\nma n C76\r\nma n C77 q\r\n", "VA 1 c77\r\n5\r\nEX\r\n"),
        ("ma n MX\r\n", "CLIENT_ERROR invalid mode for ma M token\r\n"),
        ("ma n v v\r\n", "CLIENT_ERROR invalid or duplicate flag\r\n"),
        ("ms n 1\r\nx\r\nma n\r\n", &format!("HD\r\n{NOT_A_NUMBER}")),
        ("ms Zm9v 3 b k\r\nbar\r\nget foo\r\n", "HD kZm9v b\r\nVALUE foo 0 3\r\nbar\r\nEND\r\n"),
        ("mg Zm9v b k v\r\n", "VA 3 kZm9v b\r\nbar\r\n"),
        ("mg Zm9 b v\r\n", "CLIENT_ERROR error decoding key\r\n"),
        ("me none\r\n", "EN\r\n"),
        ("me foo\r\n", "ME foo exp=-1 la=§ cas=§ fetch=yes cls=1 size=§\r\n"),
    ]);
}

#[test]
fn statistics_and_administration_answer() {
    Stage::new(&[]).talk(&[
        ("stats reset\r\n", "RESET\r\n"),
        ("stats nonsense\r\n", "ERROR\r\n"),
        ("stats cachedump 64 1\r\n", "CLIENT_ERROR Illegal slab id\r\n"),
        ("stats cachedump 1 1\r\n", "END\r\n"),
        ("set k 0 0 3\r\nabc\r\nstats cachedump 1 0\r\n", "STORED\r\nITEM k [3 b; 0 s]\r\nEND\r\n"),
        ("stats cachedump 2 0\r\n", "END\r\n"),
        ("verbosity 1\r\n", "OK\r\n"),
        ("cache_memlimit 7\r\n", "MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"),
        ("cache_memlimit x\r\n", "ERROR\r\n"),
        ("shutdown\r\n", "SERVER_ERROR: shutdown not enabled\r\n"),
        ("slabs reassign 1 2\r\n", "CLIENT_ERROR slab reassignment disabled\r\n"),
        ("lru_crawler metadump all\r\n", "CLIENT_ERROR lru crawler disabled\r\n"),
        ("watch fetchers\r\n", "CLIENT_ERROR watch commands not allowed\r\n"),
        ("set k 0 0 1\r\n1\r\nflush_all\r\nget k\r\n", "STORED\r\nOK\r\nEND\r\n"),
        (
            "set k 0 0 1\r\n1\r\nflush_all 1000\r\nget k\r\n",
            "STORED\r\nOK\r\nVALUE k 0 1\r\n1\r\nEND\r\n",
        ),
        ("version\r\n", "VERSION 1.6.45\r\n"),
    ]);
}

#[test]
fn every_sub_command_of_stats_ends_in_its_way() {
    let stage = Stage::new(&[]);
    assert_eq!(stage.node.connect().ask("set k 0 0 1\r\n1\r\n"), "STORED\r\n");
    for (name, has) in [
        ("stats", "STAT curr_items 1\r\n"),
        ("stats settings", "STAT item_size_max 2048\r\n"),
        ("stats items", "STAT items:1:number 1\r\n"),
        ("stats slabs", "STAT active_slabs "),
        ("stats sizes", "STAT "),
        ("stats conns", ":state "),
    ] {
        for split in ways(name.len() + 2 + LAST_REQUEST.len()) {
            let request = format!("{name}\r\n{LAST_REQUEST}");
            let got = exchange(stage.tcp(), &request, &split, false);
            let got = String::from_utf8(got).unwrap();
            let lines = got.strip_suffix(&format!("END\r\n{LAST_REPLY}")).expect(&got);
            assert!(lines.split_inclusive('\n').all(|line| line.starts_with("STAT ")), "{got}");
            assert!(lines.contains(has), "{has:?} in {got}");
        }
    }
}

#[test]
fn quit_http_and_the_binary_protocol_close_the_connection() {
    let stage = Stage::new(&[]);
    stage.talk_until_closed("set k 0 0 1\r\n1\r\nquit\r\nset l 0 0 1\r\n1\r\n", "STORED\r\n");
    for line in ["GET / HTTP/1.1\r\n", "POST /x\r\n", "PUT /k HTTP/1.0\r\n", "HEAD / HTTP/1.1\r\n"]
    {
        stage.talk_until_closed(&format!("{line}Host: kiln\r\n\r\nset k 0 0 1\r\n1\r\n"), "");
        assert_eq!(stage.node.connect().ask("get k\r\n"), "END\r\n", "{line:?}");
    }
    let mut binary = stage.tcp();
    binary.write_all(b"\x80\x0b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    let mut got = Vec::new();
    let _ = binary.read_to_end(&mut got);
    assert!(got.is_empty(), "{got:?}");
}

#[test]
fn a_line_that_never_ends_closes_the_connection() {
    let stage = Stage::new(&[]);
    stage.talk_until_closed(&"x".repeat(20_000), "");
    stage.talk_until_closed(&format!("set {}", "k".repeat(20_000)), "");
    assert!(stage.node.connect().ask("version\r\n").starts_with("VERSION "));
}

#[test]
fn flush_all_and_shutdown_can_be_forbidden_and_allowed() {
    let node = Node::start(&["--disable-flush"]);
    let mut client = node.connect();
    assert_eq!(client.ask("set k 0 0 1\r\n1\r\n"), "STORED\r\n");
    assert_eq!(client.ask("flush_all\r\n"), "CLIENT_ERROR flush_all not allowed\r\n");
    assert_eq!(client.ask("get k\r\n"), "VALUE k 0 1\r\n");
    drop((client, node));

    let mut node = Node::start(&["--enable-shutdown"]);
    let mut client = node.connect();
    assert_eq!(client.ask("shutdown foo\r\n"), "CLIENT_ERROR invalid shutdown mode\r\n");
    client.send("shutdown graceful\r\n");
    client.assert_closed();
    assert_eq!(node.wait().code(), Some(0));
}

#[test]
fn without_eviction_a_full_cache_refuses_and_keeps_what_it_has() {
    let node = Node::start(&["--eviction", "none", "--memory", "8MiB"]);
    let mut client = node.connect();
    let value = "v".repeat(10_000);
    let mut stored = 0;
    loop {
        match client.ask(&format!("set k{stored} 0 0 10000\r\n{value}\r\n")).as_str() {
            "STORED\r\n" => stored += 1,
            "SERVER_ERROR out of memory storing object\r\n" => break,
            other => panic!("{other:?}"),
        }
        assert!(stored < 2_000, "more than there is memory for");
    }
    assert!(stored > 100, "{stored}");
    for key in [0, stored / 2, stored - 1] {
        assert_eq!(client.ask(&format!("mg k{key} s\r\n")), "HD s10000\r\n");
    }
    // Places are made by the clients alone: by deleting, not by writing.
    for key in 0..stored / 2 {
        assert_eq!(client.ask(&format!("delete k{key}\r\n")), "DELETED\r\n");
    }
    for key in 0..stored / 4 {
        let reply = client.ask(&format!("set again{key} 0 0 10000\r\n{value}\r\n"));
        assert_eq!(reply, "STORED\r\n", "{key} of {stored}");
    }
    assert_eq!(client.ask(&format!("mg k{} s\r\n", stored - 1)), "HD s10000\r\n");
    assert_eq!(node.metric("kiln_evictions_total"), 0.0);
}

#[test]
fn before_the_credentials_nothing_works_and_after_them_everything() {
    use std::os::unix::fs::PermissionsExt;
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), "ann:secret\n").unwrap();
    std::fs::set_permissions(users.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let stage = Stage::new(&["--auth-file", users.path().to_str().unwrap()]);
    let request = "get k\r\nversion\r\nset x 0 0 9\r\nann wrong\r\nset x 0 0 10\r\nann secret\r\n\
                   set k 0 0 1\r\n1\r\nget k\r\n";
    let reply = "CLIENT_ERROR unauthenticated\r\nCLIENT_ERROR unauthenticated\r\n\
                 CLIENT_ERROR authentication failure\r\nSTORED\r\nSTORED\r\nVALUE k 0 1\r\n1\r\nEND\r\n";
    let (request, reply) = (format!("{request}{LAST_REQUEST}"), format!("{reply}{LAST_REPLY}"));
    for split in ways(request.len()) {
        let what = format!("split {}", split.name);
        assert_like(&exchange(stage.tcp(), &request, &split, false), &reply, &what);
        assert_like(&exchange(stage.unix(), &request, &split, false), &reply, &what);
    }
}

#[test]
fn an_item_ends_when_its_time_is_over_and_is_removed_unasked() {
    let stage = Stage::new(&[]);
    let mut client = Client::connect_unix(&stage.socket());
    assert_eq!(client.ask("set k 0 1 1\r\n1\r\n"), "STORED\r\n");
    assert_eq!(client.ask("mg k t\r\n"), "HD t1\r\n");
    eventually("the item is removed", || stage.node.metric("kiln_items") == 0.0);
    assert_eq!(stage.node.metric("kiln_expirations_total"), 1.0);
    assert_eq!(client.ask("mg k\r\n"), "EN\r\n");
    assert!(stage.node.metric("kiln_expiry_lag_seconds_max") < 2.0);
}
