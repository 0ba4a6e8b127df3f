//! Who may talk to whom.

use super::{
    super::{CallError, DialError, error::Refusal, kind},
    *,
};

async fn trouble(node: &TestNode, of: u64) -> String {
    let mut text = None;
    until("the link has trouble", || {
        text = node.stats(NodeId(of)).trouble;
        text.is_some()
    })
    .await;
    text.unwrap()
}

#[tokio::test]
async fn two_clusters_exchange_nothing() {
    let a = TestNode::start(1, 11, CLUSTER);
    let b = TestNode::start(2, 22, ClusterId(0xc2));
    a.link_to(&b);
    let text = trouble(&a, 2).await;
    assert!(text.contains("cluster c2") && text.contains("cluster c1"), "{text}");
    assert!(text.contains("empty data directory"), "it says what to do: {text}");
    a.send(&b, vec![small(1)]);
    a.links.flush();
    assert_eq!(a.stats(NodeId(2)).dropped, 1);
    let refused = a.call(&b, ECHO, b"x").await.unwrap_err();
    assert!(
        matches!(
            refused,
            CallError::NotConnected(DialError::Refused(Refusal::OtherCluster {
                listener: 0xc2,
                dialler: 0xc1
            }))
        ),
        "{refused:?}"
    );
    assert!(a.links.call_at(&b.address.to_string(), WHO, Bytes::new(), PATIENCE).await.is_err());
    assert_eq!(b.received(), []);
    assert!(b.links.turned_away() >= 2);
}

#[tokio::test]
async fn a_node_that_has_no_cluster_yet_may_ask_to_join_and_nothing_else() {
    let newcomer = TestNode::start(1, 11, ClusterId(0));
    let b = TestNode::start(2, 22, CLUSTER);
    let address = b.address.to_string();
    let call = |kind| newcomer.links.call_at(&address, kind, Bytes::new(), PATIENCE);
    assert_eq!(call(WHO).await.unwrap(), "node-1");
    assert!(kind::JOINING.contains(&WHO) && !kind::JOINING.contains(&ECHO));
    assert!(matches!(call(ECHO).await, Err(CallError::Refused(Refused::NotMember))));

    newcomer.link_to(&b);
    until("it says why not", || newcomer.stats(NodeId(2)).trouble.is_some()).await;
    assert!(matches!(
        newcomer.call(&b, ECHO, b"").await,
        Err(CallError::NotConnected(DialError::NoCluster))
    ));
    newcomer.links.set_cluster(CLUSTER);
    newcomer.linked(NodeId(2)).await;
    assert_eq!(newcomer.call(&b, ECHO, b"hi").await.unwrap(), "hi");
    assert_eq!(call(ECHO).await.unwrap(), "");
}

#[tokio::test]
async fn a_node_that_has_no_cluster_yet_can_be_reached_by_the_one_that_takes_it_in() {
    let a = TestNode::start(1, 11, CLUSTER);
    let newcomer = TestNode::start(2, 22, ClusterId(0));
    a.link_to(&newcomer);
    a.linked(NodeId(2)).await;
    assert_eq!(a.call(&newcomer, WHO, b"").await.unwrap(), "node-1");
    let refused = a.call(&newcomer, ECHO, b"").await;
    assert!(matches!(refused, Err(CallError::Refused(Refused::NotMember))));
    a.send(&newcomer, vec![small(1)]);
    a.links.flush();
    until("it is withheld", || newcomer.stats(NodeId(1)).withheld == 1).await;

    newcomer.links.set_cluster(CLUSTER);
    assert_eq!(a.call(&newcomer, ECHO, b"now").await.unwrap(), "now");
    a.send(&newcomer, vec![small(2)]);
    a.links.flush();
    newcomer.receives(&[small(2)]).await;
}

#[tokio::test]
async fn messages_for_another_life_of_a_node_are_not_sent_until_it_is_known() {
    let a = TestNode::start(1, 11, CLUSTER);
    let b = TestNode::start(2, 22, CLUSTER);
    a.links.set_peers(vec![(member(2, 21), b.address.to_string())]);
    a.linked(NodeId(2)).await;
    a.send(&b, vec![small(1)]);
    a.links.flush();
    assert_eq!(a.stats(NodeId(2)).withheld, 1);
    assert_eq!(a.call(&b, ECHO, b"who?").await.unwrap(), "who?", "calls go through");

    a.link_to(&b);
    a.send(&b, vec![small(2)]);
    a.links.flush();
    b.receives(&[small(2)]).await;
    assert_eq!(a.stats(NodeId(2)).reconnects, 0, "the connection was kept");
}

#[tokio::test]
async fn messages_from_another_life_than_the_known_one_are_not_handed_on() {
    let (a, b) = TestNode::pair().await;
    b.links.set_peers(vec![(member(1, 10), a.address.to_string())]);
    a.send(&b, vec![small(1)]);
    a.links.flush();
    until("it is withheld", || b.stats(NodeId(1)).withheld == 1).await;
    b.link_to(&a);
    a.send(&b, vec![small(2)]);
    a.links.flush();
    b.receives(&[small(2)]).await;
}

#[tokio::test]
async fn a_message_in_the_name_of_another_node_costs_the_connection() {
    let (a, b) = TestNode::pair().await;
    let mut message = a.message(b.member, vec![small(1)]);
    message.from = member(3, 33);
    a.links.send(NodeId(2), &message);
    a.links.flush();
    until("it is linked anew", || a.stats(NodeId(2)).reconnects == 1).await;
    assert_eq!(b.received(), []);
}

#[tokio::test]
async fn a_node_does_not_talk_to_itself_nor_to_another_with_its_id() {
    let a = TestNode::start(1, 11, CLUSTER);
    let twin = TestNode::start(1, 12, CLUSTER);
    for address in [a.address, twin.address] {
        let refused =
            a.links.call_at(&address.to_string(), WHO, Bytes::new(), PATIENCE).await.unwrap_err();
        assert!(
            matches!(refused, CallError::NotConnected(DialError::Refused(Refusal::OwnId))),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("data directory"), "{refused}");
    }
    a.links.set_peers(vec![(a.member, a.address.to_string())]);
    assert!(a.links.stats().is_empty(), "its own place in a list is passed over");
}

#[tokio::test]
async fn another_node_at_the_address_is_not_taken_for_the_one_looked_for() {
    let a = TestNode::start(1, 11, CLUSTER);
    let b = TestNode::start(2, 22, CLUSTER);
    a.links.set_peers(vec![(member(3, 33), b.address.to_string())]);
    let text = trouble(&a, 3).await;
    assert!(text.contains("node 2 (node-2) has this address"), "{text}");
}

#[tokio::test]
async fn a_peer_that_is_let_go_or_never_was_cannot_be_called() {
    let (a, b) = TestNode::pair().await;
    a.links.set_peers(Vec::new());
    assert!(matches!(a.call(&b, ECHO, b"").await, Err(CallError::UnknownPeer(NodeId(2)))));
    until("the connection is closed", || b.links.stats().is_empty()).await;
    until("the peer is forgotten", || a.links.stats().is_empty()).await;
}
