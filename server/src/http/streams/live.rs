//! Results as they come: `GET /v1/streams/{stream}/live`, as server-sent events.
//!
//! Each result, alarm and fit is an event of its kind. A follower that does not keep up is not waited
//! for: it is told how many it missed, and finds them in the caches.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast},
    time,
};

use super::stream_of;
use crate::{
    http::{
        gateway::Gateway,
        problem::{Kind, Problem},
        query::Query,
    },
    streams::{FOLLOWERS_MAX, LiveEvent, follower_place},
};

/// What can be followed alone.
const KINDS: [&str; 4] = ["window", "alarm", "fit", "late"];
/// When one without a place may try again.
const RETRY_AFTER_MS: u64 = 10_000;
/// A follower is sent something at least so often, so that it and we see a broken connection.
const SIGN_EVERY: Duration = Duration::from_secs(15);
/// Bytes of events that are sent together.
const TOGETHER_LEN_MAX: usize = 16 << 10;

/// Who follows what.
struct Follower {
    gateway: Arc<Gateway>,
    events: broadcast::Receiver<Arc<LiveEvent>>,
    sensor: Option<Vec<u8>>,
    kind: Option<String>,
    is_new: bool,
    _place: OwnedSemaphorePermit,
}

/// `GET /v1/streams/{stream}/live`.
pub(super) async fn watch(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::parse(request.uri().query(), &["sensor", "kind"])?;
    let stream = stream_of(&gateway.node, request.uri().path())?;
    let Some(place) = follower_place() else {
        let detail = format!("{FOLLOWERS_MAX} clients follow streams of this node already");
        return Err(Problem::new(Kind::Unavailable, detail).retry_after_ms(RETRY_AFTER_MS));
    };
    let kind = query.text("kind")?;
    if kind.is_some_and(|kind| !KINDS.contains(&kind)) {
        let known = KINDS.join(", ");
        return Err(Problem::bad_request(format!("`kind` must be one of {known}")));
    }
    let follower = Follower {
        events: stream.follow(),
        sensor: query.bytes("sensor").map(<[u8]>::to_vec),
        kind: kind.map(str::to_owned),
        gateway: Arc::clone(&gateway),
        is_new: true,
        _place: place,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, Body::from_stream(events(follower))).into_response())
}

fn events(follower: Follower) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Some(bytes) => Some((Ok(bytes), Some(follower))),
            None => Some((Ok(Bytes::from_static(b"event: goodbye\ndata: {}\n\n")), None)),
        }
    })
}

impl Follower {
    /// What to send next; `None` when the node stops.
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.is_new) {
            // So that a client knows that what comes from here on reaches it.
            return Some(Bytes::from_static(b": following\n\n"));
        }
        let mut text = String::new();
        loop {
            let received = if text.is_empty() {
                tokio::select! {
                    received = self.events.recv() => received,
                    () = time::sleep(SIGN_EVERY) => return Some(Bytes::from_static(b":\n\n")),
                    () = self.gateway.node.shutdown.begun() => return None,
                }
            } else {
                match self.events.try_recv() {
                    Ok(event) => Ok(event),
                    Err(broadcast::error::TryRecvError::Lagged(n)) => {
                        Err(broadcast::error::RecvError::Lagged(n))
                    }
                    Err(_) => return Some(text.into()),
                }
            };
            match received {
                Ok(event) if self.wants(&event) => {
                    text.push_str("event: ");
                    text.push_str(event.kind);
                    text.push_str("\ndata: ");
                    text.push_str(&event.text);
                    text.push_str("\n\n");
                }
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    text.push_str(&format!("event: missed\ndata: {{\"events\":{missed}}}\n\n"));
                }
                // The stream was dropped.
                Err(broadcast::error::RecvError::Closed) => return None,
            }
            if text.len() >= TOGETHER_LEN_MAX {
                return Some(text.into());
            }
        }
    }

    fn wants(&self, event: &LiveEvent) -> bool {
        self.sensor.as_ref().is_none_or(|sensor| **sensor == *event.sensor)
            && self.kind.as_ref().is_none_or(|kind| kind == event.kind)
    }
}
