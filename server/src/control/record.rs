//! Bytes that are kept or sent: MessagePack behind a checksum.
//!
//! The storage has checksums of its own for its pages, and the links for their frames; this one
//! says that a record is what this module wrote, before anything is made of it.

use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes before the MessagePack.
const CHECKSUM_LEN: usize = 8;

/// How deep a value may nest: twice what any that is written here needs. Reading calls itself for
/// each level, and nobody but a broken or hostile peer sends more than a few.
const DEPTH_MAX: usize = 64;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// Not what was written.
    #[error("wrong checksum")]
    Checksum,
    /// What was written, but by another release or for something else.
    #[error("cannot be read: {0}")]
    Content(String),
    /// Cannot be put into bytes.
    #[error("cannot be written: {0}")]
    Encode(String),
}

/// The bytes of a value.
pub(super) fn seal(value: &impl Serialize) -> Result<Vec<u8>, RecordError> {
    let mut bytes = vec![0; CHECKSUM_LEN];
    rmp_serde::encode::write(&mut bytes, value)
        .map_err(|error| RecordError::Encode(error.to_string()))?;
    let (head, body) = bytes.split_at_mut(CHECKSUM_LEN);
    head.copy_from_slice(&xxh3_64(body).to_le_bytes());
    Ok(bytes)
}

/// The value in bytes.
pub(super) fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    let (head, body) = bytes.split_first_chunk::<CHECKSUM_LEN>().ok_or(RecordError::Checksum)?;
    if u64::from_le_bytes(*head) != xxh3_64(body) {
        return Err(RecordError::Checksum);
    }
    parse(body).map_err(|error| RecordError::Content(error.to_string()))
}

/// The value in bytes that have no checksum of their own.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let value = (7u64, "text".to_owned(), vec![Some(1u8), None]);
        let bytes = seal(&value).unwrap();
        assert_eq!(unseal::<(u64, String, Vec<Option<u8>>)>(&bytes).unwrap(), value);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let bytes = seal(&(7u64, "text".to_owned())).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(unseal::<(u64, String)>(&damaged), Err(RecordError::Checksum));
        }
        for len in 0..bytes.len() {
            assert_eq!(unseal::<(u64, String)>(&bytes[..len]), Err(RecordError::Checksum));
        }
    }
}
