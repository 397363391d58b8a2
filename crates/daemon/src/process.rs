//! Figures that the system keeps about this process.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// Figures of this process, as `/proc` has them. Each is missing where that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Seconds of processor time, in user and system mode together.
    pub(crate) cpu_seconds: f64,
    /// Memory that is in RAM, in bytes.
    pub(crate) resident: u64,
    /// Address space that is in use, in bytes.
    pub(crate) virtual_memory: u64,
    /// Threads.
    pub(crate) threads: u64,
}

impl Figures {
    /// The figures as they are now.
    pub(crate) fn read() -> Option<Self> {
        let stat = Stat::read()?;
        Some(Self {
            cpu_seconds: seconds(stat.ticks),
            resident: stat.resident_pages.saturating_mul(page_size() as u64),
            virtual_memory: stat.virtual_memory,
            threads: stat.threads,
        })
    }
}

/// File descriptors that are open.
pub(crate) fn open_files() -> Option<usize> {
    // One of them is what this reads from.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1))
}

/// The limit on open file descriptors; `None` if there is none.
pub(crate) fn max_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The start of the process, in seconds since 1970. Changes of the clock do not affect it.
pub(crate) fn started() -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(now.saturating_sub(uptime()?).as_secs_f64())
    })
}

/// The time since the process started, including time suspended.
pub(crate) fn uptime() -> Option<Duration> {
    let since_boot = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
    let began = Duration::from_secs_f64(seconds(Stat::read()?.began));
    Some(since_boot.saturating_sub(began))
}

/// Whether the process has a controlling terminal, which can interrupt it or hang up on it.
pub(crate) fn has_terminal() -> bool {
    Stat::read().is_some_and(|stat| stat.terminal != 0)
}

/// Whether the process was started with the signal ignored, as by `nohup`, and still ignores it.
pub(crate) fn ignores(signal: i32) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored(&status, signal))
}

/// Whether a `SigIgn: 0000000000001001` of `/proc/self/status` includes the signal.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}

/// The fields of `/proc/self/stat` that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    /// The device of the controlling terminal; 0 without one.
    terminal: i64,
    /// Processor time in user and system mode.
    ticks: u64,
    threads: u64,
    /// When the process started, in ticks since the machine did.
    began: u64,
    /// In bytes.
    virtual_memory: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// `12 (a name) S 1 2 3 …`, where the name may have blanks and parentheses too.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1, and the first two are in front of these.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            terminal: fields.get(7 - 3)?.parse().ok()?,
            ticks: field(14)? + field(15)?,
            threads: field(20)?,
            began: field(22)?,
            virtual_memory: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name_is() {
        let text = "4007 (a) b 1 (c) S 3973 4007 3973 34817 4007 4194304 107 0 0 0 \
                    250 50 0 0 20 0 7 0 201400 8716288 941 18446744073709551615 1 1 0\n";
        let stat = Stat {
            terminal: 34817,
            ticks: 300,
            threads: 7,
            began: 201_400,
            virtual_memory: 8_716_288,
            resident_pages: 941,
        };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("1 (cut) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_signal_is_ignored_where_its_bit_is_set() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        for (signal, ignored) in [(1, true), (2, false), (13, true), (15, false)] {
            assert_eq!(is_ignored(status, signal), ignored, "{signal}");
        }
        assert!(!is_ignored("", 1));
    }

    #[test]
    fn this_process_is_what_it_is() {
        let figures = Figures::read().unwrap();
        assert!(figures.threads >= 1 && figures.resident > 1 << 20, "{figures:?}");
        assert!(figures.virtual_memory > figures.resident, "{figures:?}");
        let (started, now) = (started().unwrap(), SystemTime::now());
        let now = now.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        // The tick in which it started is as exact as it gets.
        assert!(started <= now + 0.01 && now - started < 86_400.0, "{started} {now}");
        let open = open_files().unwrap();
        let files: Vec<_> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
        // Other tests open and close some meanwhile.
        assert!(open_files().unwrap() > open, "{} are open", files.len());
    }
}
