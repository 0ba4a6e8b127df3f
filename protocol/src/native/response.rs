//! What a node answers.
//!
//! Answers are `[kind, id, …]`. The value of a hit is the last element, so that a node can send
//! the head from its buffer and a large value from where it lies. Inside a batch the same answers
//! stand without their id.

pub mod respond;

use super::admin;
use super::error::{Effect, ErrorCode, Failure};
use super::frame::FRAME_HEAD_LEN;
use super::list::{Element, List};
use super::numbered::numbered;
use super::value::Value;
use super::wire::{
    Malformed, Reader, malformed, put_array, put_bin, put_bin_head, put_nil, put_str, put_uint,
    put_uint_or_nil,
};
use crate::command::{ItemMeta, Outcome, Reason, RefillRight};

numbered! {
    /// The kinds of answers.
    Kind;

    /// Done; a structure may follow.
    Ok = 0;
    /// The item: `version, flags, ttl_ms|nil, extra|nil, value|nil`.
    Value = 1;
    /// There is no such item.
    NotFound = 2;
    /// The value is stored: `version, old|nil`.
    Stored = 3;
    /// The condition of an add, replace, append or prepend was not met.
    NotStored = 4;
    /// The item has another version than the one compared.
    Exists = 5;
    /// The item is gone: `old|nil`.
    Deleted = 6;
    /// The item has its new end: `version`.
    Touched = 7;
    /// A number: `number, version`.
    Number = 8;
    /// Answers to a batch, in its order.
    Batch = 9;
    /// A step of a scan: `cursor|nil, entries`.
    Page = 10;
    /// The request failed: `code, text, effect, retry_after_ms|nil`.
    Error = 11;
    /// What nobody asked for: `what, …`.
    Push = 12;
}

/// What may be known of an item beside the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// The item was invalidated and waits for a new value.
    pub stale: bool,
    /// Whether this reader should refill it.
    pub refill: RefillRight,
    /// Length of the value, when the value itself was not asked for.
    pub value_len: Option<u64>,
}

/// An item that was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Old<'a> {
    /// Its version.
    pub version: u64,
    /// Its flags.
    pub flags: u32,
    /// Its value.
    pub value: Value<'a>,
}

/// Keys that were written by others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Invalidated<'a> {
    /// The cache, by this connection's handle.
    pub cache: u32,
    /// The slots; `None` is all keys of the cache.
    pub slots: Option<Slots<'a>>,
}

/// Slots of keys.
pub type Slots<'a> = List<'a, u32>;

impl<'a> Element<'a> for u32 {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.u32()
    }
}

/// A result, an alarm, or what else a follower of a stream is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live<'a> {
    /// The number of the [`Follow`](super::streams::Follow).
    pub number: u32,
    /// `window`, `alarm`, `fit` or `late`; `missed`: the follower was too slow; `ended`: there is
    /// no such stream any more.
    pub kind: &'a str,
    /// The sensor.
    pub sensor: &'a [u8],
    /// The event as JSON, as in `GET /v1/streams/{stream}/live`.
    pub event: &'a str,
}

/// What a node says without being asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Push<'a> {
    /// Keys were written; what was read of them is out of date.
    Invalidate(Invalidated<'a>),
    /// A new topology: a [`TopologyView`](admin::TopologyView), for [`admin::get`].
    Topology(&'a [u8]),
    /// The node is going away: send nothing new here.
    Goodbye {
        /// Why.
        reason: &'a str,
    },
    /// Something of a stream that is followed.
    Live(Live<'a>),
    /// A push of a later version.
    Unknown {
        /// Its number.
        what: u64,
    },
}

const PUSH_INVALIDATE: u64 = 1;
const PUSH_TOPOLOGY: u64 = 2;
const PUSH_GOODBYE: u64 = 3;
const PUSH_LIVE: u64 = 4;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Response<'a> {
    /// See [`Kind::Ok`]. The structure as it came, empty when there is none; for [`admin::get`].
    Ok(&'a [u8]),
    /// See [`Kind::Value`].
    Value {
        /// Version of the item.
        version: u64,
        /// The client's own bits.
        flags: u32,
        /// Milliseconds left; `None` does not end.
        ttl_ms: Option<u64>,
        /// The rest.
        extra: Extra,
        /// The value; `None` when it was not asked for.
        value: Option<Value<'a>>,
    },
    /// See [`Kind::NotFound`].
    NotFound,
    /// See [`Kind::Stored`].
    Stored {
        /// Version of the new item.
        version: u64,
        /// What it replaced, when that was asked for.
        old: Option<Old<'a>>,
    },
    /// See [`Kind::NotStored`].
    NotStored,
    /// See [`Kind::Exists`].
    Exists,
    /// See [`Kind::Deleted`].
    Deleted {
        /// What was removed, when that was asked for.
        old: Option<Old<'a>>,
    },
    /// See [`Kind::Touched`].
    Touched {
        /// Version of the item.
        version: u64,
    },
    /// See [`Kind::Number`].
    Number {
        /// The number now.
        number: u64,
        /// Version of the item.
        version: u64,
    },
    /// See [`Kind::Batch`].
    Batch(Results<'a>),
    /// See [`Kind::Page`].
    Page {
        /// Where the next step begins; `None` when this was the last.
        cursor: Option<&'a [u8]>,
        /// The items.
        entries: Entries<'a>,
    },
    /// See [`Kind::Error`].
    Error(Failure<'a>),
    /// See [`Kind::Push`].
    Push(Push<'a>),
    /// A kind of a later version.
    Unknown {
        /// Its number.
        kind: u64,
    },
}

impl<'a> Response<'a> {
    /// Reads the body of a frame: the id and the answer.
    pub fn decode(body: &'a [u8]) -> Result<(u32, Self), Malformed> {
        let mut reader = Reader::new(body);
        let len = reader.array()?;
        if len < 2 {
            return malformed("a message has a kind and an id at least");
        }
        let kind = reader.uint()?;
        let id = reader.u32()?;
        let response = Self::read_answer(kind, len - 2, &mut reader, true)?;
        if !reader.rest().is_empty() {
            return malformed("there are bytes behind the message");
        }
        Ok((id, response))
    }

    /// Reads what follows kind and id: `left` elements.
    fn read_answer(
        kind: u64,
        left: usize,
        reader: &mut Reader<'a>,
        outermost: bool,
    ) -> Result<Self, Malformed> {
        let mut fields = Fields { left, reader };
        let response = match Kind::from_number(kind) {
            None => Self::Unknown { kind },
            Some(Kind::Ok) => {
                let before = fields.reader.rest();
                if fields.left > 0 {
                    fields.take()?.skip()?;
                }
                Self::Ok(&before[..before.len() - fields.reader.rest().len()])
            }
            Some(Kind::Value) => {
                let version = fields.take()?.uint()?;
                let flags = fields.take()?.u32()?;
                let ttl_ms = fields.take()?.uint_or_nil()?;
                let extra = Extra::read(fields.take()?)?;
                let reader = fields.take()?;
                let value = if reader.nil() { None } else { Some(Value::read(reader)?) };
                Self::Value { version, flags, ttl_ms, extra, value }
            }
            Some(Kind::NotFound) => Self::NotFound,
            Some(Kind::Stored) => {
                let version = fields.take()?.uint()?;
                Self::Stored { version, old: fields.old()? }
            }
            Some(Kind::NotStored) => Self::NotStored,
            Some(Kind::Exists) => Self::Exists,
            Some(Kind::Deleted) => Self::Deleted { old: fields.old()? },
            Some(Kind::Touched) => Self::Touched { version: fields.take()?.uint()? },
            Some(Kind::Number) => {
                let number = fields.take()?.uint()?;
                Self::Number { number, version: fields.take()?.uint()? }
            }
            Some(Kind::Batch) if outermost => Self::Batch(Results::read(fields.take()?)?),
            Some(Kind::Page) if outermost => {
                let reader = fields.take()?;
                let cursor = if reader.nil() { None } else { Some(reader.bytes()?) };
                Self::Page { cursor, entries: Entries::read(fields.take()?)? }
            }
            Some(Kind::Push) if outermost => Self::Push(Push::read(&mut fields)?),
            Some(Kind::Batch | Kind::Page | Kind::Push) => {
                return malformed("an answer that cannot be part of a batch");
            }
            Some(Kind::Error) => {
                let code = fields.take()?.uint()?;
                let text = fields.take()?.str()?;
                let effect = Effect::from_number(fields.take()?.uint()?);
                let retry_after_ms = match fields.left {
                    0 => None,
                    _ => fields.take()?.uint_or_nil()?,
                };
                let code = ErrorCode::from_number(u16::try_from(code).unwrap_or(u16::MAX));
                Self::Error(Failure { code, text, effect, retry_after_ms })
            }
        };
        for _ in 0..fields.left {
            fields.reader.skip()?;
        }
        Ok(response)
    }
}

/// One answer of a batch.
impl<'a> Element<'a> for Response<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let Some(left) = reader.array()?.checked_sub(1) else {
            return malformed("an answer of a batch is empty");
        };
        let kind = reader.uint()?;
        Self::read_answer(kind, left, reader, false)
    }
}

/// The elements of a message that have not been read.
struct Fields<'r, 'a> {
    left: usize,
    reader: &'r mut Reader<'a>,
}

impl<'a> Fields<'_, 'a> {
    fn take(&mut self) -> Result<&mut Reader<'a>, Malformed> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(self.reader)
            }
            None => malformed("an answer lacks an element"),
        }
    }

    fn old(&mut self) -> Result<Option<Old<'a>>, Malformed> {
        if self.left == 0 {
            return Ok(None);
        }
        let reader = self.take()?;
        if reader.nil() {
            return Ok(None);
        }
        let len = reader.array()?;
        if len < 3 {
            return malformed("an old item has version, flags and value");
        }
        let old =
            Old { version: reader.uint()?, flags: reader.u32()?, value: Value::read(reader)? };
        for _ in 3..len {
            reader.skip()?;
        }
        Ok(Some(old))
    }
}

const EXTRA_STALE: u64 = 1;
const EXTRA_REFILL: u64 = 2;
const EXTRA_VALUE_LEN: u64 = 3;

impl Extra {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut extra = Self::default();
        if reader.nil() {
            return Ok(extra);
        }
        for _ in 0..reader.map()? {
            match reader.uint()? {
                EXTRA_STALE => extra.stale = reader.bool()?,
                EXTRA_REFILL => {
                    extra.refill = match reader.uint()? {
                        1 => RefillRight::Won,
                        2 => RefillRight::Taken,
                        _ => RefillRight::None,
                    };
                }
                EXTRA_VALUE_LEN => extra.value_len = Some(reader.uint()?),
                _ => reader.skip()?,
            }
        }
        Ok(extra)
    }

    fn write(&self, out: &mut Vec<u8>) {
        if *self == Self::default() {
            return put_nil(out);
        }
        let refill = match self.refill {
            RefillRight::None => None,
            RefillRight::Won => Some(1),
            RefillRight::Taken => Some(2),
        };
        let len =
            u8::from(self.stale) + u8::from(refill.is_some()) + u8::from(self.value_len.is_some());
        out.push(0x80 | len);
        if self.stale {
            put_uint(out, EXTRA_STALE);
            super::wire::put_bool(out, true);
        }
        if let Some(refill) = refill {
            put_uint(out, EXTRA_REFILL);
            put_uint(out, refill);
        }
        if let Some(len) = self.value_len {
            put_uint(out, EXTRA_VALUE_LEN);
            put_uint(out, len);
        }
    }
}

impl<'a> Push<'a> {
    fn read(fields: &mut Fields<'_, 'a>) -> Result<Self, Malformed> {
        Ok(match fields.take()?.uint()? {
            PUSH_INVALIDATE => {
                let cache = fields.take()?.u32()?;
                let reader = fields.take()?;
                let slots = if reader.nil() { None } else { Some(Slots::read(reader)?) };
                Self::Invalidate(Invalidated { cache, slots })
            }
            PUSH_TOPOLOGY => {
                let reader = fields.take()?;
                let before = reader.rest();
                reader.skip()?;
                Self::Topology(&before[..before.len() - reader.rest().len()])
            }
            PUSH_GOODBYE => Self::Goodbye { reason: fields.take()?.str()? },
            PUSH_LIVE => Self::Live(Live {
                number: fields.take()?.u32()?,
                kind: fields.take()?.str()?,
                sensor: fields.take()?.bytes()?,
                event: fields.take()?.str()?,
            }),
            what => Self::Unknown { what },
        })
    }
}

/// The answers to a batch.
pub type Results<'a> = List<'a, Response<'a>>;

/// An item of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Version of the item.
    pub version: u64,
    /// The client's own bits.
    pub flags: u32,
    /// Milliseconds left; `None` does not end.
    pub ttl_ms: Option<u64>,
    /// Length of the value in bytes.
    pub value_len: u64,
    /// The value, when it was asked for.
    pub value: Option<Value<'a>>,
}

impl Entry<'_> {
    const FIELDS: usize = 6;
}

impl<'a> Element<'a> for Entry<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let len = reader.array()?;
        if len < Self::FIELDS {
            return malformed("an item of a scan lacks an element");
        }
        let entry = Self {
            key: reader.bytes()?,
            version: reader.uint()?,
            flags: reader.u32()?,
            ttl_ms: reader.uint_or_nil()?,
            value_len: reader.uint()?,
            value: if reader.nil() { None } else { Some(Value::read(reader)?) },
        };
        for _ in Self::FIELDS..len {
            reader.skip()?;
        }
        Ok(entry)
    }
}

/// The items of a step of a scan.
pub type Entries<'a> = List<'a, Entry<'a>>;

/// The head of a hit, up to the bytes of its value.
#[derive(Clone, Copy, Debug)]
pub struct HitHead<'a> {
    /// The item.
    pub item: &'a ItemMeta,
    /// Whether its value follows.
    pub with_value: bool,
}

impl HitHead<'_> {
    fn extra(&self) -> Extra {
        Extra {
            stale: self.item.stale,
            refill: self.item.refill,
            value_len: (!self.with_value).then_some(self.item.value_len as u64),
        }
    }

    /// The elements of a hit; of the value its head only.
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        self.write_before_value(out);
        if self.with_value {
            put_bin_head(out, self.item.value_len);
        } else {
            put_nil(out);
        }
    }

    #[inline]
    fn write_before_value(&self, out: &mut Vec<u8>) {
        put_uint(out, self.item.version);
        put_uint(out, u64::from(self.item.flags));
        put_uint_or_nil(out, self.item.ttl_ms);
        self.extra().write(out);
    }
}

/// The head of the commonest answer, written into room made for it at once: appended piece by
/// piece, each piece would look whether the vector has room.
struct Short<'a> {
    bytes: &'a mut [u8; Short::LEN_MAX],
    len: usize,
}

impl Short<'_> {
    /// Frame head, array, kind, id, version, flags, end, no extra, and the head of the value:
    /// 4 + 1 + 1 + 5 + 9 + 5 + 9 + 1 + 5 at most.
    const LEN_MAX: usize = 48;

    #[inline(always)]
    fn append_plain_hit(out: &mut Vec<u8>, id: u32, item: &ItemMeta) {
        let start = out.len();
        out.extend_from_slice(&[0; Self::LEN_MAX]);
        let Some(bytes) = out[start..].first_chunk_mut() else { return };
        let mut short = Short { bytes, len: FRAME_HEAD_LEN };
        short.push([0x97, Kind::Value as u8]);
        short.uint(u64::from(id));
        short.uint(item.version);
        short.uint(u64::from(item.flags));
        match item.ttl_ms {
            None => short.push([0xc0]),
            Some(ms) => short.uint(ms),
        }
        short.push([0xc0]);
        match item.value_len {
            len @ 0..=0xff => short.push([0xc4, len as u8]),
            len @ 0x100..=0xffff => {
                short.push([0xc5]);
                short.push((len as u16).to_be_bytes());
            }
            len => {
                short.push([0xc6]);
                short.push((len as u32).to_be_bytes());
            }
        }
        let body_len = (short.len - FRAME_HEAD_LEN + item.value_len) as u32;
        short.bytes[..FRAME_HEAD_LEN].copy_from_slice(&body_len.to_be_bytes());
        let end = start + short.len;
        out.truncate(end);
    }

    #[inline(always)]
    fn push<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
    }

    #[inline(always)]
    fn uint(&mut self, number: u64) {
        match number {
            0..=0x7f => self.push([number as u8]),
            0x80..=0xff => self.push([0xcc, number as u8]),
            0x100..=0xffff => {
                self.push([0xcd]);
                self.push((number as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.push([0xce]);
                self.push((number as u32).to_be_bytes());
            }
            _ => {
                self.push([0xcf]);
                self.push(number.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::frame::{begin_frame, end_frame_before};

    #[test]
    fn the_short_way_writes_what_the_long_one_writes() {
        let numbers = [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, 0xffff_ffff, u64::MAX];
        for number in numbers {
            let small = number as u32;
            for ttl_ms in [None, Some(number)] {
                let value_len = small as usize >> 4;
                let item = ItemMeta {
                    value_len,
                    flags: small,
                    version: number,
                    ttl_ms,
                    ..ItemMeta::default()
                };
                let mut long = b"before".to_vec();
                let mut short = long.clone();
                let start = begin_frame(&mut long);
                put_array(&mut long, 7);
                put_uint(&mut long, Kind::Value.number());
                put_uint(&mut long, u64::from(small));
                HitHead { item: &item, with_value: true }.write(&mut long);
                end_frame_before(&mut long, start, value_len);
                Short::append_plain_hit(&mut short, small, &item);
                assert_eq!(short, long, "{item:?}");
            }
        }
    }
}
