//! Compressed bodies, inflated with a bound: a small body can stand for a very long one.

use std::io::{self, Read};

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Not at all.
    Identity,
    /// Gzip, also of several members.
    Gzip,
    /// Zstandard.
    Zstd,
    /// Frames of LZ4.
    Lz4,
}

/// Why a body was not inflated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflateError {
    /// It would be longer than allowed.
    #[error("the body is longer than {limit} bytes when it is inflated")]
    TooLong {
        /// What is allowed.
        limit: usize,
    },
    /// It is not what its header says.
    #[error("the body cannot be inflated: {0}")]
    Damaged(#[from] io::Error),
}

impl Coding {
    /// The coding of a `Content-Encoding`; `None` for one that is not known.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        let name = name.trim_ascii();
        [
            (&b""[..], Self::Identity),
            (b"identity", Self::Identity),
            (b"gzip", Self::Gzip),
            (b"x-gzip", Self::Gzip),
            (b"zstd", Self::Zstd),
            (b"lz4", Self::Lz4),
        ]
        .into_iter()
        .find_map(|(known, coding)| name.eq_ignore_ascii_case(known).then_some(coding))
    }
}

/// Inflates a body to at most `limit` bytes.
pub(crate) fn inflate(
    coding: Coding,
    body: Vec<u8>,
    limit: usize,
) -> Result<Vec<u8>, InflateError> {
    match coding {
        Coding::Identity if body.len() > limit => Err(InflateError::TooLong { limit }),
        Coding::Identity => Ok(body),
        Coding::Gzip => read(flate2::read::MultiGzDecoder::new(&*body), limit),
        Coding::Zstd => {
            // The window is memory too: as much as a decoder grants by itself.
            let mut decoder = zstd::stream::read::Decoder::new(&*body)?;
            decoder.window_log_max(23)?;
            read(decoder, limit)
        }
        Coding::Lz4 => read(lz4_flex::frame::FrameDecoder::new(&*body), limit),
    }
}

fn read(decoder: impl Read, limit: usize) -> Result<Vec<u8>, InflateError> {
    let mut bytes = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit { Err(InflateError::TooLong { limit }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Identity => bytes.to_vec(),
            Coding::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                gzip.write_all(bytes).unwrap();
                gzip.finish().unwrap()
            }
            Coding::Zstd => zstd::encode_all(bytes, 1).unwrap(),
            Coding::Lz4 => {
                let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
                lz4.write_all(bytes).unwrap();
                lz4.finish().unwrap()
            }
        }
    }

    #[test]
    fn every_coding_gives_the_bytes_back_and_never_more_than_the_bound() {
        let text = b"sensor1, 12\n".repeat(10_000);
        for coding in [Coding::Identity, Coding::Gzip, Coding::Zstd, Coding::Lz4] {
            let body = packed(coding, &text);
            assert_eq!(inflate(coding, body.clone(), text.len()).unwrap(), text, "{coding:?}");
            let bounded = inflate(coding, body, text.len() - 1);
            assert!(matches!(bounded, Err(InflateError::TooLong { .. })), "{coding:?}");
        }
    }

    #[test]
    fn a_damaged_body_is_an_error_and_not_half_a_body() {
        let text = b"sensor1, 12\n".repeat(1_000);
        for coding in [Coding::Gzip, Coding::Zstd, Coding::Lz4] {
            let mut body = packed(coding, &text);
            body.truncate(body.len() / 2);
            assert!(matches!(inflate(coding, body, 1 << 20), Err(InflateError::Damaged(_))));
            let noise = inflate(coding, b"not compressed".to_vec(), 1 << 20);
            assert!(matches!(noise, Err(InflateError::Damaged(_))), "{coding:?}");
        }
    }
}
