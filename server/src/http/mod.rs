//! HTTP: items for any client that speaks it, and the pages and probes of a node.
//!
//! ```text
//!   mod          threads, connections, routes
//!   socket       one connection: cut off when it stalls; what the HTTP library refuses, in our words
//!   links        connections that rest, and which of them gives way
//!   gateway      what every request passes: identity, credentials, measure
//!   items        one item: GET HEAD PUT DELETE
//!   actions      one item: what is neither reading nor replacing it
//!   batch        many items at once
//!   scan         going through a cache
//!   caches       caches: make, look at, change, drop
//!   cluster      the cluster: nodes, partitions, what an operator should know
//!   across       a walk through the items of several nodes
//!   problem      errors
//!   openapi docs what this interface is, for programs and for people
//! ```
//!
//! Apart from the workers, on threads of its own, so that a probe is answered while they are busy,
//! and a slow or hostile HTTP client cannot take time from the cache's other clients. What bounds
//! such a client: the number of connections, the size of a head and of a body, the time to send
//! either, the time to take an answer, and the node's budgets for what is on its way.

mod across;
mod actions;
mod batch;
mod caches;
mod cluster;
mod dashboard;
mod docs;
mod etag;
mod figures;
mod gateway;
mod health;
mod items;
mod links;
mod media;
mod metrics;
mod object;
mod once;
mod openapi;
mod percent;
mod problem;
mod query;
mod replays;
mod scan;
mod socket;
mod streams;
mod upload;
mod value;

use std::{
    convert::Infallible,
    io,
    net::TcpListener,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::TcpStream,
    runtime::{self, Runtime},
    sync::{mpsc, watch},
    time::{self, MissedTickBehavior},
};

use self::{
    gateway::{Answered, Gateway},
    links::{Link, Links},
    socket::Socket,
};
use crate::node::Node;

pub(crate) use figures::Figures;

/// Bytes of a request's head: the longest key, and room for headers.
const HEAD_LEN_MAX: usize = 80 << 10;
/// Header lines of a request.
const HEADERS_MAX: usize = 64;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// A client of HTTP/2 that is silent is asked so often whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How often connections are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Time for answers that are under way when the node stops.
const STOP_TIME_MAX: Duration = Duration::from_millis(500);
/// Threads that serve HTTP, at most.
const THREADS_MAX: usize = 8;

/// Threads that serve HTTP on a node of so many workers.
pub(crate) fn threads(workers: usize) -> usize {
    workers.clamp(1, THREADS_MAX)
}

/// The running HTTP server.
#[derive(Debug)]
pub(crate) struct Server {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// What serves a connection.
#[derive(Clone)]
struct Service {
    gateway: Arc<Gateway>,
    router: Router,
    links: Arc<Links>,
    /// The number of the thread.
    thread: usize,
}

impl Server {
    /// Serves on a listener that does not block. The answers follow the node's phase.
    pub(crate) fn start(node: Arc<Node>, listener: TcpListener) -> io::Result<Self> {
        let runtime = || runtime::Builder::new_current_thread().enable_all().build();
        let runtimes =
            (0..node.http.threads()).map(|_| runtime()).collect::<io::Result<Vec<Runtime>>>()?;
        let gateway = Arc::new(Gateway::new(node));
        let router = {
            // Tasks that belong to routes run with the first thread.
            let _context = runtimes.first().map(Runtime::enter);
            router(&gateway)
        };
        let links = Arc::new(Links::default());
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::new();
        for (thread, runtime) in runtimes.into_iter().enumerate() {
            let service = Service {
                gateway: Arc::clone(&gateway),
                router: router.clone(),
                links: Arc::clone(&links),
                thread,
            };
            let (listener, stopped) = (listener.try_clone()?, stopped.clone());
            let serve = move || {
                if let Err(error) = runtime.block_on(accept(service, listener, stopped)) {
                    tracing::error!(%error, "the HTTP server failed");
                }
            };
            threads.push(thread::Builder::new().name(format!("kiln-http-{thread}")).spawn(serve)?);
        }
        Ok(Self { stop, threads })
    }

    /// Finishes the answers under way, for a short time, and ends.
    pub(crate) fn stop(self) {
        // An error is a server that ended before; it said so in the log.
        let _ = self.stop.send(true);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn router(gateway: &Arc<Gateway>) -> Router {
    let item = "/v1/caches/{cache}/keys/{key}";
    let action = |name: &str| format!("{item}/{name}");
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(show_metrics))
        .route("/openapi.json", get(openapi::show))
        .route("/docs", get(docs::show))
        .route(item, get(items::read).put(items::write).delete(items::delete))
        .route(&action("increment"), post(actions::increment))
        .route(&action("decrement"), post(actions::decrement))
        .route(&action("append"), post(actions::append))
        .route(&action("touch"), post(actions::touch))
        .route(&action("get-and-touch"), post(actions::get_and_touch))
        .route("/v1/caches", get(caches::list))
        .route(
            "/v1/caches/{cache}",
            get(caches::show).put(caches::create).patch(caches::change).delete(caches::drop),
        )
        .route("/v1/caches/{cache}/keys", get(scan::run).delete(caches::flush))
        .route("/v1/caches/{cache}/batch", post(batch::run))
        .route("/v1/cluster", get(cluster::show))
        .route("/v1/cluster/nodes", get(cluster::nodes))
        .route("/v1/cluster/partitions", get(cluster::partitions))
        .merge(streams::routes())
        .merge(dashboard::routes(&gateway.node).with_state(Arc::clone(&gateway.node)))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        // Bodies have bounds of their own.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(gateway))
}

async fn show_metrics(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Response {
    match metrics::render(&gateway.node) {
        Ok(text) if metrics::wants_open_metrics(&headers) => {
            let headers = [(header::CONTENT_TYPE, metrics::OPEN_METRICS), (header::VARY, "accept")];
            (headers, metrics::as_open_metrics(&text)).into_response()
        }
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render the metrics");
            problem::internal_error()
        }
    }
}

async fn accept(
    service: Service,
    listener: TcpListener,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let node = Arc::clone(&service.gateway.node);
    let mut sweep = time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Each connection holds a sender: when all are gone, so are the connections.
    let (alive, mut all_gone) = mpsc::channel::<Infallible>(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweep.tick() => {
                let now_ms = node.clock.now_ms();
                node.http.turn_over(service.thread, now_ms);
                if service.thread == 0 {
                    service.links.sweep(now_ms);
                }
                continue;
            }
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((stream, _)) => service.admit(stream, stopped.clone(), alive.clone()),
            Err(error) => {
                // Mostly: no more file descriptors.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop((listener, alive));
    // What is not done in time is dropped with the runtime.
    let _ = time::timeout(STOP_TIME_MAX, all_gone.recv()).await;
    Ok(())
}

impl Service {
    /// Serves a connection if there is room, or if one that rests gives way.
    fn admit(
        &self,
        stream: TcpStream,
        stopped: watch::Receiver<bool>,
        alive: mpsc::Sender<Infallible>,
    ) {
        let node = &self.gateway.node;
        let now_ms = node.clock.now_ms();
        let max = node.config.max_http_connections.0;
        // One that gives way is closed within a moment, and is over the limit until then.
        let enters =
            node.http.enter(max) || self.links.make_room(now_ms) && node.http.enter(usize::MAX);
        if !enters {
            node.http.reject();
            // Into an empty socket buffer; what does not fit is not worth waiting for.
            let _ = stream.try_write(&socket::too_many());
            return;
        }
        let _ = stream.set_nodelay(true);
        let (number, link) = self.links.add(now_ms);
        let place =
            Place { gateway: Arc::clone(&self.gateway), links: Arc::clone(&self.links), number };
        let service = self.clone();
        let task = tokio::spawn(async move {
            let _held = (place, alive);
            service.serve(stream, link, stopped).await;
        });
        self.links.is_task(number, task.abort_handle());
    }

    /// Serves a connection to its end.
    async fn serve(self, stream: TcpStream, link: Arc<Link>, mut stopped: watch::Receiver<bool>) {
        let builder = builder(&self.gateway.node);
        let requests = {
            let link = Arc::clone(&link);
            hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let (service, link) = (self.clone(), Arc::clone(&link));
                async move {
                    let answered: Answered =
                        service.gateway.answer(service.router, request, link, service.thread).await;
                    Ok::<_, Infallible>(answered)
                }
            })
        };
        let connection = builder.serve_connection(TokioIo::new(Socket::new(stream)), requests);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = link.closing() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            _ = stopped.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an HTTP connection broke");
        }
    }
}

fn builder(node: &Node) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(node.config.http_request_timeout.0)
        .max_buf_size(HEAD_LEN_MAX)
        .max_headers(HEADERS_MAX)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_LEN_MAX as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    builder
}

/// A connection's place under the limit and among the links; given back when it is dropped.
struct Place {
    gateway: Arc<Gateway>,
    links: Arc<Links>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.links.remove(self.number);
        self.gateway.node.http.leave();
    }
}
