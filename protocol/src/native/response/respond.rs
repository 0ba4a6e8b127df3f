//! Answers as bytes.
//!
//! Functions with an `id` append one whole frame, or nothing when the id is 0, but for [`hit_head`](respond::hit_head),
//! whose value the caller appends. Those in [`element`](respond::element) append one element of a batch's array.

use super::*;
use crate::native::frame::{begin_frame, end_frame, end_frame_before};

#[inline]
fn frame(out: &mut Vec<u8>, kind: Kind, id: u32, elements: usize, rest: impl FnOnce(&mut Vec<u8>)) {
    let start = begin_frame(out);
    put_array(out, 2 + elements);
    put_uint(out, kind.number());
    put_uint(out, u64::from(id));
    rest(out);
    end_frame(out, start);
}

/// Done.
pub fn ok(out: &mut Vec<u8>, id: u32) {
    if id != 0 {
        frame(out, Kind::Ok, id, 0, |_| {});
    }
}

/// Done, and this is what was asked for.
pub fn structure<T: serde::Serialize>(out: &mut Vec<u8>, id: u32, structure: &T) {
    if id != 0 {
        frame(out, Kind::Ok, id, 1, |out| admin::put(out, structure));
    }
}

/// The head of a hit. When it says `with_value`, exactly `item.value_len` bytes must be sent
/// behind it, from `out` or from elsewhere. Not to be called with the id 0.
#[inline]
pub fn hit_head(out: &mut Vec<u8>, id: u32, head: HitHead<'_>) {
    if head.with_value && head.extra() == Extra::default() {
        return Short::append_plain_hit(out, id, head.item);
    }
    let start = begin_frame(out);
    put_array(out, 7);
    put_uint(out, Kind::Value.number());
    put_uint(out, u64::from(id));
    head.write(out);
    end_frame_before(out, start, if head.with_value { head.item.value_len } else { 0 });
}

/// A hit whose value travels compressed.
pub fn compressed_hit(out: &mut Vec<u8>, id: u32, item: &ItemMeta, value: Value<'_>) {
    if id != 0 {
        frame(out, Kind::Value, id, 5, |out| {
            HitHead { item, with_value: true }.write_before_value(out);
            value.write(out);
        });
    }
}

/// Any outcome but a hit. `old` is what the write replaced, when that was asked for.
pub fn outcome(out: &mut Vec<u8>, id: u32, outcome: &Outcome, old: Option<Old<'_>>) {
    if id != 0 {
        let start = begin_frame(out);
        put_outcome(out, Some(id), outcome, old);
        end_frame(out, start);
    }
}

/// A failure.
pub fn failure(out: &mut Vec<u8>, id: u32, failure: &Failure<'_>) {
    if id != 0 {
        let start = begin_frame(out);
        put_failure(out, Some(id), failure);
        end_frame(out, start);
    }
}

/// A failure that belongs to no request that could be read: id 0 all the same.
pub fn failure_of_connection(out: &mut Vec<u8>, failure: &Failure<'_>) {
    let start = begin_frame(out);
    put_failure(out, Some(0), failure);
    end_frame(out, start);
}

/// Begins the answer to a batch of so many operations; each must be answered by a function of
/// [`element`]. Returns what [`end_frame`] wants.
#[must_use]
pub fn begin_batch(out: &mut Vec<u8>, id: u32, len: usize) -> usize {
    let start = begin_frame(out);
    put_array(out, 3);
    put_uint(out, Kind::Batch.number());
    put_uint(out, u64::from(id));
    put_array(out, len);
    start
}

/// A step of a scan.
pub fn page<'a>(
    out: &mut Vec<u8>,
    id: u32,
    cursor: Option<&[u8]>,
    entries: impl ExactSizeIterator<Item = Entry<'a>>,
) {
    if id == 0 {
        return;
    }
    frame(out, Kind::Page, id, 2, |out| {
        match cursor {
            Some(cursor) => put_bin(out, cursor),
            None => put_nil(out),
        }
        put_array(out, entries.len());
        for entry in entries {
            put_array(out, Entry::FIELDS);
            put_bin(out, entry.key);
            put_uint(out, entry.version);
            put_uint(out, u64::from(entry.flags));
            put_uint_or_nil(out, entry.ttl_ms);
            put_uint(out, entry.value_len);
            match entry.value {
                Some(value) => value.write(out),
                None => put_nil(out),
            }
        }
    });
}

/// Push: keys in these slots were written; `None` is all keys of the cache.
pub fn invalidate(out: &mut Vec<u8>, cache: u32, slots: Option<&[u32]>) {
    frame(out, Kind::Push, 0, 3, |out| {
        put_uint(out, PUSH_INVALIDATE);
        put_uint(out, u64::from(cache));
        match slots {
            None => put_nil(out),
            Some(slots) => {
                put_array(out, slots.len());
                for slot in slots {
                    put_uint(out, u64::from(*slot));
                }
            }
        }
    });
}

/// Push: a new topology.
pub fn topology(out: &mut Vec<u8>, topology: &admin::TopologyView) {
    frame(out, Kind::Push, 0, 2, |out| {
        put_uint(out, PUSH_TOPOLOGY);
        admin::put(out, topology);
    });
}

/// Push: the node is going away.
pub fn goodbye(out: &mut Vec<u8>, reason: &str) {
    frame(out, Kind::Push, 0, 2, |out| {
        put_uint(out, PUSH_GOODBYE);
        put_str(out, reason);
    });
}

/// Push: something of a stream that is followed.
pub fn live(out: &mut Vec<u8>, live: &Live<'_>) {
    frame(out, Kind::Push, 0, 5, |out| {
        put_uint(out, PUSH_LIVE);
        put_uint(out, u64::from(live.number));
        put_str(out, live.kind);
        put_bin(out, live.sensor);
        put_str(out, live.event);
    });
}

/// Answers inside a batch.
pub mod element {
    use super::*;

    /// The head of a hit; see [`super::hit_head`].
    #[inline]
    pub fn hit_head(out: &mut Vec<u8>, head: HitHead<'_>) {
        put_array(out, 6);
        put_uint(out, Kind::Value.number());
        head.write(out);
    }

    /// A hit whose value travels compressed.
    pub fn compressed_hit(out: &mut Vec<u8>, item: &ItemMeta, value: Value<'_>) {
        put_array(out, 6);
        put_uint(out, Kind::Value.number());
        HitHead { item, with_value: true }.write_before_value(out);
        value.write(out);
    }

    /// Any outcome but a hit.
    pub fn outcome(out: &mut Vec<u8>, outcome: &Outcome, old: Option<Old<'_>>) {
        put_outcome(out, None, outcome, old);
    }

    /// A failure.
    pub fn failure(out: &mut Vec<u8>, failure: &Failure<'_>) {
        put_failure(out, None, failure);
    }
}

fn put_head(out: &mut Vec<u8>, kind: Kind, id: Option<u32>, elements: usize) {
    put_array(out, 1 + usize::from(id.is_some()) + elements);
    put_uint(out, kind.number());
    if let Some(id) = id {
        put_uint(out, u64::from(id));
    }
}

fn put_outcome(out: &mut Vec<u8>, id: Option<u32>, outcome: &Outcome, old: Option<Old<'_>>) {
    let put_old = |out: &mut Vec<u8>| {
        if let Some(old) = old {
            put_array(out, 3);
            put_uint(out, old.version);
            put_uint(out, u64::from(old.flags));
            old.value.write(out);
        }
    };
    let failed = |out: &mut Vec<u8>, code, text| {
        put_failure(out, id, &Failure::refused(code, text));
    };
    match outcome {
        Outcome::Hit(item) => {
            put_head(out, Kind::Value, id, 5);
            HitHead { item, with_value: false }.write(out);
        }
        Outcome::NotFound => put_head(out, Kind::NotFound, id, 0),
        Outcome::Stored(item) => {
            put_head(out, Kind::Stored, id, 1 + usize::from(old.is_some()));
            put_uint(out, item.version);
            put_old(out);
        }
        Outcome::NotStored => put_head(out, Kind::NotStored, id, 0),
        Outcome::Exists => put_head(out, Kind::Exists, id, 0),
        Outcome::Deleted => {
            put_head(out, Kind::Deleted, id, usize::from(old.is_some()));
            put_old(out);
        }
        Outcome::Touched(item) => {
            put_head(out, Kind::Touched, id, 1);
            put_uint(out, item.version);
        }
        Outcome::Number(number, item) => {
            put_head(out, Kind::Number, id, 2);
            put_uint(out, *number);
            put_uint(out, item.version);
        }
        Outcome::NotANumber => failed(
            out,
            ErrorCode::NotANumber,
            "the value is no decimal number of at most 20 digits",
        ),
        Outcome::TooLarge => failed(
            out,
            ErrorCode::ValueTooLarge,
            "the value is over the cache's item limit; an older value stays",
        ),
        Outcome::OutOfMemory => failed(
            out,
            ErrorCode::OutOfMemory,
            "no room: the cache refuses when full, or nothing could be evicted",
        ),
        Outcome::NotApplied(reason) => {
            let code = match reason {
                Reason::NotReady | Reason::Busy => ErrorCode::Busy,
                Reason::TooFewCopies => ErrorCode::NotEnoughCopies,
                Reason::Blocked => ErrorCode::Lost,
                Reason::TimedOut => ErrorCode::DeadlineExceeded,
                Reason::NoSuchCache => ErrorCode::NoSuchCache,
                Reason::Unsupported => ErrorCode::Unsupported,
            };
            let retry_after_ms = reason.retry_after_ms();
            let failure = Failure { retry_after_ms, ..Failure::refused(code, reason.text()) };
            put_failure(out, id, &failure);
        }
        Outcome::Indeterminate => {
            let failure = Failure {
                code: ErrorCode::DeadlineExceeded,
                text: "the node of this key failed meanwhile: perhaps applied, perhaps not",
                effect: Effect::Indeterminate,
                retry_after_ms: None,
            };
            put_failure(out, id, &failure);
        }
        Outcome::Lost => failed(
            out,
            ErrorCode::Lost,
            "no item is there, and the data of its partition were lost; told once",
        ),
    }
}

fn put_failure(out: &mut Vec<u8>, id: Option<u32>, failure: &Failure<'_>) {
    put_head(out, Kind::Error, id, 4);
    put_uint(out, u64::from(failure.code.number()));
    put_str(out, failure.text);
    put_uint(out, failure.effect.number());
    put_uint_or_nil(out, failure.retry_after_ms);
}
