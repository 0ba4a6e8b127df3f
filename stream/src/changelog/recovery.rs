//! What a new owner reads, in which order, and what it makes of it.
//!
//! Nothing keeps others from writing meanwhile. Whatever is read is therefore judged by the numbers
//! in it: a slot that holds a later entry than the one looked for tells that the log went on, and
//! the look begins anew. What is written after the look is found by the first write, which fails.

use xxhash_rust::xxh3::xxh3_64;

use super::{
    ABSENT, Changelog, Entry, HEAD_HEAD, LAYOUT, MARKER_LEN, Name, RING, Set, UNKNOWN, names_of,
    slot_of,
};

/// Slots read at once.
const STEP: u64 = 16;
/// The most chunks of a snapshot that a head is believed.
const CHUNKS_MAX: u32 = 1 << 16;

/// A look at a partition's items.
#[derive(Debug)]
pub struct Recovery {
    log: Changelog,
    stage: Stage,
    digest: u64,
    state: Option<Vec<u8>>,
    marked: [Set; 2],
    /// The number that the next slot to look at should hold.
    looked: u64,
    /// The number after the last that follows without a hole.
    at: u64,
    /// The highest number met.
    highest: u64,
    ended: bool,
    /// Where the entry begins that is not complete yet.
    begun: u64,
    partial: Vec<u8>,
    entries: Vec<(u64, Vec<u8>)>,
    log_len: usize,
    damaged: bool,
    /// What is missing is taken for lost instead of for just changing.
    forgives: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Chunks,
    Log,
}

/// What became of a step.
#[derive(Debug)]
pub enum Step {
    /// Ask for what [`Recovery::wants`].
    More,
    /// All is there.
    Done(Box<Recovered>),
    /// Others wrote meanwhile: begin anew.
    Torn,
}

/// A partition as its items tell.
#[derive(Debug)]
pub struct Recovered {
    /// To go on with.
    pub changelog: Changelog,
    /// The snapshot.
    pub state: Option<Vec<u8>>,
    /// What came after it: numbers and payloads, in order.
    pub entries: Vec<(u64, Vec<u8>)>,
    /// Chunks that belong to nothing.
    pub garbage: Vec<Name>,
    /// Something was there that cannot be read, or was missing: data were lost. A snapshot must be
    /// published before the next entry.
    pub damaged: bool,
}

impl Recovered {
    /// Whether nothing was ever written.
    pub fn is_vacant(&self) -> bool {
        self.state.is_none() && self.changelog.next == 1 && !self.damaged
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self::new()
    }
}

impl Recovery {
    /// A look that nothing is known of yet.
    pub fn new() -> Self {
        let mut log = Changelog::vacant();
        log.ring.fill(UNKNOWN);
        Self {
            log,
            stage: Stage::Head,
            digest: 0,
            state: None,
            marked: [Set::default(); 2],
            looked: 1,
            at: 1,
            highest: 0,
            ended: false,
            begun: 1,
            partial: Vec::new(),
            entries: Vec::new(),
            log_len: 0,
            damaged: false,
            forgives: false,
        }
    }

    /// A look that goes on without what is missing: for items that did not change and still do not
    /// fit each other.
    pub fn forgiving() -> Self {
        Self { forgives: true, ..Self::new() }
    }

    /// The items to read next.
    pub fn wants(&self) -> Vec<Name> {
        match self.stage {
            Stage::Head => vec![Name::Head, Name::Marker, Name::Slot(slot_of(1))],
            Stage::Chunks => names_of(self.log.published),
            Stage::Log => (self.looked..self.log_end()).map(|at| Name::Slot(slot_of(at))).collect(),
        }
    }

    /// Versions and values of what was wanted, in that order.
    pub fn take(mut self, found: Vec<Option<(u64, Vec<u8>)>>) -> (Self, Step) {
        let turn = match self.stage {
            Stage::Head => self.take_head(found),
            Stage::Chunks => self.take_chunks(found),
            Stage::Log => self.take_log(&found),
        };
        match turn {
            Turn::More => (self, Step::More),
            Turn::Torn => (self, Step::Torn),
            Turn::Finished => (Self::new(), Step::Done(Box::new(self.finish()))),
        }
    }

    fn log_end(&self) -> u64 {
        (self.looked + STEP).min(self.log.base + RING + 1)
    }

    fn take_head(&mut self, found: Vec<Option<(u64, Vec<u8>)>>) -> Turn {
        let mut found = found.into_iter();
        let mut next = || found.next().flatten();
        let (head, marker, first) = (next(), next(), next());
        if let Some((version, value)) = marker {
            self.log.marker = version;
            self.marked = read_marker(&value).unwrap_or_default();
        }
        self.stage = Stage::Log;
        let Some((version, value)) = head else {
            // Entries are written in order: without the first there is none.
            if first.is_none() && !self.forgives {
                self.log.ring.fill(ABSENT);
                return Turn::Finished;
            }
            return Turn::More;
        };
        self.log.head = version;
        let Some((base, digest, set, inline)) = read_head(&value) else {
            return self.missing();
        };
        self.log.base = base;
        (self.looked, self.at, self.begun) = (base + 1, base + 1, base + 1);
        self.log.published = set;
        self.digest = digest;
        if set.chunks > 0 {
            self.stage = Stage::Chunks;
            return Turn::More;
        }
        self.keep_state(inline.to_vec())
    }

    fn take_chunks(&mut self, found: Vec<Option<(u64, Vec<u8>)>>) -> Turn {
        self.stage = Stage::Log;
        let chunks: Option<Vec<Vec<u8>>> =
            found.into_iter().map(|found| found.map(|(_, value)| value)).collect();
        match chunks {
            Some(chunks) => self.keep_state(chunks.concat()),
            None => self.missing(),
        }
    }

    fn keep_state(&mut self, state: Vec<u8>) -> Turn {
        if xxh3_64(&state) != self.digest {
            return self.missing();
        }
        self.log.snapshot_len = state.len();
        self.state = Some(state);
        Turn::More
    }

    /// Something that must be there is not: it just changed, or is lost.
    fn missing(&mut self) -> Turn {
        self.damaged = true;
        if self.forgives { Turn::More } else { Turn::Torn }
    }

    fn take_log(&mut self, found: &[Option<(u64, Vec<u8>)>]) -> Turn {
        let from = self.looked;
        self.looked += found.len() as u64;
        for (number, found) in (from..).zip(found) {
            let version = found.as_ref().map_or(ABSENT, |(version, _)| *version);
            self.log.ring[usize::from(slot_of(number))] = version;
            let entry = found.as_ref().map(|(_, value)| (value.len(), Entry::read(value)));
            if let Some((_, Some(entry))) = &entry {
                self.highest = self.highest.max(entry.number);
            }
            match entry {
                Some((_, Some(entry))) if entry.number > number => {
                    if !self.forgives {
                        return Turn::Torn;
                    }
                    (self.damaged, self.ended) = (true, true);
                }
                Some((len, Some(entry))) if entry.number == number && !self.ended => {
                    self.partial.extend_from_slice(entry.piece);
                    self.log_len += len;
                    self.at = number + 1;
                    if !entry.more {
                        self.entries.push((self.begun, std::mem::take(&mut self.partial)));
                        self.begun = self.at;
                    }
                }
                other => {
                    // No later one may follow; versions of the rest are good to know.
                    self.damaged |= !self.ended && matches!(other, Some((_, None)));
                    self.ended = true;
                    // Slots are filled in order the first time.
                    if found.is_none() && !self.forgives {
                        for later in number..=RING {
                            self.log.ring[usize::from(slot_of(later))] = ABSENT;
                        }
                    }
                }
            }
        }
        let all = self.looked > self.log.base + RING || found.is_empty();
        if all || (self.ended && !self.forgives) { Turn::Finished } else { Turn::More }
    }

    fn finish(self) -> Recovered {
        let mut changelog = self.log;
        changelog.next = self.begun;
        changelog.log_len = self.log_len;
        if self.forgives {
            // Numbers must rise whatever lies in the slots.
            changelog.next = self.begun.max(self.highest + 1);
            changelog.base = changelog.next - 1;
        }
        let stray = self.marked.into_iter().filter(|set| *set != changelog.published);
        let garbage = stray.flat_map(names_of).collect();
        Recovered {
            changelog,
            state: self.state,
            entries: self.entries,
            garbage,
            damaged: self.damaged,
        }
    }
}

/// What a step comes to.
enum Turn {
    More,
    Finished,
    Torn,
}

fn read_head(value: &[u8]) -> Option<(u64, u64, Set, &[u8])> {
    let (head, inline) = value.split_first_chunk::<HEAD_HEAD>()?;
    let [b'h', LAYOUT, rest @ ..] = head else { return None };
    let word = |at: usize| Some(u64::from_le_bytes(*rest.get(at..at + 8)?.first_chunk()?));
    let chunks = u32::from_le_bytes(*rest.get(24..28)?.first_chunk()?);
    let (base, digest, id) = (word(0)?, word(8)?, word(16)?);
    // A number so high was never reached; sums with it would overflow.
    (base < u64::MAX / 2 && chunks <= CHUNKS_MAX).then_some((
        base,
        digest,
        Set { id, chunks },
        inline,
    ))
}

fn read_marker(value: &[u8]) -> Option<[Set; 2]> {
    let value: &[u8; MARKER_LEN] = value.try_into().ok()?;
    let [b'm', LAYOUT, rest @ ..] = value else { return None };
    let set = |at: usize| {
        let id = u64::from_le_bytes(*rest.get(at..at + 8)?.first_chunk()?);
        let chunks = u32::from_le_bytes(*rest.get(at + 8..at + 12)?.first_chunk()?);
        (chunks <= CHUNKS_MAX).then_some(Set { id, chunks })
    };
    Some([set(0)?, set(12)?])
}
