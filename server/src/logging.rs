//! Log lines: to standard error, because standard output carries the ready line alone.

use std::{any::Any, io::IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFilter, LogFormat};

/// Starts to log. Panics are logged too: one in a connection's task ends that connection only,
/// and nobody would see it else.
pub(crate) fn init(format: LogFormat, filter: &LogFilter) {
    // Parsed once already, when the settings were read.
    let filter = EnvFilter::try_new(filter.directives()).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only fails when a subscriber is there already; then the log is in good hands.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(colours()).with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic_message(panic.payload());
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(place, message, %backtrace, "panic");
    }));
}

/// The text of a panic, which is a literal or was formatted.
fn panic_message(payload: &dyn Any) -> &str {
    let literal = payload.downcast_ref::<&str>().copied();
    literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Whether people look on, and like colours (<https://no-color.org>).
fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}
