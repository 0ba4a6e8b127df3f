//! Any message there can be.

use kiln_protocol::command::{
    Arithmetic, Command, Delete, Direction, Get, ItemMeta, RefillRight, Store, StoreMode, Touch,
    Ttl,
};
use kiln_protocol::native::{CacheRef, Item, Want};
use proptest::option::of;
use proptest::prelude::*;

/// Bytes that messages borrow from.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) shape: Shape,
}

/// A command but for its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    which: u8,
    ttl: Ttl,
    touch: Option<Ttl>,
    vivify: Option<Ttl>,
    numbers: [Option<u64>; 5],
    flags: u32,
    delta: u64,
    switches: [bool; 6],
    inflated_len: Option<u32>,
}

fn ttl() -> impl Strategy<Value = Ttl> {
    prop_oneof![Just(Ttl::Never), Just(Ttl::Expired), moment()]
}

fn moment() -> impl Strategy<Value = Ttl> {
    let ms = || prop_oneof![1_u64..200, 1_u64..=i64::MAX as u64];
    prop_oneof![ms().prop_map(Ttl::After), ms().prop_map(Ttl::At)]
}

pub(crate) fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..300, 0_u64..70_000, any::<u64>(), Just(u64::MAX)]
}

pub(crate) fn bytes(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 1..40),
        1 => prop::collection::vec(any::<u8>(), 1..=len_max),
    ]
}

prop_compose! {
    fn shape()(
        which in 0_u8..10,
        ttl in prop_oneof![Just(Ttl::Default), ttl()],
        touch in of(ttl()),
        vivify in of(ttl()),
        numbers in [of(number()), of(number()), of(number()), of(number()), of(number())],
        flags in prop_oneof![Just(0), any::<u32>()],
        delta in number(),
        switches in any::<[bool; 6]>(),
        inflated_len in of(any::<u32>()),
    ) -> Shape {
        Shape { which, ttl, touch, vivify, numbers, flags, delta, switches, inflated_len }
    }
}

pub(crate) fn item() -> impl Strategy<Value = Owned> {
    (bytes(32_000), prop_oneof![Just(Vec::new()), bytes(100_000)], shape())
        .prop_map(|(key, value, shape)| Owned { key, value, shape })
}

pub(crate) fn cache() -> impl Strategy<Value = Option<String>> {
    of("[a-z][a-z0-9.-]{0,63}")
}

pub(crate) fn cache_ref(name: &Option<String>) -> CacheRef<'_> {
    name.as_deref().map_or(CacheRef::Handle(7), CacheRef::Name)
}

impl Owned {
    pub(crate) fn item(&self) -> Item<'_> {
        let Self { key, value, shape } = self;
        let [a, b, c, retry, deadline_ms] = shape.numbers;
        let [s1, s2, s3, return_old, no_value, track] = shape.switches;
        let mode = match shape.which {
            1 => StoreMode::Add,
            2 => StoreMode::Replace,
            3 => StoreMode::Append,
            4 => StoreMode::Prepend,
            _ => StoreMode::Set,
        };
        let command = match shape.which {
            0..=4 => Command::Store(Store {
                key,
                value,
                flags: shape.flags,
                ttl: shape.ttl,
                mode,
                compare: a,
                version: b,
                invalidate: s1,
                vivify: shape.vivify,
            }),
            5 => Command::Get(Get {
                key,
                touch: shape.touch,
                vivify: shape.vivify,
                recache_below_ms: a,
                no_bump: s1,
                may_refill: true,
                version: b,
            }),
            6 => Command::Delete(Delete {
                key,
                compare: a,
                version: b,
                invalidate: s2,
                ttl: shape.touch,
                keep_empty: s3,
            }),
            7 => Command::Touch(Touch { key, ttl: shape.touch.unwrap_or(Ttl::Never) }),
            which => Command::Arithmetic(Arithmetic {
                key,
                direction: if which == 8 { Direction::Increment } else { Direction::Decrement },
                delta: shape.delta,
                compare: a,
                version: b,
                create: c.map(|initial| (shape.ttl, initial)),
                touch: shape.touch,
            }),
        };
        // Only values can be compressed.
        let inflated_len = shape.inflated_len.filter(|_| shape.which <= 4);
        Item {
            command,
            want: Want { inflated_len, return_old, no_value, track, retry, deadline_ms },
        }
    }
}

prop_compose! {
    pub(crate) fn meta()(
        value_len in 0_usize..70_000,
        flags in any::<u32>(),
        version in number(),
        ttl_ms in of(number()),
        stale in any::<bool>(),
        refill in prop_oneof![
            Just(RefillRight::None), Just(RefillRight::Won), Just(RefillRight::Taken)
        ],
    ) -> ItemMeta {
        ItemMeta { value_len, flags, version, ttl_ms, stale, refill, ..ItemMeta::default() }
    }
}
