//! Values from the command line, from files and from standard input, never more than a node takes.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use super::{CommandError, output};

/// A value as it stands on the command line.
pub(super) fn given(value: OsString) -> Result<Vec<u8>, CommandError> {
    match value.as_bytes() {
        b"-" => from_stdin(),
        [b'@', b'@', ..] => Ok(value.as_bytes()[1..].to_vec()),
        [b'@', path @ ..] => from_file(PathBuf::from(OsString::from_vec(path.to_vec()))),
        _ => Ok(value.into_vec()),
    }
}

pub(super) fn from_file(path: PathBuf) -> Result<Vec<u8>, CommandError> {
    let fail = |error: io::Error| CommandError::Failed(format!("{}: {error}", path.display()));
    let file = fs::File::open(&path).map_err(fail)?;
    bounded(file).map_err(fail)
}

pub(super) fn from_stdin() -> Result<Vec<u8>, CommandError> {
    bounded(io::stdin().lock())
        .map_err(|error| CommandError::Failed(format!("standard input: {error}")))
}

/// No more than any node can be set to take: an endless input is an error, not the end of memory.
fn bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut value = Vec::new();
    input.take(VALUE_LEN_MAX + 1).read_to_end(&mut value)?;
    if value.len() as u64 > VALUE_LEN_MAX {
        let text = format!("a value is at most {} long", output::size(VALUE_LEN_MAX));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(value)
}

/// The longest value that a node can be set to take.
const VALUE_LEN_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_value_is_refused() {
        let error = bounded(io::repeat(b'x')).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
