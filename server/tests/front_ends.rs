//! One item, whatever the client speaks: each front end writes, each other reads, and all see one
//! history of versions.

// A failed unwrap fails the test, in helpers too.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;

use common::{Client, Node, native::Native};
use kiln_protocol::{
    command::{Arithmetic, Command, Delete, Direction, Get, Store, StoreMode, Touch, Ttl},
    native::{Response, Want},
};

/// What a reader sees of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    value: Vec<u8>,
    flags: u32,
    version: u64,
    ends: bool,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Yes,
    Missing,
    NotStored,
    Exists,
    Number(u64),
    NotANumber,
}

/// The operations that every front end has, in its own words.
trait FrontEnd {
    fn name(&self) -> &'static str;
    fn read(&mut self, key: &str) -> Option<Seen>;
    fn write(&mut self, mode: StoreMode, key: &str, value: &[u8], flags: u32, ttl_s: u64) -> Done;
    fn compare_and_set(&mut self, key: &str, value: &[u8], version: u64) -> Done;
    fn delete(&mut self, key: &str) -> Done;
    fn increment(&mut self, key: &str, delta: u64) -> Done;
    fn decrement(&mut self, key: &str, delta: u64) -> Done;
    fn touch(&mut self, key: &str, ttl_s: u64) -> Done;
}

fn done(reply: &str) -> Done {
    match reply.trim_end() {
        "STORED" | "DELETED" | "TOUCHED" | "HD" => Done::Yes,
        "NOT_FOUND" | "NF" | "EN" => Done::Missing,
        "NOT_STORED" | "NS" => Done::NotStored,
        "EXISTS" | "EX" => Done::Exists,
        line if line.starts_with("CLIENT_ERROR cannot increment") => Done::NotANumber,
        line => match line.parse() {
            Ok(number) => Done::Number(number),
            Err(_) => panic!("{line:?}"),
        },
    }
}

fn mode_word(mode: StoreMode) -> &'static str {
    match mode {
        StoreMode::Set => "set",
        StoreMode::Add => "add",
        StoreMode::Replace => "replace",
        StoreMode::Append => "append",
        StoreMode::Prepend => "prepend",
    }
}

/// Memcached's classic commands.
struct Text(Client<TcpStream>);

impl Text {
    fn send(&mut self, line: &str, value: &[u8]) -> String {
        let mut request = format!("{line}\r\n").into_bytes();
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
        self.0.send(request);
        self.0.line()
    }
}

impl FrontEnd for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn read(&mut self, key: &str) -> Option<Seen> {
        let head = self.0.ask(&format!("gets {key}\r\n"));
        if head == "END\r\n" {
            return None;
        }
        let words: Vec<&str> = head.split_whitespace().collect();
        let value = self.0.line().trim_end_matches("\r\n").as_bytes().to_vec();
        assert_eq!(self.0.line(), "END\r\n");
        // The classic commands do not tell the end of an item.
        let ends = !self.0.ask(&format!("mg {key} t\r\n")).contains("t-1");
        Some(Seen {
            value,
            flags: words[2].parse().unwrap(),
            version: words[4].parse().unwrap(),
            ends,
        })
    }

    fn write(&mut self, mode: StoreMode, key: &str, value: &[u8], flags: u32, ttl_s: u64) -> Done {
        let line = format!("{} {key} {flags} {ttl_s} {}", mode_word(mode), value.len());
        done(&self.send(&line, value))
    }

    fn compare_and_set(&mut self, key: &str, value: &[u8], version: u64) -> Done {
        done(&self.send(&format!("cas {key} 0 0 {} {version}", value.len()), value))
    }

    fn delete(&mut self, key: &str) -> Done {
        done(&self.0.ask(&format!("delete {key}\r\n")))
    }

    fn increment(&mut self, key: &str, delta: u64) -> Done {
        done(&self.0.ask(&format!("incr {key} {delta}\r\n")))
    }

    fn decrement(&mut self, key: &str, delta: u64) -> Done {
        done(&self.0.ask(&format!("decr {key} {delta}\r\n")))
    }

    fn touch(&mut self, key: &str, ttl_s: u64) -> Done {
        done(&self.0.ask(&format!("touch {key} {ttl_s}\r\n")))
    }
}

/// Memcached's meta commands.
struct Meta(Client<TcpStream>);

impl Meta {
    fn arithmetic(&mut self, key: &str, delta: u64, mode: char) -> Done {
        let reply = self.0.ask(&format!("ma {key} v D{delta} M{mode}\r\n"));
        if reply.starts_with("VA ") { done(&self.0.line()) } else { done(&reply) }
    }
}

impl FrontEnd for Meta {
    fn name(&self) -> &'static str {
        "meta"
    }

    fn read(&mut self, key: &str) -> Option<Seen> {
        let head = self.0.ask(&format!("mg {key} v f c t\r\n"));
        if head == "EN\r\n" {
            return None;
        }
        let words: Vec<&str> = head.split_whitespace().collect();
        let value = self.0.line().trim_end_matches("\r\n").as_bytes().to_vec();
        Some(Seen {
            value,
            flags: words[2][1..].parse().unwrap(),
            version: words[3][1..].parse().unwrap(),
            ends: words[4] != "t-1",
        })
    }

    fn write(&mut self, mode: StoreMode, key: &str, value: &[u8], flags: u32, ttl_s: u64) -> Done {
        let letter = match mode {
            StoreMode::Set => 'S',
            StoreMode::Add => 'E',
            StoreMode::Replace => 'R',
            StoreMode::Append => 'A',
            StoreMode::Prepend => 'P',
        };
        let mut request =
            format!("ms {key} {} F{flags} T{ttl_s} M{letter}\r\n", value.len()).into_bytes();
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
        self.0.send(request);
        done(&self.0.line())
    }

    fn compare_and_set(&mut self, key: &str, value: &[u8], version: u64) -> Done {
        let mut request = format!("ms {key} {} C{version}\r\n", value.len()).into_bytes();
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
        self.0.send(request);
        done(&self.0.line())
    }

    fn delete(&mut self, key: &str) -> Done {
        done(&self.0.ask(&format!("md {key}\r\n")))
    }

    fn increment(&mut self, key: &str, delta: u64) -> Done {
        self.arithmetic(key, delta, '+')
    }

    fn decrement(&mut self, key: &str, delta: u64) -> Done {
        self.arithmetic(key, delta, '-')
    }

    fn touch(&mut self, key: &str, ttl_s: u64) -> Done {
        done(&self.0.ask(&format!("mg {key} T{ttl_s}\r\n")))
    }
}

/// Kiln's own protocol.
struct Own(Native);

impl Own {
    fn run(&mut self, command: Command<'_>) -> Done {
        let frame = self.0.run_in(0, command, Want::default());
        match frame.response() {
            Response::Stored { .. } | Response::Deleted { .. } | Response::Touched { .. } => {
                Done::Yes
            }
            Response::NotFound => Done::Missing,
            Response::NotStored => Done::NotStored,
            Response::Exists => Done::Exists,
            Response::Number { number, .. } => Done::Number(number),
            Response::Error(failure) if failure.code.name() == "not-a-number" => Done::NotANumber,
            other => panic!("{other:?}"),
        }
    }

    fn arithmetic(&mut self, key: &str, delta: u64, direction: Direction) -> Done {
        self.run(Command::Arithmetic(Arithmetic {
            key: key.as_bytes(),
            direction,
            delta,
            compare: None,
            version: None,
            create: None,
            touch: None,
        }))
    }
}

fn ttl(seconds: u64) -> Ttl {
    if seconds == 0 { Ttl::Never } else { Ttl::After(seconds * 1_000) }
}

impl FrontEnd for Own {
    fn name(&self) -> &'static str {
        "native"
    }

    fn read(&mut self, key: &str) -> Option<Seen> {
        let frame = self.0.run(Command::Get(Get::plain(key.as_bytes())));
        match frame.response() {
            Response::NotFound => None,
            Response::Value { version, flags, ttl_ms, .. } => {
                Some(Seen { value: frame.value().to_vec(), flags, version, ends: ttl_ms.is_some() })
            }
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, mode: StoreMode, key: &str, value: &[u8], flags: u32, ttl_s: u64) -> Done {
        self.run(Command::Store(Store {
            mode,
            flags,
            ttl: ttl(ttl_s),
            ..Store::set(key.as_bytes(), value)
        }))
    }

    fn compare_and_set(&mut self, key: &str, value: &[u8], version: u64) -> Done {
        self.run(Command::Store(Store {
            compare: Some(version),
            ..Store::set(key.as_bytes(), value)
        }))
    }

    fn delete(&mut self, key: &str) -> Done {
        self.run(Command::Delete(Delete::plain(key.as_bytes())))
    }

    fn increment(&mut self, key: &str, delta: u64) -> Done {
        self.arithmetic(key, delta, Direction::Increment)
    }

    fn decrement(&mut self, key: &str, delta: u64) -> Done {
        self.arithmetic(key, delta, Direction::Decrement)
    }

    fn touch(&mut self, key: &str, ttl_s: u64) -> Done {
        self.run(Command::Touch(Touch { key: key.as_bytes(), ttl: ttl(ttl_s) }))
    }
}

/// A step of the story: by the front end at hand, with what is expected of it and of the item.
struct Step {
    what: &'static str,
    act: fn(&mut dyn FrontEnd, u64) -> Done,
    expect: Done,
    /// Value, flags and whether it ends; `None`: there is no item.
    then: Option<(&'static str, u32, bool)>,
    /// Whether the item gets a new version.
    renews: bool,
}

/// Every operation in turn. `version` is the item's before the step.
const STORY: &[Step] = &[
    Step {
        what: "replace nothing",
        act: |f, _| f.write(StoreMode::Replace, "k", b"x", 0, 0),
        expect: Done::NotStored,
        then: None,
        renews: false,
    },
    Step {
        what: "append to nothing",
        act: |f, _| f.write(StoreMode::Append, "k", b"x", 0, 0),
        expect: Done::NotStored,
        then: None,
        renews: false,
    },
    Step {
        what: "compare with nothing",
        act: |f, _| f.compare_and_set("k", b"x", 1),
        expect: Done::Missing,
        then: None,
        renews: false,
    },
    Step {
        what: "delete nothing",
        act: |f, _| f.delete("k"),
        expect: Done::Missing,
        then: None,
        renews: false,
    },
    Step {
        what: "touch nothing",
        act: |f, _| f.touch("k", 10),
        expect: Done::Missing,
        then: None,
        renews: false,
    },
    Step {
        what: "count nothing",
        act: |f, _| f.increment("k", 1),
        expect: Done::Missing,
        then: None,
        renews: false,
    },
    Step {
        what: "add",
        act: |f, _| f.write(StoreMode::Add, "k", b"b", 7, 1_000),
        expect: Done::Yes,
        then: Some(("b", 7, true)),
        renews: true,
    },
    Step {
        what: "add again",
        act: |f, _| f.write(StoreMode::Add, "k", b"x", 0, 0),
        expect: Done::NotStored,
        then: Some(("b", 7, true)),
        renews: false,
    },
    Step {
        what: "append",
        act: |f, _| f.write(StoreMode::Append, "k", b"c", 0, 0),
        expect: Done::Yes,
        then: Some(("bc", 7, true)),
        renews: true,
    },
    Step {
        what: "prepend",
        act: |f, _| f.write(StoreMode::Prepend, "k", b"a", 0, 0),
        expect: Done::Yes,
        then: Some(("abc", 7, true)),
        renews: true,
    },
    Step {
        what: "count a word",
        act: |f, _| f.increment("k", 1),
        expect: Done::NotANumber,
        then: Some(("abc", 7, true)),
        renews: false,
    },
    Step {
        what: "compare with the wrong version",
        act: |f, version| f.compare_and_set("k", b"x", version + 1),
        expect: Done::Exists,
        then: Some(("abc", 7, true)),
        renews: false,
    },
    Step {
        what: "compare with the right version",
        act: |f, version| f.compare_and_set("k", b"40", version),
        expect: Done::Yes,
        then: Some(("40", 0, false)),
        renews: true,
    },
    Step {
        what: "increment",
        act: |f, _| f.increment("k", 2),
        expect: Done::Number(42),
        then: Some(("42", 0, false)),
        renews: true,
    },
    Step {
        what: "touch",
        act: |f, _| f.touch("k", 1_000),
        expect: Done::Yes,
        then: Some(("42", 0, true)),
        renews: false,
    },
    Step {
        what: "decrement below zero",
        act: |f, _| f.decrement("k", 100),
        expect: Done::Number(0),
        then: Some(("0 ", 0, true)),
        renews: true,
    },
    Step {
        what: "replace",
        act: |f, _| f.write(StoreMode::Replace, "k", b"r", 9, 0),
        expect: Done::Yes,
        then: Some(("r", 9, false)),
        renews: true,
    },
    Step {
        what: "set",
        act: |f, _| f.write(StoreMode::Set, "k", b"s", 1, 1_000),
        expect: Done::Yes,
        then: Some(("s", 1, true)),
        renews: true,
    },
    Step {
        what: "delete",
        act: |f, _| f.delete("k"),
        expect: Done::Yes,
        then: None,
        renews: false,
    },
];

fn front_ends(node: &Node) -> Vec<Box<dyn FrontEnd>> {
    vec![
        Box::new(Text(node.connect())),
        Box::new(Meta(node.connect())),
        Box::new(Own(Native::connect(node))),
    ]
}

#[test]
fn whoever_writes_everyone_reads_the_same_item_with_the_same_version() {
    let node = Node::start(&[]);
    let mut all = front_ends(&node);
    let count = all.len();
    // Each writes alone, and then all take turns, so that each step follows each other's.
    for first in 0..2 * count {
        let mut version = 0;
        for (number, step) in STORY.iter().enumerate() {
            let writer = if first < count { first } else { (first + number) % count };
            let outcome = (step.act)(all[writer].as_mut(), version);
            let context = format!("{} by {}", step.what, all[writer].name());
            assert_eq!(outcome, step.expect, "{context}");
            let mut seen = None;
            for reader in &mut all {
                let now = reader.read("k");
                let context = format!("{context}, read by {}", reader.name());
                match (&now, step.then) {
                    (None, None) => {}
                    (Some(now), Some((value, flags, ends))) => {
                        // Memcached keeps the length of a number that became shorter.
                        let value = value.trim_end().as_bytes();
                        assert_eq!(now.value.trim_ascii_end(), value, "{context}");
                        assert_eq!((now.flags, now.ends), (flags, ends), "{context}");
                        let renewed = now.version > version;
                        assert_eq!(renewed, step.renews, "{context}: {version} to {}", now.version);
                    }
                    _ => panic!("{context}: {now:?} rather than {:?}", step.then),
                }
                match &seen {
                    None => seen = Some(now),
                    Some(first) => assert_eq!(&now, first, "{context}"),
                }
            }
            version = seen.flatten().map_or(0, |seen| seen.version);
        }
    }
}
