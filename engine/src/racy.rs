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
use std::sync::atomic::AtomicU64;

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
    /// See [`in_one_register`].
    #[inline(always)]
    pub(crate) fn in_one_register(self) -> Self {
        Self { pointer: in_one_register(self.pointer) }
    }

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

    /// The byte at `at`.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn u8(&self, at: usize) -> u8 {
        assert!(at < SPAN_LEN, "inside the span");
        self.load(at)
    }

    /// The 16 bytes at `at`, in a vector.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn wide(&self, at: usize) -> Wide {
        assert!(at <= SPAN_LEN - 16, "inside the span");
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
            16..=32 => from.has_wide(0, bytes) && from.has_wide(len - 16, bytes),
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

    /// In which bits what is at `at` differs from these bytes, of each of which some bit of the answer
    /// tells, if there are 16 to 32.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn difference(&self, at: usize, bytes: &[u8]) -> Option<Wide> {
        use std::arch::x86_64::{_mm_loadu_si128, _mm_or_si128, _mm_xor_si128};
        if bytes.len() > 32 {
            return None;
        }
        assert!(at <= SPAN_LEN - 32, "inside the span");
        let (first, last) = (bytes.first_chunk::<16>()?, bytes.last_chunk::<16>()?);
        // SAFETY: SSE2 is part of x86_64, and 16 bytes are there to load.
        unsafe {
            let first = _mm_xor_si128(self.load(at), _mm_loadu_si128(first.as_ptr().cast()));
            let last_at = at + bytes.len() - 16;
            let last = _mm_xor_si128(self.load(last_at), _mm_loadu_si128(last.as_ptr().cast()));
            Some(_mm_or_si128(first, last))
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
        // value, and no branch for its last bytes. The usual lengths first, and those that need a loop
        // elsewhere, or the registers of its counters would be missing here.
        match len {
            64..128 => {
                to.put::<Wide, 4>(from, 0);
                to.put::<Wide, 4>(from, len - 64);
            }
            32..64 => {
                to.put::<Wide, 2>(from, 0);
                to.put::<Wide, 2>(from, len - 32);
            }
            16..32 => {
                to.put::<Wide, 1>(from, 0);
                to.put::<Wide, 1>(from, len - 16);
            }
            8..16 => {
                to.put::<u64, 1>(from, 0);
                to.put::<u64, 1>(from, len - 8);
            }
            128.. => to.put_long(from, len),
            _ => to.put_short(from, len),
        }
    }

    /// Copies `len` bytes from `at` on to the start of `target`, and as many more as fill vectors; no more
    /// than `target` holds, whatever the length.
    ///
    /// Neither where is read nor where is written depends on the length, which is on its way from memory
    /// yet: behind a load or a store to an address that is not known, the processor puts off what it would
    /// else begin meanwhile. The line more that is asked for at times costs less.
    ///
    /// # Panics
    /// Beyond the end of the span.
    #[inline(always)]
    pub(crate) fn copy_vectors_to(
        &self,
        at: usize,
        len: usize,
        target: &mut [MaybeUninit<u8>; VectorCopy::COPIED],
        _how: VectorCopy,
    ) {
        assert!(at <= SPAN_LEN - VectorCopy::COPIED, "inside the span");
        #[cfg(target_arch = "x86_64")]
        {
            let (from, to) = (self.pointer.wrapping_add(at), target.as_mut_ptr());
            // SAFETY: the processor has such vectors, or there were no `VectorCopy`. This one is inside the
            // span, which may be changing, and inside the target. Registers from 16 on leave the state of
            // the first ones, in which older instructions work, as it is.
            unsafe {
                std::arch::asm!(
                    "vmovdqu64 zmm16, [{from}]",
                    "vmovdqu64 [{to}], zmm16",
                    from = in(reg) from,
                    to = in(reg) to,
                    out("zmm16") _,
                    options(nostack, preserves_flags),
                );
            }
            if len > VectorCopy::COPIED / 2 {
                // SAFETY: as above.
                unsafe {
                    std::arch::asm!(
                        "vmovdqu64 zmm16, [{from} + 64]",
                        "vmovdqu64 [{to} + 64], zmm16",
                        from = in(reg) from,
                        to = in(reg) to,
                        out("zmm16") _,
                        options(nostack, preserves_flags),
                    );
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.copy_to(at, len.min(target.len()), target);
    }
}

/// A word that may be changing, as it is now: a load that the compiler may make part of the instruction
/// that wants the word, as it does not those of atomics. Orders nothing.
#[inline(always)]
pub(crate) fn racy(word: &AtomicU64) -> u64 {
    // SAFETY: the word is there and aligned. It may be changing; volatile, so that it is loaded here and
    // once, and whole as words that are aligned are.
    unsafe { word.as_ptr().read_volatile() }
}

/// The same pointer, of which the compiler knows nothing: so it keeps it in one register, where it would
/// else keep what it is the sum of in two, of which a lookup has none to spare.
#[inline(always)]
#[cfg_attr(
    target_arch = "x86_64",
    expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read through it")
)]
pub(crate) fn in_one_register<T>(pointer: *const T) -> *const T {
    #[cfg(target_arch = "x86_64")]
    {
        let mut pointer = pointer;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
        }
        pointer
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        pointer
    }
}

/// That this processor copies in vectors of 64 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VectorCopy {
    _asked: (),
}

impl VectorCopy {
    /// Bytes written to for any value that is copied so.
    pub(crate) const COPIED: usize = 128;

    /// Longest value that is copied so. One less than a power of two, so that a mask tells.
    pub(crate) const LEN_MAX: usize = Self::COPIED - 1;

    /// If this processor does.
    pub(crate) fn here() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let has_them = std::arch::is_x86_feature_detected!("avx512f");
        #[cfg(not(target_arch = "x86_64"))]
        let has_them = false;
        has_them.then_some(Self { _asked: () })
    }
}

/// What is copied at once: 16 bytes, as every processor of the kind can.
#[cfg(target_arch = "x86_64")]
pub(crate) type Wide = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) type Wide = [u64; 2];

/// The two numbers of 64 bits in 16 bytes. Costs nothing as long as nobody wants them.
#[inline(always)]
pub(crate) fn halves(wide: Wide) -> [u64; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_cvtsi128_si64, _mm_unpackhi_epi64};
        // SAFETY: SSE2 is part of x86_64.
        unsafe { [wide, _mm_unpackhi_epi64(wide, wide)].map(|wide| _mm_cvtsi128_si64(wide) as u64) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        wide
    }
}

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

    /// Copies `len` bytes, 128 at least.
    #[inline(never)]
    fn put_long(self, from: RacySpan, len: usize) {
        let mut done = 0;
        while done < len - 64 {
            self.put::<Wide, 4>(from, done);
            done += 64;
        }
        self.put::<Wide, 4>(from, len - 64);
    }

    /// Copies `len` bytes, fewer than 8.
    #[inline(never)]
    fn put_short(self, from: RacySpan, len: usize) {
        (0..len).for_each(|at| self.put::<u8, 1>(from, at));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn region(bytes: &[u8]) -> RacyBytes {
        // SAFETY: the tests keep the bytes.
        unsafe { RacyBytes::new(bytes.as_ptr(), bytes.len() - SPAN_LEN) }
    }

    /// Whether a difference is told.
    fn differs(span: &RacySpan, at: usize, bytes: &[u8]) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: both are 16 bytes, of which any are values.
            let bits = |wide| unsafe { std::mem::transmute::<Wide, u128>(wide) };
            span.difference(at, bytes).is_some_and(|difference| bits(difference) != 0)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            (16..=32).contains(&bytes.len()) && !span.has(at, bytes)
        }
    }

    #[test]
    fn what_begins_beyond_the_end_is_not_read() {
        let bytes = vec![7; SPAN_LEN + 100];
        assert!(region(&bytes).span(100).is_some());
        assert!(region(&bytes).span(101).is_none());
        assert!(region(&bytes).span(usize::MAX).is_none());
    }

    #[test]
    fn what_is_copied_and_compared_is_what_is_there_at_every_length_and_place() {
        let len = SPAN_LEN + 1200;
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let region = region(&bytes);
        let mut buffer = CopyBuffer::new();
        for len in (0..300).chain([1000, 1023, 1024]) {
            for (offset, at) in [(0, 0), (1, 16), (4, 1), (13, 57)] {
                let span = region.span(offset).unwrap();
                let expected = &bytes[offset + at..][..len];
                assert_eq!(span.copy(at, len, &mut buffer), expected);
                assert!(span.has(at, expected) && !differs(&span, at, expected));
                for wrong in 0..len {
                    let mut other = expected.to_vec();
                    other[wrong] ^= 1;
                    assert!(!span.has(at, &other), "byte {wrong} of {len}");
                    let told = (16..=32).contains(&len);
                    assert_eq!(differs(&span, at, &other), told, "byte {wrong} of {len}");
                }
            }
        }
    }

    #[test]
    fn what_is_copied_in_vectors_is_what_is_there_and_no_more_than_these_is_written() {
        let Some(how) = VectorCopy::here() else { return };
        const COPIED: usize = VectorCopy::COPIED;
        let bytes: Vec<u8> = (0..SPAN_LEN + 300).map(|at| (at % 251) as u8).collect();
        for len in 0..=VectorCopy::LEN_MAX {
            for at in [0, 1, 17, 63] {
                let mut target = [MaybeUninit::new(255); 3 * COPIED];
                let within = target[COPIED..].first_chunk_mut().unwrap();
                region(&bytes).span(5).unwrap().copy_vectors_to(at, len, within, how);
                // SAFETY: all were written when it was made.
                let target = target.map(|byte| unsafe { byte.assume_init() });
                let (before, rest) = target.split_at(COPIED);
                let (within, behind) = rest.split_at(COPIED);
                assert_eq!(within[..len], bytes[5 + at..][..len]);
                assert!(before.iter().chain(behind).all(|&byte| byte == 255));
            }
        }
    }

    #[test]
    #[should_panic(expected = "inside the span")]
    fn numbers_beyond_a_span_are_not_read() {
        let bytes = vec![7; SPAN_LEN];
        region(&bytes).span(0).unwrap().u64(SPAN_LEN - 7);
    }
}
