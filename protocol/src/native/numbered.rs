//! Enumerations whose numbers are the protocol's.

/// An enumeration with its numbers on the wire, which never change and are never used again.
macro_rules! numbered {
    ($(#[doc = $about:literal])+ $type:ident; $($(#[doc = $doc:literal])+ $name:ident = $number:literal;)+) => {
        $(#[doc = $about])+
        ///
        /// The numbers are the protocol's and never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl $type {
            /// All of this version.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As on the wire.
            pub const fn number(self) -> u64 {
                self as u64
            }

            /// From the wire; `None` for one of a later version.
            #[inline]
            pub const fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

pub(super) use numbered;
