//! Bytes that an item costs beyond its key and value.
//!
//! Told by resident memory, as Kiln maps its memory past any allocator, and each in a process of
//! its own, as memory freed by one contestant would be taken by the next without growing.

use crate::contestants::{FieldError, Kind, fill, single};
use crate::keys::{KEY_LEN, VALUE_LEN};

/// What was measured, in the process that measured it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Footprint {
    /// Items held at the end.
    pub items: usize,
    /// Bytes of resident memory for each beyond key and value.
    pub overhead: f64,
}

/// Why there is no footprint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FootprintError {
    /// The contestant did not start.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The kernel does not tell.
    #[error("cannot read resident memory: {0}")]
    Unknown(#[from] procfs::ProcError),
    /// The contestant keeps less than it was given.
    #[error("{items} items held of {given}")]
    Lost {
        /// Items held.
        items: usize,
        /// Items stored.
        given: u32,
    },
}

/// Fills a contestant with `items` and weighs it. For a process that has done nothing before.
///
/// # Errors
/// When the contestant holds clearly less, or the kernel does not tell.
pub fn measure(kind: Kind, items: u32) -> Result<Footprint, FootprintError> {
    let before = resident_bytes()?;
    let contestant = single(kind, items)?;
    fill(&*contestant, items);
    let after = resident_bytes()?;
    let held = contestant.items();
    // Room for exactly so many: caches whose shards fill unevenly drop a few.
    if held * 100 < items as usize * 97 {
        return Err(FootprintError::Lost { items: held, given: items });
    }
    let grown = after.saturating_sub(before) as f64;
    let overhead = grown / held as f64 - (KEY_LEN + VALUE_LEN) as f64;
    Ok(Footprint { items: held, overhead })
}

fn resident_bytes() -> Result<u64, FootprintError> {
    let process = procfs::process::Process::myself()?;
    Ok(process.statm()?.resident * procfs::page_size())
}
