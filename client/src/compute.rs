//! Values that are computed when the cache has none.

use std::{future::Future, sync::Arc};

use bytes::Bytes;

use crate::{
    Cache, Error, Expiry,
    flight::{Computation, SharedError, Turn},
};

/// Why [`Cache::get_or_compute`] has no value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ComputeError {
    /// The cache could not be read, so that it is not known whether there is a value.
    Cache(Error),
    /// The computation failed: this caller's own, or the one that it waited for.
    Compute(Arc<dyn std::error::Error + Send + Sync>),
}

impl std::fmt::Display for ComputeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cache(error) => error.fmt(f),
            Self::Compute(error) => write!(f, "the value could not be computed: {error}"),
        }
    }
}

impl std::error::Error for ComputeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Cache(error) => error.source(),
            Self::Compute(error) => error.source(),
        }
    }
}

impl From<Error> for ComputeError {
    fn from(error: Error) -> Self {
        Self::Cache(error)
    }
}

impl Cache {
    /// The value of a key; where there is none, it is computed and stored.
    ///
    /// Of all callers of this client that miss the same key at the same time, one computes and the
    /// others get its value, or its error. When the one that computes is dropped, another takes
    /// over. That the value could not be stored is no error: it is there all the same.
    ///
    /// The cache's timeout is for reading and storing; computing takes as long as it takes.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn from_database(id: u64) -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::ComputeError> {
    /// let minute = Duration::from_secs(60);
    /// let user = cache.get_or_compute("user:7", minute, || from_database(7)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_or_compute<V, E, F>(
        &self,
        key: &(impl AsRef<[u8]> + ?Sized),
        expires: impl Into<Expiry>,
        compute: impl FnOnce() -> F,
    ) -> Result<Bytes, ComputeError>
    where
        V: Into<Bytes>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        F: Future<Output = Result<V, E>>,
    {
        let (key, expires) = (key.as_ref(), expires.into());
        match self.seek(key).await? {
            Sought::There(value) => Ok(value),
            Sought::Missing(computation) => {
                let computed = compute().await;
                self.settle(key, expires, computation, computed).await
            }
        }
    }

    /// Finds a value, or another caller's, or that it is this one who has to compute it.
    pub(crate) async fn seek<'a>(&'a self, key: &'a [u8]) -> Result<Sought<'a>, ComputeError> {
        if let Some(value) = self.get(key).await? {
            return Ok(Sought::There(value));
        }
        let metrics = self.core.settings.metrics.as_deref();
        let computation = match self.state.flights.turn(key).await {
            Turn::Shared(result) => {
                if let Some(metrics) = metrics {
                    metrics.on_compute(false);
                }
                return result.map(Sought::There).map_err(ComputeError::Compute);
            }
            Turn::Compute(computation) => computation,
        };
        // Another may have stored it between the look above and this turn. A failure is no reason
        // to give up the turn: all who wait would take it and fail, one after the other.
        if let Ok(Some(value)) = self.get(key).await {
            computation.finish(Ok(value.clone()));
            return Ok(Sought::There(value));
        }
        if let Some(metrics) = metrics {
            metrics.on_compute(true);
        }
        Ok(Sought::Missing(computation))
    }

    /// Stores what was computed and gives it to all who wait.
    pub(crate) async fn settle<V, E>(
        &self,
        key: &[u8],
        expires: Expiry,
        computation: Computation<'_>,
        computed: Result<V, E>,
    ) -> Result<Bytes, ComputeError>
    where
        V: Into<Bytes>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match computed {
            Ok(value) => {
                let value = value.into();
                if let Err(error) = self.set(key, &value).expires(expires).await {
                    tracing::debug!(%error, "a computed value could not be stored");
                }
                computation.finish(Ok(value.clone()));
                Ok(value)
            }
            Err(error) => {
                let error: SharedError = Arc::from(error.into());
                computation.finish(Err(error.clone()));
                Err(ComputeError::Compute(error))
            }
        }
    }
}

/// What became of looking for a value.
pub(crate) enum Sought<'a> {
    There(Bytes),
    /// It has to be computed, by whoever has this.
    Missing(Computation<'a>),
}
