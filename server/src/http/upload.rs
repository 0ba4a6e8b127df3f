//! Bodies on their way in.
//!
//! A body is received whole before anything is done with it: one that is cut off in the middle, is
//! too long or comes too slowly changes nothing. What bodies hold together while they come in is
//! drawn from the node's budgets, as on every other protocol: a long one waits for its place before
//! it is read.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use futures_util::StreamExt;
use tokio::{sync::OwnedSemaphorePermit, time};

use crate::{
    connection::budget::Share,
    http::{
        problem::{Kind, Problem},
        value::BUSY_RETRY_MS,
    },
    node::Node,
};

/// Bodies longer than this wait for a place before they are read.
const SHORT_LEN_MAX: usize = 64 << 10;

/// Of a body that is too long so much is read and thrown away, for so long: a client that only
/// writes would not see the answer before it is done.
const DRAIN_LEN_MAX: usize = 16 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// A body that came whole.
pub(super) struct Upload {
    /// Its bytes, behind what they were to be put behind.
    pub(super) bytes: Vec<u8>,
    _permit: Option<OwnedSemaphorePermit>,
    _share: Share,
}

/// Receives a body of at most `len_max` bytes, and puts it behind `before`.
pub(super) async fn receive(
    node: &Node,
    mut body: Body,
    len_max: usize,
    before: &str,
) -> Result<Upload, Problem> {
    let too_long = || {
        Problem::new(Kind::TooLarge, format!("the body is longer than the {len_max} bytes allowed"))
    };
    let busy = || {
        let detail = "there is no room to receive the body now";
        Problem::new(Kind::Unavailable, detail).retry_after_ms(BUSY_RETRY_MS)
    };
    let known = body.size_hint().exact().map(|len| usize::try_from(len).unwrap_or(usize::MAX));
    if known.is_some_and(|len| len > len_max) {
        drain(&mut body).await;
        return Err(too_long());
    }
    let mut share = node.budget.buffers();
    let mut permit = None;
    match known {
        // Nothing of it is held while it waits.
        Some(len) if len > SHORT_LEN_MAX => {
            permit = Some(node.budget.admit(len).await.ok_or_else(busy)?);
        }
        // A short body, also one that may yet become long, is drawn from the buffers.
        _ if !share.resize(known.unwrap_or(0) + before.len()) => return Err(busy()),
        _ => {}
    }
    let mut bytes = Vec::with_capacity(known.unwrap_or(0) + before.len());
    bytes.extend_from_slice(before.as_bytes());
    let end = len_max + before.len();
    let time_max = node.config.http_request_timeout.0;
    let deadline = time::Instant::now() + time_max;
    let mut pieces = body.into_data_stream();
    loop {
        let piece = match time::timeout_at(deadline, pieces.next()).await {
            Err(_) => {
                let detail = format!("the body took longer than {} s", time_max.as_secs());
                return Err(Problem::new(Kind::TooSlow, detail));
            }
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(Problem::bad_request("the body was cut off")),
            Ok(Some(Ok(piece))) => piece,
        };
        if piece.len() > end - bytes.len() {
            return Err(too_long());
        }
        if known.is_none() && permit.is_none() {
            let len = bytes.len() + piece.len();
            if len <= SHORT_LEN_MAX {
                if !share.resize(len) {
                    return Err(busy());
                }
            } else {
                // How long it becomes is unknown: it has to be taken for the longest. What it has
                // so far stays drawn, too, while it waits.
                permit = Some(node.budget.admit(len_max).await.ok_or_else(busy)?);
                share.resize(0);
            }
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Upload { bytes, _permit: permit, _share: share })
}

async fn drain(body: &mut Body) {
    let mut read = 0;
    let until_done = async {
        let mut pieces = std::mem::take(body).into_data_stream();
        while let Some(Ok(piece)) = pieces.next().await {
            read += piece.len();
            if read > DRAIN_LEN_MAX {
                break;
            }
        }
    };
    // Whether it was all of it does not matter: the answer is the same.
    let _ = time::timeout(DRAIN_TIME_MAX, until_done).await;
}
