//! The stream of server-sent events that a page reads.
//!
//! A viewer gets a snapshot at first and a tick every second from then on. One that does not keep
//! up is not waited for: what it missed is replaced by a snapshot. There are places for
//! [`VIEWERS_MAX`]; whoever finds none is told when to try again.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::sampler::{Dashboard, Frame};
use crate::http::problem::{Kind, Problem};

/// Viewers at a time.
pub(super) const VIEWERS_MAX: usize = 32;

/// When one without a place may try again.
const RETRY_AFTER_MS: u64 = 10_000;

/// Tells a viewer that the node stops, so that it need not find out by itself.
const GOODBYE: Bytes = Bytes::from_static(b"event: goodbye\ndata: {}\n\n");

/// `GET /dashboard/events`.
pub(super) async fn watch(State(dashboard): State<Arc<Dashboard>>) -> Response {
    let Ok(place) = Arc::clone(&dashboard.places).try_acquire_owned() else {
        let detail = format!("{VIEWERS_MAX} viewers look at this node's dashboard already");
        let refusal = Problem::new(Kind::Unavailable, detail).retry_after_ms(RETRY_AFTER_MS);
        return refusal.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Body::from_stream(events(dashboard, place))).into_response()
}

/// A viewer's place and how far it is.
struct Viewer {
    dashboard: Arc<Dashboard>,
    frames: broadcast::Receiver<Frame>,
    /// Frames up to this one were sent.
    seen: u64,
    _place: OwnedSemaphorePermit,
}

fn events(
    dashboard: Arc<Dashboard>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let (first, frames) = dashboard.subscribe();
    let viewer = Viewer { dashboard, frames, seen: first.seq, _place: place };
    stream::unfold((Some(first.bytes), Some(viewer)), |(ready, viewer)| async {
        let mut viewer = viewer?;
        if let Some(bytes) = ready {
            return Some((Ok(bytes), (None, Some(viewer))));
        }
        match viewer.next().await {
            Some(bytes) => Some((Ok(bytes), (None, Some(viewer)))),
            // Its place is free with this.
            None => Some((Ok(GOODBYE), (None, None))),
        }
    })
}

impl Viewer {
    /// What to send next; `None` when the node stops.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let received = tokio::select! {
                // What was told before the end is still sent.
                biased;
                received = self.frames.recv() => received,
                () = self.dashboard.node.shutdown.begun() => return None,
            };
            let frame = match received {
                Ok(frame) => frame,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.frames = self.frames.resubscribe();
                    self.dashboard.snapshot()
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            if frame.seq > self.seen {
                self.seen = frame.seq;
                return Some(frame.bytes);
            }
        }
    }
}
