//! The documents that describe the interface.

use std::{fs, path::Path, process::Command};

use super::{client::Http, common::Node};

fn docs(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

#[test]
fn the_openapi_document_in_the_repository_is_the_one_that_is_served() {
    let node = Node::start(&[]);
    let served = Http::of(&node).get("/openapi.json");
    assert_eq!((served.status, served.header("content-type")), (200, "application/json"));
    let path = docs("openapi.json");
    if std::env::var_os("KILN_UPDATE_DOCS").is_some() {
        fs::write(&path, &served.body).unwrap();
    }
    let kept = fs::read(&path).unwrap();
    assert!(
        kept == served.body,
        "docs/openapi.json is not current; run the tests with KILN_UPDATE_DOCS=1 and look at the difference"
    );
    assert_eq!(served.json()["openapi"], "3.1.0");
}

#[test]
fn the_page_for_people_needs_nothing_from_elsewhere() {
    let node = Node::start(&[]);
    let page = Http::of(&node).get("/docs");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    let text = String::from_utf8(page.body).unwrap();
    for absent in ["<script", "http://", "https://", "src=", "@import"] {
        assert!(!text.contains(absent), "{absent}");
    }
    assert!(text.contains("id=\"problem-miss\"") && text.contains("id=\"getItem\""));
}

/// Each `console` block of the guide is run as it stands: lines that begin with `$` are commands,
/// and what follows them must be in their output, `…` standing for anything.
#[test]
fn the_examples_of_the_guide_do_what_it_says() {
    let node = Node::start(&["--memory", "64MiB"]);
    let guide = fs::read_to_string(docs("rest.md")).unwrap();
    let here = format!("http://{}", node.address("http"));
    let mut commands = 0;
    let directory = tempfile::tempdir().unwrap();
    for block in guide.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let mut examples: Vec<(String, Vec<&str>)> = Vec::new();
        for line in block.lines() {
            match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => examples.push((command.to_owned(), Vec::new())),
                (None, Some((command, _))) if command.ends_with('\\') => {
                    command.push('\n');
                    command.push_str(line);
                }
                (None, Some((_, expected))) => expected.push(line),
                (None, None) => panic!("output without a command: {line}"),
            }
        }
        for (command, expected) in examples {
            let command = command.replace("http://127.0.0.1:7380", &here);
            let run = Command::new("bash").arg("-c").arg(&command).current_dir(&directory).output();
            let run = run.unwrap();
            let output = String::from_utf8_lossy(&run.stdout).replace('\r', "");
            assert!(run.status.success(), "{command}\n{}", String::from_utf8_lossy(&run.stderr));
            commands += 1;
            for line in expected.iter().filter(|line| !line.is_empty()) {
                let found = output.lines().any(|one| is_like(one, line));
                assert!(found, "{command}\nsays\n{output}\nbut not\n{line}");
            }
        }
    }
    assert!(commands >= 20, "{commands}");
}

/// Whether a line is as expected, where `…` stands for anything.
fn is_like(line: &str, expected: &str) -> bool {
    let mut rest = line;
    let mut parts = expected.split('…');
    let first = parts.next().unwrap();
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    let mut last = None;
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
        last = Some(part);
    }
    rest.is_empty() || last == Some("")
}
