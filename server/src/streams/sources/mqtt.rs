//! Readings from an MQTT broker.
//!
//! ```text
//!   broker --> connection --> bounded queue --> batches --> the stream --> acknowledgements --> broker
//! ```
//!
//! The session outlives connections, so the broker keeps what comes meanwhile (QoS 1), and whoever
//! reads the source next goes on with the same session. A message is acknowledged when its readings are
//! taken in; one that the broker sends again, because an acknowledgement was lost with a connection,
//! counts again: at least once. It is subscribed anew on every connection, whatever the broker says it
//! remembers. Messages that the broker had retained are old values that it sends at every
//! subscription: they are left out, and counted as skipped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use kiln_stream::{
    reading::Batch,
    source::{Broker, SourceDefinition},
};
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS, SubscribeReasonCode,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time,
};

use super::feed::{Feed, Number};

/// Messages, and units of their bytes, between the connection and the stream.
const WAITING_MAX: usize = 1_024;
const WAITING_UNITS_MAX: usize = 16 << 10;
const UNIT: usize = 1 << 10;
/// The longest message.
const MESSAGE_LEN_MAX: usize = 4 << 20;
/// Messages that become one batch.
const TOGETHER_MAX: usize = 1_024;
/// Acknowledgements and subscriptions on their way to the connection.
const REQUESTS_MAX: usize = 4_096;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const CONNECT_SECONDS_MAX: u64 = 10;
/// Pauses between connections.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A message that waits.
struct Waiting {
    publish: Publish,
    /// Of which session it is.
    session: u64,
    _room: OwnedSemaphorePermit,
}

/// Reads a source for as long as it is this node's.
pub(super) async fn run(mut feed: Feed, broker: Broker, definition: SourceDefinition, term: u64) {
    let qos = if definition.qos == Some(0) { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let (client, mut events) = AsyncClient::new(options(&feed, &broker, &definition), REQUESTS_MAX);
    events.network_options.set_connection_timeout(CONNECT_SECONDS_MAX);
    let (queue, inbox) = mpsc::channel(WAITING_MAX);
    feed.state().is_connecting(feed.part, None);
    let name = feed.name.clone();
    let connection = Connection {
        client: client.clone(),
        queue,
        room: Arc::new(Semaphore::new(WAITING_UNITS_MAX)),
        topic: definition.topic.clone(),
        qos,
        session: Arc::default(),
    };
    let session = Arc::clone(&connection.session);
    let stream = Arc::clone(&feed.stream);
    let state = &stream.sources[feed.index()];
    tokio::select! {
        () = connection.run(&mut events, state, &name) => {}
        () = take_in(&mut feed, inbox, &client, &session, definition.sensor_level, term) => {}
    }
}

fn options(feed: &Feed, broker: &Broker, definition: &SourceDefinition) -> MqttOptions {
    // The same on whichever node reads the source, and another in each cluster.
    let node = &feed.node;
    let cluster = match node.cluster.get() {
        Some(_) => node.cluster_id(),
        None => node.config.name.to_string(),
    };
    let hash = xxhash_rust::xxh3::xxh3_64(
        format!("{cluster}\n{}\n{}", feed.stream.name, definition.name()).as_bytes(),
    );
    let id = format!("kiln-{}-{hash:016x}", feed.stream.name);
    let mut options = MqttOptions::new(id, broker.host.name.clone(), broker.host.port);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_clean_session(false);
    options.set_manual_acks(true);
    options.set_max_packet_size(MESSAGE_LEN_MAX, 64 << 10);
    if let Some((user, password)) = &broker.credentials {
        options.set_credentials(user, password);
    }
    options
}

/// The connection, made again and again.
struct Connection {
    client: AsyncClient,
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    topic: String,
    qos: QoS,
    /// Rises when the broker does not remember what it sent.
    session: Arc<AtomicU64>,
}

impl Connection {
    async fn run(self, events: &mut EventLoop, state: &super::SourceState, name: &str) {
        let mut pause = PAUSE_FIRST;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(answer))) => {
                    if !answer.session_present {
                        self.session.fetch_add(1, Relaxed);
                    }
                    // The queue of requests is empty on a new connection but for what is to be
                    // acknowledged, which is far less than it holds.
                    if let Err(error) = self.client.try_subscribe(&self.topic, self.qos) {
                        state.is_running_but(0, format!("cannot subscribe: {error}"));
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                        let error = format!("the broker refuses a subscription of {}", self.topic);
                        tracing::warn!(source = name, "{error}");
                        state.is_running_but(0, error);
                    } else {
                        tracing::info!(source = name, "subscribed");
                        pause = PAUSE_FIRST;
                        state.is_running(0);
                    }
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let units = (publish.payload.len() + publish.topic.len()).div_ceil(UNIT);
                    let units = units.clamp(1, WAITING_UNITS_MAX) as u32;
                    let room = Arc::clone(&self.room).acquire_many_owned(units).await;
                    // Neither is ever closed while this runs.
                    let Ok(room) = room else { return };
                    let session = self.session.load(Relaxed);
                    let waiting = Waiting { publish, session, _room: room };
                    if self.queue.send(waiting).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(source = name, %error, "no connection to the MQTT broker");
                    state.is_connecting(0, Some(error.to_string()));
                    time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

/// Brings messages into the stream, and acknowledges them.
async fn take_in(
    feed: &mut Feed,
    mut inbox: mpsc::Receiver<Waiting>,
    client: &AsyncClient,
    session: &AtomicU64,
    sensor_level: Option<u8>,
    term: u64,
) {
    // Lives of the source that are later have a higher one: terms rise from node to node, and within
    // a term it is this process.
    let uptime_ms = feed.node.clock.uptime().as_millis() as u64;
    let epoch = term << 40 | uptime_ms & ((1 << 40) - 1);
    let mut sequence = 0;
    let mut messages: Vec<Waiting> = Vec::new();
    let mut unacknowledged: Vec<Waiting> = Vec::new();
    loop {
        if messages.is_empty() {
            let received = inbox.recv_many(&mut messages, TOGETHER_MAX);
            let patience = if unacknowledged.is_empty() { Duration::MAX } else { PAUSE_FIRST };
            if time::timeout(patience, received).await == Ok(0) {
                return;
            }
        }
        let arrival = feed.node.clock.now_ms() as i64;
        let mut batch = Batch::new();
        let mut taken = 0;
        for Waiting { publish, .. } in &messages {
            if publish.retain {
                feed.state().count_skipped(1);
            } else {
                let sensor = sensor_level.map(|level| (&*publish.topic, level));
                if !feed.add(&publish.payload, arrival, sensor, &mut batch) {
                    break;
                }
            }
            taken += 1;
        }
        sequence += 1;
        if feed.deliver(Number { epoch, sequence }, &batch).await.is_err() {
            return;
        }
        let now = session.load(Relaxed);
        unacknowledged.extend(messages.drain(..taken));
        unacknowledged.retain(|waiting| {
            let Waiting { publish, session, .. } = waiting;
            // A broker that forgot the session sends nothing again, or as another message.
            publish.qos != QoS::AtMostOnce && *session == now && client.try_ack(publish).is_err()
        });
    }
}
