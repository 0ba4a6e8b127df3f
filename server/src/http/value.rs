//! Values on their way to a client: whole, in part, or compressed.
//!
//! A small value is one piece of memory. A large one stays pinned in the store and is copied piece
//! by piece as the client takes it, so that a slow client costs a piece and not the value; what is
//! pinned together is bounded by the node's budget. Compression goes piece by piece as well, and
//! only so many answers are compressed at a time: the others go as they are.

use std::{
    convert::Infallible,
    io::{self, Write},
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zstd::zstd_safe::CParameter;

use crate::{
    connection::budget::{Budget, Share},
    http::problem::{Kind, Problem},
    perform::OwnedValue,
};

/// Bytes of a value that are copied at a time.
const PIECE_LEN: usize = 128 << 10;

/// Values shorter than this are not compressed.
const COMPRESS_MIN: usize = 4 << 10;

/// Values up to this are compressed whole before the answer begins, so that its length is known.
const COMPRESS_AT_ONCE_MAX: usize = 64 << 10;

/// Answers being compressed at a time. Each takes up to half a megabyte.
pub(super) const ENCODERS_MAX: usize = 16;

/// Clients that are refused because others hold too much are told to come back after so long.
pub(super) const BUSY_RETRY_MS: u64 = 500;

/// How the bytes of an answer are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Zstandard.
    Zstd,
    /// Gzip.
    Gzip,
}

impl Encoding {
    /// As headers name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// The encoding that the client likes best of those known here; `None` for none.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let (mut zstd, mut gzip, mut any) = (None, None, None);
        let values = headers.get_all(header::ACCEPT_ENCODING).into_iter();
        for one in values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(',')) {
            let mut parts = one.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| {
                part.strip_prefix("q=").or(part.strip_prefix("Q="))?.parse::<f32>().ok()
            });
            let slot = match name.as_str() {
                "zstd" => &mut zstd,
                "gzip" | "x-gzip" => &mut gzip,
                "*" => &mut any,
                _ => continue,
            };
            *slot = Some(quality.unwrap_or(1.0));
        }
        let zstd = zstd.or(any).unwrap_or(0.0);
        let gzip = gzip.or(any).unwrap_or(0.0);
        if zstd > 0.0 && zstd >= gzip {
            Some(Self::Zstd)
        } else {
            (gzip > 0.0).then_some(Self::Gzip)
        }
    }
}

/// Whether an answer of this length may be compressed for clients that accept it.
pub(super) fn is_worth_compressing(len: usize) -> bool {
    len >= COMPRESS_MIN
}

/// A body, and its length where that is known before it is sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// The body.
    pub(super) body: Body,
    /// Its length.
    pub(super) len: Option<usize>,
    /// How it is encoded.
    pub(super) encoding: Option<Encoding>,
}

impl Sent {
    /// A part of a value, as it is.
    pub(super) fn plain(
        value: OwnedValue,
        range: Range<usize>,
        budget: &Arc<Budget>,
    ) -> Result<Self, Problem> {
        let len = Some(range.len());
        let body = match value {
            OwnedValue::Copied(bytes) => Body::from(bytes.slice(range)),
            value @ OwnedValue::Pinned(_) => {
                let share = pin(&value, budget)?;
                Body::new(Pieces { value, left: range, _share: share })
            }
        };
        Ok(Self { body, len, encoding: None })
    }

    /// A value from `start` on, compressed; as it is when too many are being compressed already, or
    /// when it does not become shorter.
    pub(super) fn encoded(
        value: OwnedValue,
        range: Range<usize>,
        budget: &Arc<Budget>,
        encoding: Encoding,
        encoders: &Arc<Semaphore>,
    ) -> Result<Self, Problem> {
        let Ok(permit) = Arc::clone(encoders).try_acquire_owned() else {
            return Self::plain(value, range, budget);
        };
        let Ok(mut encoder) = Encoder::new(encoding) else {
            return Self::plain(value, range, budget);
        };
        if range.len() > COMPRESS_AT_ONCE_MAX {
            let share = pin(&value, budget)?;
            let pieces = Pieces { value, left: range, _share: share };
            let body = Body::new(Encoded { pieces, encoder: Some(encoder), _permit: permit });
            return Ok(Self { body, len: None, encoding: Some(encoding) });
        }
        let plain = value.copy(range);
        let packed = encoder.write(&plain).and_then(|()| encoder.finish());
        Ok(match packed {
            Ok(packed) if packed.len() < plain.len() => {
                let len = Some(packed.len());
                Self { body: Body::from(packed), len, encoding: Some(encoding) }
            }
            _ => Self { len: Some(plain.len()), body: Body::from(plain), encoding: None },
        })
    }
}

/// Draws the memory of a pinned value from the budget.
fn pin(value: &OwnedValue, budget: &Arc<Budget>) -> Result<Option<Share>, Problem> {
    let OwnedValue::Pinned(pinned) = value else { return Ok(None) };
    let len = pinned.slices().iter().map(|piece| piece.len()).sum();
    let mut share = budget.pinned();
    if share.resize(len) {
        return Ok(Some(share));
    }
    let detail = "too many large values are on their way to slow clients";
    Err(Problem::new(Kind::Unavailable, detail).retry_after_ms(BUSY_RETRY_MS))
}

/// A body of bytes that were drawn from a budget, given back when it is sent.
pub(super) fn held(bytes: Bytes, share: Share) -> Body {
    let left = 0..bytes.len();
    Body::new(Pieces { value: OwnedValue::Copied(bytes), left, _share: Some(share) })
}

/// A value that is copied piece by piece.
struct Pieces {
    value: OwnedValue,
    left: Range<usize>,
    _share: Option<Share>,
}

impl Pieces {
    fn next(&mut self) -> Option<Bytes> {
        if self.left.is_empty() {
            return None;
        }
        let end = match self.value {
            // No copy is made of it.
            OwnedValue::Copied(_) => self.left.end,
            OwnedValue::Pinned(_) => self.left.end.min(self.left.start + PIECE_LEN),
        };
        let piece = self.value.copy(self.left.start..end);
        self.left.start = end;
        Some(piece)
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

/// The same, compressed on the way.
struct Encoded {
    pieces: Pieces,
    /// `None` when all is written.
    encoder: Option<Encoder>,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Encoded {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        loop {
            let Some(mut encoder) = self.encoder.take() else { return Poll::Ready(None) };
            let packed = match self.pieces.next() {
                Some(piece) => {
                    let written = encoder.write(&piece);
                    let packed = written.map(|()| encoder.take());
                    self.encoder = Some(encoder);
                    packed
                }
                None => encoder.finish(),
            };
            match packed {
                // Too little yet for the encoder to give anything away.
                Ok(packed) if packed.is_empty() => {}
                packed => return Poll::Ready(Some(packed.map(|b| Frame::data(b.into())))),
            }
        }
    }
}

/// Either encoder, writing to memory.
enum Encoder {
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    fn new(encoding: Encoding) -> io::Result<Self> {
        Ok(match encoding {
            Encoding::Zstd => {
                // Fast, and with a window that keeps its memory small.
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
                encoder.set_parameter(CParameter::WindowLog(17))?;
                Self::Zstd(encoder)
            }
            Encoding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(4))),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
        }
    }

    /// What has come out so far.
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        })
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }
}

/// The part of a value that a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: there is no range, or none that is known here.
    Whole,
    /// These bytes.
    Range(Range<usize>),
    /// None of it.
    Nothing,
}

/// The part of a value of this length. Several ranges, other units and what is not well-formed are
/// passed over, as HTTP allows: the whole is a good answer to each.
pub(super) fn part(value: Option<&HeaderValue>, len: usize) -> Part {
    let spec = value.and_then(|value| value.to_str().ok()?.trim().strip_prefix("bytes="));
    let Some((from, to)) = spec.and_then(|spec| spec.split_once('-')) else { return Part::Whole };
    let number = |text: &str| {
        let digits = text.trim();
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // What is too large for a number is as good as the end.
        is_number.then(|| digits.parse::<usize>().unwrap_or(usize::MAX))
    };
    let range = match (number(from), number(to)) {
        (Some(from), Some(to)) if from <= to => from..len.min(to.saturating_add(1)),
        (Some(from), None) if to.trim().is_empty() => from..len,
        (None, Some(last)) if from.trim().is_empty() => len - last.min(len)..len,
        _ => return Part::Whole,
    };
    if range.is_empty() { Part::Nothing } else { Part::Range(range) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn accepted(value: &str) -> Option<Encoding> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
        Encoding::accepted(&headers)
    }

    #[test]
    fn the_client_chooses_the_encoding_and_zstd_is_preferred_on_a_tie() {
        assert_eq!(Encoding::accepted(&HeaderMap::new()), None);
        for (value, encoding) in [
            ("gzip", Some(Encoding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Encoding::Zstd)),
            ("zstd;q=0.5, gzip;q=0.8", Some(Encoding::Gzip)),
            ("*", Some(Encoding::Zstd)),
            ("*;q=0.1, zstd;q=0", Some(Encoding::Gzip)),
            ("gzip;q=0", None),
            ("identity", None),
            ("br", None),
            ("", None),
        ] {
            assert_eq!(accepted(value), encoding, "{value}");
        }
    }

    #[test]
    fn a_range_is_cut_at_the_end_and_one_beyond_it_is_nothing() {
        let part = |text: &str, len| part(Some(&HeaderValue::from_str(text).unwrap()), len);
        assert_eq!(part("bytes=0-0", 10), Part::Range(0..1));
        assert_eq!(part("bytes=2-99", 10), Part::Range(2..10));
        assert_eq!(part("bytes=9-", 10), Part::Range(9..10));
        assert_eq!(part("bytes=-3", 10), Part::Range(7..10));
        assert_eq!(part("bytes=-30", 10), Part::Range(0..10));
        for nothing in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert_eq!(part(nothing, 10), Part::Nothing, "{nothing}");
        }
        assert_eq!(part("bytes=0-", 0), Part::Nothing);
        for whole in ["bytes=3-2", "bytes=1-2,4-5", "bytes=a-b", "items=0-1", "bytes=-", "0-1"] {
            assert_eq!(part(whole, 10), Part::Whole, "{whole}");
        }
    }

    proptest! {
        #[test]
        fn any_range_lies_within_the_value(text in "bytes=[0-9 ]{0,22}-[0-9]{0,22}", len in 0_usize..100) {
            if let Part::Range(range) = part(Some(&HeaderValue::from_str(&text).unwrap()), len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }

        #[test]
        fn what_is_compressed_in_pieces_is_the_same_when_it_is_read(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5_000), 0..8),
        ) {
            for encoding in [Encoding::Zstd, Encoding::Gzip] {
                let mut encoder = Encoder::new(encoding).unwrap();
                let mut packed = Vec::new();
                for piece in &pieces {
                    encoder.write(piece).unwrap();
                    packed.extend(encoder.take());
                }
                packed.extend(encoder.finish().unwrap());
                let mut plain = Vec::new();
                match encoding {
                    Encoding::Zstd => plain = zstd::decode_all(&*packed).unwrap(),
                    Encoding::Gzip => {
                        let mut reader = flate2::read::GzDecoder::new(&*packed);
                        reader.read_to_end(&mut plain).unwrap();
                    }
                }
                prop_assert_eq!(plain, pieces.concat());
            }
        }
    }
}
