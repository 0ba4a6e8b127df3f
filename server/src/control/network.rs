//! The Raft library's calls, over the wire.
//!
//! A snapshot goes as one call: tables are small. Whoever takes it checks it before the library
//! sees it, because the library ends the group on what it cannot install.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use kiln_cluster::ids::NodeId;
use openraft::{
    AnyError, RaftNetwork, RaftNetworkFactory,
    error::{
        Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, ReplicationClosed,
        StreamingError, Unreachable,
    },
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    decree::{Group, Seat, Snapshot, SnapshotMeta, Vote},
    reach::Reach,
    wire::{WireError, kind},
};

/// Until a member that cannot be reached is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(150);

/// A snapshot on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sent {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) image: bytes::Bytes,
}

/// Makes the ways to other members.
pub(super) struct Network(pub(super) Arc<Reach>);

/// The way to one member.
pub(super) struct Way {
    reach: Arc<Reach>,
    to: NodeId,
    seat: Seat,
}

type CallError<E> = RPCError<u64, Seat, E>;

impl RaftNetworkFactory<Group> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, seat: &Seat) -> Way {
        Way { reach: Arc::clone(&self.0), to: NodeId(target), seat: seat.clone() }
    }
}

impl Way {
    async fn ask<A: DeserializeOwned>(
        &self,
        kind: u8,
        asked: &impl Serialize,
        within: Duration,
    ) -> Result<A, WireError> {
        let seat = Some(self.seat.address.as_str()).filter(|address| !address.is_empty());
        self.reach.ask(self.to, seat, kind, asked, within).await
    }
}

fn call_error<E: std::error::Error>(error: WireError) -> CallError<E> {
    match error {
        WireError::NotDone(_) => RPCError::Unreachable(Unreachable::new(&error)),
        WireError::Unknown(_) => RPCError::Network(NetworkError::new(&error)),
    }
}

impl RaftNetwork<Group> for Way {
    async fn append_entries(
        &mut self,
        asked: AppendEntriesRequest<Group>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError<RaftError<u64>>> {
        self.ask(kind::APPEND, &asked, option.hard_ttl()).await.map_err(call_error)
    }

    async fn vote(
        &mut self,
        asked: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError<RaftError<u64>>> {
        self.ask(kind::VOTE, &asked, option.hard_ttl()).await.map_err(call_error)
    }

    async fn install_snapshot(
        &mut self,
        _asked: InstallSnapshotRequest<Group>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<RaftError<u64, InstallSnapshotError>>> {
        // Never called: `full_snapshot` sends snapshots whole.
        let error = AnyError::error("snapshots are sent whole");
        Err(RPCError::Network(NetworkError::from(error)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Group, Fatal<u64>>> {
        let image = snapshot.snapshot.into_inner().into();
        let sent = Sent { vote, meta: snapshot.meta, image };
        tokio::select! {
            closed = pin!(cancel) => Err(closed.into()),
            answer = self.ask(kind::SNAPSHOT, &sent, option.hard_ttl()) => {
                answer.map_err(|error| match error {
                    WireError::NotDone(_) => Unreachable::new(&error).into(),
                    WireError::Unknown(_) => NetworkError::new(&error).into(),
                })
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(TRY_AGAIN_AFTER))
    }
}
