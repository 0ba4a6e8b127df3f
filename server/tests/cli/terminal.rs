//! Commands on a terminal: a real one, as far as the kernel is concerned.

use std::{
    fs,
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Command,
};

use crate::{cluster::Cluster, common};

/// A command with a terminal for all its streams.
struct OnTerminal {
    child: std::process::Child,
    screen: std::sync::mpsc::Receiver<u8>,
    keyboard: fs::File,
    seen: Vec<u8>,
}

impl OnTerminal {
    fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        use rustix::{pty, termios};
        let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
        let master = pty::openpt(flags).unwrap();
        pty::grantpt(&master).unwrap();
        pty::unlockpt(&master).unwrap();
        let name = pty::ptsname(&master, Vec::new()).unwrap();
        let size = termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        termios::tcsetwinsize(&master, size).unwrap();
        let open = || {
            let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
            fs::File::options().read(true).write(true).open(path).unwrap()
        };
        command.env("TERM", "xterm").stdin(open()).stdout(open()).stderr(open());
        let child = command.spawn().unwrap();
        let keyboard = fs::File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while output.read_exact(&mut byte).is_ok() && sender.send(byte[0]).is_ok() {}
        });
        Self { child, screen, keyboard, seen: Vec::new() }
    }

    /// Waits until the terminal was sent this text.
    fn await_text(&mut self, text: &str) {
        common::eventually(text, || {
            self.seen.extend(self.screen.try_iter());
            self.seen.windows(text.len()).any(|window| window == text.as_bytes())
        });
    }

    fn press(&mut self, key: &str) {
        self.keyboard.write_all(key.as_bytes()).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        common::eventually("the command ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SECOND_SCREEN: &str = "\x1b[?1049h";
const FIRST_SCREEN_AGAIN: &str = "\x1b[?1049l";

#[test]
fn top_gives_the_terminal_back_when_it_is_quit_or_told_to_stop() {
    let cluster = Cluster::start(&[]);
    for by_signal in [false, true] {
        let mut top = OnTerminal::start(cluster.command(&["top"]), 80, 24);
        top.await_text(SECOND_SCREEN);
        top.await_text("LARGEST");
        if by_signal {
            let pid = rustix::process::Pid::from_child(&top.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        } else {
            top.press("q");
        }
        top.await_text(FIRST_SCREEN_AGAIN);
        assert_eq!(top.ended(), Some(0), "by signal: {by_signal}");
    }
    cluster.node.stop();
}

#[test]
fn top_draws_on_terminals_without_a_size_and_says_when_its_node_is_gone() {
    let mut cluster = Cluster::start(&[]);
    for (columns, rows) in [(0, 0), (1, 1), (7, 2)] {
        let mut top = OnTerminal::start(cluster.command(&["top"]), columns, rows);
        top.await_text(SECOND_SCREEN);
        top.press("s?q");
        top.await_text(FIRST_SCREEN_AGAIN);
        assert_eq!(top.ended(), Some(0));
    }
    let command = cluster.command(&["top", "--interval", "100ms", "--timeout", "1s"]);
    let mut top = OnTerminal::start(command, 80, 24);
    top.await_text("LARGEST");
    cluster.node.signal(rustix::process::Signal::KILL);
    cluster.node.wait();
    top.await_text("not answering");
    top.press("q");
    top.await_text(FIRST_SCREEN_AGAIN);
    assert_eq!(top.ended(), Some(0));
}

#[test]
fn a_demonstration_is_drawn_takes_keys_and_gives_the_terminal_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = common::kiln(&["demo", "--nodes", "2"]);
    command.env("TMPDIR", directory.path());
    let mut demo = OnTerminal::start(command, 80, 24);
    demo.await_text(SECOND_SCREEN);
    demo.await_text("k kill a node");
    demo.await_text("copies in place");
    // Only what changes is sent, word by word.
    demo.seen.clear();
    demo.press("r");
    demo.await_text("run");
    demo.press("q");
    demo.await_text(FIRST_SCREEN_AGAIN);
    demo.await_text("lost writes          0");
    assert_eq!(demo.ended(), Some(0));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_drop_asks_on_a_terminal_and_keeps_the_cache_unless_told_yes() {
    let cluster = Cluster::start(&["--memory", "64MiB"]);
    cluster.ok(&["cache", "create", "temporary", "--memory", "8MiB"]);
    cluster.ok(&["set", "k", "v", "--cache", "temporary"]);
    let ask = |answer: &str| {
        let mut drop = OnTerminal::start(cluster.command(&["cache", "drop", "temporary"]), 80, 24);
        drop.await_text("loses 1 items");
        drop.press(answer);
        drop.ended()
    };
    assert_eq!(ask("\n"), Some(1));
    assert_eq!(ask("n\n"), Some(1));
    assert_eq!(cluster.ok(&["get", "k", "--cache", "temporary"]), "v");
    assert_eq!(ask("y\n"), Some(0));
    cluster.fails(1, &["cache", "show", "temporary"]);
    cluster.node.stop();
}

#[test]
fn a_value_on_a_terminal_ends_its_line_and_cannot_disturb_it() {
    let cluster = Cluster::start(&[]);
    cluster.ok(&["set", "k", "a\x1b[2Jb"]);
    let mut get = OnTerminal::start(cluster.command(&["get", "k"]), 80, 24);
    get.await_text("a\\u{1b}[2Jb\r\n");
    assert_eq!(get.ended(), Some(0));
    assert!(!get.seen.contains(&0x1b));
    cluster.node.stop();
}
