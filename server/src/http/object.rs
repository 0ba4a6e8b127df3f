//! Structures that are read from maps and from nothing else.
//!
//! Left to itself, a structure would also be read from a list, by the places of its fields: a list
//! sent by mistake would mean something, and something else in the next version.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A structure that came as a map.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapOnly<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for MapOnly<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        deserializer.deserialize_map(MapOnly(PhantomData))
    }
}

/// Reads a whole number that may be missing. In JSON `8.0` is the same number as `8`.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    struct Whole<T>(PhantomData<T>);

    impl<'de, T: TryFrom<u64>> Visitor<'de> for Whole<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number of at most {} bits", 8 * size_of::<T>())
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            let found = de::Unexpected::Unsigned(number);
            let number = T::try_from(number).map_err(|_| E::invalid_value(found, &self))?;
            Ok(Some(number))
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
            let found = de::Unexpected::Signed(number);
            let number = u64::try_from(number).map_err(|_| E::invalid_value(found, &self))?;
            self.visit_u64(number)
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
            // From 2^53 on, one of these stands for several whole numbers.
            if number.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&number) {
                return self.visit_u64(number as u64);
            }
            Err(E::invalid_value(de::Unexpected::Float(number), &self))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(
            self,
            deserializer: D,
        ) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    deserializer.deserialize_any(Whole(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Pair {
        a: u8,
    }

    #[derive(Debug, Deserialize)]
    struct Count {
        #[serde(default, deserialize_with = "whole")]
        n: Option<u32>,
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let read = |text: &str| serde_json::from_str::<Count>(text).map(|count| count.n);
        assert_eq!(read("{}").unwrap(), None);
        assert_eq!(read("{\"n\":null}").unwrap(), None);
        assert_eq!(read("{\"n\":8}").unwrap(), Some(8));
        assert_eq!(read("{\"n\":8.0}").unwrap(), Some(8));
        for bad in ["8.5", "-1", "-1.0", "4294967296", "1e300", "\"8\"", "[]"] {
            assert!(read(&format!("{{\"n\":{bad}}}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_is_no_object() {
        assert_eq!(serde_json::from_str::<Object<Pair>>("{\"a\":1}").unwrap().0.a, 1);
        assert_eq!(serde_json::from_str::<Pair>("[1]").unwrap().a, 1);
        assert!(serde_json::from_str::<Object<Pair>>("[1]").is_err());
    }
}
