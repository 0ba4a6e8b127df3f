//! When a window begins and ends, and which readings it takes.
//!
//! ```text
//!   time windows      slices: one accumulator per slice and sensor; a window is a merge of slices
//!   session windows   one accumulator per session; sessions that touch become one
//!   count windows     one accumulator per window, by arrival, without regard to the watermark
//! ```

mod count;
mod session;
mod slices;

pub(crate) use self::count::CountState;
pub(crate) use self::session::Sessions;
pub(crate) use self::slices::Slices;

/// A tumbling or hopping window in units of slices: it starts at `offset + k * slide`, and ends
/// `size` later, exclusive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeWindow {
    pub window: u16,
    pub size: i64,
    pub slide: i64,
    pub offset: i64,
}

impl TimeWindow {
    /// The least end after `after` of a window that holds the slice.
    #[inline]
    pub fn next_end(&self, slice: i64, after: i64) -> Option<i64> {
        let earliest = slice.max(after) + 1;
        // The first start from which a window ends at or after `earliest`.
        let steps = (earliest - self.size - self.offset + self.slide - 1).div_euclid(self.slide);
        let start = self.offset + steps * self.slide;
        (start <= slice).then_some(start + self.size)
    }

    /// The end of the last window that holds the slice.
    #[inline]
    pub fn last_end(&self, slice: i64) -> i64 {
        // A slide is never longer than a window, so that every slice is in one.
        self.offset + (slice - self.offset).div_euclid(self.slide) * self.slide + self.size
    }
}

/// A window of so many readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountWindow {
    pub window: u16,
    pub len: u64,
}

/// A window that ends when nothing came for `gap` milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionWindow {
    pub window: u16,
    pub gap: i64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ends_are_those_of_the_windows_that_hold_the_slice(
            size in 1i64..30, slide in 1i64..30, offset in 0i64..30, slice in -100i64..100, ahead in -5i64..40,
        ) {
            prop_assume!(slide <= size);
            let window = TimeWindow { window: 0, size, slide, offset };
            let ends: Vec<i64> = (-200..200)
                .filter(|start: &i64| (start - offset).rem_euclid(slide) == 0)
                .filter(|start| *start <= slice && slice < start + size)
                .map(|start| start + size)
                .collect();
            let after = slice + ahead;
            prop_assert_eq!(window.next_end(slice, after), ends.iter().copied().find(|e| *e > after));
            prop_assert_eq!(window.last_end(slice), *ends.last().unwrap());
        }
    }
}
