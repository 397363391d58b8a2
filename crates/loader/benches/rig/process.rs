//! What this process takes of the machine.

#![allow(dead_code, reason = "each benchmark takes what it needs")]

use std::fs::read_to_string;

/// Resident memory, threads and mappings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    /// Bytes.
    pub(crate) resident: u64,
    pub(crate) threads: u64,
    pub(crate) mappings: u64,
}

impl Process {
    pub(crate) fn now() -> Self {
        let read = |path: &str| read_to_string(path).expect("this is Linux");
        // The sum over all pages; the number in `status` lags behind.
        let resident = number_after(&read("/proc/self/smaps_rollup"), "Rss:") * 1024;
        let threads = number_after(&read("/proc/self/status"), "Threads:");
        let mappings = read("/proc/self/maps").lines().count() as u64;
        Self { resident, threads, mappings }
    }
}

fn number_after(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("the kernel says so")
}
