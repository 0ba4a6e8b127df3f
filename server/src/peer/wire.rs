//! Messages of the core as records of a batch.
//!
//! A message is a record of what stands at its head, then one record for each thing it says; an
//! empty record stands before the head of a next message. So a message that says a lot is spread
//! over several frames without being encoded twice: each frame repeats the head, and the core sees
//! several messages that say the same things in the same order.

use kiln_cluster::{
    ids::{ClusterId, Member},
    message::{Body, Message},
};
use kiln_protocol::peer::{
    Records, Unreadable, Unwritable, begin_record, end_record, read_record, write_record,
};
use serde::{Deserialize, Serialize};

/// What stands at the head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MessageHead {
    cluster: ClusterId,
    from: Member,
    to: Member,
    clock_ms: u64,
}

impl MessageHead {
    pub(super) fn of(message: &Message) -> Self {
        let Message { cluster, from, to, clock_ms, .. } = *message;
        Self { cluster, from, to, clock_ms }
    }
}

/// Appends the head of a message to the body of a batch; `first` if it stands first in its frame.
pub(super) fn put_head(
    out: &mut Vec<u8>,
    head: &MessageHead,
    first: bool,
) -> Result<(), Unwritable> {
    if !first {
        let separator = begin_record(out);
        end_record(out, separator);
    }
    put(out, head)
}

/// Appends one thing that a message says.
pub(super) fn put_body(out: &mut Vec<u8>, body: &Body) -> Result<(), Unwritable> {
    put(out, body)
}

fn put(out: &mut Vec<u8>, record: &impl Serialize) -> Result<(), Unwritable> {
    let start = begin_record(out);
    write_record(out, record)?;
    end_record(out, start);
    Ok(())
}

/// Reads the messages of a batch, in order.
pub(super) fn read(batch: &[u8], mut each: impl FnMut(Message)) -> Result<(), Unreadable> {
    let mut current: Option<Message> = None;
    for record in Records::new(batch) {
        let record = record.map_err(|_| Unreadable)?;
        match &mut current {
            Some(_) if record.is_empty() => {
                if let Some(message) = current.take() {
                    each(message);
                }
            }
            Some(message) => message.bodies.push(read_record(record)?),
            None => {
                let MessageHead { cluster, from, to, clock_ms } = read_record(record)?;
                current = Some(Message { cluster, from, to, clock_ms, bodies: Vec::new() });
            }
        }
    }
    if let Some(message) = current {
        each(message);
    }
    Ok(())
}
