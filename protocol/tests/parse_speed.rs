//! Nanoseconds per request, for a look: `cargo test --release -p kiln-protocol --test parse_speed
//! -- --ignored --nocapture`.

#![allow(clippy::disallowed_methods, reason = "this measures time")]

use std::hint::black_box;
use std::time::Instant;

use kiln_protocol::Parsed;
use kiln_protocol::command::{ItemMeta, Outcome};
use kiln_protocol::memcached::{KeyScratch, Limits, Op, Parser};

const PIPELINE: usize = 64;

/// The median over many runs of a pipeline of one request.
fn measure(name: &str, request: &str) {
    measure_of(name, request, 1);
}

fn measure_of(name: &str, request: &str, ops_per_request: usize) {
    let input = request.repeat(PIPELINE / ops_per_request).into_bytes();
    let mut scratch = KeyScratch::new(PIPELINE);
    let mut parser = Parser::new(Limits::default());
    let mut out = Vec::with_capacity(1 << 16);
    let item = ItemMeta { value_len: 100, flags: 0, version: 123_456, ..ItemMeta::default() };

    let mut ns = [Vec::new(), Vec::new()];
    for (encode, ns) in ns.iter_mut().enumerate() {
        for _ in 0..2_000 {
            let start = Instant::now();
            let mut ops = 0;
            for _ in 0..10 {
                let mut at = 0;
                out.clear();
                let mut batch = [Op::Quit; PIPELINE];
                let mut len = 0;
                while let Some(slot) = batch.get_mut(len)
                    && let Parsed::Complete { consumed, .. } =
                        parser.parse_into(slot, black_box(&input[at..]), &scratch)
                {
                    at += consumed;
                    len += 1;
                }
                ops += len;
                for message in black_box(&batch[..len]) {
                    if let Op::Data { command, reply } = message
                        && encode == 1
                    {
                        black_box(command.key());
                        black_box(reply.encode(black_box(&Outcome::Hit(item)), &mut out));
                    }
                }
                assert_eq!(at, input.len());
                scratch.clear();
            }
            ns.push(start.elapsed().as_secs_f64() * 1e9 / ops as f64);
        }
        ns.sort_by(f64::total_cmp);
    }
    let (parse, both) = (ns[0][ns[0].len() / 2], ns[1][ns[1].len() / 2]);
    println!("{name:<28} parse {parse:6.1} ns, with the head of a hit {both:6.1} ns");
}

#[test]
#[ignore = "prints figures; run it in release"]
fn parse_speed() {
    let key = "key:000000000000000000000000123";
    let value = "x".repeat(100);
    measure("get", &format!("get {key}\r\n"));
    measure("gets", &format!("gets {key}\r\n"));
    measure_of("get of 8 keys, each", &format!("get{}\r\n", format!(" {key}").repeat(8)), 8);
    measure("mg k v", &format!("mg {key} k v\r\n"));
    measure("mg v", &format!("mg {key} v\r\n"));
    measure("mg v q k O s c t f", &format!("mg {key} v q k O1234 s c t f\r\n"));
    measure("set", &format!("set {key} 0 0 100\r\n{value}\r\n"));
    measure("ms T0", &format!("ms {key} 100 T0\r\n{value}\r\n"));
    measure("delete", &format!("delete {key}\r\n"));
    measure("incr", &format!("incr {key} 1\r\n"));
    measure("mg b v", "mg a2V5OjAwMDAwMDAwMDAwMDAwMDAxMjM= b v\r\n");
}
