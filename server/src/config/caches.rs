//! Caches that a file asks for, as tables `[caches.NAME]`.
//!
//! They are made at start, as a client could make them later. Their keys are those of the native
//! protocol's create-cache, with units where a file has them.

use std::fmt::Write;

use kiln_protocol::native::admin::CacheSpec;
use toml::{Spanned, de::DeValue};

use super::{
    load::scalar_text,
    value::{Bytes, Period, Value},
};
use crate::caches::{CacheSettings, DEFAULT};

/// The table of all of them.
pub(super) const TABLE: &str = "caches";

/// A key of a cache's table: its name, an example, what it does, and how it is read.
struct Key {
    name: &'static str,
    example: &'static str,
    doc: &'static str,
    read: fn(&mut CacheSpec, &str) -> Result<(), String>,
}

const KEYS: &[Key] = &[
    Key {
        name: "memory",
        example: "\"64MiB\"",
        doc: "taken from the cache `default`; without it an eighth of what that has",
        read: |spec, text| Bytes::parse(text).map(|bytes| spec.memory = bytes.0),
    },
    Key {
        name: "eviction",
        example: "\"adaptive\"",
        doc: "adaptive, lru, lfu or none",
        read: |spec, text| {
            spec.eviction = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "default_ttl",
        example: "\"1h\"",
        doc: "for writes that name no end; without it items stay",
        read: |spec, text| {
            Period::parse(text).map(|period| spec.default_ttl_ms = period.0.as_millis() as u64)
        },
    },
    Key {
        name: "max_item_size",
        example: "\"64KiB\"",
        doc: "at most the node's",
        read: |spec, text| Bytes::parse(text).map(|bytes| spec.max_item_size = bytes.0),
    },
    Key {
        name: "mode",
        example: "\"strong\"",
        doc: "strong or eventual",
        read: |spec, text| {
            spec.mode = text.to_owned();
            Ok(())
        },
    },
    Key {
        name: "copies",
        example: "1",
        doc: "1: this version serves no more",
        read: |spec, text| number(text).map(|number| spec.copies = number),
    },
    Key {
        name: "min_in_sync",
        example: "1",
        doc: "copies that must be in sync for a write",
        read: |spec, text| number(text).map(|number| spec.min_in_sync = number),
    },
    Key {
        name: "read",
        example: "\"leased\"",
        doc: "primary, leased or any",
        read: |spec, text| {
            spec.read = text.to_owned();
            Ok(())
        },
    },
];

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

/// What is wrong in a table, and where in the file.
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) key: String,
    pub(super) reason: String,
    /// The key is not known: the one that was probably meant.
    pub(super) unknown: Option<Option<&'static str>>,
}

/// Reads the tables of a file.
pub(super) fn read(value: &Spanned<DeValue<'_>>, wrong: &mut Vec<Wrong>) -> Vec<CacheSpec> {
    let invalid =
        |at, key: &str, reason: String| Wrong { at, key: key.into(), reason, unknown: None };
    let DeValue::Table(tables) = value.get_ref() else {
        let reason = "expected tables [caches.NAME]".to_owned();
        wrong.push(invalid(value.span().start, TABLE, reason));
        return Vec::new();
    };
    let mut caches = Vec::new();
    for (name, table) in tables {
        let path = format!("{TABLE}.{}", name.get_ref());
        let at = name.span().start;
        let DeValue::Table(entries) = table.get_ref() else {
            wrong.push(invalid(at, &path, format!("expected a table [{path}]")));
            continue;
        };
        let mut spec = CacheSpec { name: name.get_ref().to_string(), ..CacheSpec::default() };
        if spec.name == DEFAULT {
            let reason = "the settings of the node are those of the cache `default`".to_owned();
            wrong.push(invalid(at, &path, reason));
            continue;
        }
        for (key, value) in entries {
            let at = key.span().start;
            let path = format!("{path}.{}", key.get_ref());
            let Some(known) = KEYS.iter().find(|known| known.name == key.get_ref()) else {
                let near = |known: &&Key| strsim::jaro_winkler(known.name, key.get_ref()) > 0.8;
                let unknown = Some(KEYS.iter().find(near).map(|known| known.name));
                wrong.push(Wrong { at, key: path, reason: String::new(), unknown });
                continue;
            };
            let text = scalar_text(value).ok_or("expected one value".to_owned());
            if let Err(reason) = text.and_then(|text| (known.read)(&mut spec, &text)) {
                wrong.push(invalid(at, &path, reason));
            }
        }
        // Against the largest there is; the node's own limit is looked at when all is read.
        match CacheSettings::from_spec(&spec, kiln_engine::VALUE_LEN_MAX) {
            Ok(_) => caches.push(spec),
            Err(error) => wrong.push(invalid(at, &path, error.to_string())),
        }
    }
    caches
}

/// The tables as a file has them.
pub(super) fn render(caches: &[CacheSpec], out: &mut String) {
    let bytes = |bytes| Bytes(bytes).to_string();
    for spec in caches {
        // Writing to a string cannot fail; names need no quotes, words and sizes no escapes.
        let _ = writeln!(out, "\n[{TABLE}.{}]", key_text(&spec.name));
        if spec.memory > 0 {
            let _ = writeln!(out, "memory = \"{}\"", bytes(spec.memory));
        }
        let _ = writeln!(out, "eviction = \"{}\"", spec.eviction);
        if spec.default_ttl_ms > 0 {
            let _ = writeln!(out, "default_ttl = \"{}ms\"", spec.default_ttl_ms);
        }
        if spec.max_item_size > 0 {
            let _ = writeln!(out, "max_item_size = \"{}\"", bytes(spec.max_item_size));
        }
        let _ = writeln!(out, "mode = \"{}\"\ncopies = {}", spec.mode, spec.copies);
        let _ = writeln!(out, "min_in_sync = {}\nread = \"{}\"", spec.min_in_sync, spec.read);
    }
}

/// A dot in a name would make it two.
fn key_text(name: &str) -> String {
    if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() }
}

/// The commented tables of the sample file.
pub(super) fn render_sample(out: &mut String) {
    out.push_str(
        "\n# ---- Caches ----\n\n\
         # Beside `default`, which memcached clients use, a node can have others, each with memory of its\n\
         # own. Clients can make them too. One table for each; every key may be left out.\n\
         #[caches.users]\n",
    );
    for key in KEYS {
        let line = format!("#{} = {}", key.name, key.example);
        let _ = writeln!(out, "{line:<30} # {}", key.doc);
    }
}
