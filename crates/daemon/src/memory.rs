//! How much memory there is for the daemon: the machine's, or less where its control
//! group has a bound.
//!
//! Within a hardened unit the machine's own figure is hidden, and the group's is not.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where control groups are shown.
const GROUPS: &str = "/sys/fs/cgroup";

/// What is taken to be there where nothing says how much, in bytes.
const UNKNOWN: u64 = 1 << 30;

/// Bytes that all queues may hold where the configuration does not say: half of what there is.
pub(crate) fn default_budget() -> u64 {
    available(&|path| fs::read_to_string(path).ok()).unwrap_or(UNKNOWN) / 2
}

/// Bytes that this process may have, as far as the files say.
fn available(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let bounds = groups.lines().flat_map(files).filter_map(|file| bound(&read(&file)?));
    machine.into_iter().chain(bounds).min()
}

/// `MemTotal:  24570380 kB`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files that may bound the memory of the group that one line of `/proc/self/cgroup`
/// names, and of those above it: `0::/a/b` of the second version, `4:memory:/a/b` of the first.
fn files(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, file) = if controllers.is_empty() {
        (PathBuf::from(GROUPS), "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        (Path::new(GROUPS).join("memory"), "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let group = root.join(group.trim_start_matches('/'));
    let above = group.ancestors().take_while(|folder| folder.starts_with(&root));
    above.map(|folder| folder.join(file)).collect()
}

/// A bound in bytes; `max`, and the first version's way to say so, is none.
fn bound(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        let files: BTreeMap<_, _> = files.iter().copied().collect();
        let read = |path: &Path| files.get(path.to_str().unwrap()).map(ToString::to_string);
        assert_eq!(available(&read), expected, "{files:?}");
    }

    #[test]
    fn the_least_of_all_bounds_counts() {
        let machine = ("/proc/meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\n");
        let own = ("/proc/self/cgroup", "0::/system.slice/reflowd.service\n");
        let group = "/sys/fs/cgroup/system.slice/reflowd.service/memory.max";
        let slice = "/sys/fs/cgroup/system.slice/memory.max";
        check(&[], None);
        check(&[machine], Some(2 << 20));
        check(&[machine, own], Some(2 << 20));
        check(&[machine, own, (group, "max\n")], Some(2 << 20));
        check(&[machine, own, (group, "1048576\n")], Some(1 << 20));
        check(&[machine, own, (group, "1048576\n"), (slice, "4096\n")], Some(4096));
        check(&[own, (group, "1048576\n")], Some(1 << 20));
        let first = ("/proc/self/cgroup", "5:cpu,memory:/a\n4:pids:/b\n");
        let none = "9223372036854771712\n";
        check(
            &[machine, first, ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", none)],
            Some(2 << 20),
        );
        check(&[machine, first, ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "8\n")], Some(8));
    }
}
