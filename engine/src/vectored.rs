//! Code for the vectors that the processor has.
//!
//! What is compiled for every processor of its kind leaves newer instructions unused. Few of them matter
//! for themselves; but a processor that waits for memory begins what its window holds, and with them a
//! lookup takes some twenty of a hundred and twenty-five instructions less. So a loop can be compiled
//! twice, and the choice is made once for all its turns.
//!
//! Cost: the choice is a load; the loop is there twice.

/// What can be compiled for several kinds of processor: see [`vectored`].
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it. To be marked `#[inline(always)]`, as all within that is to gain by it: what is called
    /// rather than inlined is compiled for every processor.
    fn run(self) -> Self::Output;
}

/// Does the work by code for this processor.
#[inline]
pub fn vectored<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if has_v4() {
            // SAFETY: the processor has what it is compiled for.
            return unsafe { with_v4(work) };
        }
    }
    work.run()
}

/// Whether the processor has all of the level x86-64-v4 that [`with_v4`] is compiled for.
#[cfg(target_arch = "x86_64")]
#[inline]
fn has_v4() -> bool {
    use std::arch::is_x86_feature_detected as has;
    static HAS_V4: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        has!("avx2")
            && has!("bmi1")
            && has!("bmi2")
            && has!("lzcnt")
            && has!("avx512f")
            && has!("avx512bw")
            && has!("avx512dq")
            && has!("avx512vl")
    });
    *HAS_V4
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn with_v4<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Joined<'a>(&'a mut usize, [&'a str; 2]);

    impl Work for Joined<'_> {
        type Output = String;

        #[inline(always)]
        fn run(self) -> String {
            *self.0 += 1;
            self.1.concat()
        }
    }

    #[test]
    fn work_is_done_once_and_what_it_returns_is_returned() {
        let mut times = 0;
        assert_eq!(vectored(Joined(&mut times, ["a", "b"])), "ab");
        assert_eq!(times, 1);
    }
}
