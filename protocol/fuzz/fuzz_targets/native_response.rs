//! Any body from a node: a client refuses it or can go through all of it.

#![no_main]

use kiln_protocol::native::admin::{self, CacheList, NodeInfo, Opened, TopologyView, Welcome};
use kiln_protocol::native::{Push, Response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok((_, response)) = Response::decode(body) else { return };
    match response {
        Response::Ok(structure) | Response::Push(Push::Topology(structure)) => {
            let _ = admin::get::<Welcome>(structure);
            let _ = admin::get::<NodeInfo>(structure);
            let _ = admin::get::<TopologyView>(structure);
            let _ = admin::get::<CacheList>(structure);
            let _ = admin::get::<Opened>(structure);
        }
        Response::Batch(results) => {
            let len = results.len();
            assert_eq!(results.count(), len, "what was checked can be read");
        }
        Response::Page { entries, .. } => {
            let len = entries.len();
            assert_eq!(entries.count(), len, "what was checked can be read");
        }
        Response::Push(Push::Invalidate(invalidated)) => {
            if let Some(slots) = invalidated.slots {
                let len = slots.len();
                assert_eq!(slots.count(), len, "what was checked can be read");
            }
        }
        _ => {}
    }
});
