//! Eight versions of one module, swapped thousands of times under load.

use std::{fs, time::Instant};

use serde_json::json;

use super::{Row, WINDOW, chain, digest, of_senders, sha256, size, version};
use crate::{
    load::{Load, quantile},
    rig::Daemon,
};

const VERSIONS: usize = 8;

/// How much more memory the daemon may hold at the end than after a tenth of the swaps, in
/// KiB, beside a tenth of it.
const MEMORY: u64 = 8 << 10;

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A bound in milliseconds on the pause that all but a thousandth of the swaps put on messages.
fn pause(daemon: &Daemon) -> f64 {
    let metrics = daemon.metrics();
    let prefix = r#"reflowd_swap_pause_seconds_bucket{actor="work",le=""#;
    let buckets = metrics.iter().filter_map(|(name, n)| {
        let bound = name.strip_prefix(prefix)?.trim_end_matches("\"}");
        Some((bound.replace("+Inf", "inf").parse::<f64>().unwrap(), *n))
    });
    let buckets: Vec<(f64, f64)> = buckets.collect();
    let all = buckets.iter().map(|(_, n)| *n).fold(0.0, f64::max);
    let enough = buckets.iter().filter(|(_, n)| *n >= all * 0.999);
    enough.map(|(bound, _)| *bound * 1e3).fold(f64::INFINITY, f64::min)
}

#[test]
fn a_storm_of_swaps_loses_doubles_and_reorders_nothing() {
    let (swaps, messages) = (size(200, 10_000), size(20_000, 1_000_000) as u64);
    let mut daemon = chain();
    let versions: Vec<Vec<u8>> = (0..VERSIONS).map(version).collect();
    let digests: Vec<String> = versions.iter().map(|bytes| sha256(bytes)).collect();
    let load = Load::begin(&mut daemon, "first", WINDOW);
    load.wait_for(messages / 10);
    load.disturbed(true);
    let mut early = 0;
    let mut rounds = Vec::with_capacity(swaps);
    for n in 1..=swaps {
        daemon.world.module("work", &versions[n % VERSIONS]);
        let began = Instant::now();
        let report = daemon.reload();
        rounds.push(began.elapsed());
        assert_eq!((&report["refused"], &report["held"]), (&json!([]), &json!(null)), "{report}");
        assert_eq!(digest(&daemon, "work"), digests[n % VERSIONS], "{report}");
        if n == swaps / 10 {
            early = resident(daemon.pid());
        }
        // Each version gets messages of its own, however quick the swaps are.
        load.wait_for(load.arrived() + 1);
    }
    load.disturbed(false);
    let late = resident(daemon.pid());
    load.wait_for(messages);
    let seen = load.end();
    daemon.check_books();
    let (steady, storm) =
        (quantile(&seen.steady_micros, 999), quantile(&seen.disturbed_micros, 999));
    Row {
        name: "swaps of 8 versions",
        size: format!("{swaps} swaps, {}", of_senders(&seen)),
        messages: seen.counts(),
        figures: format!(
            "p99.9 from send to sink {:.1} ms during swaps, {:.1} ms steady: {:.1} times; \
             99.9 % of swaps pause messages for {} ms at most; \
             a reload p50 {:.1?}, p99 {:.1?}; {} KiB resident after a tenth, {} at the end",
            f64::from(storm) / 1e3,
            f64::from(steady) / 1e3,
            f64::from(storm) / f64::from(steady.max(1)),
            pause(&daemon),
            quantile(&rounds, 500),
            quantile(&rounds, 990),
            early,
            late
        ),
    }
    .print();
    seen.check();
    assert_eq!(daemon.sum("reflowd_swaps_total"), swaps as f64);
    assert_eq!(daemon.sum("reflowd_rollbacks_total"), 0.0);
    assert_eq!(seen.stamps.len(), VERSIONS, "{:?}", seen.stamps);
    if size(0, 1) == 1 {
        assert!(late <= early + early / 10 + MEMORY, "{early} KiB have become {late}");
    }
}
