//! Asking for memory before it is read.
//!
//! The state of a partition is some twenty cache lines in a few places, and a node has a thousand
//! partitions: for each request and message nearly all of them are to be fetched from far. A turn
//! knows what is to come, so it asks for the lines of several partitions at once and works while
//! they come. Hints only: nothing depends on them.

/// Partitions asked for together: as many as the first cache holds the lines of.
pub(crate) const AHEAD: usize = 16;

const LINE: usize = 64;

/// Asks for all lines of a value.
#[inline]
pub(crate) fn fetch<T>(value: &T) {
    let start = std::ptr::from_ref(value).cast::<u8>();
    for line in 0..size_of::<T>().div_ceil(LINE) {
        fetch_line(start.wrapping_add(line * LINE));
    }
}

#[inline]
fn fetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing that a program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
