//! Who is who: the first thing on each connection.
//!
//! ```text
//!   dialler    preface, hello (its cluster, itself, whom it looks for, what for)
//!   listener   preface, then welcome (its cluster, itself) or a refusal
//! ```
//!
//! Another cluster, another node than the one looked for and a node with the listener's own id are
//! refused. Another life of the node looked for is not: it is welcomed and says which life it is,
//! and the dialler keeps the core's messages to itself. After a restart of all nodes the Raft group
//! must reach lives that no table names yet, or there will never be a table that does.

use std::{future::Future, sync::Arc, time::Duration};

use kiln_cluster::ids::{ClusterId, Member, NodeId};
use kiln_protocol::peer::{
    FrameKind, Label, PREFACE_LEN, VERSION, begin, preface, read_preface, seal,
};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::tcp::OwnedWriteHalf, time::timeout};

use super::{
    Identity,
    error::{DialError, Refusal, Step},
    reader::FrameReader,
};

/// The longest body of a hello and its answers.
pub(super) const HELLO_LEN_MAX: usize = 4 << 10;

/// The longest name that is taken over from another node, in characters.
const NAME_LEN_MAX: usize = 128;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// All that the dialler has to say. A new one takes the place of the former.
    Link,
    /// One call.
    Call,
}

/// What the dialler says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) cluster: ClusterId,
    pub(super) from: Member,
    pub(super) name: String,
    /// Whom it looks for; node 0 for whoever is there.
    pub(super) to: NodeId,
    pub(super) purpose: Purpose,
}

/// What the listener says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) cluster: ClusterId,
    pub(super) member: Member,
    pub(super) name: String,
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) member: Member,
    pub(super) name: Arc<str>,
    /// The cluster it said that it belongs to; 0 for none yet.
    pub(super) cluster: ClusterId,
}

impl Other {
    fn new(member: Member, name: &str, cluster: ClusterId) -> Self {
        // It goes to the log of this node: nothing but what can be printed.
        let printable = |c: &char| !c.is_control();
        let name: String = name.chars().filter(printable).take(NAME_LEN_MAX).collect();
        Self { member, name: name.into(), cluster }
    }
}

/// The dialler's part.
pub(super) async fn dialled(
    reader: &mut FrameReader,
    writer: &mut OwnedWriteHalf,
    hello: &Hello,
    limit: Duration,
) -> Result<Other, DialError> {
    within(limit, async {
        say(writer, FrameKind::Hello, hello).await?;
        let theirs = read_version(reader).await?;
        check_version(theirs)?;
        let (kind, body) = read_frame(reader).await?;
        match kind {
            FrameKind::Welcome => {
                let welcome: Welcome = decode(&body)?;
                Ok(Other::new(welcome.member, &welcome.name, welcome.cluster))
            }
            FrameKind::Refusal => Err(DialError::Refused(decode(&body)?)),
            _ => Err(DialError::Malformed),
        }
    })
    .await
}

/// The listener's part. `admit` has a last word when both fit.
pub(super) async fn accepted(
    reader: &mut FrameReader,
    writer: &mut OwnedWriteHalf,
    me: &Identity,
    cluster: ClusterId,
    admit: impl FnOnce(&Other, Purpose) -> Result<(), Refusal>,
    limit: Duration,
) -> Result<(Other, Purpose), DialError> {
    within(limit, async {
        let theirs = read_version(reader).await?;
        if theirs != VERSION {
            // It tells from the preface why it is not answered.
            writer.write_all(&preface()).await.map_err(|_| DialError::Closed)?;
            check_version(theirs)?;
        }
        let (kind, body) = read_frame(reader).await?;
        if kind != FrameKind::Hello {
            return Err(DialError::Malformed);
        }
        let hello: Hello = decode(&body)?;
        let other = Other::new(hello.from, &hello.name, hello.cluster);
        let verdict = judge(&hello, me, cluster).and_then(|()| admit(&other, hello.purpose));
        if let Err(refusal) = verdict {
            say(writer, FrameKind::Refusal, &refusal).await?;
            return Err(DialError::Refused(refusal));
        }
        let welcome = Welcome { cluster, member: me.member, name: me.name.clone() };
        say(writer, FrameKind::Welcome, &welcome).await?;
        Ok((other, hello.purpose))
    })
    .await
}

/// Whether the one that says this hello has come to the right node.
fn judge(hello: &Hello, me: &Identity, cluster: ClusterId) -> Result<(), Refusal> {
    let none = ClusterId(0);
    if hello.from.node == me.member.node {
        return Err(Refusal::OwnId);
    }
    if hello.cluster != cluster && hello.cluster != none && cluster != none {
        return Err(Refusal::OtherCluster { listener: cluster.0, dialler: hello.cluster.0 });
    }
    if hello.to != me.member.node && hello.to != NodeId(0) {
        return Err(Refusal::OtherNode { node: me.member.node.0, name: me.name.clone() });
    }
    Ok(())
}

async fn within<T>(
    limit: Duration,
    steps: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    timeout(limit, steps).await.unwrap_or(Err(DialError::TimedOut(Step::Handshake)))
}

async fn say(
    writer: &mut OwnedWriteHalf,
    kind: FrameKind,
    body: &impl Serialize,
) -> Result<(), DialError> {
    let mut out = preface().to_vec();
    let start = begin(&mut out);
    rmp_serde::encode::write(&mut out, body).map_err(|_| DialError::Malformed)?;
    let label = Label { kind, detail: 0, number: 0 };
    seal(&mut out, start, label, None).map_err(DialError::Damaged)?;
    writer.write_all(&out).await.map_err(|_| DialError::Closed)
}

async fn read_version(reader: &mut FrameReader) -> Result<u16, DialError> {
    loop {
        if let Some(bytes) = reader.take::<PREFACE_LEN>() {
            return read_preface(bytes).map_err(|_| DialError::NotKiln);
        }
        fill(reader).await?;
    }
}

fn check_version(theirs: u16) -> Result<(), DialError> {
    if theirs == VERSION { Ok(()) } else { Err(DialError::Version { theirs, ours: VERSION }) }
}

async fn read_frame(reader: &mut FrameReader) -> Result<(FrameKind, bytes::Bytes), DialError> {
    loop {
        if let Some(frame) = reader.next().map_err(DialError::Damaged)? {
            return Ok((frame.label.kind, frame.body));
        }
        fill(reader).await?;
    }
}

async fn fill(reader: &mut FrameReader) -> Result<(), DialError> {
    match reader.fill().await {
        Ok(0) | Err(_) => Err(DialError::Closed),
        Ok(_) => Ok(()),
    }
}

fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, DialError> {
    rmp_serde::from_slice(body).map_err(|_| DialError::Malformed)
}

#[cfg(test)]
mod tests {
    use kiln_cluster::ids::Incarnation;

    use super::*;

    fn me() -> Identity {
        let member = Member { node: NodeId(7), incarnation: Incarnation(70) };
        Identity { member, name: "seven".to_owned() }
    }

    fn hello(cluster: u64, from: u64, to: u64) -> Hello {
        Hello {
            cluster: ClusterId(cluster),
            from: Member { node: NodeId(from), incarnation: Incarnation(1) },
            name: String::new(),
            to: NodeId(to),
            purpose: Purpose::Link,
        }
    }

    #[test]
    fn only_nodes_of_one_cluster_that_look_for_this_node_are_welcome() {
        let judge = |hello, cluster| judge(&hello, &me(), ClusterId(cluster));
        assert_eq!(judge(hello(5, 1, 7), 5), Ok(()));
        assert_eq!(judge(hello(5, 1, 0), 5), Ok(()));
        assert_eq!(
            judge(hello(6, 1, 7), 5),
            Err(Refusal::OtherCluster { listener: 5, dialler: 6 })
        );
        assert_eq!(judge(hello(5, 7, 7), 5), Err(Refusal::OwnId));
        let other = Refusal::OtherNode { node: 7, name: "seven".to_owned() };
        assert_eq!(judge(hello(5, 1, 8), 5), Err(other));
    }

    #[test]
    fn an_end_that_has_no_cluster_yet_is_welcome() {
        assert_eq!(judge(&hello(0, 1, 0), &me(), ClusterId(5)), Ok(()));
        assert_eq!(judge(&hello(5, 1, 7), &me(), ClusterId(0)), Ok(()));
    }

    #[test]
    fn a_name_from_another_node_cannot_write_to_the_terminal_or_fill_the_log() {
        let name = format!("a\x1b[2J\n{}", "b".repeat(1_000));
        let other = Other::new(Member::default(), &name, ClusterId(0));
        assert!(other.name.starts_with("a[2Jbb"));
        assert_eq!(other.name.len(), NAME_LEN_MAX);
    }
}
