//! Walks through a cache.
//!
//! A scan goes node by node and page by page. It shows every item that is there from its beginning
//! to its end; items that are written, deleted or moved meanwhile may be shown once, twice or not
//! at all. It holds no memory on the nodes: where it is stands in a cursor.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use kiln_protocol::native::{self, encode};

use crate::{
    Cache, Error, Operation, answer,
    call::{Attempts, ask_whole},
    connection::Deadline,
    core::Node,
};

/// An item that a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The version.
    pub version: u64,
    /// The writer's own bits.
    pub flags: u32,
    /// How long the item still lived; `None` has no end.
    pub ttl: Option<Duration>,
    /// Length of the value in bytes.
    pub value_len: u64,
    /// The value, when values were asked for.
    pub value: Option<Bytes>,
}

/// A scan that is about to begin. See [`Cache::scan`].
#[derive(Clone, Debug)]
#[must_use = "a scan does nothing until its pages or entries are asked for"]
pub struct Scan {
    cache: Cache,
    prefix: Bytes,
    values: bool,
    page_len: u32,
}

/// Items in a page where the scan says nothing.
const PAGE_LEN_USUAL: u32 = 500;

impl Cache {
    /// Walks through all items of the cache, or those whose keys begin with a prefix.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// let mut pages = cache.scan().prefix("user:").values().pages();
    /// while let Some(page) = pages.next().await? {
    ///     for entry in page {
    ///         println!("{:?} = {:?}", entry.key, entry.value);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self) -> Scan {
        let cache = self.clone();
        Scan { cache, prefix: Bytes::new(), values: false, page_len: PAGE_LEN_USUAL }
    }
}

impl Scan {
    /// Only items whose keys begin so.
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.prefix = Bytes::copy_from_slice(prefix.as_ref());
        self
    }

    /// With their values. Default: without.
    pub fn values(mut self) -> Self {
        self.values = true;
        self
    }

    /// Items in a page, about; a node may give fewer. Default: 500.
    pub fn page_len(mut self, items: u32) -> Self {
        self.page_len = items.max(1);
        self
    }

    /// Page by page.
    pub fn pages(self) -> Pages {
        let view = self.cache.core.view();
        let nodes = view.nodes().cloned().collect();
        Pages { scan: self, nodes, cursor: None }
    }

    /// Item by item.
    ///
    /// ```no_run
    /// # async fn example(cache: kiln_client::Cache) -> Result<(), kiln_client::Error> {
    /// use futures_util::TryStreamExt;
    ///
    /// let mut entries = cache.scan().entries();
    /// while let Some(entry) = entries.try_next().await? {
    ///     println!("{:?}", entry.key);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn entries(self) -> impl Stream<Item = Result<Entry, Error>> + Send + Unpin {
        Entries { turn: Turn::Idle(Box::new(self.pages())), ready: VecDeque::new() }
    }
}

/// The pages of a scan.
#[derive(Debug)]
pub struct Pages {
    scan: Scan,
    /// Those to be scanned, the present one first.
    nodes: VecDeque<Arc<Node>>,
    cursor: Option<Bytes>,
}

impl Pages {
    /// The next page; `None` at the end. A page may be empty without being the last.
    ///
    /// The cache's timeout is for each page. After an error the same page can be asked for again.
    /// Cancel safe: dropped, so can it.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        let Some(node) = self.nodes.front() else {
            return Ok(None);
        };
        let mut attempts = Attempts::new(&self.scan.cache, Operation::Scan, true);
        let (cursor, mut entries) = loop {
            match self.scan.step(node, self.cursor.as_deref(), attempts.deadline).await {
                Ok(page) => break attempts.succeeded(page)?,
                Err(error) => attempts.failed(error, true).await?,
            }
        };
        self.scan.complete(&mut entries, attempts.deadline).await?;
        if cursor.is_none() {
            self.nodes.pop_front();
        }
        self.cursor = cursor;
        Ok(Some(entries))
    }
}

impl Scan {
    /// Asks for the values that were too large for their page. Items that are gone by now leave
    /// the page.
    async fn complete(&self, entries: &mut Vec<Entry>, deadline: Deadline) -> Result<(), Error> {
        let lacks = |entry: &Entry| self.values && entry.value.is_none();
        let keys: Vec<_> =
            entries.iter().filter(|entry| lacks(entry)).map(|e| e.key.clone()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let items = self.cache.without_near_cache().get_many_until(&keys, deadline).await;
        for (entry, item) in entries.iter_mut().filter(|entry| lacks(entry)).zip(items) {
            if let Some(item) = item? {
                entry.version = item.version;
                entry.flags = item.flags;
                entry.ttl = item.ttl;
                entry.value_len = item.value.len() as u64;
                entry.value = Some(item.value);
            }
        }
        entries.retain(|entry| !lacks(entry));
        Ok(())
    }
}

/// Where the next step begins, and what this one found.
type Step = (Option<Bytes>, Vec<Entry>);

impl Scan {
    async fn step(
        &self,
        node: &Node,
        cursor: Option<&[u8]>,
        deadline: Deadline,
    ) -> Result<Step, Error> {
        let connection = node.connection(deadline, false).await?;
        let peer = &connection.peer;
        let most = u32::try_from(peer.welcome.limits.scan_max).unwrap_or(u32::MAX);
        let limit = if most == 0 { self.page_len } else { self.page_len.min(most) };
        let mut reopened = false;
        let body = loop {
            let cache = self.cache.reference(&connection, deadline).await?;
            let prefix = &self.prefix;
            let request = native::Scan { cache, cursor, limit, prefix, values: self.values };
            let body = ask_whole(&connection, deadline, prefix.len(), |out, id| {
                encode::scan(out, id, &request);
            });
            match body.await {
                Ok(body) => break body,
                Err(error) if reopened || !self.cache.can_reopen(&connection, cache, &error) => {
                    return Err(error);
                }
                Err(_) => reopened = true,
            }
        };
        answer::page(&body, peer, |entry, value| {
            Ok(Entry {
                key: body.slice_ref(entry.key),
                version: entry.version,
                flags: entry.flags,
                ttl: entry.ttl_ms.map(Duration::from_millis),
                value_len: entry.value_len,
                value: value.map(|value| value.into_bytes(peer)).transpose()?,
            })
        })
    }
}

type NextPage =
    Pin<Box<dyn Future<Output = (Box<Pages>, Result<Option<Vec<Entry>>, Error>)> + Send>>;

enum Turn {
    Idle(Box<Pages>),
    Asking(NextPage),
    /// After the end or an error.
    Over,
}

struct Entries {
    turn: Turn,
    ready: VecDeque<Entry>,
}

impl Stream for Entries {
    type Item = Result<Entry, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(entry)));
            }
            match std::mem::replace(&mut self.turn, Turn::Over) {
                Turn::Idle(mut pages) => {
                    self.turn = Turn::Asking(Box::pin(async move {
                        let page = pages.next().await;
                        (pages, page)
                    }));
                }
                Turn::Asking(mut asking) => match asking.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.turn = Turn::Asking(asking);
                        return Poll::Pending;
                    }
                    Poll::Ready((pages, Ok(Some(page)))) => {
                        self.ready = page.into();
                        self.turn = Turn::Idle(pages);
                    }
                    Poll::Ready((_, Ok(None))) => return Poll::Ready(None),
                    Poll::Ready((_, Err(error))) => return Poll::Ready(Some(Err(error))),
                },
                Turn::Over => return Poll::Ready(None),
            }
        }
    }
}
