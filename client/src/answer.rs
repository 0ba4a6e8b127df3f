//! Answers that own their bytes.
//!
//! An answer is decoded where it is read and leaves the receive buffer at once, so that the buffer
//! is used again however long a caller keeps a value. Batches and pages are kept as one block;
//! their values are slices of it.

use std::sync::Arc;

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

    /// The value itself. If it is damaged, what it answers may well have been done.
    pub(crate) fn into_bytes(self, peer: &Peer) -> Result<Bytes, Error> {
        match self {
            Self::Plain(bytes) => Ok(bytes),
            Self::Lz4 { len, block } => {
                let mut plain = Vec::new();
                // The node's own limit, and never more than this client takes in one frame.
                let limit = peer.value_len_max();
                match inflate(&block, len as usize, limit, &mut plain) {
                    Ok(()) => Ok(plain.into()),
                    Err(_) => {
                        let address = peer.address.clone();
                        Err(Error::Indeterminate(Arc::new(Reason::DamagedValue { address })))
                    }
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
///
/// Its values, inflated, may take no more than one frame could have brought.
pub(crate) fn page<T>(
    body: &Bytes,
    peer: &Peer,
    mut each: impl FnMut(&kiln_protocol::native::Entry<'_>, Option<Payload>) -> Result<T, Error>,
) -> Result<(Option<Bytes>, Vec<T>), Error> {
    match decode(body, peer)? {
        Response::Page { cursor, entries } => {
            let entries: Entries<'_> = entries;
            let mut left = peer.frame_len_max;
            let items = entries
                .map(|entry| {
                    if let Some(Value::Lz4 { len, .. }) = entry.value {
                        left = left
                            .checked_sub(len as usize)
                            .ok_or_else(|| peer.unexpected("a page that is too long inflated"))?;
                    }
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

#[cfg(test)]
mod tests {
    use kiln_protocol::native::{Entry, admin::Welcome, compress, respond};

    use super::*;

    fn peer(frame_len_max: usize) -> Peer {
        let mut welcome = Welcome::default();
        welcome.limits.value_max = 1 << 20;
        Peer { address: "n1:7311".into(), welcome, frame_len_max }
    }

    #[test]
    fn a_damaged_value_does_not_say_that_nothing_was_done() {
        let damaged = Payload::Lz4 { len: 100, block: Bytes::from_static(b"\xff\xff\xff") };

        let error = damaged.into_bytes(&peer(1 << 20)).unwrap_err();

        assert!(matches!(error.reason(), Reason::DamagedValue { .. }));
        assert!(error.is_indeterminate());
    }

    #[test]
    fn a_page_inflates_to_no_more_than_a_frame() {
        let value = vec![0; 64 * 1024];
        let mut block = Vec::new();
        let compressed = compress(&value, &mut block).unwrap();
        let entry = |_| Entry {
            key: b"k",
            version: 1,
            flags: 0,
            ttl_ms: None,
            value_len: value.len() as u64,
            value: Some(compressed),
        };
        let read = |values: usize| {
            let mut frame = Vec::new();
            respond::page(&mut frame, 1, None, (0..values).map(entry));
            let body = Bytes::from(frame).slice(4..);
            let peer = peer(256 * 1024);
            page(&body, &peer, |_, value| value.unwrap().into_bytes(&peer)).map(|(_, page)| page)
        };

        assert_eq!(read(4).unwrap().len(), 4);
        assert!(matches!(read(5).unwrap_err().reason(), Reason::UnexpectedAnswer { .. }));
    }
}
