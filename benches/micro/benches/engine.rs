//! Criterion over the engine and its peers. Time per iteration is time per operation; with two
//! threads it is wall time over the operations of both, so `thrpt` is the sum.
//!
//! For comparisons between contestants prefer `cargo run --release -p kiln-micro`, which takes
//! them in turn; this is for one of them before and after a change.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiln_micro::contestants::{Contestant, Field, Kind, bounded, resident};
use kiln_micro::keys::Stream;
use kiln_micro::passes::{Work, alone, together};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ITEMS: u32 = 1_000_000;
const STREAM_LEN: usize = 2_000_000;

fn engine(criterion: &mut Criterion) {
    let field = resident(ITEMS, &Kind::ALL).expect("everybody holds a million items");
    let orders = [
        ("zipf", Stream::zipf(ITEMS, STREAM_LEN)),
        ("uniform", Stream::uniform(ITEMS, STREAM_LEN)),
    ];
    for (order, stream) in &orders {
        for (name, work) in [("get", Work::Get), ("mix 10 to 1", Work::Mix)] {
            for threads in [1, 2] {
                let title = format!("{name}, {order}, threads {threads}");
                group(criterion, &title, &field, work, stream, threads);
            }
        }
    }
    drop(field);

    let field = bounded(ITEMS / 10, &Kind::ALL).expect("Kiln can be given room for as many");
    let stream = &orders[0].1;
    for (_, contestant) in &field {
        alone(&**contestant, Work::GetOrSet, stream, 0, STREAM_LEN);
    }
    for threads in [1, 2] {
        let title = format!("get or set, room for 10 percent, zipf, threads {threads}");
        group(criterion, &title, &field, Work::GetOrSet, stream, threads);
    }
}

fn group(
    criterion: &mut Criterion,
    title: &str,
    field: &Field,
    work: Work,
    stream: &Stream,
    threads: usize,
) {
    let mut group = criterion.benchmark_group(title);
    group.throughput(Throughput::Elements(1));
    for (kind, contestant) in field {
        let contestant: &dyn Contestant = &**contestant;
        // Goes on where the last sample ended: no key is warm from it.
        let mut start = 0;
        group.bench_function(kind.to_string(), |bencher| {
            bencher.iter_custom(|iterations| {
                let len = usize::try_from(iterations).unwrap_or(usize::MAX);
                let run = match threads {
                    1 => alone(contestant, work, stream, start, len),
                    _ => together(contestant, work, stream, start, len, threads),
                };
                start = (start + len) % STREAM_LEN;
                black_box(run.hits);
                run.wall
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
