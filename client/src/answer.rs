//! Answers that own their bytes.
//!
//! An answer is decoded where it is read and leaves the receive buffer at once, so that the buffer
//! is used again however long a caller keeps a value. Batches and pages are kept as one block;
//! their values are slices of it.

use bytes::Bytes;
use kiln_protocol::native::{
    Entries, Extra, Failure, Malformed, Response, Results, Value, inflate,
};

use crate::{Error, Reason, connection::Peer};

/// A value as it came.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    Plain(Bytes),
    Lz4 { len: u32, block: Bytes },
}

impl Payload {
    fn copied(value: Value<'_>) -> Self {
        match value {
            Value::Plain(bytes) => Self::Plain(Bytes::copy_from_slice(bytes)),
            Value::Lz4 { len, block } => Self::Lz4 { len, block: Bytes::copy_from_slice(block) },
        }
    }

    fn shared(value: Value<'_>, owner: &Bytes) -> Self {
        match value {
            Value::Plain(bytes) => Self::Plain(owner.slice_ref(bytes)),
            Value::Lz4 { len, block } => Self::Lz4 { len, block: owner.slice_ref(block) },
        }
    }

    /// The value itself.
    pub(crate) fn into_bytes(self, peer: &Peer) -> Result<Bytes, Error> {
        match self {
            Self::Plain(bytes) => Ok(bytes),
            Self::Lz4 { len, block } => {
                let mut plain = Vec::new();
                // The node's own limit, and never more than this client takes in one frame.
                let limit = peer.value_len_max();
                match inflate(&block, len as usize, limit, &mut plain) {
                    Ok(()) => Ok(plain.into()),
                    Err(_) => Err(Error::not_applied(Reason::DamagedValue {
                        address: peer.address.clone(),
                    })),
                }
            }
        }
    }
}

/// An item that was replaced or removed.
#[derive(Clone, Debug)]
pub(crate) struct OldItem {
    pub(crate) version: u64,
    pub(crate) flags: u32,
    pub(crate) value: Payload,
}

/// A hit.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) version: u64,
    pub(crate) flags: u32,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) extra: Extra,
    pub(crate) value: Option<Payload>,
}

/// What a node answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Done(Bytes),
    Hit(Hit),
    NotFound,
    Stored {
        version: u64,
        old: Option<Box<OldItem>>,
    },
    NotStored,
    Exists,
    Deleted {
        old: Option<Box<OldItem>>,
    },
    Touched,
    Number {
        number: u64,
        version: u64,
    },
    /// A batch or a page: the whole body.
    Whole(Bytes),
    Failed(Error),
    /// A kind of answer that this version does not know.
    Unknown,
}

impl Answer {
    /// Copies an answer out of the receive buffer; `body` is all of its frame.
    pub(crate) fn copied(response: &Response<'_>, body: &[u8], peer: &Peer) -> Self {
        match response {
            Response::Batch(_) | Response::Page { .. } => Self::Whole(Bytes::copy_from_slice(body)),
            _ => Self::with(response, peer, Payload::copied),
        }
    }

    /// An answer inside a batch, whose frame is `owner`.
    fn shared(response: &Response<'_>, owner: &Bytes, peer: &Peer) -> Self {
        Self::with(response, peer, |value| Payload::shared(value, owner))
    }

    fn with(response: &Response<'_>, peer: &Peer, payload: impl Fn(Value<'_>) -> Payload) -> Self {
        let old_item = |old: &Option<kiln_protocol::native::Old<'_>>| {
            old.as_ref().map(|old| {
                let value = payload(old.value);
                Box::new(OldItem { version: old.version, flags: old.flags, value })
            })
        };
        match response {
            Response::Ok(structure) => Self::Done(Bytes::copy_from_slice(structure)),
            Response::Value { version, flags, ttl_ms, extra, value } => Self::Hit(Hit {
                version: *version,
                flags: *flags,
                ttl_ms: *ttl_ms,
                extra: *extra,
                value: value.map(payload),
            }),
            Response::NotFound => Self::NotFound,
            Response::Stored { version, old } => {
                Self::Stored { version: *version, old: old_item(old) }
            }
            Response::NotStored => Self::NotStored,
            Response::Exists => Self::Exists,
            Response::Deleted { old } => Self::Deleted { old: old_item(old) },
            Response::Touched { .. } => Self::Touched,
            Response::Number { number, version } => {
                Self::Number { number: *number, version: *version }
            }
            Response::Error(failure) => Self::Failed(failed(failure, peer)),
            Response::Batch(_)
            | Response::Page { .. }
            | Response::Push(_)
            | Response::Unknown { .. } => Self::Unknown,
        }
    }
}

fn failed(failure: &Failure<'_>, peer: &Peer) -> Error {
    Error::node(&peer.address, failure)
}

/// The answers to a batch, in its order.
pub(crate) fn batch(body: &Bytes, peer: &Peer) -> Result<Vec<Answer>, Error> {
    match decode(body, peer)? {
        Response::Batch(results) => {
            let results: Results<'_> = results;
            Ok(results.map(|response| Answer::shared(&response, body, peer)).collect())
        }
        Response::Error(failure) => Err(failed(&failure, peer)),
        _ => Err(peer.unexpected("no answer to a batch")),
    }
}

/// A step of a scan: where the next begins, and the items of this one.
pub(crate) fn page<T>(
    body: &Bytes,
    peer: &Peer,
    mut each: impl FnMut(&kiln_protocol::native::Entry<'_>, Option<Payload>) -> Result<T, Error>,
) -> Result<(Option<Bytes>, Vec<T>), Error> {
    match decode(body, peer)? {
        Response::Page { cursor, entries } => {
            let entries: Entries<'_> = entries;
            let items = entries
                .map(|entry| {
                    let value = entry.value.map(|value| Payload::shared(value, body));
                    each(&entry, value)
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok((cursor.map(Bytes::copy_from_slice), items))
        }
        Response::Error(failure) => Err(failed(&failure, peer)),
        _ => Err(peer.unexpected("no answer to a scan")),
    }
}

fn decode<'a>(body: &'a Bytes, peer: &Peer) -> Result<Response<'a>, Error> {
    match Response::decode(body) {
        Ok((_, response)) => Ok(response),
        // It was decoded once before, where it was read.
        Err(Malformed { what, .. }) => Err(peer.unexpected(what)),
    }
}
