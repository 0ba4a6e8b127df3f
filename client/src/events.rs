//! What happens to a client's connections and to its view of the cluster.

use std::sync::Arc;

use tokio::sync::broadcast;

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection is up.
    Connected {
        /// The node's address.
        address: Arc<str>,
        /// The node's name.
        node: Arc<str>,
    },
    /// A connection was lost. It is made again by itself.
    Disconnected {
        /// The node's address.
        address: Arc<str>,
        /// How it ended.
        error: Arc<std::io::Error>,
    },
    /// An attempt to connect failed. There will be another.
    ConnectFailed {
        /// The node's address.
        address: Arc<str>,
        /// Why.
        reason: Arc<crate::Reason>,
    },
    /// The cluster is another: nodes came or left, or partitions moved.
    TopologyChanged {
        /// Of the new topology.
        epoch: u64,
    },
    /// Events were missed, because they were not asked for in time.
    Missed {
        /// How many.
        count: u64,
    },
}

/// Events that are kept for a slow listener.
const KEPT_MAX: usize = 256;

/// The events of a client from some moment on. See [`Client::events`](crate::Client::events).
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; `None` when the client is gone.
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) {
    /// let mut events = client.events();
    /// while let Some(event) = events.next().await {
    ///     println!("{event:?}");
    /// }
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Event::Missed { count }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Where events are announced.
#[derive(Debug)]
pub(crate) struct Announcer(broadcast::Sender<Event>);

impl Announcer {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(KEPT_MAX))
    }

    pub(crate) fn announce(&self, event: Event) {
        // Nobody has to listen.
        let _ = self.0.send(event);
    }

    pub(crate) fn listen(&self) -> Events {
        Events(self.0.subscribe())
    }
}
