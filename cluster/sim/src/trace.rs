//! What happened, as a hash for comparing runs and as text for people.
//!
//! Every event goes into the hash. Text is made only when a run is replayed for reading: a run
//! that passes pays no formatting. The text is bounded: the last lines of each kind are kept, and
//! those about the subject of a violation come first.

use std::collections::VecDeque;
use std::fmt;

use crate::queue::Time;

/// The record of one run.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines_max: usize,
    lines: VecDeque<Line>,
}

#[derive(Debug)]
struct Line {
    at: Time,
    text: String,
}

impl Trace {
    /// A record that keeps the last `lines_max` lines; 0 keeps the hash only.
    pub fn new(lines_max: usize) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, lines_max, lines: VecDeque::new() }
    }

    /// Takes an event into the hash.
    pub fn count(&mut self, at: Time, words: &[u64]) {
        self.events += 1;
        self.mix(at);
        for &word in words {
            self.mix(word);
        }
    }

    /// Takes bytes into the hash.
    pub fn bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word) ^ chunk.len() as u64);
        }
    }

    /// Keeps a line of text, if text is wanted. `text` is not evaluated otherwise.
    pub fn say(&mut self, at: Time, text: impl FnOnce() -> String) {
        if self.lines_max == 0 {
            return;
        }
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { at, text: text() });
    }

    /// The hash over all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The number of events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The kept lines: up to `lines_max` about `subject` first, then the last ones of all.
    pub fn excerpt(&self, subject: &str, lines_max: usize) -> String {
        let about: Vec<&Line> = self
            .lines
            .iter()
            .rev()
            .filter(|line| !subject.is_empty() && line.text.contains(subject))
            .take(lines_max)
            .collect();
        let mut text = String::new();
        if !about.is_empty() {
            text.push_str(&format!("--- the last {} events about {subject}\n", about.len()));
            about.iter().rev().for_each(|line| text.push_str(&format!("{line}\n")));
        }
        let skipped = self.lines.len().saturating_sub(lines_max);
        text.push_str(&format!("--- the last {} events of all\n", self.lines.len() - skipped));
        self.lines.iter().skip(skipped).for_each(|line| text.push_str(&format!("{line}\n")));
        text
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25);
        self.hash ^= self.hash >> 29;
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6}s  {}", self.at as f64 / 1e9, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_every_event_and_its_order() {
        let hash_of = |events: &[(Time, u64)]| {
            let mut trace = Trace::new(0);
            events.iter().for_each(|&(at, word)| trace.count(at, &[word]));
            trace.hash()
        };
        assert_eq!(hash_of(&[(1, 2), (3, 4)]), hash_of(&[(1, 2), (3, 4)]));
        assert_ne!(hash_of(&[(1, 2), (3, 4)]), hash_of(&[(3, 4), (1, 2)]));
        assert_ne!(hash_of(&[(1, 2)]), hash_of(&[(1, 3)]));
    }

    #[test]
    fn the_excerpt_is_bounded_and_names_the_subject_first() {
        let mut trace = Trace::new(5);
        for at in 0..9 {
            trace.say(at, || format!("key k{} written", at % 2));
        }
        let text = trace.excerpt("k1", 2);
        assert_eq!(text.lines().count(), 2 + 2 + 2, "{text}");
        assert!(text.find("k1").unwrap() < text.find("k0").unwrap());
    }
}
