//! The state of a partition as bytes: for a copy that joins, and for comparing copies.
//!
//! What follows from the rest (index, due times, memory counts) is left out and worked out anew. The
//! digest is that of the same bytes, so equal digests mean equal snapshots.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::operator::{NEVER, Operator, Totals};
use crate::plan::Plan;
use crate::producers::Producers;
use crate::sensor::Sensor;

/// The version of the layout below; a restore refuses any other.
pub const SNAPSHOT_VERSION: u16 = 1;

/// Why a snapshot cannot be restored. Nothing was taken from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Not a snapshot, or cut or damaged.
    #[error("the snapshot cannot be read: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
    /// Written by another version.
    #[error("the snapshot has version {found}, this node reads {SNAPSHOT_VERSION}")]
    Version {
        /// Its version.
        found: u16,
    },
    /// Of a stream that was defined otherwise.
    #[error("the snapshot belongs to another definition of the stream")]
    OtherDefinition,
    /// Readable, and its parts contradict each other.
    #[error("the snapshot contradicts itself")]
    Unsound,
}

/// Version and definition, little-endian, before everything that another version may lay out anew.
const HEAD_LEN: usize = 2 + 8;

#[derive(Serialize)]
struct Image<'a> {
    producers: &'a Producers,
    offsets: &'a BTreeMap<String, i64>,
    sensors: &'a [Sensor],
    heard: &'a [i64],
    watermark: i64,
    now: i64,
    flushed: bool,
    next_forget: i64,
    totals: &'a Totals,
}

#[derive(Deserialize)]
struct Body {
    producers: Producers,
    offsets: BTreeMap<String, i64>,
    sensors: Vec<Sensor>,
    heard: Vec<i64>,
    watermark: i64,
    now: i64,
    flushed: bool,
    next_forget: i64,
    totals: Totals,
}

impl Operator {
    /// The whole state as bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_snapshot(&mut bytes);
        bytes
    }

    /// The state in 64 bits: equal on two copies exactly when their snapshots are (but for chance).
    pub fn digest(&self) -> u64 {
        struct Hash(Xxh3);
        impl io::Write for Hash {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut hash = Hash(Xxh3::new());
        self.write_snapshot(&mut hash);
        hash.0.digest()
    }

    /// The state of a snapshot, under the plan that it was made under.
    pub fn restore(plan: Arc<Plan>, bytes: &[u8]) -> Result<Self, RestoreError> {
        let Some((head, body)) = bytes.split_first_chunk::<HEAD_LEN>() else {
            return Err(RestoreError::Unsound);
        };
        let [v0, v1, digest @ ..] = *head;
        let found = u16::from_le_bytes([v0, v1]);
        if found != SNAPSHOT_VERSION {
            return Err(RestoreError::Version { found });
        }
        if u64::from_le_bytes(digest) != definition_digest(&plan) {
            return Err(RestoreError::OtherDefinition);
        }
        let body: Body = rmp_serde::from_slice(body)?;
        let mut operator = Self::new(plan);
        let plan = Arc::clone(operator.plan());
        let watches = plan.definition().detectors.iter().any(|d| d.missing_after().is_some());
        let sound = body.sensors.iter().all(|sensor| sensor.is_sound(&plan))
            && body.heard.len() == if watches { body.sensors.len() } else { 0 }
            && body.totals.late_dropped.len() == plan.window_names().len()
            && (body.watermark == NEVER || is_time(body.watermark))
            && is_time(body.now)
            && ids_are_distinct(&body.sensors);
        if !sound {
            return Err(RestoreError::Unsound);
        }
        operator.producers = body.producers;
        operator.offsets = body.offsets;
        operator.sensors = body.sensors;
        operator.heard = body.heard;
        operator.watermark = body.watermark;
        operator.now = body.now;
        operator.flushed = body.flushed;
        operator.next_forget = body.next_forget;
        operator.totals = body.totals;
        operator.rebuild();
        Ok(operator)
    }

    fn write_snapshot(&self, out: &mut impl io::Write) {
        let image = Image {
            producers: &self.producers,
            offsets: &self.offsets,
            sensors: &self.sensors,
            heard: &self.heard,
            watermark: self.watermark,
            now: self.now,
            flushed: self.flushed,
            next_forget: self.next_forget,
            totals: &self.totals,
        };
        let head =
            [&SNAPSHOT_VERSION.to_le_bytes()[..], &definition_digest(self.plan()).to_le_bytes()];
        out.write_all(&head.concat()).expect("memory and hashes take every byte");
        rmp_serde::encode::write(out, &image).expect("memory and hashes take every byte");
    }
}

/// What the definition says, in 64 bits.
fn definition_digest(plan: &Plan) -> u64 {
    let text = serde_json::to_vec(plan.definition()).expect("a definition is plain data");
    xxh3_64(&text)
}

/// Whether a time from a snapshot is far from overflow. Windows reach ten years beyond a reading.
pub(crate) fn is_time(time: i64) -> bool {
    (2 * crate::reading::TIME_MIN..=2 * crate::reading::TIME_MAX).contains(&time)
}

fn ids_are_distinct(sensors: &[Sensor]) -> bool {
    let mut ids: Vec<&[u8]> = sensors.iter().map(|sensor| sensor.id.as_bytes()).collect();
    ids.sort_unstable();
    ids.is_sorted_by(|a, b| a < b)
}
