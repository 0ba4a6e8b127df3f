//! Statistics as `STAT name value` lines.
//!
//! Not a hot path: a scrape now and then, so values are written through `Display`.

use std::fmt::Display;
use std::io::Write;

use crate::memcached::lines;

/// Writes one answer to a `stats` command.
#[derive(Debug)]
pub struct StatsWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> StatsWriter<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// One line. `name` has no spaces; neither has a line break.
    pub fn stat(&mut self, name: impl Display, value: impl Display) -> &mut Self {
        let start = self.out.len();
        // Writing to a vector fails only if a `Display` says so: the line is then left out.
        if write!(self.out, "STAT {name} {value}\r\n").is_err() {
            self.out.truncate(start);
        }
        self
    }

    /// The closing line.
    pub fn end(self) {
        self.out.extend_from_slice(lines::END);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_lines_of_name_and_value_and_an_end() {
        let mut out = b"before\r\n".to_vec();
        let mut stats = StatsWriter::new(&mut out);
        stats.stat("pid", 7).stat(format_args!("items:{}:number", 1), 2).stat("version", "1.6.45");
        stats.end();
        assert_eq!(
            String::from_utf8_lossy(&out),
            "before\r\nSTAT pid 7\r\nSTAT items:1:number 2\r\nSTAT version 1.6.45\r\nEND\r\n"
        );
    }
}
