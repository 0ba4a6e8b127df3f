//! The first words of a connection: hello and welcome.

use std::{io, sync::Arc};

use kiln_protocol::{
    Parsed,
    native::{
        FRAME_OVERHEAD_MAX, Frames, HELLO_FRAME_MAX, MAGIC, Response, VERSION,
        admin::{self, Credentials, Hello, Welcome, capability},
        encode,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Peer;
use crate::{Reason, transport::Transport};

/// What a client says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    pub(crate) client_id: u64,
    pub(crate) name: String,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) compress: bool,
    pub(crate) frame_len_max: usize,
}

/// How keys become partitions where this client may choose the node: XXH3-64 with seed 0.
const HASH_ID: u32 = 1;

/// The id of the hello.
const HELLO_ID: u32 = 1;

/// Says hello and waits for the welcome. Reads not a byte more than that.
pub(crate) async fn greet(
    transport: &mut Transport,
    address: &Arc<str>,
    greeting: &Greeting,
) -> Result<Peer, Reason> {
    let lost = |error| Reason::Disconnected { address: address.clone(), error: Arc::new(error) };
    let wrong = |what| Reason::UnexpectedAnswer { address: address.clone(), what };

    let mut capabilities = vec![capability::INVALIDATION, capability::TOPOLOGY];
    capabilities.extend([capability::RETRY_WINDOW, capability::INGEST]);
    if greeting.compress {
        capabilities.push(capability::LZ4);
    }
    let hello = Hello {
        magic: MAGIC.to_owned(),
        version_min: VERSION,
        version_max: VERSION,
        client: greeting.name.clone(),
        client_id: greeting.client_id,
        // Any: a node that was started anew may be of a cluster of its own until it has joined.
        cluster_id: String::new(),
        auth: greeting.credentials.clone(),
        capabilities: capabilities.into_iter().map(str::to_owned).collect(),
    };
    let mut frame = Vec::new();
    encode::hello(&mut frame, HELLO_ID, &hello);
    transport.writer.write_all(&frame).await.map_err(lost)?;
    transport.writer.flush().await.map_err(lost)?;

    let frames = Frames { body_len_max: HELLO_FRAME_MAX };
    frame.clear();
    let welcome: Welcome = loop {
        let missing = match frames.next(&frame) {
            Ok(Parsed::Complete { message, .. }) => {
                break match Response::decode(message) {
                    Ok((HELLO_ID, Response::Ok(structure))) => {
                        admin::get(structure).map_err(|_| wrong("a welcome that cannot be read"))?
                    }
                    Ok((HELLO_ID | 0, Response::Error(failure))) => {
                        return Err(Reason::Refused {
                            address: address.clone(),
                            code: failure.code,
                            text: failure.text.into(),
                        });
                    }
                    _ => return Err(wrong("something else than a welcome")),
                };
            }
            Ok(Parsed::NeedMore { at_least, .. }) => at_least - frame.len(),
            _ => return Err(wrong("something else than a welcome: is this the native port?")),
        };
        let mut more = (&mut transport.reader).take(missing as u64);
        if more.read_buf(&mut frame).await.map_err(lost)? == 0 {
            let closed = "the node closed the connection before its welcome";
            return Err(lost(io::Error::new(io::ErrorKind::UnexpectedEof, closed)));
        }
    };
    if welcome.version != VERSION {
        return Err(wrong("a welcome to another version of the protocol"));
    }
    if welcome.hash_id != HASH_ID {
        return Err(wrong("a welcome with an unknown hash of keys"));
    }
    let announced = usize::try_from(welcome.limits.frame_max).unwrap_or(usize::MAX);
    let frame_len_max = announced.saturating_add(FRAME_OVERHEAD_MAX).min(greeting.frame_len_max);
    Ok(Peer { address: address.clone(), welcome, frame_len_max })
}
