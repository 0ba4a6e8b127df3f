//! Nanoseconds per request and answer, beside rmp-serde, for a look: `cargo test --release
//! -p kiln-protocol --test native_speed -- --ignored --nocapture`.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "this measures time")]

use std::hint::black_box;
use std::time::Instant;

use kiln_protocol::Parsed;
use kiln_protocol::command::{Command, Get, ItemMeta, Store, Ttl};
use kiln_protocol::native::{
    CacheRef, Data, Frames, HitHead, Item, Request, Response, Want, encode, respond,
};

const KEY: &[u8] = b"key:0000000000000000000000:1234";
const VALUE: [u8; 100] = [b'x'; 100];
const PIPELINE: usize = 64;
const FRAMES: Frames = Frames { body_len_max: 1 << 20 };

/// Prints the median time of one of `PIPELINE` operations that `run` does.
fn measure(name: &str, mut run: impl FnMut()) {
    let mut ns: Vec<f64> = (0..2000)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e9 / PIPELINE as f64
        })
        .collect();
    ns.sort_by(f64::total_cmp);
    println!("{name:32} {:6.1} ns", ns[ns.len() / 2]);
}

fn each_frame(mut stream: &[u8], mut each: impl FnMut(&[u8])) {
    while let Ok(Parsed::Complete { message, consumed }) = FRAMES.next(stream) {
        each(message);
        stream = &stream[consumed..];
    }
}

fn written(command: Command<'_>) -> Vec<u8> {
    let data = Data { cache: CacheRef::Handle(0), item: Item { command, want: Want::default() } };
    let mut out = Vec::new();
    (1..=PIPELINE as u32).for_each(|id| encode::data(&mut out, id, &data));
    out
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let set = Store { flags: 5, ttl: Ttl::After(60_000), ..Store::set(KEY, &VALUE) };
    let item = ItemMeta { value_len: 100, version: 123_456, ..ItemMeta::default() };
    for (name, command) in [
        ("get", Command::Get(Get { may_refill: true, ..Get::plain(KEY) })),
        ("set", Command::Store(Store { ttl: Ttl::Default, ..Store::set(KEY, &VALUE) })),
        ("set with ttl and flags", Command::Store(set)),
    ] {
        let stream = written(command);
        measure(&format!("decode {name}"), || {
            each_frame(black_box(&stream), |body| {
                black_box(Request::decode(body).unwrap());
            });
        });
        let mut out = Vec::with_capacity(1 << 16);
        let data =
            Data { cache: CacheRef::Handle(0), item: Item { command, want: Want::default() } };
        measure(&format!("encode {name}"), || {
            out.clear();
            for id in 1..=PIPELINE as u32 {
                encode::data(&mut out, id, black_box(&data));
            }
            black_box(&out);
        });
    }
    let mut answers = Vec::with_capacity(1 << 16);
    measure("encode hit", || {
        answers.clear();
        for id in 1..=PIPELINE as u32 {
            respond::hit_head(&mut answers, id, HitHead { item: &item, with_value: true });
            answers.extend_from_slice(black_box(&VALUE));
        }
        black_box(&answers);
    });
    measure("decode hit", || {
        each_frame(black_box(&answers), |body| {
            black_box(Response::decode(body).unwrap());
        });
    });
    // The same elements through the general library.
    type Elements<'a> = (u64, u32, u32, &'a serde_bytes::Bytes);
    let stream = written(Command::Get(Get { may_refill: true, ..Get::plain(KEY) }));
    measure("decode get by rmp-serde", || {
        each_frame(black_box(&stream), |body| {
            black_box(rmp_serde::from_slice::<Elements<'_>>(body).unwrap());
        });
    });
}
