//! Any body from a client: it is refused, or says something that can be said again in the same
//! words, and reading it costs no memory but for the rare structures.

#![no_main]

use kiln_protocol::native::{Body, KEY_LEN_MAX, Op, Request, encode, inflate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok(request) = Request::decode(body) else { return };
    let mut out = Vec::new();
    let id = request.id;
    match &request.body {
        Body::Unknown { .. } => return,
        Body::Data(data) => {
            assert!((1..=KEY_LEN_MAX).contains(&data.item.command.key().len()));
            if let (kiln_protocol::command::Command::Store(store), Some(len)) =
                (&data.item.command, data.item.want.inflated_len)
            {
                let mut plain = Vec::new();
                if inflate(store.value, len as usize, 1 << 16, &mut plain).is_ok() {
                    assert_eq!(plain.len(), len as usize);
                }
                assert!(plain.capacity() <= 1 << 17);
            }
            encode::data(&mut out, id, data);
        }
        Body::Batch { cache, items } => encode::batch(&mut out, id, *cache, *items),
        Body::Scan(scan) => encode::scan(&mut out, id, scan),
        Body::Flush { cache } => encode::flush(&mut out, id, *cache),
        Body::Hello(hello) => encode::hello(&mut out, id, hello),
        Body::CreateCache(spec) => encode::create_cache(&mut out, id, spec),
        Body::Subscribe(subscribe) => encode::subscribe(&mut out, id, subscribe),
        Body::Ingest(ingest) => {
            // A sensor may measure what equals nothing, not even itself.
            if ingest.readings.into_iter().any(|reading| reading.value.is_nan()) {
                return;
            }
            encode::ingest(&mut out, id, ingest.stream, ingest.producer, ingest.readings);
        }
        Body::OpenCache { name } => encode::named(&mut out, id, Op::OpenCache, name),
        Body::DropCache { name } => encode::named(&mut out, id, Op::DropCache, name),
        Body::ShowCache { name } => encode::named(&mut out, id, Op::ShowCache, name),
        Body::Ping => encode::bare(&mut out, id, Op::Ping),
        Body::ListCaches => encode::bare(&mut out, id, Op::ListCaches),
        Body::Topology => encode::bare(&mut out, id, Op::Topology),
        Body::Info => encode::bare(&mut out, id, Op::Info),
        Body::ClusterStatus => encode::bare(&mut out, id, Op::ClusterStatus),
        Body::ChangeCluster(change) => encode::change_cluster(&mut out, id, change),
        Body::Digests(request) => encode::digests(&mut out, id, request),
        Body::Latest(query) => encode::latest(&mut out, id, query),
        Body::Windows(query) => encode::windows(&mut out, id, query),
        Body::Follow(follow) => encode::follow(&mut out, id, follow),
    }
    assert_eq!(Request::decode(&out[4..]), Ok(request));
});
