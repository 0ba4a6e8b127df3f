//! MessagePack as far as the protocol uses it, without copies.
//!
//! The general library would build a value for each element; requests on items are read here
//! instead, element by element, from the frame. Writers always take the shortest form; readers
//! take every form that the format allows.
//!
//! Source: the MessagePack specification, <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use super::error::ErrorCode;

/// A body that is no message of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Malformed {
    /// How a node answers it.
    pub code: ErrorCode,
    /// What is wrong with it.
    pub what: &'static str,
}

pub(super) const fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    wrong(ErrorCode::Malformed, what)
}

/// Well formed, but not what the protocol allows there.
pub(super) const fn wrong<T>(code: ErrorCode, what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { code, what })
}

/// Values inside values that are skipped, at most.
const DEPTH_MAX: usize = 32;

/// Reads elements from the front of a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read.
    #[inline]
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Malformed> {
        let Some((&first, rest)) = self.rest.split_first() else {
            return malformed("the message ends too early");
        };
        self.rest = rest;
        Ok(first)
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return malformed("the message ends too early");
        };
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return malformed("the message ends too early");
        };
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    fn len8(&mut self) -> Result<usize, Malformed> {
        Ok(usize::from(self.byte()?))
    }

    #[inline]
    fn len16(&mut self) -> Result<usize, Malformed> {
        Ok(usize::from(u16::from_be_bytes(self.fixed()?)))
    }

    #[inline]
    fn len32(&mut self) -> Result<usize, Malformed> {
        Ok(u32::from_be_bytes(self.fixed()?) as usize)
    }

    /// The number of elements of an array.
    #[inline]
    pub(super) fn array(&mut self) -> Result<usize, Malformed> {
        match self.byte()? {
            marker @ 0x90..=0x9f => Ok(usize::from(marker & 0x0f)),
            0xdc => self.len16(),
            0xdd => self.len32(),
            _ => malformed("an array was expected"),
        }
    }

    /// The number of pairs of a map.
    #[inline]
    pub(super) fn map(&mut self) -> Result<usize, Malformed> {
        match self.byte()? {
            marker @ 0x80..=0x8f => Ok(usize::from(marker & 0x0f)),
            0xde => self.len16(),
            0xdf => self.len32(),
            _ => malformed("a map was expected"),
        }
    }

    #[inline]
    pub(super) fn uint(&mut self) -> Result<u64, Malformed> {
        match self.byte()? {
            marker @ 0x00..=0x7f => Ok(u64::from(marker)),
            0xcc => Ok(u64::from(self.byte()?)),
            0xcd => Ok(u64::from(u16::from_be_bytes(self.fixed()?))),
            0xce => Ok(u64::from(u32::from_be_bytes(self.fixed()?))),
            0xcf => Ok(u64::from_be_bytes(self.fixed()?)),
            // Some libraries write positive numbers as signed ones.
            0xd0 => unsigned(i64::from(i8::from_be_bytes(self.fixed()?))),
            0xd1 => unsigned(i64::from(i16::from_be_bytes(self.fixed()?))),
            0xd2 => unsigned(i64::from(i32::from_be_bytes(self.fixed()?))),
            0xd3 => unsigned(i64::from_be_bytes(self.fixed()?)),
            _ => malformed("an unsigned integer was expected"),
        }
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        match u32::try_from(self.uint()?) {
            Ok(number) => Ok(number),
            Err(_) => malformed("an integer below 2^32 was expected"),
        }
    }

    /// A number that may be missing: nil, or an unsigned integer.
    #[inline]
    pub(super) fn uint_or_nil(&mut self) -> Result<Option<u64>, Malformed> {
        if self.nil() { Ok(None) } else { self.uint().map(Some) }
    }

    /// Takes a nil, if one is next.
    #[inline]
    pub(super) fn nil(&mut self) -> bool {
        match self.rest.split_first() {
            Some((0xc0, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    pub(super) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            _ => malformed("a boolean was expected"),
        }
    }

    /// A real number: a float of either width, or an integer.
    #[inline]
    pub(super) fn real(&mut self) -> Result<f64, Malformed> {
        match self.rest.first() {
            Some(0xca) => {
                self.byte()?;
                Ok(f64::from(f32::from_be_bytes(self.fixed()?)))
            }
            Some(0xcb) => {
                self.byte()?;
                Ok(f64::from_be_bytes(self.fixed()?))
            }
            _ => self.int().map(|number| number as f64),
        }
    }

    /// An integer of either sign; those above the signed range are refused.
    #[inline]
    pub(super) fn int(&mut self) -> Result<i64, Malformed> {
        let before = *self;
        match self.byte()? {
            marker @ 0xe0..=0xff => Ok(i64::from(marker as i8)),
            0xd0 => Ok(i64::from(i8::from_be_bytes(self.fixed()?))),
            0xd1 => Ok(i64::from(i16::from_be_bytes(self.fixed()?))),
            0xd2 => Ok(i64::from(i32::from_be_bytes(self.fixed()?))),
            0xd3 => Ok(i64::from_be_bytes(self.fixed()?)),
            _ => {
                *self = before;
                match i64::try_from(self.uint()?) {
                    Ok(number) => Ok(number),
                    Err(_) => malformed("an integer below 2^63 was expected"),
                }
            }
        }
    }

    /// Bytes: a bin, or a str from a library that knows no difference.
    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = match self.byte()? {
            marker @ 0xa0..=0xbf => usize::from(marker & 0x1f),
            0xc4 | 0xd9 => self.len8()?,
            0xc5 | 0xda => self.len16()?,
            0xc6 | 0xdb => self.len32()?,
            _ => return malformed("bytes were expected"),
        };
        self.take(len)
    }

    /// Text: a str of UTF-8.
    #[inline]
    pub(super) fn str(&mut self) -> Result<&'a str, Malformed> {
        if !self.is_str() {
            return malformed("a string was expected");
        }
        match std::str::from_utf8(self.bytes()?) {
            Ok(text) => Ok(text),
            Err(_) => malformed("a string is not UTF-8"),
        }
    }

    #[inline]
    pub(super) fn is_str(&self) -> bool {
        matches!(self.rest.first(), Some(0xa0..=0xbf | 0xd9..=0xdb))
    }

    #[inline]
    pub(super) fn is_map(&self) -> bool {
        matches!(self.rest.first(), Some(0x80..=0x8f | 0xde | 0xdf))
    }

    /// An extension, if one is next: its type and bytes.
    #[inline]
    pub(super) fn extension(&mut self) -> Result<Option<(i8, &'a [u8])>, Malformed> {
        let len = match self.rest.first() {
            Some(marker @ 0xd4..=0xd8) => {
                let marker = *marker;
                self.byte()?;
                1 << (marker - 0xd4)
            }
            Some(0xc7) => {
                self.byte()?;
                self.len8()?
            }
            Some(0xc8) => {
                self.byte()?;
                self.len16()?
            }
            Some(0xc9) => {
                self.byte()?;
                self.len32()?
            }
            _ => return Ok(None),
        };
        let kind = self.byte()? as i8;
        Ok(Some((kind, self.take(len)?)))
    }

    /// Goes past the next value, whatever it is.
    pub(super) fn skip(&mut self) -> Result<(), Malformed> {
        // Values still to skip on each level.
        let mut left = [0_usize; DEPTH_MAX];
        let mut depth = 0;
        left[0] = 1;
        loop {
            while left[depth] == 0 {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
            }
            left[depth] -= 1;
            let inner = match self.rest.first() {
                Some(0x80..=0x8f | 0xde | 0xdf) => self.map()?.saturating_mul(2),
                Some(0x90..=0x9f | 0xdc | 0xdd) => self.array()?,
                _ => {
                    self.skip_scalar()?;
                    0
                }
            };
            if inner > 0 {
                depth += 1;
                if depth == DEPTH_MAX {
                    return malformed("values are nested too deep");
                }
                left[depth] = inner;
            }
        }
    }

    fn skip_scalar(&mut self) -> Result<(), Malformed> {
        let len = match self.byte()? {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
            marker @ 0xa0..=0xbf => usize::from(marker & 0x1f),
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 => 2,
            0xca | 0xce | 0xd2 => 4,
            0xcb | 0xcf | 0xd3 => 8,
            0xc4 | 0xd9 => self.len8()?,
            0xc5 | 0xda => self.len16()?,
            0xc6 | 0xdb => self.len32()?,
            marker @ 0xd4..=0xd8 => 1 + (1 << (marker - 0xd4)),
            0xc7 => 1 + self.len8()?,
            0xc8 => 1 + self.len16()?,
            0xc9 => self.len32()?.saturating_add(1),
            _ => return malformed("a byte that begins no value"),
        };
        self.take(len).map(|_| ())
    }
}

fn unsigned(number: i64) -> Result<u64, Malformed> {
    match u64::try_from(number) {
        Ok(number) => Ok(number),
        Err(_) => malformed("an unsigned integer was expected"),
    }
}

// ---- writing ---------------------------------------------------------------------------------

#[inline]
pub(super) fn put_array(out: &mut Vec<u8>, len: usize) {
    match len {
        0..=15 => out.push(0x90 | len as u8),
        16..=0xffff => {
            out.push(0xdc);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0xdd);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}

/// For maps of options, of which there are never many.
#[inline]
pub(super) fn put_small_map(out: &mut Vec<u8>, len: u8) {
    if len <= 15 {
        out.push(0x80 | len);
    } else {
        out.push(0xde);
        out.extend_from_slice(&u16::from(len).to_be_bytes());
    }
}

#[inline]
pub(super) fn put_uint(out: &mut Vec<u8>, number: u64) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend_from_slice(&(number as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend_from_slice(&(number as u32).to_be_bytes());
        }
        _ => {
            out.push(0xcf);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

#[inline]
pub(super) fn put_int(out: &mut Vec<u8>, number: i64) {
    match u64::try_from(number) {
        Ok(number) => put_uint(out, number),
        Err(_) => {
            out.push(0xd3);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

#[inline]
pub(super) fn put_uint_or_nil(out: &mut Vec<u8>, number: Option<u64>) {
    match number {
        Some(number) => put_uint(out, number),
        None => put_nil(out),
    }
}

#[inline]
pub(super) fn put_nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

#[inline]
pub(super) fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { 0xc3 } else { 0xc2 });
}

#[inline]
pub(super) fn put_real(out: &mut Vec<u8>, number: f64) {
    out.push(0xcb);
    out.extend_from_slice(&number.to_be_bytes());
}

/// The head of a bin whose bytes follow.
#[inline]
pub(super) fn put_bin_head(out: &mut Vec<u8>, len: usize) {
    match len {
        0..=0xff => out.extend_from_slice(&[0xc4, len as u8]),
        0x100..=0xffff => {
            out.push(0xc5);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0xc6);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}

#[inline]
pub(super) fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    put_bin_head(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[inline]
pub(super) fn put_str(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        len @ 0..=31 => out.push(0xa0 | len as u8),
        len @ 32..=0xff => out.extend_from_slice(&[0xd9, len as u8]),
        len @ 0x100..=0xffff => {
            out.push(0xda);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0xdb);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
}

#[inline]
pub(super) fn put_extension(out: &mut Vec<u8>, kind: i8, parts: [&[u8]; 2]) {
    let len = parts[0].len() + parts[1].len();
    match len {
        0..=0xff => out.extend_from_slice(&[0xc7, len as u8]),
        0x100..=0xffff => {
            out.push(0xc8);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(0xc9);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
    out.push(kind as u8);
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
}
