//! Health and metrics over HTTP, on a thread of their own.
//!
//! Apart from the workers, so that a probe is answered while they are busy, and a slow or hostile
//! HTTP client cannot take time from the cache. What bounds such a client: the number of
//! connections, the size of a head, the time to send one, and the time to answer.

mod health;
mod metrics;
mod problem;

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
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    runtime,
    sync::{Semaphore, oneshot},
    task::{self, LocalSet},
    time,
};
use tower::ServiceExt;

use crate::node::Node;

/// HTTP connections at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a request's head.
const HEAD_LEN_MAX: usize = 16 << 10;
/// Header lines of a request.
const HEADERS_MAX: usize = 64;
/// Time to send a head, also counted while a kept connection is idle.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// Time for one connection, however many requests it carries and however slowly it reads.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);
/// Time for answers that are under way when the node stops.
const STOP_TIME_MAX: Duration = Duration::from_millis(500);

/// The running HTTP server.
#[derive(Debug)]
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Serves on a listener that does not block. The answers follow the node's phase.
    pub(crate) fn start(node: Arc<Node>, listener: TcpListener) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            let tasks = LocalSet::new();
            if let Err(error) = tasks.block_on(&runtime, accept(router(node), listener, stopped)) {
                tracing::error!(%error, "the HTTP server failed");
            }
        };
        let thread = thread::Builder::new().name("kiln-http".to_owned()).spawn(serve)?;
        Ok(Self { stop, thread })
    }

    /// Finishes the answers under way, for a short time, and ends.
    pub(crate) fn stop(self) {
        // An error is a server that ended before; it said so in the log.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(show_metrics))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(node)
}

async fn show_metrics(State(node): State<Arc<Node>>) -> Response {
    match metrics::render(&node) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render the metrics");
            problem::internal_error()
        }
    }
}

async fn accept(
    router: Router,
    listener: TcpListener,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_LEN_MAX)
        .max_headers(HEADERS_MAX);
    loop {
        let next = async {
            // Never closed, so an error cannot happen; without a place there is no connection.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            _ = &mut stopped => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly: no more file descriptors.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let router = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let router = router.clone();
            async move { answer(router, request.map(axum::body::Body::new)).await }
        });
        let connection = graceful.watch(server.serve_connection(TokioIo::new(stream), service));
        task::spawn_local(async move {
            let _place = place;
            if let Ok(Err(error)) = time::timeout(CONNECTION_TIME_MAX, connection).await {
                tracing::debug!(%error, "an HTTP connection broke");
            }
        });
    }
    drop(listener);
    // What is not done in time is dropped with the tasks.
    let _ = time::timeout(STOP_TIME_MAX, graceful.shutdown()).await;
    Ok(())
}

async fn answer(router: Router, request: Request) -> Result<Response, Infallible> {
    router.oneshot(request).await
}
