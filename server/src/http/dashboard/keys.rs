//! Looking through the keys of a cache, where the setting `dashboard_keys` allows it.
//!
//! Keys are any bytes: the page asks for them in URL-safe base64 and shows the text made here. A
//! step is bounded in keys told, in items looked at and in bytes, and ends with a cursor; a prefix
//! that few keys have takes several. Of several nodes each tells of the items that it answers for
//! (see `across`). Looking does not count as use: what is looked at leaves no
//! later for it.

use std::sync::Arc;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use kiln_engine::{ItemInfo, Store};
use kiln_protocol::command::{Command, Get, ItemMeta, Outcome};
use serde::{Deserialize, Serialize};

use super::sampler::Dashboard;
use crate::{
    caches::Cache,
    http::{
        across::{self, Step, Stop},
        items::refusal,
        once, percent,
        problem::{self, Kind, Problem},
    },
    native::scan::Lens,
    node::Node,
    perform::{OwnedValue, perform},
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
    cursor: Option<String>,
    /// Only what this node answers for.
    #[serde(default)]
    here: bool,
}

/// What is asked of an item.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ItemQuery {
    cache: String,
    /// In base64.
    key: String,
}

#[derive(Serialize, Deserialize)]
struct List {
    keys: Vec<Listed>,
    /// Where to go on; nothing at the end.
    cursor: Option<String>,
    /// Items looked at.
    seen: usize,
    /// Keys with the prefix that were too many or too long for one step.
    left_out: usize,
}

#[derive(Serialize, Deserialize)]
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
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let node = &*dashboard.node;
    let query = allowed(node, query)?;
    let prefix = bytes("prefix", &query.prefix)?;
    let cache = cache(node, &query.cache)?;
    let table = if query.here { None } else { across::table(node) };
    let bad_cursor = || Problem::bad_request("the cursor is not one of this list");
    let here = |place: Option<String>| {
        let start = place.map_or(Ok(0), |place| place.parse()).map_err(|_| bad_cursor())?;
        let now_ms = node.clock.now_ms();
        Ok(walk(&cache.store, &Lens::of(node, &cache, now_ms), &prefix, start, now_ms))
    };
    let step = across::step(table.as_ref(), query.cursor.as_deref()).map_err(|_| bad_cursor())?;
    let list = match step {
        Step::Here(place) => here(place)?,
        Step::End => List { keys: Vec::new(), cursor: None, seen: 0, left_out: 0 },
        Step::At(Stop { node: at, address, place }) => {
            let list = match address {
                None => here(place)?,
                Some(address) => there(&address, &query, place, &headers).await?,
            };
            let cursor =
                table.and_then(|(table, _)| across::cursor(&table, at, list.cursor.as_deref()));
            List { cursor, ..list }
        }
    };
    Ok(json(&list))
}

/// A step on another node.
async fn there(
    address: &str,
    query: &ListQuery,
    place: Option<String>,
    headers: &HeaderMap,
) -> Result<List, Problem> {
    let (cache, prefix) = (percent::encode(query.cache.as_bytes()), &query.prefix);
    let prefix = percent::encode(prefix.as_bytes());
    let cursor = place.map_or(String::new(), |place| format!("&cursor={place}"));
    let target = format!("/dashboard/keys?here=true&cache={cache}&prefix={prefix}{cursor}");
    let body = across::ask(address, &target, headers).await?;
    serde_json::from_slice(&body).map_err(|_| {
        Problem::new(
            Kind::Unavailable,
            format!("the answer of the node at {address} cannot be read"),
        )
    })
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
    let get = Command::Get(Get { no_bump: true, ..Get::plain(&key) });
    let performed = perform(node, &cache, get).await;
    match (performed.outcome, performed.value) {
        (Outcome::Hit(item), Some(value)) => Ok(json(&Item::of(&key, &item, &value))),
        (outcome, _) => Err(refusal(&outcome)),
    }
}

impl Item {
    fn of(key: &[u8], item: &ItemMeta, value: &OwnedValue) -> Self {
        Self {
            text: text(key),
            value_len: item.value_len,
            ttl_ms: item.ttl_ms,
            flags: item.flags,
            version: item.version.to_string(),
            idle_s: item.idle_s,
            preview: BASE64_STANDARD.encode(value.copy(0..item.value_len.min(PREVIEW_LEN))),
        }
    }
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
fn walk(store: &Store, lens: &Lens, prefix: &[u8], start: u64, now_ms: u64) -> List {
    let mut list = List { keys: Vec::new(), cursor: None, seen: 0, left_out: 0 };
    let (mut at, mut bytes) = (Some(start), 0);
    for _ in 0..LOOKS_MAX {
        let Some(place) = at else { break };
        let step = store.scan(place, 1, lens.clock_ms(), |entry| {
            let shown = lens.shows(entry.key, &entry.info) && !once::is_of_request(entry.key);
            if !shown || !entry.key.starts_with(prefix) {
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
        at = step.next;
        if list.keys.len() >= KEYS_MAX || list.seen >= SEEN_MAX || bytes > KEY_BYTES_MAX {
            break;
        }
    }
    list.cursor = at.map(|place| place.to_string());
    list
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
            let list = walk(store, &Lens::all(2), prefix, cursor, 2);
            assert!(list.keys.len() <= 2 * KEYS_MAX && list.left_out == 0);
            found.extend(list.keys.into_iter().map(|key| key.text));
            steps += 1;
            match list.cursor {
                Some(next) => cursor = next.parse().unwrap(),
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
            let list = walk(&store, &Lens::all(2), b"k", cursor, 2);
            assert!(list.keys.iter().map(|key| key.key.len()).sum::<usize>() < 2 * KEY_BYTES_MAX);
            told += list.keys.len();
            left_out += list.left_out;
            match list.cursor {
                Some(next) => cursor = next.parse().unwrap(),
                None => break,
            }
        }
        assert_eq!(told + left_out, 64);
        assert!(told > 0);
    }

    #[test]
    fn an_item_is_shown_with_the_beginning_of_its_value() {
        let value: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        let show = |value: &[u8]| {
            let item = ItemMeta { value_len: value.len(), ..ItemMeta::default() };
            Item::of(b"k", &item, &OwnedValue::Copied(value.to_vec().into()))
        };
        assert_eq!(show(&value).value_len, 100_000);
        assert_eq!(BASE64_STANDARD.decode(show(&value).preview).unwrap(), value[..PREVIEW_LEN]);
        assert_eq!(BASE64_STANDARD.decode(show(b"\x00text").preview).unwrap(), b"\x00text");
        assert_eq!(glance(&value[65..75]), "ABCDEFGHIJ");
        assert_eq!(glance(&[b'v'; GLANCE_LEN]), "v".repeat(GLANCE_LEN));
        assert_eq!(glance(&[b'v'; GLANCE_LEN + 1]), "v".repeat(GLANCE_LEN) + "…");
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
