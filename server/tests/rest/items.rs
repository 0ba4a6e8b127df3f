//! Items as resources.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::{
    client::{Http, encode},
    common::{Node, eventually},
};

const KEYS: &str = "/v1/caches/default/keys";

#[test]
fn a_value_is_written_read_replaced_and_removed() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/greeting");
    http.get(item).assert_problem(404, "miss");

    let made = http.put(item, b"hello");
    assert_eq!((made.status, made.body.len()), (201, 0));
    let read = http.get(item);
    assert_eq!((read.status, &read.body[..]), (200, &b"hello"[..]));
    assert_eq!(read.header("etag"), made.header("etag"));
    assert_eq!(read.header("content-length"), "5");
    assert_eq!(read.header("content-type"), "application/octet-stream");
    assert_eq!(read.header("cache-control"), "no-cache");
    assert_eq!(read.header("kiln-flags"), "0");
    assert_eq!(read.find("kiln-ttl-ms"), None);
    assert_eq!(read.header("kiln-idle-seconds"), "0");

    let replaced = http.put(item, b"");
    assert_eq!(replaced.status, 204);
    assert_ne!(replaced.header("etag"), made.header("etag"));
    let read = http.get(item);
    assert_eq!((read.status, read.body.len()), (200, 0));

    assert_eq!(http.delete(item).status, 204);
    http.delete(item).assert_problem(404, "miss");
    http.get(item).assert_problem(404, "miss");
}

#[test]
fn head_answers_as_get_without_the_value() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    let missing = http.send("HEAD", item, &[], b"");
    assert_eq!((missing.status, missing.body.len()), (404, 0));
    http.put(item, b"hello");
    let head = http.send("HEAD", item, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let get = http.get(item);
    for name in ["etag", "content-length", "content-type", "kiln-flags", "accept-ranges"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
        assert!(!get.header(name).is_empty(), "{name}");
    }
}

#[test]
fn the_content_type_is_kept_whatever_it_is() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    for content_type in [
        "application/json",
        "text/plain; charset=utf-8",
        "image/png",
        "application/vnd.acme.order+json; version=2",
        "application/octet-stream",
        "x/y",
    ] {
        let headers = [("content-type", content_type)];
        assert!(http.send("PUT", item, &headers, b"[1,2]").status < 300);
        let read = http.get(item);
        assert_eq!((read.header("content-type"), &read.body[..]), (content_type, &b"[1,2]"[..]));
        assert_eq!(read.header("content-length"), "5", "{content_type}");
        let part = http.send("GET", item, &[("range", "bytes=1-2")], b"");
        assert_eq!((part.status, &part.body[..]), (206, &b"1,"[..]), "{content_type}");
        assert_eq!(part.header("content-range"), "bytes 1-2/5");
    }
    for bad in ["text", "text/plain/more", &format!("text/{}", "x".repeat(130))] {
        let answer = http.send("PUT", item, &[("content-type", bad)], b"x");
        answer.assert_problem(415, "unsupported-media-type");
    }
    let encoded = http.send("PUT", item, &[("content-encoding", "gzip")], b"x");
    encoded.assert_problem(415, "unsupported-media-type");
}

#[test]
fn memcached_clients_and_rest_read_the_same_bytes() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let mut memcached = node.connect();
    for (content_type, flags) in
        [("application/json", 0xC701_0000_u32), ("application/octet-stream", 0)]
    {
        http.send("PUT", &format!("{KEYS}/k"), &[("content-type", content_type)], b"{\"a\":1}");
        assert_eq!(memcached.ask("get k\r\n"), format!("VALUE k {flags} 7\r\n"));
        assert_eq!(
            (memcached.line(), memcached.line()),
            ("{\"a\":1}\r\n".into(), "END\r\n".into())
        );
    }
    assert_eq!(memcached.ask("set m 42 0 2\r\nhi\r\n"), "STORED\r\n");
    let read = http.get(&format!("{KEYS}/m"));
    assert_eq!((&read.body[..], read.header("kiln-flags")), (&b"hi"[..], "42"));
    assert_eq!(read.header("content-type"), "application/octet-stream");

    http.send("PUT", &format!("{KEYS}/f?flags=7"), &[("content-type", "text/css")], b"x");
    assert_eq!(memcached.ask("get f\r\n"), "VALUE f 7 1\r\n");
    // The version is one and the same number.
    memcached.line();
    memcached.line();
    let etag = http.get(&format!("{KEYS}/f")).header("etag").trim_matches('"').to_owned();
    assert_eq!(memcached.ask("gets f\r\n"), format!("VALUE f 7 1 {etag}\r\n"));
}

#[test]
fn conditions_are_compare_and_set_add_and_replace() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    let put = |name: &str, value: &str, body: &[u8]| http.send("PUT", item, &[(name, value)], body);

    put("if-match", "*", b"x").assert_problem(412, "condition-failed");
    put("if-match", "\"1\"", b"x").assert_problem(412, "condition-failed");
    assert_eq!(put("if-none-match", "*", b"one").status, 201);
    put("if-none-match", "*", b"x").assert_problem(412, "condition-failed");
    assert_eq!(put("if-match", "*", b"two").status, 204);

    let first = http.get(item).header("etag").to_owned();
    let second = put("if-match", &first, b"three");
    assert_eq!(second.status, 204);
    put("if-match", &first, b"x").assert_problem(412, "condition-failed");
    put("if-match", &format!("W/{}", second.header("etag")), b"x")
        .assert_problem(412, "condition-failed");
    let both = format!("{first}, {}", second.header("etag"));
    assert_eq!(put("if-match", &both, b"four").status, 204);
    put("if-match", &both, b"x").assert_problem(412, "condition-failed");
    put("if-none-match", http.get(item).header("etag"), b"x")
        .assert_problem(412, "condition-failed");
    assert_eq!(put("if-none-match", &both, b"five").status, 204);
    assert_eq!(http.get(item).body, b"five");

    let now = http.get(item).header("etag").to_owned();
    let delete = |value: &str| http.send("DELETE", item, &[("if-match", value)], b"");
    delete(&first).assert_problem(412, "condition-failed");
    assert_eq!(delete(&now).status, 204);
    delete(&now).assert_problem(412, "condition-failed");
    delete("*").assert_problem(412, "condition-failed");
}

#[test]
fn a_reader_that_has_the_value_is_told_so_and_not_sent_it() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    let etag = http.put(item, b"hello").header("etag").to_owned();
    let get = |name: &str, value: &str| http.send("GET", item, &[(name, value)], b"");
    for value in [&etag, "*", &format!("W/{etag}"), &format!("\"0\", {etag}")] {
        let answer = get("if-none-match", value);
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{value}");
        assert_eq!(answer.header("etag"), etag);
    }
    assert_eq!(get("if-none-match", "\"0\"").status, 200);
    assert_eq!(get("if-match", &etag).status, 200);
    get("if-match", "\"0\"").assert_problem(412, "condition-failed");
    get("if-match", "nonsense").assert_problem(400, "bad-request");
}

#[test]
fn an_item_ends_when_its_time_is_over_and_says_how_long_it_has() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    assert_eq!(http.put(&format!("{item}?ttl=60s"), b"x").status, 201);
    let left: u64 = http.get(item).header("kiln-ttl-ms").parse().unwrap();
    assert!((50_000..=60_000).contains(&left), "{left}");
    assert_eq!(http.put(&format!("{item}?ttl=never"), b"x").status, 204);
    assert_eq!(http.get(item).find("kiln-ttl-ms"), None);
    assert_eq!(http.put(&format!("{item}?ttl=50ms"), b"x").status, 204);
    eventually("the item ends", || http.get(item).status == 404);
}

#[test]
fn a_part_of_a_value_can_be_asked_for() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    for len in [10_usize, 300_000] {
        let item = &format!("{KEYS}/{len}");
        let value: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let etag = http.put(item, &value).header("etag").to_owned();
        let get = |range: &str| http.send("GET", item, &[("range", range)], b"");
        for (range, from, to) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=2-5".to_owned(), 2, 6),
            ("bytes=7-".to_owned(), 7, len),
            ("bytes=-3".to_owned(), len - 3, len),
            (format!("bytes={}-99999999999999999999999", len - 1), len - 1, len),
        ] {
            let part = get(&range);
            assert_eq!((part.status, &part.body[..]), (206, &value[from..to]), "{range}");
            let expected = format!("bytes {from}-{}/{len}", to - 1);
            assert_eq!(part.header("content-range"), expected);
            assert_eq!(part.header("content-length"), (to - from).to_string());
        }
        let beyond = get(&format!("bytes={len}-"));
        beyond.assert_problem(416, "range-not-satisfiable");
        assert_eq!(beyond.header("content-range"), format!("bytes */{len}"));
        for whole in ["bytes=5-2", "bytes=0-1,3-4", "lines=1-2"] {
            assert_eq!(get(whole).status, 200, "{whole}");
        }
        let if_range =
            |tag: &str| http.send("GET", item, &[("range", "bytes=0-1"), ("if-range", tag)], b"");
        assert_eq!(if_range(&etag).status, 206);
        assert_eq!(if_range("\"0\"").status, 200);
    }
}

#[test]
fn large_values_are_compressed_for_those_who_accept_it() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let text = "the quick brown fox jumps over the lazy dog\n".repeat(10);
    for (key, repeat) in [("short", 1), ("middle", 20), ("long", 1_000)] {
        let item = &format!("{KEYS}/{key}");
        let value = text.repeat(repeat).into_bytes();
        let etag = http.send("PUT", item, &[("content-type", "text/plain")], &value);
        let etag = etag.header("etag").to_owned();
        for encoding in ["gzip", "zstd"] {
            let answer = http.send("GET", item, &[("accept-encoding", encoding)], b"");
            assert_eq!(answer.status, 200);
            if key == "short" {
                assert_eq!((answer.find("content-encoding"), &answer.body), (None, &value));
                continue;
            }
            assert_eq!(answer.header("content-encoding"), encoding, "{key}");
            assert_eq!(answer.header("vary"), "accept-encoding");
            let tag = format!("{}-{encoding}\"", etag.trim_end_matches('"'));
            assert_eq!(answer.header("etag"), tag);
            assert!(answer.body.len() < value.len() / 4, "{}", answer.body.len());
            let mut plain = Vec::new();
            match encoding {
                "gzip" => {
                    flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut plain).unwrap();
                }
                _ => plain = zstd::decode_all(&answer.body[..]).unwrap(),
            }
            assert!(plain == value, "{key} {encoding}");
            // What came compressed can be named in a condition.
            let headers = [("if-none-match", answer.header("etag"))];
            assert_eq!(http.send("GET", item, &headers, b"").status, 304);
            let head = http.send("HEAD", item, &[("accept-encoding", encoding)], b"");
            assert_eq!(head.header("content-encoding"), encoding);
        }
        let plain = http.send("GET", item, &[("accept-encoding", "br")], b"");
        assert_eq!((plain.find("content-encoding"), plain.body == value), (None, true));
        let part = [("accept-encoding", "gzip"), ("range", "bytes=0-9")];
        assert_eq!(http.send("GET", item, &part, b"").body, &value[..10]);
    }
    let image =
        http.send("PUT", &format!("{KEYS}/i"), &[("content-type", "image/png")], &[0; 9_000]);
    assert_eq!(image.status, 201);
    let image = http.send("GET", &format!("{KEYS}/i"), &[("accept-encoding", "gzip")], b"");
    assert_eq!((image.find("content-encoding"), image.body.len()), (None, 9_000));
}

#[test]
fn the_longest_value_is_stored_and_one_byte_more_is_not() {
    let node = Node::start(&["--memory", "64MiB"]);
    let http = Http::of(&node);
    let item = &format!("{KEYS}/k");
    let value: Vec<u8> =
        (0..1_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(http.put(item, &value).status, 201);
    assert!(http.get(item).body == value);
    let longer = [&value[..], b"x"].concat();
    http.put(item, &longer).assert_problem(413, "too-large");
    assert!(http.get(item).body == value, "the value stays");
    // The same without a length in the head.
    let mut chunked = b"PUT /v1/caches/default/keys/k HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\
        transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for piece in longer.chunks(60_000) {
        chunked.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        chunked.extend([piece, b"\r\n"].concat());
    }
    chunked.extend(b"0\r\n\r\n");
    http.raw(&chunked).assert_problem(413, "too-large");
    assert!(http.get(item).body == value);
}

#[test]
fn a_body_in_chunks_is_stored_whole() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let mut stream = http.connect();
    stream
        .write_all(
            b"PUT /v1/caches/default/keys/k HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\
              transfer-encoding: chunked\r\n\r\n",
        )
        .unwrap();
    let mut expected = Vec::new();
    for number in 0..100_u32 {
        let piece = number.to_string().repeat(1_000).into_bytes();
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).unwrap();
        stream.write_all(&[&piece[..], b"\r\n"].concat()).unwrap();
        expected.extend(piece);
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(http.get(&format!("{KEYS}/k")).body == expected);
}

#[test]
fn any_key_can_be_written_in_an_address() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        ..ProptestConfig::default()
    });
    let key = prop::collection::vec(any::<u8>(), 1..300);
    let tested = runner.run(&(key, any::<Vec<u8>>()), |(key, value)| {
        let item = format!("{KEYS}/{}", encode(&key));
        prop_assert!(matches!(http.put(&item, &value).status, 201 | 204));
        let read = http.get(&item);
        prop_assert_eq!((read.status, &read.body), (200, &value));
        prop_assert_eq!(http.delete(&item).status, 204);
        Ok(())
    });
    tested.unwrap();
    // The same key, however it is written.
    http.put(&format!("{KEYS}/a%2Fb%20~"), b"x");
    assert_eq!(http.get(&format!("{KEYS}/%61%2fb%20%7E")).body, b"x");
    let longest = encode(&[0xFF; 20_000]);
    assert_eq!(http.put(&format!("{KEYS}/{longest}"), b"x").status, 201);
    assert_eq!(http.get(&format!("{KEYS}/{longest}")).body, b"x");
    let plain = "k".repeat(32_000);
    assert_eq!(http.put(&format!("{KEYS}/{plain}"), b"x").status, 201);
    http.put(&format!("{KEYS}/{plain}k"), b"x").assert_problem(414, "key-too-long");
}
