//! The links between nodes as the group's wire, and their requests as the group's.

use std::time::Duration;

use bytes::Bytes;
use kiln_cluster::ids::{Incarnation, Member, NodeId};

use super::{
    Control,
    wire::{BoxFuture, Unanswered, Wire, WireError},
};
use crate::peer::{CallError, Caller, Links, Refused};

impl Wire for Links {
    fn remember(&self, members: Vec<(NodeId, String)>) {
        // Any life of them: which one runs now shows only when they are in the table again.
        let life = Incarnation(0);
        let peers = members.into_iter();
        self.set_peers(
            peers.map(|(node, address)| (Member { node, incarnation: life }, address)).collect(),
        );
    }

    fn call(
        &self,
        to: NodeId,
        address: Option<&str>,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>> {
        let (links, address) = (self.clone(), address.map(str::to_owned));
        Box::pin(async move {
            match links.call(to, kind, body.clone(), within).await {
                // The table that names it has not reached the links yet.
                Err(CallError::UnknownPeer(_)) if address.is_some() => {
                    let address = address.unwrap_or_default();
                    links.call_at(&address, kind, body, within).await
                }
                answer => answer,
            }
            .map_err(wire_error)
        })
    }

    fn call_at(
        &self,
        address: &str,
        kind: u8,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<Result<Bytes, WireError>> {
        let (links, address) = (self.clone(), address.to_owned());
        Box::pin(
            async move { links.call_at(&address, kind, body, within).await.map_err(wire_error) },
        )
    }
}

fn wire_error(error: CallError) -> WireError {
    if error.may_have_been_done() {
        WireError::Unknown(error.to_string())
    } else {
        WireError::NotDone(error.to_string())
    }
}

impl Control {
    /// Answers what another node asks of the group.
    pub(crate) fn answer(
        &self,
        from: Caller,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<Result<Bytes, Refused>> {
        let answer = self.answer_to(from.member.node, kind, body);
        Box::pin(async move { answer.await.map_err(refused) })
    }
}

fn refused(unanswered: Unanswered) -> Refused {
    match unanswered {
        Unanswered::UnknownKind => Refused::UnknownKind,
        Unanswered::Malformed => Refused::Malformed,
        Unanswered::Busy => Refused::Busy,
        Unanswered::NotReady => Refused::NotReady,
        Unanswered::OtherCluster => Refused::NotMember,
        Unanswered::Stopping => Refused::Stopping,
    }
}
