//! Asking the processor for memory before it is needed.
//!
//! A batch is looked up in passes so that the waits for memory overlap; without a hint each reading
//! of a large table would wait alone.

/// Fetches the cache line of `slice[at]`, if there is such an element.
#[inline]
pub(crate) fn read<T>(slice: &[T], at: usize) {
    lines(slice, at, 1);
}

/// Fetches the first `count` cache lines of `slice[at]`.
#[inline]
pub(crate) fn lines<T>(slice: &[T], at: usize, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = slice.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(element).cast::<i8>();
        for line in 0..count {
            // SAFETY: a prefetch is a hint: it reads nothing into the program and cannot fault,
            // whatever the address; `wrapping_add` makes no claim about what lies there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * 64)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, at, count);
}
