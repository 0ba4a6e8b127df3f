//! Looking through the keys of a cache, where the setting `dashboard_keys` allows it.
//!
//! Keys are any bytes: the page asks for them in URL-safe base64 and shows the text made here. A
//! step is bounded in keys told, in items looked at and in bytes, and ends with a cursor; a prefix
//! that few keys have takes several. Looking does not count as use: what is looked at leaves no
//! later for it.

use std::sync::Arc;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use kiln_engine::{GetOptions, ItemInfo, Store, Value};
use serde::{Deserialize, Serialize};

use super::sampler::Dashboard;
use crate::{
    caches::Cache,
    http::problem::{self, Kind, Problem},
    node::Node,
};

/// Keys told in one step; the last place of the store may add some.
const KEYS_MAX: usize = 50;

/// Items looked at in one step, about.
const SEEN_MAX: usize = 16_384;

/// Looks into the index in one step: where it is nearly empty, few items are seen in many.
const LOOKS_MAX: usize = 2_048;

/// Bytes of keys told in one step: longer ones are left out and counted.
const KEY_BYTES_MAX: usize = 64 << 10;

/// Bytes of a value in the list, and of one that is looked at by itself.
const GLANCE_LEN: usize = 96;
const PREVIEW_LEN: usize = 8 << 10;

/// Characters of a key that is only for reading.
const TEXT_LEN_MAX: usize = 200;

/// What is asked of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    cache: String,
    /// In base64.
    #[serde(default)]
    prefix: String,
    cursor: Option<u64>,
}

/// What is asked of an item.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ItemQuery {
    cache: String,
    /// In base64.
    key: String,
}

#[derive(Serialize)]
struct List {
    keys: Vec<Listed>,
    /// Where to go on; nothing at the end.
    cursor: Option<u64>,
    /// Items looked at.
    seen: usize,
    /// Keys with the prefix that were too many or too long for one step.
    left_out: usize,
}

#[derive(Serialize)]
struct Listed {
    /// In base64.
    key: String,
    text: String,
    value_len: usize,
    ttl_ms: Option<u64>,
    /// The beginning of the value; nothing for a large one.
    glance: Option<String>,
}

#[derive(Serialize)]
struct Item {
    text: String,
    value_len: usize,
    ttl_ms: Option<u64>,
    flags: u32,
    /// As text: JavaScript's numbers end at 2^53.
    version: String,
    idle_s: u32,
    /// In base64: the first bytes of the value.
    preview: String,
}

/// `GET /dashboard/keys`.
pub(super) async fn list(
    State(dashboard): State<Arc<Dashboard>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let node = &*dashboard.node;
    let query = allowed(node, query)?;
    let prefix = bytes("prefix", &query.prefix)?;
    let cache = cache(node, &query.cache)?;
    let start = query.cursor.unwrap_or(0);
    Ok(json(&walk(&cache.store, &prefix, start, node.clock.now_ms())))
}

/// `GET /dashboard/item`.
pub(super) async fn show(
    State(dashboard): State<Arc<Dashboard>>,
    query: Result<Query<ItemQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let node = &*dashboard.node;
    let query = allowed(node, query)?;
    let key = bytes("key", &query.key)?;
    let cache = cache(node, &query.cache)?;
    let item = look(&cache.store, &key, node.clock.now_ms());
    let item = item.ok_or_else(|| Problem::new(Kind::Miss, "the cache has no item with this key"));
    Ok(json(&item?))
}

fn allowed<T>(node: &Node, query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    if !node.config.dashboard_keys.0 {
        let detail = "looking through keys is turned off on this node (dashboard_keys)";
        return Err(Problem::new(Kind::Forbidden, detail));
    }
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    Ok(query)
}

fn bytes(what: &str, text: &str) -> Result<Vec<u8>, Problem> {
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Problem::bad_request(format!("the {what} must be URL-safe base64")))
}

fn cache(node: &Node, name: &str) -> Result<Arc<Cache>, Problem> {
    let table = node.caches.load();
    let found = table.by_name(name).map(|(_, cache)| Arc::clone(cache));
    found.ok_or_else(|| Problem::new(Kind::NoSuchCache, "there is no cache of this name"))
}

/// A step through a store.
fn walk(store: &Store, prefix: &[u8], start: u64, now_ms: u64) -> List {
    let mut list = List { keys: Vec::new(), cursor: Some(start), seen: 0, left_out: 0 };
    let mut bytes = 0;
    for _ in 0..LOOKS_MAX {
        let Some(cursor) = list.cursor else { break };
        let step = store.scan(cursor, 1, now_ms, |entry| {
            if !entry.key.starts_with(prefix) {
                return;
            }
            bytes += entry.key.len();
            if list.keys.len() >= 2 * KEYS_MAX || bytes > KEY_BYTES_MAX {
                list.left_out += 1;
                return;
            }
            list.keys.push(Listed {
                key: BASE64_URL_SAFE_NO_PAD.encode(entry.key),
                text: text(entry.key),
                value_len: entry.info.value_len,
                ttl_ms: ttl_ms(&entry.info, now_ms),
                glance: entry.value.map(glance),
            });
        });
        list.seen += step.seen;
        list.cursor = step.next;
        if list.keys.len() >= KEYS_MAX || list.seen >= SEEN_MAX || bytes > KEY_BYTES_MAX {
            break;
        }
    }
    list
}

fn look(store: &Store, key: &[u8], now_ms: u64) -> Option<Item> {
    let options = GetOptions { no_bump: true, ..GetOptions::default() };
    store.get(key, Store::hash(key), &options, now_ms, |info, value| {
        let mut preview = Vec::new();
        let mut add = |piece: &[u8]| {
            let room = PREVIEW_LEN - preview.len();
            preview.extend_from_slice(&piece[..piece.len().min(room)]);
        };
        match value {
            Value::Inline(bytes) => add(bytes),
            Value::Large(pinned) => pinned.slices().iter().for_each(|piece| add(piece)),
        }
        Item {
            text: text(key),
            value_len: info.value_len,
            ttl_ms: ttl_ms(info, now_ms),
            flags: info.flags,
            version: info.version.to_string(),
            idle_s: info.idle_s,
            preview: BASE64_STANDARD.encode(&preview),
        }
    })
}

fn glance(value: &[u8]) -> String {
    match value.split_at_checked(GLANCE_LEN) {
        Some((beginning, [_, ..])) => text(beginning) + "…",
        _ => text(value),
    }
}

fn ttl_ms(info: &ItemInfo, now_ms: u64) -> Option<u64> {
    info.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms))
}

/// Bytes for people: text where they are text, the rest escaped; long ones are cut.
pub(super) fn text(bytes: &[u8]) -> String {
    let (mut text, mut len) = (String::new(), 0);
    let pieces = bytes.utf8_chunks().flat_map(|chunk| {
        let characters = chunk.valid().chars().map(|character| {
            if character.is_control() || is_invisible(character) {
                character.escape_default().to_string()
            } else {
                character.to_string()
            }
        });
        characters.chain(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")))
    });
    for piece in pieces {
        if len >= TEXT_LEN_MAX {
            text.push('…');
            break;
        }
        len += piece.chars().count();
        text.push_str(&piece);
    }
    text
}

/// Marks of direction and the like would let one key look like another.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let headers = [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (headers, body).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "cannot write an answer of the dashboard");
            problem::internal_error()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_engine::{StoreConfig, WriteOptions};
    use std::collections::BTreeSet;

    fn store() -> Store {
        Store::new(StoreConfig { memory: 32 << 20, ..StoreConfig::default() }).unwrap()
    }

    fn write(store: &Store, key: &[u8], value: &[u8]) {
        store.write(key, Store::hash(key), value, &WriteOptions::default(), 1);
    }

    fn walk_all(store: &Store, prefix: &[u8]) -> (BTreeSet<String>, usize) {
        let (mut found, mut steps, mut cursor) = (BTreeSet::new(), 0, 0);
        loop {
            let list = walk(store, prefix, cursor, 2);
            assert!(list.keys.len() <= 2 * KEYS_MAX && list.left_out == 0);
            found.extend(list.keys.into_iter().map(|key| key.text));
            steps += 1;
            match list.cursor {
                Some(next) => cursor = next,
                None => return (found, steps),
            }
        }
    }

    #[test]
    fn every_key_with_the_prefix_is_found_in_bounded_steps() {
        let store = store();
        for number in 0..50_000 {
            write(&store, format!("user:{number}").as_bytes(), b"v");
        }
        write(&store, b"session:1", b"v");
        assert_eq!(walk_all(&store, b"session:").0, BTreeSet::from(["session:1".to_owned()]));
        assert!(walk_all(&store, b"session:").1 > 1);
        assert_eq!(walk_all(&store, b"user:").0.len(), 50_000);
        assert!(walk_all(&store, b"nothing").0.is_empty());
    }

    #[test]
    fn keys_too_long_for_a_step_are_counted_rather_than_told() {
        let store = store();
        for number in 0..64 {
            let mut key = vec![b'k'; 30_000];
            key.extend_from_slice(format!("{number}").as_bytes());
            write(&store, &key, b"v");
        }
        let (mut told, mut left_out, mut cursor) = (0, 0, 0);
        loop {
            let list = walk(&store, b"k", cursor, 2);
            assert!(list.keys.iter().map(|key| key.key.len()).sum::<usize>() < 2 * KEY_BYTES_MAX);
            told += list.keys.len();
            left_out += list.left_out;
            match list.cursor {
                Some(next) => cursor = next,
                None => break,
            }
        }
        assert_eq!(told + left_out, 64);
        assert!(told > 0);
    }

    #[test]
    fn an_item_is_shown_with_the_beginning_of_its_value() {
        let store = store();
        let value: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        write(&store, b"large", &value);
        write(&store, b"small", b"\x00text");
        let item = look(&store, b"large", 2).unwrap();
        assert_eq!(item.value_len, 100_000);
        assert_eq!(BASE64_STANDARD.decode(item.preview).unwrap(), value[..PREVIEW_LEN]);
        let item = look(&store, b"small", 2).unwrap();
        assert_eq!(BASE64_STANDARD.decode(item.preview).unwrap(), b"\x00text");
        assert_eq!(glance(&value[65..75]), "ABCDEFGHIJ");
        assert_eq!(glance(&[b'v'; GLANCE_LEN]), "v".repeat(GLANCE_LEN));
        assert_eq!(glance(&[b'v'; GLANCE_LEN + 1]), "v".repeat(GLANCE_LEN) + "…");
        assert!(item.ttl_ms.is_none() && look(&store, b"absent", 2).is_none());
    }

    #[test]
    fn a_key_can_neither_hide_nor_look_like_another() {
        assert_eq!(text("user:größe".as_bytes()), "user:größe");
        assert_eq!(text(b"a\n\x00\xff"), "a\\n\\u{0}\\xff");
        assert_eq!(text("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        let long = text(&[b'x'; 1_000]);
        assert_eq!(long.chars().count(), TEXT_LEN_MAX + 1);
        assert!(long.ends_with('…') && !text(&[b'x'; TEXT_LEN_MAX]).ends_with('…'));
        let escaped = text(&[0xff; 60]);
        assert!(escaped.ends_with("\\xff…") && escaped.len() < 2 * TEXT_LEN_MAX);
    }
}
