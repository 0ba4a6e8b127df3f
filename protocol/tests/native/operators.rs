//! What operators ask is read as it was written, and what a later version adds is passed over.

use kiln_protocol::native::admin::{
    self, ClusterChange, ClusterStatus, ControlView, DigestRequest, Digests, EventView,
    GroupStatus, ItemDigest, MoveView, NodeStatus, PartitionDigest, TransferView, Warning,
};
use kiln_protocol::native::{Body, Op, Request, Response, encode, respond};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

use crate::strategies::number;

fn body(out: &[u8]) -> &[u8] {
    let (head, body) = out.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*head) as usize, body.len());
    body
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-zü-]{1,40}"]
}

prop_compose! {
    fn node()(
        texts in [text(), text(), text(), text(), text(), text(), text()],
        numbers in prop::array::uniform8(number()),
        few in prop::array::uniform4(number()),
        heard_ms_ago in of(number()),
        weight in 0.0..100.0_f64,
        busy in 0.0..1.0_f64,
        witness in any::<bool>(),
    ) -> NodeStatus {
        let [name, state, zone, native, memcached, http, peer] = texts;
        let [id, incarnation, operations_per_s, memory_used, memory_limit, led, held, filling] = numbers;
        let [wanted, last_copies, ..] = few;
        NodeStatus {
            id, name, incarnation, state, zone, weight, witness, native, memcached, http, peer,
            heard_ms_ago, operations_per_s, busy, memory_used, memory_limit, led, held, filling,
            wanted, last_copies,
        }
    }
}

prop_compose! {
    fn group()(
        mode in text(),
        caches in vec(text(), 0..4),
        copies in any::<u32>(),
        numbers in prop::array::uniform6(number()),
        moves in vec((number(), number(), text(), number()), 0..4),
    ) -> GroupStatus {
        let [whole, short, without_primary, lost, copies_wanted, copies_there] = numbers;
        let moves = moves.into_iter().map(|(from, to, what, partitions)| MoveView {
            from, to, what, partitions,
        });
        GroupStatus {
            mode, copies, copies_possible: copies / 2, caches, whole, short, without_primary, lost,
            copies_wanted, copies_there, moves: moves.collect(),
        }
    }
}

prop_compose! {
    fn status()(
        cluster_id in text(),
        numbers in prop::array::uniform4(number()),
        partitions in any::<u32>(),
        nodes in vec(node(), 0..4),
        groups in vec(group(), 0..3),
        transfer in (text(), any::<u32>(), any::<u32>(), prop::array::uniform4(number())),
        event in (number(), text()),
        warning in (text(), text(), text()),
        control in (number(), number(), vec(number(), 0..5), of(number()), any::<bool>()),
    ) -> ClusterStatus {
        let [epoch, node_id, now_ms, _] = numbers;
        let (mode, copies, partition, [from, to, bytes, since_ms]) = transfer;
        let (leader, term, voters, majority_answered_ms_ago, durable) = control;
        let (level, text, advice) = warning;
        ClusterStatus {
            cluster_id, epoch, partitions, node_id, now_ms, nodes, groups,
            control: ControlView { leader, term, voters, majority_answered_ms_ago, durable },
            transfers: vec![TransferView { mode, copies, partition, from, to, bytes, since_ms }],
            events: vec![EventView { at_ms: event.0, text: event.1 }],
            warnings: vec![Warning { level, text, advice }],
        }
    }
}

proptest! {
    #[test]
    fn a_status_is_read_as_it_was_written(status in status()) {
        let mut out = Vec::new();
        respond::structure(&mut out, 3, &status);
        let Ok((3, Response::Ok(bytes))) = Response::decode(body(&out)) else { panic!("not ok") };
        prop_assert_eq!(admin::get::<ClusterStatus>(bytes).unwrap(), status);
    }

    #[test]
    fn a_change_is_read_as_it_was_written(
        action in text(), node in number(), incarnation in number(),
        weight in 0.0..1000.0_f64, force in any::<bool>(), id in any::<u32>(),
    ) {
        let change = ClusterChange { action, node, incarnation, weight, force };
        let mut out = Vec::new();
        encode::change_cluster(&mut out, id, &change);
        let body = Request::decode(body(&out)).unwrap();
        prop_assert_eq!(body, Request { id, body: Body::ChangeCluster(Box::new(change)) });
    }

    #[test]
    fn digests_and_what_asks_for_them_are_read_as_they_were_written(
        cache in text(), cursor in of(number()), ends_after_ms in number(),
        partitions in vec(any::<u32>(), 0..9), items in any::<bool>(),
        seen in vec((any::<u32>(), number(), number()), 0..40),
        told in vec((any::<u32>(), number(), vec(any::<u8>(), 0..40), number()), 0..9),
    ) {
        let request = DigestRequest { cache, cursor, ends_after_ms, partitions, items };
        let mut out = Vec::new();
        encode::digests(&mut out, 1, &request);
        let read = Request::decode(body(&out)).unwrap();
        prop_assert_eq!(read.body, Body::Digests(Box::new(request)));

        let partition = |(partition, items, sum)| PartitionDigest { partition, items, sum };
        let item = |(partition, hash, key, digest)| ItemDigest { partition, hash, key, digest };
        let digests = Digests {
            cursor,
            partitions: seen.into_iter().map(partition).collect(),
            items: told.into_iter().map(item).collect(),
        };
        out.clear();
        respond::structure(&mut out, 1, &digests);
        let Ok((1, Response::Ok(bytes))) = Response::decode(body(&out)) else { panic!("not ok") };
        prop_assert_eq!(admin::get::<Digests>(bytes).unwrap(), digests);
    }
}

#[test]
fn a_status_of_an_older_node_has_defaults_where_it_says_nothing() {
    assert_eq!(admin::get::<ClusterStatus>(&[0x80]).unwrap(), ClusterStatus::default());
    assert_eq!(admin::get::<Digests>(&[0x80]).unwrap(), Digests::default());
}

#[test]
fn a_change_that_is_no_map_is_refused_and_the_connection_goes_on() {
    let mut out = Vec::new();
    encode::bare(&mut out, 9, Op::ClusterStatus);
    assert_eq!(Request::decode(body(&out)).unwrap().body, Body::ClusterStatus);

    for message in [&b"\x92\x33\x09"[..], b"\x93\x33\x09\x07", b"\x93\x34\x09\xa1x"] {
        let refused = Request::decode(message).unwrap_err();
        assert_eq!(refused.id, Some(9), "{message:?}");
    }
}
