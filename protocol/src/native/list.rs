//! Lists inside a message, read one by one.
//!
//! A list is checked whole when its message is read, so that nobody acts on the first half of a
//! broken one, and is read again element by element as it is used: twice the work of a pass, and
//! no memory at all.

use std::marker::PhantomData;

use super::wire::{Malformed, Reader};

/// What lists are made of.
pub(super) trait Element<'a>: Sized {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed>;
}

/// A checked list; an iterator over its elements.
#[derive(Debug)]
pub struct List<'a, T> {
    len: usize,
    reader: Reader<'a>,
    element: PhantomData<T>,
}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

#[allow(private_bounds)] // only this crate has elements
impl<'a, T: Element<'a>> List<'a, T> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let len = reader.array()?;
        let list = Self { len, reader: *reader, element: PhantomData };
        for _ in 0..len {
            T::read(reader)?;
        }
        Ok(list)
    }
}

impl<'a, T: Element<'a>> Iterator for List<'a, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        // It was read once before, so there is an element.
        T::read(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl<'a, T: Element<'a>> ExactSizeIterator for List<'a, T> {}

impl<'a, T: Element<'a> + PartialEq> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && (*self).eq(*other)
    }
}
