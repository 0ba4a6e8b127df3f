//! Defaults that depend on the machine.
//!
//! A container's limits are taken for the machine's: a node that fills half a gigabyte in a
//! container of 256 MiB is killed, not slowed.

use std::{fs, path::Path};

use super::value::{Bytes, NodeName};

const MEMORY: u64 = 512 << 20;
const MEMORY_MIN: u64 = kiln_engine::MEMORY_MIN as u64;

/// The host's name, as far as a node may be called so.
pub(crate) fn host_name() -> String {
    let host = rustix::system::uname();
    NodeName::from_lossy(&host.nodename().to_string_lossy()).to_string()
}

/// As many workers as processors that this process may use; knows cgroup quotas and affinity.
pub(super) fn threads() -> String {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(256)).to_string()
}

/// 512 MiB, or half of the cgroup's limit if that is less: the other half is for connection
/// buffers, page cache and whatever else lives in the container.
pub(super) fn memory() -> String {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Bytes(memory_under(cgroup_limit(&groups, Path::new("/sys/fs/cgroup")))).to_string()
}

fn memory_under(limit: Option<u64>) -> u64 {
    let half = limit.map_or(u64::MAX, |limit| limit / 2);
    let whole_mib = half.min(MEMORY) >> 20 << 20;
    whole_mib.max(MEMORY_MIN)
}

/// The lowest memory limit over this process's cgroup and those above it, of either version.
fn cgroup_limit(groups: &str, root: &Path) -> Option<u64> {
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            if controllers.is_empty() {
                lowest(root, path, "memory.max")
            } else if controllers.split(',').any(|c| c == "memory") {
                lowest(&root.join("memory"), path, "memory.limit_in_bytes")
            } else {
                None
            }
        })
        .min()
}

/// Inside a container the path may name a group that is mounted as the root: what is not there is
/// passed over, and the root itself is always read.
fn lowest(root: &Path, path: &str, file: &str) -> Option<u64> {
    let group = root.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|dir| dir.starts_with(root))
        // "max" (version 2) is no number; version 1 writes no limit as a huge one.
        .filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_half_of_a_small_cgroup_and_never_more_than_the_default() {
        assert_eq!(memory_under(None), 512 << 20);
        assert_eq!(memory_under(Some(8 << 30)), 512 << 20);
        assert_eq!(memory_under(Some(256 << 20)), 128 << 20);
        assert_eq!(memory_under(Some((256 << 20) + 4096)), 128 << 20);
        assert_eq!(memory_under(Some(1 << 20)), MEMORY_MIN);
    }

    #[test]
    fn the_lowest_limit_on_the_way_to_the_root_counts() {
        let root = tempfile::tempdir().unwrap();
        let v2 = root.path().join("pod/container");
        fs::create_dir_all(&v2).unwrap();
        fs::write(v2.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("pod/memory.max"), "1000\n").unwrap();
        assert_eq!(cgroup_limit("0::/pod/container\n", root.path()), Some(1000));

        let v1 = root.path().join("memory/job");
        fs::create_dir_all(&v1).unwrap();
        fs::write(v1.join("memory.limit_in_bytes"), "700\n").unwrap();
        let both = "4:cpu,memory:/job\n1:cpuset:/\n0::/pod/container\n";
        assert_eq!(cgroup_limit(both, root.path()), Some(700));

        assert_eq!(cgroup_limit("0::/elsewhere\n", root.path()), None);
    }
}
