//! A client of a cluster: the way to its caches, their administration and the cluster's figures.

use std::{ops::Deref, sync::Arc};

use bytes::Bytes;
use futures_util::future::join_all;
use kiln_protocol::native::{
    ErrorCode, Op,
    admin::{
        self, CacheInfo, CacheList, CacheSpec, ClusterChange, ClusterStatus, DigestRequest,
        Digests, NodeInfo, TopologyView,
    },
    encode,
};

use crate::{
    Address, AddressError, Builder, Cache, Error, Events, Operation,
    call::{Attempts, ask_done, ask_if_there, ask_structure},
    connection::Connection,
    core::{CallOptions, Core, Node},
};

/// A client of a cluster. Cheap to clone; all clones share their connections, which end with the
/// last of them and of its [`Cache`]s.
///
/// It is also the [`Cache`] that its address names: `client.get("key")` reads from there.
///
/// `Send` and `Sync`: one client serves a whole program.
#[derive(Clone, Debug)]
pub struct Client {
    core: Arc<Core>,
    default: Cache,
}

impl Deref for Client {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.default
    }
}

/// Why [`Client::connect`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No node answered.
    #[error(transparent)]
    Cluster(#[from] Error),
}

impl Client {
    pub(crate) fn new(core: Arc<Core>, cache: &str, options: CallOptions) -> Self {
        let state = core.cache(cache);
        Self { default: Cache { core: core.clone(), state, options }, core }
    }

    /// Settings of a client, with their defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Connects with all settings as they are by default.
    ///
    /// Must be called in a Tokio runtime. Cancel safe: dropped, there is no client.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), kiln_client::ConnectError> {
    /// let client = kiln_client::Client::connect("kiln://127.0.0.1:7311").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(address: &str) -> Result<Self, ConnectError> {
        let address: Address = address.parse()?;
        Ok(Self::builder().address(address).connect().await?)
    }

    /// A cache by its name. Whether it exists shows when it is used.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) -> Result<(), kiln_client::Error> {
    /// let sessions = client.cache("sessions");
    /// sessions.set("id", "data").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn cache(&self, name: &str) -> Cache {
        Cache { state: self.core.cache(name), ..self.default.clone() }
    }

    /// What happens to connections and to the view of the cluster from now on.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) {
    /// let mut events = client.events();
    /// tokio::spawn(async move {
    ///     while let Some(event) = events.next().await {
    ///         eprintln!("{event:?}");
    ///     }
    /// });
    /// # }
    /// ```
    pub fn events(&self) -> Events {
        self.core.events()
    }

    /// Asks any node whether it lives.
    ///
    /// Cancel safe.
    pub async fn ping(&self) -> Result<(), Error> {
        self.ask(true, |out, id| encode::bare(out, id, Op::Ping)).await.map(drop)
    }

    /// Makes a cache. Succeeds as well when there is one already with just these settings.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    ///
    /// ```no_run
    /// # use kiln_client::{CacheSpec, Client, Error};
    /// # async fn example(client: Client) -> Result<(), Error> {
    /// let spec = CacheSpec { name: "sessions".into(), eviction: "lru".into(), ..CacheSpec::default() };
    /// client.create_cache(&spec).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_cache(&self, spec: &CacheSpec) -> Result<(), Error> {
        self.ask(false, |out, id| encode::create_cache(out, id, spec)).await.map(drop)
    }

    /// Removes a cache and all its items. `false` when there is none.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) -> Result<(), kiln_client::Error> {
    /// let there_was_one = client.drop_cache("sessions").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn drop_cache(&self, name: &str) -> Result<bool, Error> {
        self.core.invalidate_cache(name);
        let dropped = self.ask(false, |out, id| encode::named(out, id, Op::DropCache, name)).await;
        // Also what was read meanwhile.
        self.core.invalidate_cache(name);
        Ok(there_or_not(dropped)?.is_some())
    }

    /// All caches with their settings, and their figures on one of the nodes.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) -> Result<(), kiln_client::Error> {
    /// for cache in client.caches().await? {
    ///     println!("{}: {} items", cache.spec.name, cache.items);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn caches(&self) -> Result<Vec<CacheInfo>, Error> {
        let list: CacheList = self.ask_for(|out, id| encode::bare(out, id, Op::ListCaches)).await?;
        Ok(list.caches)
    }

    /// A cache with its settings, and its figures on one of the nodes. `None` when there is none.
    ///
    /// Cancel safe.
    pub async fn cache_info(&self, name: &str) -> Result<Option<CacheInfo>, Error> {
        let shown = self.ask_for(|out, id| encode::named(out, id, Op::ShowCache, name));
        there_or_not(shown.await)
    }

    /// The cluster as one of its nodes sees it.
    ///
    /// Cancel safe.
    pub async fn topology(&self) -> Result<TopologyView, Error> {
        self.ask_for(|out, id| encode::bare(out, id, Op::Topology)).await
    }

    /// Figures of every node that this client knows of, each with the node's address.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) {
    /// for (address, info) in client.nodes_info().await {
    ///     match info {
    ///         Ok(info) => println!("{address}: {} connections", info.connections),
    ///         Err(error) => println!("{address}: {error}"),
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn nodes_info(&self) -> Vec<(String, Result<NodeInfo, Error>)> {
        let view = self.core.view();
        let info = |out: &mut Vec<u8>, id| encode::bare(out, id, Op::Info);
        let asked = view
            .nodes()
            .map(async |node| (node.address.to_string(), self.ask_node(node, true, info).await));
        join_all(asked).await
    }

    /// How the cluster is, as any of its nodes sees it.
    ///
    /// Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) -> Result<(), kiln_client::Error> {
    /// for warning in client.cluster_status().await?.warnings {
    ///     println!("{}: {}", warning.text, warning.advice);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        self.ask_for(|out, id| encode::bare(out, id, Op::ClusterStatus)).await
    }

    /// How the cluster is, as this node sees it: each knows best what itself does. `None` when this
    /// client knows no such node.
    ///
    /// Cancel safe.
    pub async fn cluster_status_of(&self, node: u64) -> Option<Result<ClusterStatus, Error>> {
        self.ask_by_id(node, |out, id| encode::bare(out, id, Op::ClusterStatus)).await
    }

    /// Figures of one node. `None` when this client knows no such node.
    ///
    /// Cancel safe.
    pub async fn node_info_of(&self, node: u64) -> Option<Result<NodeInfo, Error>> {
        self.ask_by_id(node, |out, id| encode::bare(out, id, Op::Info)).await
    }

    /// Drains, removes or weighs a node, or acknowledges losses. Succeeds as well when it is so
    /// already.
    ///
    /// Cancel safe; dropped, it may or may not happen.
    pub async fn change_cluster(&self, change: &ClusterChange) -> Result<(), Error> {
        self.ask(false, |out, id| encode::change_cluster(out, id, change)).await.map(drop)
    }

    /// A step through the copies that a node has of a cache, for comparing them with those of
    /// other nodes. `None` when this client knows no such node.
    ///
    /// Cancel safe.
    pub async fn copy_digests(
        &self,
        node: u64,
        request: &DigestRequest,
    ) -> Option<Result<Digests, Error>> {
        self.ask_by_id(node, |out, id| encode::digests(out, id, request)).await
    }

    /// Asks the node of this id for a structure.
    async fn ask_by_id<T: serde::de::DeserializeOwned>(
        &self,
        node: u64,
        encode: impl Fn(&mut Vec<u8>, u32) + Send,
    ) -> Option<Result<T, Error>> {
        let view = self.core.view();
        let (_, node) = view.nodes_by_id().find(|(id, _)| *id == node)?;
        Some(self.ask_node(node, true, encode).await)
    }

    /// Asks one node for a structure.
    async fn ask_node<T: serde::de::DeserializeOwned>(
        &self,
        node: &Node,
        reads: bool,
        encode: impl Fn(&mut Vec<u8>, u32) + Send,
    ) -> Result<T, Error> {
        let mut attempts = Attempts::new(&self.default, Operation::Administration, reads);
        loop {
            let deadline = attempts.deadline;
            let asked = async {
                let connection = node.connection(deadline, false).await?;
                ask_structure(&connection, deadline, &encode).await
            };
            match asked.await {
                Ok(answer) => return attempts.succeeded(answer),
                Err(error) => attempts.failed(error, reads).await?,
            }
        }
    }

    /// Ends all connections. Calls under way fail, and later ones as well.
    ///
    /// ```no_run
    /// # async fn example(client: kiln_client::Client) {
    /// client.close();
    /// assert!(client.get("key").await.is_err());
    /// # }
    /// ```
    pub fn close(&self) {
        self.core.close();
    }

    /// Waits for a connection to one node, and for what it knows of the cluster.
    pub(crate) async fn await_cluster(&self) -> Result<(), Error> {
        let mut attempts = Attempts::new(&self.default, Operation::Administration, true);
        loop {
            let error = match self.core.refresh(attempts.deadline).await {
                Ok(()) => return attempts.succeeded(()),
                Err(error) => error,
            };
            match error.code() {
                // A node without a topology is a cluster of its own.
                Some(ErrorCode::Unsupported | ErrorCode::UnknownOperation) => {
                    return attempts.succeeded(());
                }
                _ => attempts.failed(error, true).await?,
            }
        }
    }

    /// Asks any node. `reads`: the question changes nothing.
    async fn ask(
        &self,
        reads: bool,
        encode: impl Fn(&mut Vec<u8>, u32) + Send,
    ) -> Result<(Bytes, Arc<Connection>), Error> {
        let mut attempts = Attempts::new(&self.default, Operation::Administration, reads);
        loop {
            let deadline = attempts.deadline;
            let error = match self.core.any_connection(deadline).await {
                Err(error) => error,
                Ok(connection) => match ask_done(&connection, deadline, &encode).await {
                    Ok(structure) => return attempts.succeeded((structure, connection)),
                    Err(error) => error,
                },
            };
            attempts.failed(error, reads).await?;
        }
    }

    /// The same, where there may be nothing.
    pub(crate) async fn ask_unless_missing<T: serde::de::DeserializeOwned>(
        &self,
        encode: impl Fn(&mut Vec<u8>, u32) + Send,
    ) -> Result<Option<T>, Error> {
        let mut attempts = Attempts::new(&self.default, Operation::Administration, true);
        loop {
            let deadline = attempts.deadline;
            let error = match self.core.any_connection(deadline).await {
                Err(error) => error,
                Ok(connection) => match ask_if_there(&connection, deadline, &encode).await {
                    Ok(found) => return attempts.succeeded(found),
                    Err(error) => error,
                },
            };
            attempts.failed(error, true).await?;
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Where the client's tasks run.
    pub(crate) fn runtime(&self) -> tokio::runtime::Handle {
        self.core.settings.runtime.clone()
    }

    pub(crate) async fn ask_for<T: serde::de::DeserializeOwned>(
        &self,
        encode: impl Fn(&mut Vec<u8>, u32) + Send,
    ) -> Result<T, Error> {
        let (structure, connection) = self.ask(true, encode).await?;
        admin::get(&structure)
            .map_err(|_| connection.peer.unexpected("a structure that cannot be read").of_a_read())
    }
}

fn there_or_not<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.code() == Some(ErrorCode::NoSuchCache) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_caches_and_errors_go_from_thread_to_thread() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Client>();
        check::<Cache>();
        check::<Error>();
        check::<ConnectError>();
    }
}
