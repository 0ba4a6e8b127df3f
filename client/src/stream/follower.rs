//! Results as they come, from all nodes.
//!
//! Each node tells of the partitions that it owns, so a follower asks every node that the client
//! knows of, and asks again on each new connection. What happens between two connections, or while
//! the follower does not keep up, is not told later: the windows themselves are items, and can be
//! asked for.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use kiln_protocol::native::{self, Live, encode, streams};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::sleep};

use super::{Stream, is_no_stream};
use crate::{
    Error,
    call::ask_done,
    connection::{Connection, Deadline},
    core::{Core, Node},
};

/// Events that wait for a follower.
const WAITING_MAX: usize = 4_096;
/// How often it is looked whether there are new nodes or connections.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a node is asked.
const ASK_MAX: Duration = Duration::from_secs(5);
/// How long [`Follow::start`] waits for a stream that no node knows yet.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(3);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LiveKind {
    /// A window closed, or was given anew.
    Window,
    /// An alarm was raised or cleared.
    Alarm,
    /// A model was fitted.
    Fit,
    /// A reading came too late.
    Late,
    /// Events were missed: this follower, or its connection, was too slow.
    Missed,
    /// There is no such stream any more, as one node says.
    Ended,
    /// Something that this version does not know.
    Other,
}

impl LiveKind {
    fn of(name: &str) -> Self {
        match name {
            "window" => Self::Window,
            "alarm" => Self::Alarm,
            "fit" => Self::Fit,
            "late" => Self::Late,
            "missed" => Self::Missed,
            "ended" => Self::Ended,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Alarm => "alarm",
            Self::Fit => "fit",
            Self::Late => "late",
            Self::Missed | Self::Ended | Self::Other => "",
        }
    }
}

/// Something that happened to a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveEvent {
    /// What.
    pub kind: LiveKind,
    /// The sensor; empty where it is of none.
    pub sensor: Bytes,
    /// The event as JSON: `{"sensor": …, "window": "10s", "start": …, "end": …, "mean": …}`.
    pub json: String,
}

/// What is to be followed.
#[derive(Clone, Debug)]
#[must_use = "nothing is followed before it is started"]
pub struct Follow {
    stream: Stream,
    sensor: Option<Vec<u8>>,
    kind: Option<LiveKind>,
}

impl Follow {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, sensor: None, kind: None }
    }

    /// Of one sensor only.
    pub fn sensor(mut self, sensor: impl AsRef<[u8]>) -> Self {
        self.sensor = Some(sensor.as_ref().to_vec());
        self
    }

    /// Of one kind only: windows, alarms, fits or late readings.
    pub fn kind(mut self, kind: LiveKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Asks all nodes. Returns when those that can be reached tell what happens from now on.
    pub async fn start(self) -> Result<Follower, Error> {
        let client = &self.stream.client;
        let core = client.core();
        let number = core.followers.next();
        let request = streams::Follow {
            stream: self.stream.name.to_string(),
            sensor: self.sensor.map(Into::into),
            kind: self.kind.map_or("", LiveKind::name).to_owned(),
            number,
            ends: false,
        };
        let (sender, events) = mpsc::channel(WAITING_MAX);
        let missed = Arc::new(AtomicU64::new(0));
        core.followers.add(number, Place { sender, missed: Arc::clone(&missed) });
        let registered = Registered { number, core: Arc::downgrade(core) };
        let mut nodes = Nodes { request, told: HashMap::new() };
        let give_up = Instant::now() + STREAM_WAIT_MAX;
        while let Err(error) = nodes.ask_all(core).await {
            if !is_no_stream(&error) || Instant::now() > give_up {
                return Err(error);
            }
            sleep(LOOK_EVERY).await;
        }
        let weak = Arc::downgrade(core);
        let stopped = Arc::new(());
        let watching = Arc::downgrade(&stopped);
        client.runtime().spawn(async move {
            while watching.strong_count() > 0 {
                sleep(LOOK_EVERY).await;
                let Some(core) = weak.upgrade() else { break };
                if let Err(error) = nodes.ask_all(&core).await {
                    tracing::debug!(%error, "no node could be asked to tell of a stream");
                }
            }
            nodes.leave();
        });
        Ok(Follower { events, missed, _registered: registered, _running: stopped })
    }
}

/// Follows a stream, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    events: mpsc::Receiver<LiveEvent>,
    missed: Arc<AtomicU64>,
    _registered: Registered,
    /// The task that asks nodes ends when this is gone.
    _running: Arc<()>,
}

impl Follower {
    /// The next event; `None` when the client is gone.
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<LiveEvent> {
        let missed = self.missed.swap(0, Relaxed);
        if missed > 0 {
            let json = format!("{{\"events\":{missed}}}");
            return Some(LiveEvent { kind: LiveKind::Missed, sensor: Bytes::new(), json });
        }
        self.events.recv().await
    }
}

/// Where a follower's number is known.
#[derive(Debug)]
struct Registered {
    number: u32,
    core: Weak<Core>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.followers.remove(self.number);
        }
    }
}

/// The connections over which nodes tell a follower.
struct Nodes {
    request: streams::Follow,
    /// By address.
    told: HashMap<Arc<str>, Weak<Connection>>,
}

impl Nodes {
    /// Asks each node over whose connection it was not asked yet. Fails when none tells.
    async fn ask_all(&mut self, core: &Core) -> Result<(), Error> {
        let view = core.view();
        let asked = view.nodes().map(|node| ask(node, &self.request, &self.told));
        let mut last = None;
        let mut told = HashMap::new();
        for (address, answer) in join_all(asked).await {
            match answer {
                Ok(connection) => drop(told.insert(address, connection)),
                Err(error) => last = Some(error),
            }
        }
        self.told = told;
        match last {
            Some(error) if self.told.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    fn leave(self) {
        let request = streams::Follow { ends: true, ..self.request };
        for connection in self.told.values().filter_map(Weak::upgrade) {
            connection.tell(|out| encode::follow(out, 0, &request));
        }
    }
}

async fn ask(
    node: &Node,
    request: &streams::Follow,
    told: &HashMap<Arc<str>, Weak<Connection>>,
) -> (Arc<str>, Result<Weak<Connection>, Error>) {
    let address = node.address.clone();
    let deadline = Deadline { at: Instant::now() + ASK_MAX, limit: ASK_MAX };
    let asked = async {
        let connection = node.connection(deadline, true).await?;
        let weak = Arc::downgrade(&connection);
        if told.get(&address).is_some_and(|known| known.ptr_eq(&weak)) {
            return Ok(weak);
        }
        ask_done(&connection, deadline, |out, id| encode::follow(out, id, request)).await?;
        Ok(weak)
    };
    let answer = asked.await;
    (address, answer)
}

/// All followers of a client, by number.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    last: AtomicU32,
    places: Mutex<HashMap<u32, Place>>,
}

#[derive(Debug)]
struct Place {
    sender: mpsc::Sender<LiveEvent>,
    missed: Arc<AtomicU64>,
}

impl Followers {
    fn next(&self) -> u32 {
        self.last.fetch_add(1, Relaxed).wrapping_add(1)
    }

    fn add(&self, number: u32, place: Place) {
        self.places.lock().insert(number, place);
    }

    fn remove(&self, number: u32) {
        self.places.lock().remove(&number);
    }

    /// A node told of something.
    pub(crate) fn tell(&self, live: &native::Live<'_>) {
        let Live { number, kind, sensor, event } = *live;
        let places = self.places.lock();
        let Some(place) = places.get(&number) else { return };
        let sensor = Bytes::copy_from_slice(sensor);
        let event = LiveEvent { kind: LiveKind::of(kind), sensor, json: event.to_owned() };
        if place.sender.try_send(event).is_err() {
            place.missed.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_has_no_room_is_counted_and_never_waited_for() {
        let followers = Followers::default();
        let number = followers.next();
        let (sender, mut events) = mpsc::channel(1);
        let missed = Arc::new(AtomicU64::new(0));
        followers.add(number, Place { sender, missed: Arc::clone(&missed) });
        let live = Live { number, kind: "alarm", sensor: b"s", event: "{}" };
        followers.tell(&live);
        followers.tell(&live);
        followers.tell(&Live { number: number + 1, ..live });
        assert_eq!(events.try_recv().unwrap().kind, LiveKind::Alarm);
        assert_eq!(missed.load(Relaxed), 1);
        followers.remove(number);
        followers.tell(&live);
        assert!(events.try_recv().is_err());
    }
}
