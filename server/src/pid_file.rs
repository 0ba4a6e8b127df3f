//! The file with the process id: there while the node runs, and only then.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Taken away again when dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    /// Writes the file, over one that a killed process left.
    pub(crate) fn write(path: &Path) -> io::Result<Self> {
        let text = format!("{}\n", std::process::id());
        fs::write(path, &text)?;
        Ok(Self { path: path.into(), text })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another node may have been started with the same file; then it is that node's.
        if fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_goes_with_the_node_unless_another_took_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.pid");

        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());

        let file = PidFile::write(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }
}
