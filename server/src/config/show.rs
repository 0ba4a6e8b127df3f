//! Settings written as TOML: the effective ones, and the commented sample file.

use std::fmt::Write;

use super::{Loaded, Origin, SETTINGS, Setting, caches, streams, value::TomlForm};

/// The settings in effect, ready to be saved as a file; with where each came from if wanted.
pub(crate) fn render_effective(loaded: &Loaded, with_origin: bool) -> String {
    let file = loaded.file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let mut out = String::new();
    for (setting, (text, origin)) in SETTINGS.iter().zip(&loaded.texts) {
        let line = format!("{} = {}", setting.key, toml_text(setting, text));
        let origin = match origin {
            Origin::Default => "default".to_owned(),
            Origin::File { line } => format!("file {file}:{line}"),
            Origin::Environment => format!("env {}", setting.variable()),
            Origin::Flag => format!("flag --{}", setting.flag()),
        };
        // Writing to a string cannot fail.
        let _ = if with_origin {
            writeln!(out, "{line:<44} # {origin}")
        } else {
            writeln!(out, "{line}")
        };
    }
    caches::render(&loaded.caches, &mut out);
    streams::render(&loaded.streams, &mut out);
    out
}

/// Every setting with what it does, what it may be and its default, commented out.
pub(crate) fn render_sample() -> String {
    let mut out = String::from(
        "# Settings of a Kiln node. Each line below shows a default; take away the leading # to change it.\n\
         # Order: default < this file < KILN_* environment < flag. An unknown key is an error.\n\
         # The variable of `idle_timeout` is KILN_IDLE_TIMEOUT, its flag is --idle-timeout.\n\
         # Check: kiln config check FILE    See what is in effect: kiln config show --origin --config FILE\n",
    );
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            let _ = write!(out, "\n# ---- {group} ----\n");
        }
        out.push('\n');
        wrap(&mut out, &setting.description());
        wrap(&mut out, &format!("Value: {}.", setting.allowed()));
        let _ = match setting.default {
            super::Fallback::Fixed(text) => {
                writeln!(out, "#{} = {}", setting.key, toml_text(setting, text))
            }
            super::Fallback::Found(rule, example, _) => {
                let example = toml_text(setting, example);
                writeln!(out, "#{} = {example} # default: {rule}", setting.key)
            }
        };
    }
    caches::render_sample(&mut out);
    streams::render_sample(&mut out);
    out
}

fn toml_text(setting: &Setting, text: &str) -> String {
    match setting.toml {
        TomlForm::Quoted => toml::Value::String(text.to_owned()).to_string(),
        TomlForm::Integer | TomlForm::Boolean => text.to_owned(),
    }
}

/// Comment lines of at most 100 characters.
fn wrap(out: &mut String, text: &str) {
    let mut column = 0;
    for word in text.split(' ') {
        if column == 0 || column + 1 + word.len() > 100 {
            out.push_str(if column == 0 { "#" } else { "\n#" });
            column = 1;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.len();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::{super::Sources, *};

    #[test]
    fn what_is_shown_loads_to_the_same_settings() {
        let flags = vec![("memory", "100m".to_owned()), ("enable_shutdown", "true".to_owned())];
        let caches = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            caches.path(),
            "[caches.\"a.b\"]\nmemory = \"9m\"\ndefault_ttl = \"90s\"\neviction = \"none\"\n[caches.c]\n",
        )
        .unwrap();
        let file = Some(caches.path().into());
        let loaded = Sources { flags, file, ..Sources::default() }.load().unwrap();
        for with_origin in [false, true] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), render_effective(&loaded, with_origin)).unwrap();
            let again =
                Sources { file: Some(file.path().into()), ..Sources::default() }.load().unwrap();
            let texts =
                |l: &Loaded| l.texts.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
            assert_eq!(texts(&again), texts(&loaded));
            assert_eq!(again.caches, loaded.caches);
        }
    }

    #[test]
    fn the_origin_stands_beside_each_setting() {
        let environment = vec![("KILN_THREADS".to_owned(), "3".to_owned())];
        let flags = vec![("pid_file", "/run/k.pid".to_owned())];
        let shown =
            render_effective(&Sources { environment, flags, file: None }.load().unwrap(), true);
        let line = |key: &str| shown.lines().find(|l| l.starts_with(key)).unwrap().to_owned();
        assert!(line("threads").ends_with("# env KILN_THREADS"));
        assert!(line("pid_file").starts_with("pid_file = \"/run/k.pid\""));
        assert!(line("pid_file").ends_with("# flag --pid-file"));
        assert!(line("eviction").ends_with("# default"));
    }

    #[test]
    fn the_sample_file_is_the_one_this_version_prints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/kiln.toml");
        let sample = std::fs::read_to_string(path).unwrap();
        assert!(sample == render_sample(), "write it anew: kiln config sample > config/kiln.toml");
    }

    #[test]
    fn each_fixed_line_of_the_sample_is_valid_when_it_is_switched_on() {
        let on: String = render_sample()
            .lines()
            .filter(|line| {
                line.starts_with('#') && !line.starts_with("# ") && !line.contains(" = # ")
            })
            .map(|line| format!("{}\n", &line[1..]))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), on).unwrap();
        Sources { file: Some(file.path().into()), ..Sources::default() }.load().unwrap();
    }
}
