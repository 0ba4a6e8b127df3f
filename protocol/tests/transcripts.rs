//! Whole conversations: what a client sends and what it must read.
//!
//! The versions in the answers are the reference map's: it counts its writes from 1.

mod common;

use common::Server;
use kiln_protocol::memcached::Limits;

/// Runs requests and answers in turn on one connection.
#[track_caller]
fn transcript(limits: Limits, steps: &[(&str, &str)]) -> Server {
    let mut server = Server::new(limits);
    talk(&mut server, steps);
    server
}

#[track_caller]
fn talk(server: &mut Server, steps: &[(&str, &str)]) {
    for (request, answer) in steps {
        let got = server.feed(request.as_bytes());
        assert_eq!(String::from_utf8_lossy(&got), *answer, "to {request:?}");
    }
}

fn defaults() -> Limits {
    Limits::default()
}

const BAD: &str = "CLIENT_ERROR bad command line format\r\n";

#[test]
fn what_was_set_is_got_with_its_flags() {
    transcript(
        defaults(),
        &[
            ("get k\r\n", "END\r\n"),
            ("set k 7 0 5\r\nhello\r\n", "STORED\r\n"),
            ("get k\r\n", "VALUE k 7 5\r\nhello\r\nEND\r\n"),
            ("gets k\r\n", "VALUE k 7 5 1\r\nhello\r\nEND\r\n"),
            ("set empty 0 0 0\r\n\r\n", "STORED\r\n"),
            ("get empty\r\n", "VALUE empty 0 0\r\n\r\nEND\r\n"),
            ("set k 4294967295 0 2\r\n\r\n\r\n", "STORED\r\n"),
            ("get k\r\n", "VALUE k 4294967295 2\r\n\r\n\r\nEND\r\n"),
        ],
    );
}

#[test]
fn a_line_may_end_without_a_carriage_return_and_have_more_spaces() {
    transcript(
        defaults(),
        &[
            ("set  k   0 0  1 \n1\r\n", "STORED\r\n"),
            ("get k\n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
            ("get  k \r\n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
            ("mg  k  v \r\n", "VA 1\r\n1\r\n"),
            ("incr  k  1 \n", "2\r\n"),
        ],
    );
}

#[test]
fn a_retrieval_of_many_keys_answers_the_hits_in_order_and_ends_once() {
    transcript(
        defaults(),
        &[
            ("set a 0 0 1\r\n1\r\nset c 0 0 1\r\n3\r\n", "STORED\r\nSTORED\r\n"),
            ("get a b c\r\n", "VALUE a 0 1\r\n1\r\nVALUE c 0 1\r\n3\r\nEND\r\n"),
            ("get x a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
            ("get a x\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
            ("get x y\r\n", "END\r\n"),
            ("get a a\n", "VALUE a 0 1\r\n1\r\nVALUE a 0 1\r\n1\r\nEND\r\n"),
            ("gets  c   a  \r\n", "VALUE c 0 1 2\r\n3\r\nVALUE a 0 1 1\r\n1\r\nEND\r\n"),
            ("get noreply\r\n", "END\r\n"),
        ],
    );
}

#[test]
fn a_key_may_have_250_bytes_and_any_but_space_and_line_end() {
    let (long, longer) = ("k".repeat(250), "k".repeat(251));
    transcript(
        defaults(),
        &[
            (&format!("set {long} 0 0 1\r\n1\r\n"), "STORED\r\n"),
            (&format!("get {long}\r\n"), &format!("VALUE {long} 0 1\r\n1\r\nEND\r\n")),
            (&format!("get {long}\n"), &format!("VALUE {long} 0 1\r\n1\r\nEND\r\n")),
            (&format!("get {longer}\r\n"), BAD),
            (&format!("get {long}\r{longer}\r\n"), BAD),
            (&format!("gets {longer}\r\n"), BAD),
            (&format!("gat 0 {longer}\r\n"), BAD),
            (&format!("delete {longer}\r\n"), BAD),
            (&format!("delete {longer} noreply\r\n"), ""),
            (&format!("incr {longer} 1\r\n"), BAD),
            (&format!("touch {longer} 1\r\n"), BAD),
            (&format!("mg {longer} v\r\n"), BAD),
            (&format!("md {longer} q\r\n"), BAD),
            (&format!("ma {longer}\r\n"), "CLIENT_ERROR invalid or duplicate flag\r\n"),
            (&format!("me {longer}\r\n"), BAD),
            // The value of a refused key is skipped, also when nothing is answered.
            (&format!("set {longer} 0 0 6\r\nget a\n\r\n"), BAD),
            (&format!("set {longer} 0 0 6 noreply\r\nget a\n\r\n"), ""),
            (&format!("ms {longer} 6 q\r\nget a\n\r\n"), BAD),
            ("set grün\tß 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("get grün\tß\r\n", "VALUE grün\tß 0 1\r\n1\r\nEND\r\n"),
        ],
    );
}

#[test]
fn one_bad_key_spoils_the_whole_retrieval() {
    let longer = "k".repeat(251);
    transcript(
        defaults(),
        &[
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            (&format!("get a {longer} a\r\n"), BAD),
            (&format!("gats 0 a {longer}\r\n"), BAD),
            ("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
        ],
    );
}

#[test]
fn add_replace_append_and_prepend_store_under_their_conditions() {
    transcript(
        defaults(),
        &[
            ("replace k 0 0 1\r\n1\r\n", "NOT_STORED\r\n"),
            ("append k 0 0 1\r\n1\r\n", "NOT_STORED\r\n"),
            ("prepend k 0 0 1\r\n1\r\n", "NOT_STORED\r\n"),
            ("add k 5 0 1\r\nb\r\n", "STORED\r\n"),
            ("add k 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
            ("append k 9 9 1\r\nc\r\n", "STORED\r\n"),
            ("prepend k 9 9 1\r\na\r\n", "STORED\r\n"),
            ("get k\r\n", "VALUE k 5 3\r\nabc\r\nEND\r\n"),
            ("replace k 6 0 1\r\nr\r\n", "STORED\r\n"),
            ("get k\r\n", "VALUE k 6 1\r\nr\r\nEND\r\n"),
        ],
    );
}

#[test]
fn cas_stores_only_over_the_version_it_names() {
    transcript(
        defaults(),
        &[
            ("cas k 0 0 1 1\r\n1\r\n", "NOT_FOUND\r\n"),
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("cas k 0 0 1 0\r\n2\r\n", "EXISTS\r\n"),
            ("cas k 0 0 1 1\r\n2\r\n", "STORED\r\n"),
            ("cas k 0 0 1 1\r\n3\r\n", "EXISTS\r\n"),
            ("gets k\r\n", "VALUE k 0 1 2\r\n2\r\nEND\r\n"),
            ("cas k 0 0 1 18446744073709551615\r\n3\r\n", "EXISTS\r\n"),
            ("cas k 0 0 6 18446744073709551616\r\nget k\n\r\n", BAD),
            ("cas k 0 0 6 x\r\nget k\n\r\n", BAD),
            ("cas k 0 0 6\r\nget k\n\r\n", BAD),
            ("cas k 0 0 6 noreply\r\nget k\n\r\n", ""),
            ("cas k 0 0\r\n", BAD),
        ],
    );
}

#[test]
fn delete_takes_an_old_time_and_nothing_else() {
    let usage = "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n";
    transcript(
        defaults(),
        &[
            ("delete k\r\n", "NOT_FOUND\r\n"),
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("delete k\r\n", "DELETED\r\n"),
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("delete k 0\r\n", "DELETED\r\n"),
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("delete k 10 noreply\r\n", ""),
            ("get k\r\n", "END\r\n"),
            ("delete\r\n", BAD),
            ("delete a b\r\n", usage),
            ("delete a b c d e\r\n", usage),
            ("delete a b noreply\r\n", ""),
            // As a key it is a key, and still the last word.
            ("delete noreply\r\n", ""),
        ],
    );
}

#[test]
fn incr_and_decr_count_within_64_bits() {
    let not_a_number = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
    let bad_delta = "CLIENT_ERROR invalid numeric delta argument\r\n";
    transcript(
        defaults(),
        &[
            ("incr n 1\r\n", "NOT_FOUND\r\n"),
            ("set n 0 0 2\r\n10\r\n", "STORED\r\n"),
            ("incr n 5\r\n", "15\r\n"),
            ("decr n 16\r\n", "0\r\n"),
            ("incr n 18446744073709551615\r\n", "18446744073709551615\r\n"),
            ("incr n 2\r\n", "1\r\n"),
            ("incr n 18446744073709551616\r\n", bad_delta),
            ("incr n -1\r\n", bad_delta),
            ("decr n x\r\n", bad_delta),
            ("incr n noreply\r\n", ""),
            ("incr n\r\n", BAD),
            ("decr\r\n", BAD),
            ("set n 0 0 1\r\nx\r\n", "STORED\r\n"),
            ("incr n 1\r\n", not_a_number),
            ("decr n 1\r\n", not_a_number),
        ],
    );
}

#[test]
fn an_item_ends_when_its_time_is_over() {
    let mut server = Server::new(defaults());
    talk(
        &mut server,
        &[
            ("set gone 0 -1 1\r\n1\r\n", "STORED\r\n"),
            ("get gone\r\n", "END\r\n"),
            ("set k 0 10 1\r\n1\r\n", "STORED\r\n"),
            ("set date 0 1700000030 1\r\n1\r\n", "STORED\r\n"),
            ("set past 0 1600000000 1\r\n1\r\n", "STORED\r\n"),
            ("get past\r\n", "END\r\n"),
        ],
    );
    server.store.now_ms += 9_999;
    talk(&mut server, &[("get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n")]);
    server.store.now_ms += 1;
    talk(
        &mut server,
        &[
            ("get k date\r\n", "VALUE date 0 1\r\n1\r\nEND\r\n"),
            ("touch k 5\r\n", "NOT_FOUND\r\n"),
            ("touch date 100\r\n", "TOUCHED\r\n"),
        ],
    );
    server.store.now_ms += 99_000;
    talk(
        &mut server,
        &[
            ("gat 1000 date x\r\n", "VALUE date 0 1\r\n1\r\nEND\r\n"),
            ("gats 2000 x date\r\n", "VALUE date 0 1 3\r\n1\r\nEND\r\n"),
            ("mg date t\r\n", "HD t2000\r\n"),
            ("gat -1 date\r\n", "VALUE date 0 1\r\n1\r\nEND\r\n"),
            ("get date\r\n", "END\r\n"),
        ],
    );
}

#[test]
fn a_time_that_is_no_number_is_refused() {
    let bad = "CLIENT_ERROR invalid exptime argument\r\n";
    transcript(
        defaults(),
        &[
            ("touch k x\r\n", bad),
            ("touch k 2147483648\r\n", bad),
            ("touch k noreply\r\n", ""),
            ("touch k\r\n", BAD),
            ("gat x k\r\n", bad),
            ("gat 1.5 k\r\n", bad),
            ("gat 10\r\n", BAD),
            ("gats\r\n", BAD),
            ("flush_all x\r\n", bad),
            ("flush_all x noreply\r\n", ""),
            ("set k 0 x 6\r\nget k\n\r\n", BAD),
            ("mg k Tx\r\n", "CLIENT_ERROR bad token in command line format\r\n"),
        ],
    );
}

#[test]
fn noreply_keeps_every_classic_command_quiet() {
    let server = transcript(
        defaults(),
        &[
            ("flush_all noreply\r\nflush_all 0 noreply\r\nverbosity 0 noreply\r\n", ""),
            ("add k 0 0 1 noreply\r\n1\r\nadd k 0 0 1 noreply\r\n1\r\n", ""),
            ("set k 0 0 1 noreply\r\n2\r\nreplace k 0 0 1 noreply\r\n3\r\n", ""),
            ("append k 0 0 1 noreply\r\n4\r\nprepend k 0 0 1 noreply\r\n5\r\n", ""),
            ("gets k\r\n", "VALUE k 0 3 5\r\n534\r\nEND\r\n"),
            ("cas k 0 0 1 5 noreply\r\n6\r\ncas k 0 0 1 5 noreply\r\n7\r\n", ""),
            ("incr k 3 noreply\r\ndecr k 2 noreply\r\ntouch k 0 noreply\r\n", ""),
            ("get k\r\n", "VALUE k 0 1\r\n7\r\nEND\r\n"),
            ("delete k noreply\r\ndelete k noreply\r\nincr k 1 noreply\r\n", ""),
            ("set k x 0 1 noreply\r\n1\r\nset k 0 0 3 noreply\r\nabcd\r\n", BAD),
            ("set k 0 0 1  noreply  \r\n1\r\ndelete k noreply \r\n", ""),
            ("nonsense noreply\r\ncache_memlimit 64 noreply\r\n", ""),
            ("get k\r\n", "END\r\n"),
        ],
    );
    assert!(server.store.items.is_empty());
}

#[test]
fn a_value_that_is_not_followed_by_a_line_end_is_refused_and_not_stored() {
    let bad = "CLIENT_ERROR bad data chunk\r\n";
    transcript(
        defaults(),
        &[
            ("set k 0 0 3\r\nold\r\n", "STORED\r\n"),
            ("set k 0 0 3\r\nabcde", bad),
            ("set k 0 0 3 noreply\r\nabcde", ""),
            ("ms k 3 q\r\nabcde", bad),
            ("set k 0 0 3\r\nabc\n\n", bad),
            ("get k\r\n", "VALUE k 0 3\r\nold\r\nEND\r\n"),
            // What is left of too long a value is read as a line.
            ("set k 0 0 3\r\nabcdefgh\r\n", "CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
        ],
    );
}

#[test]
fn a_storage_line_that_hides_the_length_is_refused_without_skipping() {
    transcript(
        defaults(),
        &[
            ("set k 0 0\r\n", BAD),
            ("set k 0 0 noreply\r\n", BAD),
            ("set k 0 0 -1\r\n", BAD),
            ("set k 0 0 4294967295\r\n", BAD),
            ("set k 0 0 2147483647\r\n", BAD),
            ("set k 0 0 x noreply\r\n", BAD),
            ("set\r\n", BAD),
            ("ms k\r\n", BAD),
            ("ms k x\r\n", BAD),
            ("ms k -1\r\n", BAD),
            ("ms\r\n", BAD),
            ("get k\r\n", "END\r\n"),
        ],
    );
}

#[test]
fn flags_and_numbers_that_do_not_fit_are_refused_and_their_value_skipped() {
    transcript(
        defaults(),
        &[
            ("set k -1 0 6\r\nget k\n\r\n", BAD),
            ("set k 4294967296 0 6\r\nget k\n\r\n", BAD),
            ("set k 0 9223372036854775808 6\r\nget k\n\r\n", BAD),
            ("ms k 6 F4294967296\r\nget k\n\r\n", BAD),
            ("ms k 6 !\r\nget k\n\r\n", BAD),
            ("get k\r\n", "END\r\n"),
        ],
    );
}

#[test]
fn a_value_over_the_limit_is_skipped_and_the_old_one_is_gone() {
    let limits = Limits { value_len_max: 4, ..defaults() };
    let too_large = "SERVER_ERROR object too large for cache\r\n";
    transcript(
        limits,
        &[
            ("set k 0 0 4\r\nabcd\r\n", "STORED\r\n"),
            ("set k 0 0 5\r\nget k\r\n", too_large),
            ("get k\r\n", "END\r\n"),
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("set k 0 0 5 noreply\r\nget k\r\n", ""),
            ("get k\r\n", "END\r\n"),
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("add k 0 0 5\r\nget k\r\nappend k 0 0 5\r\nget k\r\n", &too_large.repeat(2)),
            ("cas k 0 0 5 3\r\nget k\r\n", too_large),
            ("get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
            ("ms k 5 q\r\nget k\r\n", too_large),
            ("mg k v\r\n", "EN\r\n"),
            ("ms Zm9v 1 b\r\n1\r\n", "HD\r\n"),
            ("ms Zm9v 5 b ME\r\nget k\r\n", too_large),
            ("get foo\r\n", "END\r\n"),
        ],
    );
}

#[test]
fn a_meta_get_answers_what_its_flags_ask_for_in_their_order() {
    let mut server = Server::new(defaults());
    talk(
        &mut server,
        &[
            ("mg k v\r\n", "EN\r\n"),
            ("mg k v q\r\n", ""),
            ("mg k k O123 v\r\n", "EN kk O123\r\n"),
            ("set k 7 100 5\r\nhello\r\n", "STORED\r\n"),
            ("mg k\r\n", "HD\r\n"),
            ("mg k v\r\n", "VA 5\r\nhello\r\n"),
            ("mg k s v\r\n", "VA 5 s5\r\nhello\r\n"),
            ("mg k t f c Oab k s q\r\n", "HD t100 f7 c1 Oab kk s5\r\n"),
            ("mg k k s c f t Oab v\r\n", "VA 5 kk s5 c1 f7 t100 Oab\r\nhello\r\n"),
            ("mg k Pa/b Lc v\r\n", "VA 5\r\nhello\r\n"),
            ("mg k C1 v c\r\n", "HD c1\r\n"),
            ("mg k C2 v c\r\n", "VA 5 c1\r\nhello\r\n"),
            ("mg k T30 t v\r\n", "VA 5 t30\r\nhello\r\n"),
            ("mg k T0 t\r\n", "HD t-1\r\n"),
            ("ms new 3\r\nhit\r\n", "HD\r\n"),
            ("mg new h l t u\r\n", "HD h0 l0 t-1\r\n"),
            ("mg new h\r\n", "HD h0\r\n"),
            ("mg new h u\r\n", "HD h1\r\n"),
        ],
    );
    server.store.now_ms += 7_500;
    talk(&mut server, &[("mg new l u\r\nmg new l\r\nmg new l\r\n", "HD l7\r\nHD l7\r\nHD l0\r\n")]);
}

#[test]
fn a_base64_key_is_the_bytes_it_stands_for_and_comes_back_as_sent() {
    transcript(
        defaults(),
        &[
            ("ms 44OG44K544OI 2 b k\r\npo\r\n", "HD k44OG44K544OI b\r\n"),
            ("get テスト\r\n", "VALUE テスト 0 2\r\npo\r\nEND\r\n"),
            ("mg 44OG44K544OI v\r\n", "EN\r\n"),
            ("mg 44OG44K544OI b v k\r\n", "VA 2 k44OG44K544OI b\r\npo\r\n"),
            ("mg 44OG44K544OI v k Ox b\r\n", "VA 2 k44OG44K544OI b Ox\r\npo\r\n"),
            ("mg AAAA b k\r\n", "EN kAAAA b\r\n"),
            ("ma Zm9v b N0 J5 v k\r\n", "VA 1 kZm9v b\r\n5\r\n"),
            ("get foo\r\n", "VALUE foo 0 1\r\n5\r\nEND\r\n"),
            ("me Zm9v b\r\n", "ME Zm9v exp=-1 la=0 cas=2 fetch=yes cls=1 size=4\r\n"),
            ("md Zm9v b k q\r\n", ""),
            ("md Zm9v b k q\r\n", "NF kZm9v b\r\n"),
            ("mg Zm9 b v\r\n", "CLIENT_ERROR error decoding key\r\n"),
            ("mg Zm9* b q\r\n", "CLIENT_ERROR error decoding key\r\n"),
            ("ms Zm9 6 b\r\nget k\n\r\n", "CLIENT_ERROR error decoding key\r\n"),
            ("me Zm9 b\r\n", BAD),
        ],
    );
}

#[test]
fn more_base64_keys_than_the_scratch_holds_are_answered_all_the_same() {
    transcript(
        defaults(),
        &[(
            "mg AAAA b k\r\nmg AAAB b k\r\nmg AAAC b k\r\nms AAAD 1 b\r\n1\r\nme AAAD b\r\n",
            "EN kAAAA b\r\nEN kAAAB b\r\nEN kAAAC b\r\nHD\r\n\
             ME AAAD exp=-1 la=0 cas=1 fetch=no cls=1 size=4\r\n",
        )],
    );
}

#[test]
fn a_meta_set_answers_its_flags_whether_it_stored_or_not() {
    transcript(
        defaults(),
        &[
            ("ms a 1\r\n1\r\n", "HD\r\n"),
            ("ms a 1 c\r\n1\r\n", "HD c2\r\n"),
            ("ms a 1 Otest\r\n1\r\n", "HD Otest\r\n"),
            ("ms a 1 s\r\n1\r\n", "HD s1\r\n"),
            ("ms a 1 k q\r\n1\r\n", ""),
            ("ms a 1 F9 T50 k b\r\n1\r\n", "CLIENT_ERROR error decoding key\r\n"),
            ("ms a 1 F9 T50 k t f\r\n1\r\n", "HD ka\r\n"),
            ("mg a f t v\r\n", "VA 1 f9 t50\r\n1\r\n"),
            ("ms a 002 c C99 s k Oz q\r\nno\r\n", "EX c0 s2 ka Oz\r\n"),
            ("ms a 2 c C6\r\nok\r\n", "HD c7\r\n"),
            ("ms x 2 C6 k\r\nno\r\n", "NF kx\r\n"),
            ("ms a 2 C0\r\nno\r\n", "EX\r\n"),
            ("ms a 2 E4000 c\r\nok\r\n", "HD c4000\r\n"),
            ("mg a c\r\n", "HD c4000\r\n"),
        ],
    );
}

#[test]
fn a_meta_set_has_all_the_modes_of_storage() {
    let bad_mode = "CLIENT_ERROR invalid mode for ms M token\r\n";
    transcript(
        defaults(),
        &[
            ("ms m 2 MR\r\nzz\r\n", "NS\r\n"),
            ("ms m 2 MA\r\nzz\r\n", "NS\r\n"),
            ("ms m 2 MA C5000 q\r\nzz\r\n", "NS\r\n"),
            ("ms m 2 MP N0 s\r\nbb\r\n", "HD s2\r\n"),
            ("ms m 2 ME\r\nxx\r\n", "NS\r\n"),
            ("ms m 2 ME C1\r\nxx\r\n", "NS\r\n"),
            ("ms m 2 MA s\r\ncc\r\n", "HD s4\r\n"),
            ("ms m 2 Mp s C2\r\naa\r\n", "HD s6\r\n"),
            ("ms m 2 MA C2\r\naa\r\n", "EX\r\n"),
            ("ms m 0 MA C0\r\n\r\n", "HD\r\n"),
            ("mg m v\r\n", "VA 6\r\naabbcc\r\n"),
            ("ms m 2 MR C99\r\nxx\r\n", "EX\r\n"),
            ("ms m 2 Mreplace\r\nxx\r\n", "HD\r\n"),
            ("ms m 2 MS N30\r\nyy\r\n", "HD\r\n"),
            ("mg m v t\r\n", "VA 2 t-1\r\nyy\r\n"),
            ("ms m 6 MZ q\r\nget m\n\r\n", bad_mode),
            ("ms m 6 M\r\nget m\n\r\n", bad_mode),
            ("ms v 1 MA N30 T60\r\n1\r\nmg v t\r\n", "HD\r\nHD t30\r\n"),
        ],
    );
}

#[test]
fn a_meta_delete_removes_empties_or_marks_stale() {
    transcript(
        defaults(),
        &[
            ("md k\r\n", "NF\r\n"),
            ("md k q k Oq\r\n", "NF kk Oq\r\n"),
            ("set k 3 0 2\r\nhi\r\n", "STORED\r\n"),
            ("md k C7 q\r\n", "EX\r\n"),
            ("md k C1 k O1 c t\r\n", "HD kk O1\r\n"),
            ("set k 3 0 2\r\nhi\r\nmd k q\r\nmn\r\n", "STORED\r\nMN\r\n"),
            ("set k 3 0 2\r\nhi\r\n", "STORED\r\n"),
            ("md k I T30 E99\r\n", "HD\r\n"),
            ("mg k c t v\r\n", "VA 2 c99 t30 X W\r\nhi\r\n"),
            ("mg k c v\r\n", "VA 2 c99 Z X\r\nhi\r\n"),
            ("ms k 1 I T90 C0\r\nf\r\n", "EX\r\n"),
            ("ms k 1 I T90 C98\r\nf\r\n", "HD\r\n"),
            ("mg k s v t\r\n", "VA 1 s1 t30 Z X\r\nf\r\n"),
            ("ms k 1 T90\r\ng\r\n", "HD\r\n"),
            ("mg k s v t\r\n", "VA 1 s1 t90\r\ng\r\n"),
            ("md k x I\r\n", "HD\r\n"),
            ("mg k f s v\r\n", "VA 0 f0 s0 X W\r\n\r\n"),
        ],
    );
}

#[test]
fn one_reader_wins_the_right_to_fill_an_item() {
    let mut server = Server::new(defaults());
    talk(
        &mut server,
        &[
            ("mg k s c v N30 t E9876 q\r\n", "VA 0 s0 c9876 t30 W\r\n\r\n"),
            ("mg k s c v N30 E5\r\n", "VA 0 s0 c9876 Z\r\n\r\n"),
            ("ms k 2 C5000\r\nnu\r\n", "EX\r\n"),
            ("ms k 2 C9876 T120\r\nmu\r\n", "HD\r\n"),
            ("mg k v N30 R120\r\n", "VA 2\r\nmu\r\n"),
            ("mg k v N30 R121\r\n", "VA 2 W\r\nmu\r\n"),
            ("mg k N30 R121\r\n", "HD Z\r\n"),
            ("mg other N-1\r\n", "HD W\r\n"),
            ("mg other\r\n", "EN\r\n"),
        ],
    );
}

#[test]
fn meta_arithmetic_counts_creates_and_tells() {
    let bad_flag = "CLIENT_ERROR invalid or duplicate flag\r\n";
    transcript(
        defaults(),
        &[
            ("ma n\r\n", "NF\r\n"),
            ("ma n q k O1 v c t\r\n", "NF kn O1\r\n"),
            ("ma n N90 J13 v t c\r\n", "VA 2 t90 c1\r\n13\r\n"),
            ("ma n N90 J13 v t\r\n", "VA 2 t90\r\n14\r\n"),
            ("ma n\r\n", "HD\r\n"),
            ("ma n D30 v k Oa\r\n", "VA 2 kn Oa\r\n45\r\n"),
            ("ma n MD D40 v\r\n", "VA 1\r\n5\r\n"),
            ("ma n M- D9000 v\r\n", "VA 1\r\n0\r\n"),
            (
                "ma n M+ v\r\nma n MI v\r\nma n Mincr v\r\n",
                "VA 1\r\n1\r\nVA 1\r\n2\r\nVA 1\r\n3\r\n",
            ),
            ("ma n T300 t q\r\nma n Mdecr t\r\n", "HD t300\r\n"),
            ("ma n C5 v\r\n", "EX\r\n"),
            ("ma n C0 E77 c v\r\n", "VA 1 c77\r\n4\r\n"),
            ("ma n C77 v q\r\n", ""),
            ("ma n MX\r\n", "CLIENT_ERROR invalid mode for ma M token\r\n"),
            ("ma n M\r\n", "CLIENT_ERROR invalid mode for ma M token\r\n"),
            ("ma n Dx\r\n", bad_flag),
            ("ma n v v\r\n", bad_flag),
            ("ma n o q\r\n", bad_flag),
            ("ma n !\r\n", BAD),
            ("ma\r\n", BAD),
            ("set n 0 0 1\r\nx\r\n", "STORED\r\n"),
            ("ma n q\r\n", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
        ],
    );
}

#[test]
fn meta_flags_that_are_wrong_are_told_even_in_quiet_mode() {
    let invalid = "CLIENT_ERROR invalid flag\r\n";
    let duplicate = "CLIENT_ERROR duplicate flag\r\n";
    let too_many = "CLIENT_ERROR options flags are too long\r\n";
    let bad_token = "CLIENT_ERROR bad token in command line format\r\n";
    let opaque = "CLIENT_ERROR opaque token too long\r\n";
    transcript(
        defaults(),
        &[
            ("mg\r\n", BAD),
            ("mg \r\n", BAD),
            ("md\r\n", BAD),
            ("me\r\n", BAD),
            ("mg k S100 q\r\n", invalid),
            ("mg k 5 q\r\n", invalid),
            ("mg k _\r\n", invalid),
            ("mg k q m o o o o o o o o o\r\n", invalid),
            ("mg k v v\r\n", duplicate),
            ("mg k q O1 O2\r\n", duplicate),
            ("mg k q v !\r\n", BAD),
            ("mg k v v \u{fc}\r\n", BAD),
            // Eighteen flags are as many as fit beside the name and the key.
            ("mg k a b c d e f g h i j k l m n o p q r\r\n", invalid),
            ("mg k a b c d e f g h i j k l m n o p q r s\r\n", too_many),
            ("mg k v v v v v v v v v v v v v v v v v v v\r\n", too_many),
            ("ms k 6 a b c d e f g h i j k l m n o p q r\r\nget k\n\r\n", too_many),
            ("mg k N\r\n", bad_token),
            ("mg k Nx v\r\n", bad_token),
            ("mg k T1.5\r\n", bad_token),
            ("mg k R2147483648\r\n", bad_token),
            ("md k C\r\n", bad_token),
            ("md k C18446744073709551616\r\n", bad_token),
            ("md k E-1\r\n", bad_token),
            ("mg k Jx\r\n", "CLIENT_ERROR invalid numeric initial value\r\n"),
            ("mg k D\r\n", "CLIENT_ERROR invalid numeric delta value\r\n"),
            ("mg k F-1\r\n", BAD),
            // The last wrong token is told.
            ("mg k Tx Dx\r\n", "CLIENT_ERROR invalid numeric delta value\r\n"),
            ("mg k Dx Tx Fx\r\n", bad_token),
            ("mg k Tx o\r\n", invalid),
            (&format!("mg k O{}\r\n", "o".repeat(32)), &format!("EN O{}\r\n", "o".repeat(32))),
            (&format!("mg k q O{}\r\n", "o".repeat(33)), opaque),
            (&format!("md k q O{}\r\n", "o".repeat(33)), opaque),
            (&format!("ma k q O{}\r\n", "o".repeat(33)), opaque),
            (&format!("ms k 6 O{}\r\nget k\n\r\n", "o".repeat(33)), opaque),
        ],
    );
}

#[test]
fn meta_debug_tells_what_is_known_of_an_item() {
    let mut server = Server::new(defaults());
    talk(
        &mut server,
        &[
            ("me k\r\n", "EN\r\n"),
            ("set k 0 60 3\r\nabc\r\n", "STORED\r\n"),
            ("me k\r\n", "ME k exp=60 la=0 cas=1 fetch=no cls=1 size=4\r\n"),
            ("get k\r\n", "VALUE k 0 3\r\nabc\r\nEND\r\n"),
        ],
    );
    server.store.now_ms += 2_000;
    talk(&mut server, &[("me k\r\n", "ME k exp=58 la=2 cas=1 fetch=yes cls=1 size=4\r\n")]);
}

#[test]
fn what_is_no_command_is_an_error_and_the_connection_goes_on() {
    transcript(
        defaults(),
        &[
            (" \n", BAD),
            ("\r\n", BAD),
            ("ab\n", BAD),
            ("abc\n", "ERROR\r\n"),
            ("boguscommand slkdsldkfjsd\r\n", "ERROR\r\n"),
            (" get k\r\n", "ERROR\r\n"),
            ("GET k\r\n", "ERROR\r\n"),
            ("get\r\n", BAD),
            ("gets   \r\n", BAD),
            ("mx k\r\n", "ERROR\r\n"),
            ("getx k\r\n", "ERROR\r\n"),
            ("    \r\n", "ERROR\r\n"),
            ("mn\r\n", "MN\r\n"),
        ],
    );
}

#[test]
fn version_and_quit_take_no_arguments() {
    let mut server = transcript(
        defaults(),
        &[
            ("version\r\n", "VERSION 1.6.45\r\n"),
            ("version foo bar\r\n", "VERSION 1.6.45\r\n"),
            ("version noreply\r\n", "VERSION 1.6.45\r\n"),
            ("quit foo bar\r\n", "ERROR\r\n"),
            ("quit noreply\r\n", "ERROR\r\n"),
            ("set k 0 0 1\r\n1\r\nquit\r\nget k\r\n", "STORED\r\n"),
        ],
    );
    assert!(server.closed);
    assert_eq!(server.feed(b"version\r\n"), b"");
}

#[test]
fn statistics_have_their_sub_commands() {
    let usage = "CLIENT_ERROR usage: stats detail on|off|dump\r\n";
    let some = "STAT curr_items 0\r\nEND\r\n";
    transcript(
        defaults(),
        &[
            ("stats\r\n", some),
            ("stats settings\r\n", some),
            ("stats items\r\n", some),
            ("stats slabs\r\n", some),
            ("stats sizes\r\n", some),
            ("stats conns\r\n", some),
            ("stats reset\r\n", "RESET\r\n"),
            ("stats detail on\r\n", "OK\r\n"),
            ("stats detail off\r\n", "OK\r\n"),
            ("stats detail dump\r\n", some),
            ("stats detail\r\n", usage),
            ("stats detail x\r\n", usage),
            ("stats cachedump 1 10\r\n", some),
            ("stats cachedump 1\r\n", "CLIENT_ERROR bad command line\r\n"),
            ("stats cachedump 1 x\r\n", BAD),
            ("stats cachedump 64 1\r\n", "CLIENT_ERROR Illegal slab id\r\n"),
            ("stats noreply\r\n", "ERROR\r\n"),
            ("stats nonsense\r\n", "ERROR\r\n"),
        ],
    );
}

#[test]
fn administration_answers_as_where_the_feature_is_off() {
    transcript(
        defaults(),
        &[
            ("verbosity 1\r\n", "OK\r\n"),
            ("verbosity\r\n", BAD),
            ("verbosity foo bar my\r\n", BAD),
            ("verbosity noreply\r\n", ""),
            ("cache_memlimit 64\r\n", "OK\r\n"),
            ("cache_memlimit x\r\n", "ERROR\r\n"),
            ("cache_memlimit\r\n", "ERROR\r\n"),
            ("cache_memlimit 7\r\n", "MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"),
            (
                "cache_memlimit 1000000001\r\n",
                "MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n",
            ),
            ("shutdown\r\n", "SERVER_ERROR: shutdown not enabled\r\n"),
            ("slabs reassign 1 2\r\n", "CLIENT_ERROR slab reassignment disabled\r\n"),
            ("slabs automove 1\r\n", "OK\r\n"),
            ("slabs automove 3\r\n", "ERROR\r\n"),
            ("slabs automove invalid\r\n", BAD),
            ("slabs\r\n", "ERROR\r\n"),
            ("lru_crawler crawl all\r\n", "CLIENT_ERROR lru crawler disabled\r\n"),
            ("lru_crawler metadump all\r\n", "CLIENT_ERROR lru crawler disabled\r\n"),
            ("lru_crawler mgdump hash\r\n", "CLIENT_ERROR lru crawler disabled\r\n"),
            ("lru_crawler tocrawl 5\r\n", "OK\r\n"),
            ("lru_crawler tocrawl x\r\n", BAD),
            ("lru_crawler sleep 1000000\r\n", "OK\r\n"),
            ("lru_crawler sleep 1000001\r\n", "CLIENT_ERROR sleep must be one second or less\r\n"),
            ("lru_crawler sleep x\r\n", BAD),
            ("lru_crawler disable\r\n", "OK\r\n"),
            ("lru_crawler enable\r\n", "ERROR failed to start lru crawler thread\r\n"),
            ("lru_crawler\r\n", "ERROR\r\n"),
            ("lru mode flat\r\n", "ERROR\r\n"),
            ("lru tune 10 25 0.1 2.0\r\n", "ERROR\r\n"),
            ("extstore item_age 1\r\n", "ERROR\r\n"),
            ("refresh_certs\r\n", "ERROR\r\n"),
            ("watch fetchers\r\n", "CLIENT_ERROR watch commands not allowed\r\n"),
        ],
    );
}

#[test]
fn flush_all_empties_the_store_unless_it_is_not_allowed() {
    transcript(
        defaults(),
        &[
            ("set k 0 0 1\r\n1\r\nflush_all\r\nget k\r\n", "STORED\r\nOK\r\nEND\r\n"),
            ("set k 0 0 1\r\n1\r\nflush_all 0\r\nget k\r\n", "STORED\r\nOK\r\nEND\r\n"),
            ("set k 0 0 1\r\n1\r\nflush_all -1\r\nget k\r\n", "STORED\r\nOK\r\nEND\r\n"),
        ],
    );
    let limits = Limits { flush_enabled: false, ..defaults() };
    transcript(
        limits,
        &[
            ("set k 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("flush_all\r\n", "CLIENT_ERROR flush_all not allowed\r\n"),
            ("flush_all noreply\r\n", ""),
            ("get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
        ],
    );
}

#[test]
fn shutdown_is_a_command_where_it_is_enabled() {
    let limits = Limits { shutdown_enabled: true, ..defaults() };
    let server = transcript(
        limits,
        &[
            ("shutdown foo\r\n", "CLIENT_ERROR invalid shutdown mode\r\n"),
            ("shutdown graceful now\r\n", "CLIENT_ERROR invalid shutdown mode\r\n"),
            ("shutdown graceful\r\nversion\r\n", ""),
        ],
    );
    assert!(server.closed);
    assert!(transcript(limits, &[("shutdown\r\n", "")]).closed);
}

#[test]
fn whoever_speaks_http_or_the_binary_protocol_is_hung_up_on_without_a_word() {
    for line in [
        "GET / HTTP/1.0\r\n",
        "PUT /asdf/asd/fasdfasdf/sadf HTTP/1.1\r\n",
        "DELETE HTTP/1.1\r\n",
        "GET /\r\n",
        "POST /x\r\n",
        "HEAD / HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT host:80 HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\n",
    ] {
        let server = transcript(defaults(), &[(&format!("{line}set k 0 0 1\r\n1\r\n"), "")]);
        assert!(server.closed, "{line:?}");
        assert!(server.store.items.is_empty());
    }
    let mut server = Server::new(defaults());
    assert_eq!(server.feed(b"\x80"), b"");
    assert!(server.closed);

    // In lower case and as data it is nothing special.
    let server = transcript(
        defaults(),
        &[("get / HTTP/1.1\r\n", "END\r\n"), ("set k 0 0 5\r\nGET /\r\n", "STORED\r\n")],
    );
    assert!(!server.closed);
}

#[test]
fn a_line_without_end_closes_the_connection() {
    let limit = 2048;
    // As long as may be, with the end of the line still to come.
    let line = format!("incr {}", "k".repeat(limit - 5));
    transcript(defaults(), &[(&line, ""), ("\n", BAD)]);
    transcript(defaults(), &[(&format!("{line}\n"), BAD)]);
    assert!(transcript(defaults(), &[(&line, ""), ("k", "")]).closed);
    assert!(transcript(defaults(), &[(&format!("{line}k\nversion\r\n"), "")]).closed);
    assert!(transcript(defaults(), &[(&" ".repeat(14_000), "")]).closed);
}

#[test]
fn a_retrieval_may_have_a_long_line_but_not_an_endless_one() {
    let keys = "foobarbaz ".repeat(100_000);
    let mut server = Server::new(defaults());
    talk(&mut server, &[("set foobarbaz 0 0 2\r\nhi\r\n", "STORED\r\n")]);
    let expected = format!("{}END\r\n", "VALUE foobarbaz 0 2\r\nhi\r\n".repeat(100_000));
    for name in ["get ", "gat 0 "] {
        let request = format!("{name}{keys}\r\n");
        assert!(server.feed(request.as_bytes()) == expected.as_bytes(), "{name}");
    }
    let blanks = " ".repeat(2048);
    talk(&mut server, &[(&format!("get {blanks} many"), ""), ("\r\n", "END\r\n")]);

    let endless = "k ".repeat(1 << 19);
    for name in ["get ", "gets ", "gat ", "gats "] {
        let request = format!("{name}{endless}");
        assert!(transcript(defaults(), &[(&request, "")]).closed, "{name}");
    }
}

#[test]
fn nothing_works_before_the_credentials_are_shown() {
    let limits = Limits { auth_required: true, ..defaults() };
    let unauthenticated = "CLIENT_ERROR unauthenticated\r\n";
    let mut server = transcript(
        limits,
        &[
            ("get foo\r\n", unauthenticated),
            ("version\r\n", unauthenticated),
            ("set x\r\n", unauthenticated),
            ("mg foo v\r\n", unauthenticated),
            ("set foo 0 0 -1\r\n", unauthenticated),
            ("set foo 0 0 2\r\nhi\r\n", "CLIENT_ERROR bad authentication token format\r\n"),
            ("set foo 0 0 2147483646\r\n", "CLIENT_ERROR auth token too long\r\n"),
            ("set foo 0 0 13\r\nuser passwordXX", "CLIENT_ERROR bad command line termination\r\n"),
            ("set foo 0 0 8\r\nuser bad\r\n", "CLIENT_ERROR authentication failure\r\n"),
            ("set foo 0 0 13\r\nuser passwo", ""),
            ("rd\r\nset k 0 0 1\r\n1\r\n", "STORED\r\nSTORED\r\n"),
            ("get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n"),
        ],
    );
    assert!(!server.closed);
    server = transcript(limits, &[("get k\r\nquit\r\nget k\r\n", unauthenticated)]);
    assert!(server.closed, "too short to be credentials");
    assert!(transcript(limits, &[("mn\r\n", "")]).closed);
    assert!(transcript(limits, &[(&"x".repeat(2049), "")]).closed);
    assert!(transcript(limits, &[(&format!("get {}", "k ".repeat(1024)), "")]).closed);
}
