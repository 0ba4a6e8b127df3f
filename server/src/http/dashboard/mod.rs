//! The dashboard: one page that shows what the node, and the cluster it is in, is doing.
//!
//! ```text
//!   page      the page itself: markup, style and script in one document, embedded in the binary
//!   sampler   looks at the node once a second, for all viewers together
//!   reading   counters, and what two readings of them say
//!   history   the last ten minutes
//!   events    what happened, in words
//!   streams   what streams do
//!   snapshot  what a viewer is sent
//!   viewers   the stream of server-sent events
//!   keys      looking through the keys, where that is allowed
//! ```
//!
//! Nothing is loaded from elsewhere, and the content security policy lets nothing be: the page's
//! own script and style are named in it by their hashes.
//!
//! Bounded: the history (ten minutes), the events (200), the viewers ([`viewers::VIEWERS_MAX`]),
//! what waits for a slow viewer (a few ticks; then it is sent a snapshot anew), and a step through
//! the keys. With no viewer a tick costs a reading of the counters.

mod events;
mod history;
mod keys;
mod page;
mod reading;
mod sampler;
mod snapshot;
mod streams;
mod viewers;

use std::sync::Arc;

use axum::{Router, routing::get};

use self::sampler::Dashboard;
use crate::node::Node;

/// The routes of the dashboard. Starts the sampler, so a runtime must be there; it ends with the
/// node.
pub(super) fn routes(node: &Arc<Node>) -> Router<Arc<Node>> {
    let dashboard = Arc::new(Dashboard::new(Arc::clone(node)));
    tokio::spawn(sampler::run(Arc::clone(&dashboard)));
    Router::new()
        .route("/", get(page::show))
        .route("/dashboard/events", get(viewers::watch))
        .route("/dashboard/keys", get(keys::list))
        .route("/dashboard/item", get(keys::show))
        .with_state(dashboard)
}
