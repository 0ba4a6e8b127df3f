//! Values of a program's own types, through serde.

use std::{future::Future, marker::PhantomData, sync::Arc};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Cache, ComputeError, Deleted, Error, Expiry, Reason};

/// An error of a codec.
pub type CodecError = Box<dyn std::error::Error + Send + Sync>;

/// Turns values into bytes and back.
///
/// Called on the task that makes the call; must not block.
pub trait Codec: Send + Sync + 'static {
    /// A value as bytes.
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError>;

    /// A value from bytes.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError>;
}

/// Values as MessagePack maps: compact, and fields can be added later.
#[derive(Clone, Copy, Debug)]
pub struct MessagePack;

impl Codec for MessagePack {
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
        rmp_serde::to_vec_named(value).map_err(CodecError::from)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        rmp_serde::from_slice(bytes).map_err(CodecError::from)
    }
}

/// Values as JSON: larger, but every other program can read them. Needs the feature `json`.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug)]
pub struct Json;

#[cfg(feature = "json")]
impl Codec for Json {
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(value).map_err(CodecError::from)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        serde_json::from_slice(bytes).map_err(CodecError::from)
    }
}

/// A cache whose values are of one type. See [`Cache::typed`].
#[derive(Debug)]
pub struct Typed<T, C = MessagePack> {
    cache: Cache,
    types: PhantomData<fn() -> (T, C)>,
}

impl<T, C> Clone for Typed<T, C> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), types: PhantomData }
    }
}

impl Cache {
    /// The same cache with values of one type, kept as MessagePack.
    ///
    /// ```no_run
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct User {
    ///     name: String,
    /// }
    ///
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let users = cache.typed::<User>();
    /// users.set("7", &User { name: "Ada".into() }, None).await?;
    /// let user = users.get("7").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn typed<T: Serialize + DeserializeOwned>(&self) -> Typed<T> {
        self.typed_with()
    }

    /// The same cache with values of one type, kept as a codec of the program's choice makes them.
    ///
    /// ```no_run
    /// # fn example(cache: kiln_client::Cache) {
    /// let numbers = cache.typed_with::<Vec<u64>, kiln_client::MessagePack>();
    /// # }
    /// ```
    pub fn typed_with<T: Serialize + DeserializeOwned, C: Codec>(&self) -> Typed<T, C> {
        Typed { cache: self.clone(), types: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned, C: Codec> Typed<T, C> {
    /// The value of a key. A value that is of another type is an error.
    ///
    /// Cancel safe.
    pub async fn get(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Option<T>, Error> {
        self.cache.get(key).await?.map(|bytes| Self::decode(&bytes)).transpose()
    }

    /// Writes a value. `None` lives until it is deleted or evicted.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    pub async fn set(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        value: &T,
        expires: impl Into<Expiry>,
    ) -> Result<u64, Error> {
        let bytes = C::encode(value).map_err(wrong_type)?;
        self.cache.set(key, &bytes).expires(expires).await
    }

    /// Removes an item.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    pub async fn delete(&self, key: &(impl AsRef<[u8]> + ?Sized)) -> Result<Deleted, Error> {
        self.cache.delete(key).await
    }

    /// The value of a key; where there is none, it is computed and stored. See
    /// [`Cache::get_or_compute`].
    ///
    /// Cancel safe.
    pub async fn get_or_compute<E, F>(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        expires: impl Into<Expiry>,
        compute: impl FnOnce() -> F,
    ) -> Result<T, ComputeError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        F: Future<Output = Result<T, E>>,
    {
        let compute = || async {
            let value = compute().await.map_err(Into::into)?;
            C::encode(&value).map(Bytes::from)
        };
        let bytes = self.cache.get_or_compute(key, expires, compute).await?;
        Ok(Self::decode(&bytes)?)
    }

    fn decode(bytes: &[u8]) -> Result<T, Error> {
        C::decode(bytes).map_err(wrong_type)
    }
}

fn wrong_type(error: CodecError) -> Error {
    Error::NotApplied(Arc::new(Reason::Value(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Old {
        name: String,
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct New {
        name: String,
        #[serde(default)]
        age: u32,
    }

    fn a_field_can_be_added<C: Codec>() {
        let bytes = C::encode(&Old { name: "Ada".to_owned() }).unwrap();
        let new: New = C::decode(&bytes).unwrap();
        assert_eq!(new, New { name: "Ada".to_owned(), age: 0 });
    }

    #[test]
    fn a_field_can_be_added_to_a_type() {
        a_field_can_be_added::<MessagePack>();
        #[cfg(feature = "json")]
        a_field_can_be_added::<Json>();
    }

    #[test]
    fn bytes_of_another_type_are_an_error() {
        assert!(MessagePack::decode::<Old>(&[1]).is_err());
        #[cfg(feature = "json")]
        assert!(Json::decode::<Old>(b"[1").is_err());
    }
}
