//! What a record carries: a structure, written down field by field without names.
//!
//! The format is [postcard's](https://postcard.jamesmunns.com/wire-format): numbers take as many bytes as
//! they need, the kind of a variant is a number, bytes are preceded by their length. It says nothing of
//! itself, so both ends must mean the same: nodes of different [`VERSION`](super::VERSION)s exchange no
//! records. What a client sees is MessagePack instead, which other languages read.
//!
//! What always holds: any bytes are read as a value or refused; memory grows with the bytes that are
//! there, not with what they claim.
//!
//! Cost: for a replicated write less than half of the instructions that MessagePack takes, which asks of
//! each value what it is, and two thirds of the bytes.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

/// Appends a structure. After an error nothing was appended.
///
/// # Errors
/// When the structure cannot be written down: a sequence that does not know its length.
pub fn write_record(out: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Unwritable> {
    let before = out.len();
    let written = postcard::serialize_with_flavor(value, Appending(&mut *out));
    written.map_err(|_| {
        out.truncate(before);
        Unwritable
    })
}

/// Reads a structure that takes just these bytes.
///
/// # Errors
/// When they are anything else.
pub fn read_record<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unreadable> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Unreadable),
    }
}

/// A structure cannot be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a structure that cannot be written down")]
pub struct Unwritable;

/// Whole and undamaged, but not what a node of this version says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record that cannot be read")]
pub struct Unreadable;

/// Appends to what is there.
struct Appending<'a>(&'a mut Vec<u8>);

impl Flavor for Appending<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Said {
        Nothing,
        Numbers { small: u8, large: u64, perhaps: Option<u32> },
        Texts(Vec<String>),
        Pair(i64, bool),
    }

    fn said() -> impl Strategy<Value = Said> {
        prop_oneof![
            Just(Said::Nothing),
            any::<(u8, u64, Option<u32>)>().prop_map(|(small, large, perhaps)| Said::Numbers {
                small,
                large,
                perhaps
            }),
            any::<Vec<String>>().prop_map(Said::Texts),
            any::<(i64, bool)>().prop_map(|(number, flag)| Said::Pair(number, flag)),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_and_nothing_less_or_more(value in said(), other: u8) {
            let mut bytes = b"before".to_vec();
            write_record(&mut bytes, &value).unwrap();
            let mut record = bytes.split_off(6);
            prop_assert_eq!(bytes, b"before");
            prop_assert_eq!(read_record::<Said>(&record), Ok(value));
            prop_assert_eq!(read_record::<Said>(&record[..record.len() - 1]), Err(Unreadable));
            record.push(other);
            prop_assert_eq!(read_record::<Said>(&record), Err(Unreadable));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = read_record::<Said>(&bytes);
        }
    }

    /// A number, and then a sequence that does not know its length.
    struct Endless;

    impl Serialize for Endless {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            use serde::ser::{SerializeSeq, SerializeTuple};
            struct Unsized;
            impl Serialize for Unsized {
                fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                    to.serialize_seq(None)?.end()
                }
            }
            let mut pair = serializer.serialize_tuple(2)?;
            pair.serialize_element(&77_u64)?;
            pair.serialize_element(&Unsized)?;
            pair.end()
        }
    }

    #[test]
    fn of_what_cannot_be_written_nothing_is() {
        let mut bytes = b"before".to_vec();
        assert_eq!(write_record(&mut bytes, &Endless), Err(Unwritable));
        assert_eq!(bytes, b"before");
    }

    #[test]
    fn what_claims_to_be_long_takes_no_memory_for_it() {
        // Texts, 2^62 of them.
        let mut bytes = vec![2];
        bytes.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]);
        assert_eq!(read_record::<Said>(&bytes), Err(Unreadable));
        // Bytes, as many.
        assert_eq!(read_record::<&[u8]>(&bytes[1..]), Err(Unreadable));
    }
}
