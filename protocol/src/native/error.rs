//! What a failed request says: which error, and what is true now.

/// What became of the request's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing was changed: the request can be sent again as it is.
    NotApplied,
    /// The write may have happened or may still happen.
    Indeterminate,
}

impl Effect {
    /// As on the wire.
    pub const fn number(self) -> u64 {
        match self {
            Self::NotApplied => 0,
            Self::Indeterminate => 1,
        }
    }

    /// From the wire. What is not known is taken for the weaker promise.
    pub const fn from_number(number: u64) -> Self {
        match number {
            0 => Self::NotApplied,
            _ => Self::Indeterminate,
        }
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a request failed. The numbers are the protocol's and never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name,)+
            /// A code of a later version of the protocol.
            Other(u16),
        }

        impl ErrorCode {
            /// Every code of this version.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As on the wire.
            pub const fn number(self) -> u16 {
                match self {
                    $(Self::$name => $number,)+
                    Self::Other(number) => number,
                }
            }

            /// From the wire.
            pub const fn from_number(number: u16) -> Self {
                match number {
                    $($number => Self::$name,)+
                    other => Self::Other(other),
                }
            }

            /// A name for logs and for people, in kebab-case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Other(_) => "other",
                }
            }
        }
    };
}

codes! {
    /// The frame is no message of this protocol. The connection closes.
    Malformed = 1, "malformed";
    /// The operation is not known to this node.
    UnknownOperation = 2, "unknown-operation";
    /// An argument is out of its range; the text says which.
    BadArgument = 3, "bad-argument";
    /// Hello is missing, has the wrong magic or no common version. The connection closes.
    BadHello = 4, "bad-hello";
    /// Credentials are missing or wrong. The connection closes.
    Unauthenticated = 5, "unauthenticated";
    /// These credentials may not do this, or it is turned off on this node.
    Forbidden = 6, "forbidden";
    /// A frame is over the limit that hello announced. The connection closes.
    FrameTooLarge = 7, "frame-too-large";
    /// There is no such cache, or it was dropped since it was opened.
    NoSuchCache = 8, "no-such-cache";
    /// A cache of this name exists with other settings.
    CacheExists = 9, "cache-exists";
    /// The key is empty or too long.
    BadKey = 10, "bad-key";
    /// The value is over the cache's item limit. An older value of the key is gone after a set.
    ValueTooLarge = 11, "value-too-large";
    /// Arithmetic on a value that is no decimal number of at most 20 digits.
    NotANumber = 12, "not-a-number";
    /// No room: the cache refuses when full, or nothing could be evicted.
    OutOfMemory = 13, "out-of-memory";
    /// Too much is in flight; try again later.
    Busy = 14, "busy";
    /// This node does not own the key; ask for the topology.
    NotOwner = 15, "not-owner";
    /// The deadline passed before the request was done.
    DeadlineExceeded = 16, "deadline-exceeded";
    /// The node is shutting down.
    ShuttingDown = 17, "shutting-down";
    /// All copies of the partition were lost; told once instead of a miss.
    Lost = 18, "lost";
    /// Known, but not available on this node or in this version.
    Unsupported = 19, "unsupported";
    /// Too few copies are in sync for the cache's promise.
    NotEnoughCopies = 20, "not-enough-copies";
    /// The node failed in a way that is its own fault.
    Internal = 21, "internal";
    /// A limit on the number of something: caches, handles, trackers.
    LimitReached = 22, "limit-reached";
    /// There is no stream of this name.
    NoSuchStream = 23, "no-such-stream";
    /// The batch is of an earlier life of its producer, or its number is so far behind that nobody
    /// knows whether it was taken in.
    StaleProducer = 24, "stale-producer";
}

/// A failed request, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'a> {
    /// Which error.
    pub code: ErrorCode,
    /// For people: what is wrong and what to do.
    pub text: &'a str,
    /// What may be assumed of the write.
    pub effect: Effect,
    /// Milliseconds after which another try makes sense.
    pub retry_after_ms: Option<u64>,
}

impl<'a> Failure<'a> {
    /// A request that was refused before anything was changed.
    pub const fn refused(code: ErrorCode, text: &'a str) -> Self {
        Self { code, text, effect: Effect::NotApplied, retry_after_ms: None }
    }
}
