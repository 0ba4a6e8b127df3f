//! Reading memory that another thread may be writing.
//!
//! A read without the shard's lock looks at words that a writer may be changing. What it gets
//! then is any mixture of old and new, and is thrown away: [`Sequence`](crate::seqlock::Sequence)
//! tells. Until then nothing may be believed, so:
//!
//! - no reference into such memory is ever made, only volatile loads of plain numbers, for which
//!   every bit pattern is a value;
//! - every address is checked against the mapping, which is never unmapped nor shrunk while the
//!   region lives, so a wild address reads nonsense rather than faults.
//!
//! The language defines racing reads for atomics only, and has none that copy bytes. Volatile
//! loads that are validated afterwards are what sequence locks rest on elsewhere, too: compilers
//! emit each as the one load that it is.
//!
//! Cost: plain loads. One comparison for an item, not one for each of its parts: behind the pages
//! of a region [`SPAN_LEN`] more bytes are mapped, so whatever begins inside ends inside.

use std::mem::MaybeUninit;

/// Bytes readable from any address inside a region: more than the head of an item, its key and a
/// value that is read without the lock.
pub(crate) const SPAN_LEN: usize = 1 << 16;

/// Bytes of a region that may change while they are read.
#[derive(Clone, Copy)]
pub(crate) struct RacyBytes {
    base: *const u8,
    len: usize,
}

/// An unaligned number.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

impl RacyBytes {
    /// # Safety
    /// `base` must be valid for reads of `len + SPAN_LEN` bytes, all initialised, as long as the
    /// value, its copies and their spans are used. Writes by others are allowed.
    pub(crate) unsafe fn new(base: *const u8, len: usize) -> Self {
        Self { base, len }
    }

    /// The bytes from `offset` on, if that is inside.
    #[inline(always)]
    pub(crate) fn span(&self, offset: usize) -> Option<RacySpan> {
        (offset <= self.len).then(|| RacySpan { pointer: self.base.wrapping_add(offset) })
    }

    /// The bytes from `offset` on.
    ///
    /// # Safety
    /// `offset` must be inside.
    #[inline(always)]
    pub(crate) unsafe fn span_inside(&self, offset: usize) -> RacySpan {
        debug_assert!(offset <= self.len);
        RacySpan { pointer: self.base.wrapping_add(offset) }
    }

    /// Address of a byte, for prefetching only. Any offset is allowed.
    #[inline(always)]
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        self.base.wrapping_add(offset)
    }
}

/// [`SPAN_LEN`] racy bytes.
#[derive(Clone, Copy)]
pub(crate) struct RacySpan {
    pointer: *const u8,
}

impl RacySpan {
    #[inline(always)]
    fn load<T: Copy>(&self, at: usize) -> T {
        debug_assert!(at + size_of::<T>() <= SPAN_LEN);
        // SAFETY: private, and called with `at` such that the bytes are inside the span, which is
        // inside the mapping; `T` is a number, which any bytes make, and needs no alignment here.
        // The bytes may be changing; volatile, so that they are loaded here and once.
        unsafe { self.pointer.wrapping_add(at).cast::<Unaligned<T>>().read_volatile().0 }
    }

    /// The 32-bit number at `at`.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn u32(&self, at: usize) -> u32 {
        assert!(at <= SPAN_LEN - 4, "inside the span");
        self.load(at)
    }

    /// The 64-bit number at `at`.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn u64(&self, at: usize) -> u64 {
        assert!(at <= SPAN_LEN - 8, "inside the span");
        self.load(at)
    }

    /// The 16 bytes at `at`.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn sixteen(&self, at: usize) -> [u8; 16] {
        assert!(at <= SPAN_LEN - 16, "inside the span");
        let wide: Wide = self.load(at);
        // SAFETY: both are 16 bytes, of which any are values.
        unsafe { std::mem::transmute::<Wide, [u8; 16]>(wide) }
    }

    /// Whether just these bytes are at `at`.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn has(&self, at: usize, bytes: &[u8]) -> bool {
        assert!(at <= SPAN_LEN && bytes.len() <= SPAN_LEN - at, "inside the span");
        let from = Self { pointer: self.pointer.wrapping_add(at) };
        // From both ends, in pieces that meet in the middle or overlap there.
        let len = bytes.len();
        match len {
            // Both halves before the one branch: they differ once in fifty lookups.
            16..=32 => from.has_wide(0, bytes) & from.has_wide(len - 16, bytes),
            33.. => {
                let mut done = 0;
                while done < len - 16 {
                    if !from.has_wide(done, bytes) {
                        return false;
                    }
                    done += 16;
                }
                from.has_wide(len - 16, bytes)
            }
            8.. => from.has_eight(0, bytes) && from.has_eight(len - 8, bytes),
            _ => bytes.iter().enumerate().all(|(at, &byte)| from.load::<u8>(at) == byte),
        }
    }

    /// Whether 16 bytes are those of `bytes`, from `at` on in both.
    #[inline(always)]
    fn has_wide(&self, at: usize, bytes: &[u8]) -> bool {
        let expected: &[u8; 16] = bytes[at..].first_chunk().expect("16 bytes");
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8};
            // SAFETY: SSE2 is part of x86_64, and 16 bytes are there to load.
            let same = unsafe {
                let expected = _mm_loadu_si128(expected.as_ptr().cast());
                _mm_movemask_epi8(_mm_cmpeq_epi8(self.load::<Wide>(at), expected))
            };
            same == 0xffff
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self.load::<[u8; 16]>(at) == *expected
        }
    }

    #[inline(always)]
    fn has_eight(&self, at: usize, bytes: &[u8]) -> bool {
        bytes[at..].first_chunk() == Some(&self.load::<[u8; 8]>(at))
    }

    /// Copies `len` bytes from `at` on.
    ///
    /// # Panics
    /// When they are more than the buffer holds, or beyond the end of the span.
    #[inline(always)]
    pub(crate) fn copy<'b>(&self, at: usize, len: usize, buffer: &'b mut CopyBuffer) -> &'b [u8] {
        self.copy_to(at, len, &mut buffer.bytes);
        // SAFETY: the first `len` bytes have just been written.
        unsafe { std::slice::from_raw_parts(buffer.bytes.as_ptr().cast::<u8>(), len) }
    }

    /// Copies `len` bytes from `at` on to the start of `target`, of which just those are written.
    ///
    /// # Panics
    /// When they are more than `target` holds, or beyond the end of the span.
    #[inline(always)]
    pub(crate) fn copy_to(&self, at: usize, len: usize, target: &mut [MaybeUninit<u8>]) {
        assert!(
            len <= target.len() && len <= SPAN_LEN && at <= SPAN_LEN - len,
            "inside the span, and room for it"
        );
        let from = Self { pointer: self.pointer.wrapping_add(at) };
        let to = Target { pointer: target.as_mut_ptr() };
        // From both ends, in pieces that meet in the middle or overlap there: no loop for a small
        // value, and no branch for its last bytes.
        match len {
            128.. => {
                let mut done = 0;
                while done < len - 64 {
                    to.put::<Wide, 4>(from, done);
                    done += 64;
                }
                to.put::<Wide, 4>(from, len - 64);
            }
            64.. => {
                to.put::<Wide, 4>(from, 0);
                to.put::<Wide, 4>(from, len - 64);
            }
            32.. => {
                to.put::<Wide, 2>(from, 0);
                to.put::<Wide, 2>(from, len - 32);
            }
            16.. => {
                to.put::<Wide, 1>(from, 0);
                to.put::<Wide, 1>(from, len - 16);
            }
            8.. => {
                to.put::<u64, 1>(from, 0);
                to.put::<u64, 1>(from, len - 8);
            }
            _ => (0..len).for_each(|at| to.put::<u8, 1>(from, at)),
        }
    }
}

/// What is copied at once: 16 bytes, as every processor of the kind can.
#[cfg(target_arch = "x86_64")]
type Wide = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Wide = [u64; 2];

/// Where a value is copied to, to be looked at once it is known to be whole.
pub(crate) struct CopyBuffer {
    bytes: [MaybeUninit<u8>; Self::LEN],
}

impl CopyBuffer {
    /// Longest value that it holds.
    pub(crate) const LEN: usize = 2047;

    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { bytes: [const { MaybeUninit::uninit() }; Self::LEN] }
    }
}

/// Where bytes are copied to.
#[derive(Clone, Copy)]
struct Target {
    pointer: *mut MaybeUninit<u8>,
}

impl Target {
    /// Copies `N` numbers that begin `at` bytes from the start of both.
    #[inline(always)]
    fn put<T: Copy, const N: usize>(self, from: RacySpan, at: usize) {
        let target = self.pointer.wrapping_add(at).cast::<Unaligned<T>>();
        let numbers: [T; N] = std::array::from_fn(|n| from.load(at + n * size_of::<T>()));
        for (n, number) in numbers.into_iter().enumerate() {
            // SAFETY: private, and called with `at` such that the bytes are inside the target.
            unsafe { target.wrapping_add(n).write(Unaligned(number)) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn racy(bytes: &[u8]) -> RacyBytes {
        // SAFETY: the tests keep the bytes.
        unsafe { RacyBytes::new(bytes.as_ptr(), bytes.len() - SPAN_LEN) }
    }

    #[test]
    fn what_begins_beyond_the_end_is_not_read() {
        let bytes = vec![7; SPAN_LEN + 100];
        assert!(racy(&bytes).span(100).is_some());
        assert!(racy(&bytes).span(101).is_none());
        assert!(racy(&bytes).span(usize::MAX).is_none());
    }

    #[test]
    fn what_is_copied_and_compared_is_what_is_there_at_every_length_and_place() {
        let len = SPAN_LEN + 1200;
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let racy = racy(&bytes);
        let mut buffer = CopyBuffer::new();
        for len in (0..300).chain([1000, 1023, 1024]) {
            for (offset, at) in [(0, 0), (1, 16), (4, 1), (13, 57)] {
                let span = racy.span(offset).unwrap();
                let expected = &bytes[offset + at..][..len];
                assert_eq!(span.copy(at, len, &mut buffer), expected);
                assert!(span.has(at, expected));
                for wrong in 0..len {
                    let mut other = expected.to_vec();
                    other[wrong] ^= 1;
                    assert!(!span.has(at, &other), "byte {wrong} of {len}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "inside the span")]
    fn numbers_beyond_a_span_are_not_read() {
        let bytes = vec![7; SPAN_LEN];
        racy(&bytes).span(0).unwrap().u64(SPAN_LEN - 7);
    }
}
