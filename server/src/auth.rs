//! Who may use the node: a file with lines `user:password`, as memcached's `-Y` takes it.
//!
//! Held in memory are digests only, all of one length, and every check compares with all of them,
//! so the time it takes tells nothing about how close a guess was. The file is read once, at start.

use std::{fs, io::Read, os::unix::fs::PermissionsExt, path::Path};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Users in one file.
const ENTRIES_MAX: usize = 1024;
/// Bytes of one line.
const LINE_LEN_MAX: usize = 1024;

/// The users that may authenticate.
#[derive(Clone)]
pub(crate) struct AuthFile {
    digests: Vec<[u8; 32]>,
}

/// Why a file of users cannot be used. The node does not start without its users.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthFileError {
    #[error("cannot read it: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("other users may read or write it (mode {mode:04o}): run chmod 600 on it")]
    Exposed { mode: u32 },
    #[error("line {line}: expected user:password, with no space in the user")]
    Malformed { line: usize },
    #[error("line {line} is longer than {LINE_LEN_MAX} bytes")]
    LineTooLong { line: usize },
    #[error("it has no user")]
    Empty,
    #[error("it has more than {ENTRIES_MAX} users")]
    TooMany,
}

impl AuthFile {
    /// Reads a file of users.
    pub(crate) fn load(path: &Path) -> Result<Self, AuthFileError> {
        let file = fs::File::open(path)?;
        // Asked of the open file: the name could lead to another one by now.
        let mode = file.metadata()?.permissions().mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(AuthFileError::Exposed { mode });
        }
        let bound = ENTRIES_MAX * (LINE_LEN_MAX + 2);
        let mut bytes = Vec::new();
        file.take(bound as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bound {
            return Err(AuthFileError::TooMany);
        }
        Self::parse(&bytes)
    }

    /// Whether `credentials`, a user and a password with one space between, are in the file.
    pub(crate) fn check(&self, credentials: &[u8]) -> bool {
        let digest = digest(credentials);
        let equal = |known: &[u8; 32]| known.as_slice().ct_eq(&digest);
        self.digests.iter().fold(Choice::from(0), |found, known| found | equal(known)).into()
    }

    fn parse(bytes: &[u8]) -> Result<Self, AuthFileError> {
        let mut digests = Vec::new();
        for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
            let line_number = index + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            if line.len() > LINE_LEN_MAX {
                return Err(AuthFileError::LineTooLong { line: line_number });
            }
            let malformed = AuthFileError::Malformed { line: line_number };
            // The first colon ends the user; a password may have colons and spaces.
            let Some(colon) = line.iter().position(|b| *b == b':') else { return Err(malformed) };
            let (user, password) = (&line[..colon], &line[colon + 1..]);
            if user.is_empty() || password.is_empty() || user.contains(&b' ') {
                return Err(malformed);
            }
            if digests.len() == ENTRIES_MAX {
                return Err(AuthFileError::TooMany);
            }
            digests.push(digest(&[user, b" ", password].concat()));
        }
        if digests.is_empty() { Err(AuthFileError::Empty) } else { Ok(Self { digests }) }
    }
}

/// Even digests are not for logs.
impl std::fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthFile({} users)", self.digests.len())
    }
}

fn digest(credentials: &[u8]) -> [u8; 32] {
    Sha256::digest(credentials).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, mode: u32) -> Result<AuthFile, AuthFileError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        AuthFile::load(file.path())
    }

    #[test]
    fn only_a_user_with_the_right_password_passes() {
        let users = load("ann:secret\nbob:a:b c\n\n", 0o600).unwrap();
        assert!(users.check(b"ann secret"));
        assert!(users.check(b"bob a:b c"));
        for wrong in
            ["ann", "ann ", "ann secre", "ann secrets", "bob secret", "ann:secret", "", " "]
        {
            assert!(!users.check(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_everyone_may_read_is_refused() {
        for mode in [0o644, 0o604, 0o602, 0o777] {
            let error = load("ann:secret\n", mode).unwrap_err();
            assert!(matches!(error, AuthFileError::Exposed { .. }), "{mode:o}");
        }
        assert!(load("ann:secret\n", 0o640).is_ok());
    }

    #[test]
    fn a_line_that_is_no_user_and_password_is_named() {
        for text in ["ann:secret\nbob\n", "ann:secret\n:x", "ann:secret\nbob:", "ann:secret\nb b:x"]
        {
            let error = load(text, 0o600).unwrap_err();
            assert!(matches!(error, AuthFileError::Malformed { line: 2 }), "{text:?}");
        }
    }

    #[test]
    fn the_number_of_users_is_bounded_on_both_sides() {
        assert!(matches!(load("\n\n", 0o600), Err(AuthFileError::Empty)));
        let users = |n: usize| (0..n).map(|i| format!("u{i}:p{i}\n")).collect::<String>();
        assert!(load(&users(1024), 0o600).unwrap().check(b"u1023 p1023"));
        assert!(matches!(load(&users(1025), 0o600), Err(AuthFileError::TooMany)));
        let long = format!("ann:{}\n", "x".repeat(LINE_LEN_MAX));
        assert!(matches!(load(&long, 0o600), Err(AuthFileError::LineTooLong { line: 1 })));
    }

    #[test]
    fn a_printed_auth_file_shows_no_credentials() {
        assert_eq!(format!("{:?}", load("ann:secret\n", 0o600).unwrap()), "AuthFile(1 users)");
    }
}
