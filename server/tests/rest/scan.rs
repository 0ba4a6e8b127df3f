//! Going through a cache.

use std::collections::BTreeSet;

use super::{
    client::{Http, encode},
    common::Node,
};

#[test]
fn every_item_is_told_page_by_page_with_what_is_known_of_it() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    for number in 0..500 {
        let item = format!("/v1/caches/default/keys/user%2F{number}?ttl=60s");
        let headers = [("content-type", if number % 2 == 0 { "text/plain" } else { "x/odd" })];
        http.send("PUT", &item, &headers, number.to_string().as_bytes());
    }
    http.put("/v1/caches/default/keys/other", b"x");
    let (mut found, mut cursor, mut pages) = (BTreeSet::new(), String::new(), 0);
    loop {
        let more = if cursor.is_empty() { String::new() } else { format!("&cursor={cursor}") };
        let target = format!("/v1/caches/default/keys?prefix=user%2F&limit=50&values=true{more}");
        let page = http.get(&target);
        assert_eq!((page.status, page.header("cache-control")), (200, "no-store"));
        pages += 1;
        for item in page.json()["items"].as_array().unwrap() {
            let key = item["key"].as_str().unwrap();
            let number = key.strip_prefix("user/").unwrap();
            assert_eq!(item["href"], format!("/v1/caches/default/keys/user%2F{number}"));
            let odd = number.parse::<u32>().unwrap() % 2 == 1;
            assert_eq!(item["content_type"], if odd { "x/odd" } else { "text/plain" });
            assert_eq!(item["size"], number.len());
            assert!(item["ttl_ms"].as_u64().unwrap() <= 60_000);
            assert!(item["value_base64"].is_string() && item["version"].is_string());
            let read = http.get(item["href"].as_str().unwrap());
            assert_eq!(read.body, number.as_bytes());
            found.insert(key.to_owned());
        }
        match page.json()["cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(found.len(), 500);
    assert!(pages > 3);
}

#[test]
fn keys_that_are_no_text_are_told_in_base64() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    http.put(&format!("/v1/caches/default/keys/{}", encode(&[0xFF, 0xFE])), b"x");
    let page = http.get("/v1/caches/default/keys?prefix=%FF").json();
    let item = &page["items"][0];
    assert_eq!((&item["key_base64"], &item["key"]), (&"//4=".into(), &serde_json::Value::Null));
    assert_eq!(item["href"], "/v1/caches/default/keys/%FF%FE");
    assert_eq!(item["value_base64"], serde_json::Value::Null);
}

#[test]
fn long_keys_fit_on_a_page() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    for letter in "abc".chars() {
        let key = letter.to_string().repeat(32_000);
        assert_eq!(http.put(&format!("/v1/caches/default/keys/{key}"), b"x").status, 201);
    }
    let (mut found, mut cursor) = (BTreeSet::new(), String::new());
    for _ in 0..100 {
        let page = http.get(&format!("/v1/caches/default/keys{cursor}")).json();
        for item in page["items"].as_array().unwrap() {
            found.insert(item["key"].as_str().unwrap()[..1].to_owned());
        }
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("?cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found.into_iter().collect::<String>(), "abc");
}

#[test]
fn what_a_scan_does_not_know_is_refused() {
    let node = Node::start(&[]);
    let http = Http::of(&node);
    for bad in ["?limit=0", "?limit=1001", "?limit=x", "?values=1", "?prefix=%4", "?from=1"] {
        http.get(&format!("/v1/caches/default/keys{bad}")).assert_problem(400, "bad-request");
    }
    for foreign in ["?cursor=%21", "?cursor=AAAA", "?cursor="] {
        http.get(&format!("/v1/caches/default/keys{foreign}")).assert_problem(409, "conflict");
    }
    http.get("/v1/caches/nothing/keys").assert_problem(404, "no-such-cache");
}
