//! Items and what became of them, as JSON. Members are only ever added: scripts rely on them.

use std::time::Duration;

use kiln_client::{Entry, Item};
use serde::{Serialize, ser::SerializeMap};

use super::output::Text;

/// An item for programs.
pub(super) struct ItemJson<'a> {
    key: &'a [u8],
    value: Option<&'a [u8]>,
    value_len: Option<u64>,
    version: u64,
    flags: u32,
    ttl: Option<Duration>,
}

impl<'a> ItemJson<'a> {
    pub(super) fn of(key: &'a [u8], item: &'a Item) -> Self {
        let Item { version, flags, ttl, .. } = *item;
        Self { key, value: Some(&item.value), value_len: None, version, flags, ttl }
    }
}

impl Serialize for ItemJson<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, bytes) in [("key", Some(self.key)), ("value", self.value)] {
            if let Some(bytes) = bytes {
                let text = Text::of(bytes);
                let (name, text) = text.member(name);
                map.serialize_entry(&name, text)?;
            }
        }
        if let Some(len) = self.value_len {
            map.serialize_entry("value_len", &len)?;
        }
        map.serialize_entry("version", &self.version)?;
        map.serialize_entry("flags", &self.flags)?;
        if let Some(ttl) = self.ttl {
            map.serialize_entry("ttl_ms", &millis(ttl))?;
        }
        map.end()
    }
}

/// A line of a scan for programs.
pub(super) struct EntryJson<'a>(pub(super) &'a Entry);

impl Serialize for EntryJson<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Entry { version, flags, ttl, value_len, .. } = *self.0;
        let value = self.0.value.as_deref();
        let value_len = value.is_none().then_some(value_len);
        ItemJson { key: &self.0.key, value, value_len, version, flags, ttl }.serialize(serializer)
    }
}

/// A write for programs.
pub(super) struct Changed<'a> {
    pub(super) key: &'a [u8],
    pub(super) number: Option<u64>,
    pub(super) version: u64,
}

impl Serialize for Changed<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let text = Text::of(self.key);
        let (name, text) = text.member("key");
        map.serialize_entry(&name, text)?;
        if let Some(number) = self.number {
            map.serialize_entry("number", &number)?;
        }
        map.serialize_entry("version", &self.version)?;
        map.end()
    }
}

/// A touch for programs.
pub(super) struct Touched<'a> {
    pub(super) key: &'a [u8],
}

impl Serialize for Touched<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let text = Text::of(self.key);
        let (name, text) = text.member("key");
        map.serialize_entry(&name, text)?;
        map.serialize_entry("touched", &true)?;
        map.end()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
