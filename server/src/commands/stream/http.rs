//! How these commands reach a node: over its HTTP interface, one connection, one request at a time.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time};

use crate::commands::{CommandError, connect::period, credentials::CredentialArgs};

/// Longest answer that is read.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// Where the node is and who asks.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct HttpArgs {
    /// The HTTP address of a node.
    #[arg(long, env = "KILN_HTTP", value_name = "HOST:PORT", default_value = "127.0.0.1:7380")]
    http: String,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Longest wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = period)]
    timeout: Duration,
}

/// A node, over HTTP.
pub(super) struct Http {
    host: String,
    authorization: Option<String>,
    timeout: Duration,
    sender: Option<SendRequest<Body>>,
}

/// What a node answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Value,
}

impl HttpArgs {
    /// The node that is named; not connected yet.
    pub(super) fn open(&self) -> Result<Http, CommandError> {
        let host = self.http.strip_prefix("http://").unwrap_or(&self.http).trim_end_matches('/');
        let credentials = self.credentials.read()?;
        let authorization = credentials.map(|(user, password)| {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
        });
        Ok(Http { host: host.to_owned(), authorization, timeout: self.timeout, sender: None })
    }
}

impl Http {
    /// Asks, and gives the answer whatever its status is. An error: nobody answered.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<Answer, CommandError> {
        match time::timeout(self.timeout, self.ask_once(method, target, body)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.sender = None;
                let text = format!("{}: no answer within {:?}", self.host, self.timeout);
                Err(CommandError::Unreachable(text))
            }
        }
    }

    async fn ask_once(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<Answer, CommandError> {
        let broken = |host: &str, error: &dyn std::fmt::Display| {
            CommandError::Unreachable(format!("{host}: {error}"))
        };
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let mut request =
            Request::builder().method(method).uri(target).header(header::HOST, &self.host);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Body::from(body));
        let request = request.map_err(|error| CommandError::Usage(error.to_string()))?;
        let answer =
            sender.send_request(request).await.map_err(|error| broken(&self.host, &error))?;
        let (parts, body) = answer.into_parts();
        let bytes = to_bytes(Body::new(body), ANSWER_LEN_MAX).await;
        let bytes = bytes.map_err(|error| broken(&self.host, &error))?;
        self.sender = Some(sender);
        let retry_after = parts.headers.get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Answer {
            status: parts.status,
            retry_after: retry_after.map(Duration::from_secs),
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Body>, CommandError> {
        let fail = |error: &dyn std::fmt::Display| {
            CommandError::Unreachable(format!(
                "cannot connect to {}: {error}\n  Is a node running there? `kiln serve` starts one; \
                 --http or KILN_HTTP names another.",
                self.host
            ))
        };
        let socket = TcpStream::connect(&self.host).await.map_err(|error| fail(&error))?;
        let _ = socket.set_nodelay(true);
        let (sender, connection) =
            handshake(TokioIo::new(socket)).await.map_err(|error| fail(&error))?;
        // Its errors come back with the request.
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Asks for what must succeed.
    pub(super) async fn must(
        &mut self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<Value, CommandError> {
        let answer = self.ask(method, target, body).await?;
        if answer.status.is_success() { Ok(answer.body) } else { Err(refusal(&answer)) }
    }
}

/// What a refusal means for the exit code.
pub(super) fn refusal(answer: &Answer) -> CommandError {
    let detail = answer.body["detail"].as_str().unwrap_or_default();
    let text = if detail.is_empty() {
        format!("the node answered {}", answer.status)
    } else {
        detail.to_owned()
    };
    match answer.status {
        StatusCode::UNAUTHORIZED => {
            CommandError::Refused(format!("{text}\n  Name --user and --password-file."))
        }
        StatusCode::FORBIDDEN
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::INSUFFICIENT_STORAGE => CommandError::Refused(text),
        _ => CommandError::Failed(text),
    }
}

/// Text for one segment of a path.
pub(super) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
