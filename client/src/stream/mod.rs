//! Sensor streams: readings in, latest values and windows out, results as they come.
//!
//! ```text
//!   producer   readings in batches, each counted once
//!   windows    what is asked of a sensor
//!   follower   what every node tells of a stream
//! ```

mod follower;
mod producer;
mod windows;

use std::sync::Arc;

use kiln_protocol::native::{
    ErrorCode, encode,
    streams::{LatestQuery, LatestReading},
};

pub(crate) use follower::Followers;
pub use follower::{Follow, Follower, LiveEvent, LiveKind};
pub use producer::{Producer, ProducerBuilder, ProducerError, Reading, Totals};
pub use windows::{Fill, Window, Windows, WindowsRequest};

use crate::{Client, Error};

/// A sensor stream by its name. Cheap to clone.
///
/// ```no_run
/// use kiln_client::{Client, Reading};
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let plant = client.stream("plant");
/// let producer = plant.producer("press-7").start();
/// producer.send(Reading::new("sensor1", 12.5)).await?;
/// producer.flush().await?;
///
/// println!("{:?}", plant.latest("sensor1").await?);
/// for window in plant.windows("sensor1").window("10s").last(6).await?.windows {
///     println!("{}: mean {:?}", window.start, window.figure("mean"));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Stream {
    client: Client,
    name: Arc<str>,
}

impl Client {
    /// A sensor stream. Whether there is one of this name shows when it is used.
    pub fn stream(&self, name: &str) -> Stream {
        Stream { client: self.clone(), name: name.into() }
    }
}

impl Stream {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The latest reading of a sensor; `None` when there was none.
    ///
    /// Cancel safe.
    pub async fn latest(&self, sensor: impl AsRef<[u8]>) -> Result<Option<LatestReading>, Error> {
        let stream = self.name.to_string();
        let query = LatestQuery { stream, sensor: sensor.as_ref().to_vec() };
        self.client.ask_unless_missing(|out, id| encode::latest(out, id, &query)).await
    }

    /// A producer of readings; `id` is its own for its whole life, at most 128 bytes.
    ///
    /// Two producers of one id at a time take each other's batches for repetitions.
    pub fn producer(&self, id: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), id.into())
    }

    /// Windows of a sensor; awaiting what this returns asks for them.
    pub fn windows(&self, sensor: impl AsRef<[u8]>) -> WindowsRequest {
        WindowsRequest::new(self.clone(), sensor.as_ref().to_vec())
    }

    /// Results, alarms and fits of the stream from now on.
    pub fn follow(&self) -> Follow {
        Follow::new(self.clone())
    }
}

/// A node that does not know the stream yet may know it in a moment.
fn is_no_stream(error: &Error) -> bool {
    error.code() == Some(ErrorCode::NoSuchStream)
}
