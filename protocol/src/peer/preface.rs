//! The first bytes of a connection: which protocol, which version.
//!
//! Outside the frames, so that nodes whose frames differ can still tell each other so.

/// Bytes of a preface.
pub const PREFACE_LEN: usize = 8;

/// The version of the frames and of what the server says in them. 2: records are no MessagePack.
pub const VERSION: u16 = 2;

/// Begins with a byte that no text protocol begins with.
const MAGIC: [u8; 6] = *b"\x91kilnp";

/// What a node says first.
#[must_use]
pub fn preface() -> [u8; PREFACE_LEN] {
    let mut bytes = [0; PREFACE_LEN];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(&VERSION.to_be_bytes());
    bytes
}

/// The version that the other end speaks.
pub fn read_preface(bytes: [u8; PREFACE_LEN]) -> Result<u16, NotKiln> {
    let [magic @ .., high, low] = bytes;
    if magic != MAGIC {
        return Err(NotKiln);
    }
    Ok(u16::from_be_bytes([high, low]))
}

/// The other end is no Kiln node, or not its port for nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the node-to-node protocol of Kiln")]
pub struct NotKiln;
