//! The socket of one HTTP connection, with two habits that the HTTP library lacks.
//!
//! - A client that takes none of its answer for a while is cut off: what it leaves untaken holds
//!   memory.
//! - Where the library refuses a request that it cannot read, it answers with a status and nothing
//!   else. Here that answer becomes a problem document, like every other error.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::problem::{Kind, MEDIA_TYPE, Problem};

/// A client that takes nothing for so long is gone, or means no good.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

/// An answer of the library alone is shorter than this.
const BARE_ANSWER_LEN_MAX: usize = 256;

/// See the head of this file.
pub(super) struct Socket {
    stream: TcpStream,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What is written instead of what was to be written, and how far that is.
    instead: Option<(Vec<u8>, usize)>,
}

impl Socket {
    /// A connection of which nothing was read yet.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, stalled: None, instead: None }
    }

    /// Writes with `write`, and watches how long that takes.
    fn poll_watched(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let result = write(Pin::new(&mut self.stream), context);
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }

    /// Writes the document that stands for a bare answer; `None` when `bytes` are not one.
    fn poll_instead(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Option<io::Result<usize>>> {
        if self.instead.is_none() {
            match refusal(bytes) {
                None => return Poll::Ready(None),
                Some(kind) => self.instead = Some((answer(kind), 0)),
            }
        }
        let Some((instead, mut at)) = self.instead.take() else { return Poll::Ready(None) };
        while at < instead.len() {
            let piece = &instead[at..];
            match self.poll_watched(context, |stream, context| stream.poll_write(context, piece)) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(written)) => at += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => {
                    self.instead = Some((instead, at));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Some(Ok(bytes.len())))
    }
}

/// The kind of problem that an answer of the library alone is about. Answers of ours all have a
/// request id, and those of the library never a body.
fn refusal(bytes: &[u8]) -> Option<Kind> {
    if !bytes.starts_with(b"HTTP/1.1 4") || bytes.len() > BARE_ANSWER_LEN_MAX {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?;
    let names = || lines.clone().filter_map(|line| line.split_once(':'));
    let is_bare = names()
        .any(|(name, value)| name.eq_ignore_ascii_case("content-length") && value.trim() == "0");
    if !is_bare || names().any(|(name, _)| name.eq_ignore_ascii_case("x-request-id")) {
        return None;
    }
    Some(match status {
        "408" => Kind::TooSlow,
        "413" => Kind::TooLarge,
        "414" => Kind::UriTooLong,
        "431" => Kind::HeadTooLarge,
        _ => Kind::BadRequest,
    })
}

fn answer(kind: Kind) -> Vec<u8> {
    let detail = match kind {
        Kind::TooSlow => "the head of the request did not come in time",
        Kind::TooLarge => "the request is too large",
        Kind::UriTooLong => "the address of the request is too long",
        Kind::HeadTooLarge => "the head of the request is too long or has too many lines",
        _ => "this is no HTTP request",
    };
    let document = Problem::new(kind, detail).document();
    let body = serde_json::to_string(&document).unwrap_or_default();
    format!(
        "HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: {MEDIA_TYPE}\r\n\
         cache-control: no-store\r\ncontent-length: {}\r\n\r\n{body}",
        kind.status(),
        body.len(),
    )
    .into_bytes()
}

/// The answer to a connection that is one too many, whatever its request.
pub(super) fn too_many() -> Vec<u8> {
    let problem = Problem::new(Kind::Unavailable, "this node has its most HTTP connections");
    let document = problem.retry_after_ms(1_000).document();
    let body = serde_json::to_string(&document).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
         content-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len(),
    )
    .into_bytes()
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(result) = ready!(self.poll_instead(context, bytes)) {
            return Poll::Ready(result);
        }
        self.poll_watched(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // What the library refuses, it writes in one piece.
        if let [only] = pieces
            && let Some(result) = ready!(self.poll_instead(context, only))
        {
            return Poll::Ready(result);
        }
        self.poll_watched(context, |stream, context| stream.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                     content-length: 0\r\ndate: Sat, 21 Nov 2026 09:00:00 GMT\r\n\r\n";
        assert_eq!(refusal(bare), Some(Kind::HeadTooLarge));
        assert_eq!(
            refusal(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
            Some(Kind::BadRequest)
        );
        for ours in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            b"",
        ] {
            assert_eq!(refusal(ours), None, "{}", String::from_utf8_lossy(ours));
        }
    }
}
