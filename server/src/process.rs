//! What the operating system says of this process, and grants it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors beside those of memcached clients: listeners, HTTP, timers, files.
const FILES_RESERVED: u64 = 512;

/// Raises the limit of open files as far as needed and allowed; says what is missing.
pub(crate) fn raise_file_limit(connections_max: usize) {
    let needed = connections_max as u64 + FILES_RESERVED;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let wanted = maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    let have = if raised.is_ok() { wanted } else { current.unwrap_or(wanted) };
    if have < needed {
        tracing::warn!(
            needed,
            have,
            "the limit of open files is too low for max_connections; raise it (ulimit -n, LimitNOFILE)"
        );
    }
}

/// Figures of this process, as the kernel keeps them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Memory in RAM.
    pub(crate) resident_bytes: u64,
    /// Address space, used or not.
    pub(crate) virtual_bytes: u64,
    /// Processor time, in user and kernel mode.
    pub(crate) cpu_user_s: f64,
    /// Processor time in kernel mode.
    pub(crate) cpu_system_s: f64,
    /// Open descriptors.
    pub(crate) open_files: u64,
    /// Descriptors that may be open.
    pub(crate) open_files_max: Option<u64>,
    /// Threads.
    pub(crate) threads: u64,
}

impl Usage {
    /// Reads `/proc`; `None` where that is not to be had.
    pub(crate) fn read() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            resident_bytes: stat.rss * rustix::param::page_size() as u64,
            virtual_bytes: stat.vsize,
            cpu_user_s: stat.utime as f64 / ticks_per_s,
            cpu_system_s: stat.stime as f64 / ticks_per_s,
            open_files: process.fd_count().ok()? as u64,
            open_files_max: getrlimit(Resource::Nofile).current,
            threads: stat.num_threads.max(0) as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_this_process() {
        let usage = Usage::read().unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.resident_bytes < usage.virtual_bytes);
        assert!(usage.open_files >= 3 && usage.threads >= 1);
    }
}
