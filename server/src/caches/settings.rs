//! How a cache is made: the wishes of clients and files, checked.

use kiln_cluster::{
    ids,
    topology::{self, ReadMode},
};
use kiln_engine::policy::PolicyKind;
use kiln_protocol::native::admin::CacheSpec;

/// Settings that a cache keeps for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheSettings {
    /// Its name.
    pub(crate) name: Box<str>,
    /// Whether copies agree before an answer, or later.
    pub(crate) mode: Mode,
    /// Copies of each item.
    pub(crate) copies: u32,
    /// Copies that must be in sync for a write.
    pub(crate) min_in_sync: u32,
    /// Where reads go.
    pub(crate) read: Read,
    /// What leaves when it is full.
    pub(crate) eviction: PolicyKind,
    /// Memory in bytes; 0 lets the node choose.
    pub(crate) memory: usize,
    /// How long items live when a write names no end.
    pub(crate) default_ttl_ms: Option<u64>,
    /// Longest value in bytes.
    pub(crate) value_len_max: usize,
}

/// Settings that no cache can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SettingsError {
    #[error(
        "a name is 1 to {NAME_LEN_MAX} of a-z A-Z 0-9 . _ -, beginning with a letter or a digit"
    )]
    Name,
    #[error("{what} must be {expected}")]
    Word { what: &'static str, expected: &'static str },
    #[error("copies must be 1 to {COPIES_MAX}, and min_in_sync 1 to copies")]
    Copies,
    #[error("values must be at most {limit} bytes (max_item_size of the node), not {value}")]
    ValueLimit { value: u64, limit: usize },
    #[error("memory of {0} bytes is beyond this machine")]
    Memory(u64),
}

/// Longest name in bytes.
const NAME_LEN_MAX: usize = 64;

/// More copies than any cluster has use for.
const COPIES_MAX: u32 = 8;

macro_rules! words {
    ($(#[doc = $doc:literal])+ $type:ident, $expected:literal: $($(#[doc = $word_doc:literal])+ $name:ident = $word:literal,)+) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $type {
            $($(#[doc = $word_doc])+ $name,)+
        }

        impl $type {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// As settings write it.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

words! {
    /// Whether copies agree before an answer.
    Mode, "strong or eventual":
    /// They do.
    Strong = "strong",
    /// They follow.
    Eventual = "eventual",
}

words! {
    /// Where reads go.
    Read, "primary, leased or any":
    /// To the primary, which makes sure that it still is.
    Primary = "primary",
    /// To the primary, which has a lease.
    Leased = "leased",
    /// To any copy, which may be old.
    Any = "any",
}

impl CacheSettings {
    /// The cache `default`, which the node's own settings describe.
    pub(crate) fn of_default(memory: usize, eviction: PolicyKind, value_len_max: usize) -> Self {
        Self {
            name: super::DEFAULT.into(),
            mode: Mode::Strong,
            copies: 1,
            min_in_sync: 1,
            read: Read::Leased,
            eviction,
            memory,
            default_ttl_ms: None,
            value_len_max,
        }
    }

    /// A cache of the cluster's table. What this node cannot have as described is cut down to what
    /// it can.
    pub(crate) fn of_table(name: &str, spec: &topology::CacheSpec, value_len_max: usize) -> Self {
        Self {
            name: name.into(),
            mode: match spec.mode {
                ids::Mode::Strong => Mode::Strong,
                ids::Mode::Eventual => Mode::Eventual,
            },
            copies: u32::from(spec.copies),
            min_in_sync: u32::from(spec.min_in_sync),
            read: match spec.read {
                ReadMode::Confirm | ReadMode::Quorum => Read::Primary,
                ReadMode::Lease => Read::Leased,
                ReadMode::Any => Read::Any,
            },
            eviction: spec.policy.parse().unwrap_or(PolicyKind::DEFAULT),
            memory: usize::try_from(spec.memory).unwrap_or(0),
            default_ttl_ms: spec.default_ttl_ms,
            value_len_max: value_len_max.min(spec.value_len_max as usize),
        }
    }

    /// Checks a wish. `value_len_max` is the node's.
    pub(crate) fn from_spec(spec: &CacheSpec, value_len_max: usize) -> Result<Self, SettingsError> {
        if !is_name(&spec.name) {
            return Err(SettingsError::Name);
        }
        let word = |what, expected| SettingsError::Word { what, expected };
        if !(1..=COPIES_MAX).contains(&spec.copies)
            || !(1..=spec.copies).contains(&spec.min_in_sync)
        {
            return Err(SettingsError::Copies);
        }
        let limit = value_len_max;
        let value_len_max = match spec.max_item_size {
            // In a small cache, as long as they can be there.
            0 if spec.memory > 0 => limit.min(usize::try_from(spec.memory / 2).unwrap_or(limit)),
            0 => limit,
            value => usize::try_from(value)
                .ok()
                .filter(|&value| value <= limit)
                .ok_or(SettingsError::ValueLimit { value, limit })?,
        };
        Ok(Self {
            name: spec.name.as_str().into(),
            mode: Mode::parse(&spec.mode).ok_or(word("mode", Mode::EXPECTED))?,
            copies: spec.copies,
            min_in_sync: spec.min_in_sync,
            read: Read::parse(&spec.read).ok_or(word("read", Read::EXPECTED))?,
            eviction: spec
                .eviction
                .parse()
                .map_err(|_| word("eviction", "adaptive, lru, lfu or none"))?,
            memory: usize::try_from(spec.memory)
                .ok()
                // Address space for later growth is reserved with it.
                .filter(|&memory| memory <= 1 << 44)
                .ok_or(SettingsError::Memory(spec.memory))?,
            default_ttl_ms: Some(spec.default_ttl_ms).filter(|&ms| ms > 0),
            value_len_max,
        })
    }

    /// As clients see it.
    pub(crate) fn spec(&self) -> CacheSpec {
        CacheSpec {
            name: self.name.as_ref().into(),
            mode: self.mode.name().to_owned(),
            copies: self.copies,
            min_in_sync: self.min_in_sync,
            read: self.read.name().to_owned(),
            eviction: self.eviction.name().to_owned(),
            memory: self.memory as u64,
            default_ttl_ms: self.default_ttl_ms.unwrap_or(0),
            max_item_size: self.value_len_max as u64,
        }
    }

    /// Whether a cache of these settings is what `wish` asks for. Who leaves the memory to the
    /// node is content with any, and with values as long as there can be in it.
    pub(crate) fn serves_as(&self, wish: &Self) -> bool {
        let memory = if wish.memory == 0 { self.memory } else { wish.memory };
        let value_len_max = wish.value_len_max.min(memory / 2);
        *self == Self { memory, value_len_max, ..wish.clone() }
    }
}

/// Whether a cache can be called so.
fn is_name(name: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    name.len() <= NAME_LEN_MAX
        && name.bytes().all(valid)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(change: impl FnOnce(&mut CacheSpec)) -> Result<CacheSettings, SettingsError> {
        let mut spec = CacheSpec { name: "users".to_owned(), ..CacheSpec::default() };
        change(&mut spec);
        CacheSettings::from_spec(&spec, 1 << 20)
    }

    #[test]
    fn a_name_is_one_to_sixty_four_letters_digits_dots_dashes_and_underscores() {
        for good in ["a", "Users.v2_x-1", "0", &"n".repeat(64)] {
            assert!(wish(|spec| spec.name = good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "ü", &"n".repeat(65)] {
            assert_eq!(wish(|spec| spec.name = bad.to_owned()), Err(SettingsError::Name), "{bad}");
        }
    }

    #[test]
    fn settings_that_cannot_be_served_are_refused_by_name() {
        let text = |change: fn(&mut CacheSpec)| wish(change).unwrap_err().to_string();
        assert_eq!(text(|s| s.mode = "weak".into()), "mode must be strong or eventual");
        assert_eq!(text(|s| s.read = String::new()), "read must be primary, leased or any");
        assert!(text(|s| s.eviction = "fifo".into()).contains("eviction"));
        assert!(text(|s| s.copies = 9).contains("copies"));
        assert!(text(|s| s.min_in_sync = 2).contains("min_in_sync"));
        assert!(text(|s| s.copies = 0).contains("copies"));
        assert!(text(|s| s.max_item_size = (1 << 20) + 1).contains("max_item_size"));
    }

    #[test]
    fn values_in_a_small_cache_are_as_long_as_they_can_be() {
        let small = wish(|spec| spec.memory = 1 << 20).unwrap();
        assert_eq!(small.value_len_max, 1 << 19);
        assert!(small.serves_as(&wish(|_| {}).unwrap()));
        assert_eq!(wish(|spec| spec.memory = 8 << 20).unwrap().value_len_max, 1 << 20);
    }

    #[test]
    fn what_is_shown_of_a_cache_makes_the_same_cache() {
        let settings = wish(|spec| {
            spec.eviction = "none".to_owned();
            spec.default_ttl_ms = 5;
            spec.memory = 8 << 20;
        })
        .unwrap();
        assert_eq!(CacheSettings::from_spec(&settings.spec(), 1 << 20), Ok(settings.clone()));
        let any_memory = wish(|spec| {
            spec.eviction = "none".to_owned();
            spec.default_ttl_ms = 5;
        });
        assert!(settings.serves_as(&any_memory.unwrap()));
        assert!(!settings.serves_as(&wish(|_| {}).unwrap()));
    }
}
