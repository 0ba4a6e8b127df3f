//! Going through a cache: `GET /v1/caches/{cache}/keys`.
//!
//! A page ends with a cursor, which is the place to go on from; the node holds nothing between
//! pages. In a cluster a page has items of one node, and the cursor leads from node to node (see
//! `across`); `?scope=node` stays on the node that is asked. Items that are there from the first page to the last are told at least once, in no order.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as CURSOR},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    across::{self, Step, Stop},
    gateway::Gateway,
    items::cache_of,
    media, once, percent,
    problem::{Kind, Problem},
    query::Query,
    value::{self, BUSY_RETRY_MS},
};
use crate::{
    caches::Cache,
    native::scan::ITEMS_MAX,
    node::Node,
    perform::{ScanStep, ScannedItem, scan},
};

/// Items on a page when nobody says how many.
pub(super) const LIMIT_DEFAULT: usize = 100;

/// Bytes of keys and values on a page.
const PAGE_LEN_MAX: usize = 512 << 10;

/// What a page takes for each byte of keys and values, at most: keys are told as text, in base64
/// and in an address.
const EXPANSION: usize = 12;

/// A part of a cache.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Page {
    /// Some items.
    items: Vec<Found>,
    /// Send it with the next request to go on; not there at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// One item of a page.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = FoundItem)]
pub(super) struct Found {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "greeting")]
    key: Option<String>,
    /// The key, in base64.
    #[schema(format = "byte", example = "Z3JlZXRpbmc=")]
    key_base64: String,
    /// Where the item is.
    #[schema(format = "uri-reference", example = "/v1/caches/default/keys/greeting")]
    href: String,
    /// Its version.
    #[schema(example = "17")]
    version: String,
    /// Length of its value in bytes.
    #[schema(minimum = 0)]
    size: usize,
    /// Its content type, where that can be told without the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// Its flag bits.
    #[schema(minimum = 0)]
    flags: u32,
    /// Milliseconds until it ends, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    ttl_ms: Option<u64>,
    /// Its value, in base64, when that was asked for and there was room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = "byte")]
    value_base64: Option<String>,
}

/// `GET …/keys`.
pub(super) async fn run(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, _) = request.into_parts();
    const NAMES: &[&str] = &["prefix", "cursor", "limit", "values", "scope"];
    let query = Query::parse(parts.uri.query(), NAMES)?;
    let node = &gateway.node;
    let segment = parts.uri.path().split('/').nth(3).unwrap_or_default();
    let cache = cache_of(node, segment)?;
    let limit = query.number("limit", ITEMS_MAX as u64)?.unwrap_or(LIMIT_DEFAULT as u64);
    if limit == 0 {
        return Err(Problem::bad_request("`limit` must be above 0"));
    }
    let wish = Wish {
        prefix: query.bytes("prefix").unwrap_or_default(),
        limit: limit as usize,
        values: query.switch("values")?,
    };
    let cursor = query.text("cursor")?;
    let table = match query.text("scope")? {
        None | Some("cluster") => across::table(node),
        Some("node") => None,
        Some(_) => return Err(Problem::bad_request("`scope` must be cluster or node")),
    };
    let mut share = node.budget.buffers();
    if !share.resize(PAGE_LEN_MAX) {
        let detail = "there is no room for a page now";
        return Err(Problem::new(Kind::Unavailable, detail).retry_after_ms(BUSY_RETRY_MS));
    }
    node.http.count_operations(1);
    let page = match across::step(table.as_ref(), cursor).map_err(|_| bad_cursor())? {
        Step::Here(place) => wish.here(node, &cache, place.as_deref()).await?,
        Step::End => Page { items: Vec::new(), cursor: None },
        Step::At(Stop { node: at, address, place }) => {
            let page = match address {
                None => wish.here(node, &cache, place.as_deref()).await?,
                Some(address) => {
                    let name = &cache.settings.name;
                    wish.there(&address, name, place.as_deref(), &parts.headers).await?
                }
            };
            let cursor =
                table.and_then(|(table, _)| across::cursor(&table, at, page.cursor.as_deref()));
            Page { cursor, ..page }
        }
    };
    let bytes = serde_json::to_vec(&page)
        .map_err(|_| Problem::new(Kind::Internal, "the page has no form"))?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::OK, headers, value::held(bytes.into(), share)).into_response())
}

/// What is asked of each page.
struct Wish<'a> {
    prefix: &'a [u8],
    limit: usize,
    values: bool,
}

impl Wish<'_> {
    /// A page of what this node answers for.
    async fn here(
        &self,
        node: &Node,
        cache: &Arc<Cache>,
        place: Option<&str>,
    ) -> Result<Page, Problem> {
        let place = place.map(|text| CURSOR.decode(text).map_err(|_| bad_cursor())).transpose()?;
        let step = ScanStep {
            cursor: place.as_deref(),
            prefix: self.prefix,
            limit: self.limit,
            values: self.values,
            room: PAGE_LEN_MAX / EXPANSION,
        };
        let scanned = scan(node, cache, &step).await.map_err(|_| bad_cursor())?;
        let items = scanned.items.into_iter().filter(|item| !once::is_of_request(&item.key));
        Ok(Page {
            items: items.map(|item| found(&cache.settings.name, item)).collect(),
            cursor: scanned.cursor.map(|cursor| CURSOR.encode(cursor)),
        })
    }

    /// A page of what another node answers for.
    async fn there(
        &self,
        address: &str,
        cache: &str,
        place: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Page, Problem> {
        let mut target = format!(
            "/v1/caches/{cache}/keys?scope=node&limit={}&values={}&prefix={}",
            self.limit,
            self.values,
            percent::encode(self.prefix),
        );
        if let Some(place) = place {
            target.push_str("&cursor=");
            target.push_str(&percent::encode(place.as_bytes()));
        }
        let body = across::ask(address, &target, headers).await?;
        serde_json::from_slice(&body).map_err(|_| {
            let detail = format!("the answer of the node at {address} cannot be read");
            Problem::new(Kind::Unavailable, detail).retry_after_ms(BUSY_RETRY_MS)
        })
    }
}

fn bad_cursor() -> Problem {
    Problem::new(Kind::Conflict, "`cursor` is not one of this cache")
}

fn found(cache: &str, item: ScannedItem) -> Found {
    let ScannedItem { key, meta, value } = item;
    let start = media::spelled_len(meta.flags, meta.value_len);
    // A type that is spelled out stands before the value, and is known only with it.
    let content_type = match &value {
        Some(value) => media::read(meta.flags, &value[..start.min(value.len())]),
        None if start == 0 => media::read(meta.flags, &[]),
        None => None,
    };
    let start = if value.is_some() && content_type.is_none() { 0 } else { start };
    Found {
        key: std::str::from_utf8(&key).ok().map(str::to_owned),
        key_base64: BASE64.encode(&key),
        href: format!("/v1/caches/{cache}/keys/{}", percent::encode(&key)),
        version: meta.version.to_string(),
        size: meta.value_len - start,
        content_type: content_type.and_then(|value| value.to_str().ok().map(str::to_owned)),
        flags: meta.flags,
        ttl_ms: meta.ttl_ms,
        value_base64: value.map(|value| BASE64.encode(&value[start.min(value.len())..])),
    }
}

/// The longest key fits on a page.
const _: () = assert!(PAGE_LEN_MAX / EXPANSION > kiln_engine::KEY_LEN_MAX + 1_024);
