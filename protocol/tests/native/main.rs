//! The native codec, from outside: what is written is read back the same, however the stream is
//! cut, and what nobody wrote is refused.

// Helpers of tests; one of them reads and writes the file of vectors.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod operators;
mod roundtrip;
mod strategies;
mod streams;
mod vectors;

use kiln_protocol::native::{Body, Request, encode};

/// Writes a request again from what was read of it.
fn write_again(out: &mut Vec<u8>, request: &Request<'_>) {
    use kiln_protocol::native::Op;
    let id = request.id;
    match &request.body {
        Body::Hello(hello) => encode::hello(out, id, hello),
        Body::Data(data) => encode::data(out, id, data),
        Body::Batch { cache, items } => encode::batch(out, id, *cache, *items),
        Body::Scan(scan) => encode::scan(out, id, scan),
        Body::Flush { cache } => encode::flush(out, id, *cache),
        Body::Ping => encode::bare(out, id, Op::Ping),
        Body::ListCaches => encode::bare(out, id, Op::ListCaches),
        Body::Topology => encode::bare(out, id, Op::Topology),
        Body::Info => encode::bare(out, id, Op::Info),
        Body::ClusterStatus => encode::bare(out, id, Op::ClusterStatus),
        Body::ChangeCluster(change) => encode::change_cluster(out, id, change),
        Body::Digests(request) => encode::digests(out, id, request),
        Body::OpenCache { name } => encode::named(out, id, Op::OpenCache, name),
        Body::DropCache { name } => encode::named(out, id, Op::DropCache, name),
        Body::ShowCache { name } => encode::named(out, id, Op::ShowCache, name),
        Body::CreateCache(spec) => encode::create_cache(out, id, spec),
        Body::Subscribe(subscribe) => encode::subscribe(out, id, subscribe),
        Body::Ingest(ingest) => {
            encode::ingest(out, id, ingest.stream, ingest.producer, ingest.readings);
        }
        Body::Latest(query) => encode::latest(out, id, query),
        Body::Windows(query) => encode::windows(out, id, query),
        Body::Follow(follow) => encode::follow(out, id, follow),
        Body::Unknown { op } => panic!("operation {op} cannot be written"),
    }
}
