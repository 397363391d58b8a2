//! The last lines that an actor has logged, for whoever asks later or wants to follow.
//!
//! A reader says which line it knows last and gets those after it; a gap in the numbers
//! tells what it has missed. So the actor never waits for a reader and keeps nothing for one.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tracing::Level;

use crate::envelope::unix_millis;

/// Lines that are kept.
const MAX_LINES: usize = 200;

/// Bytes of lines that are kept; the last line is kept whatever it has.
const MAX_BYTES: usize = 64 << 10;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Its number under the actor's name, without gaps.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: &'static str,
    /// The text, with control characters escaped.
    pub text: String,
}

/// The last lines of one actor.
pub struct Journal {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    lines: VecDeque<LogLine>,
    bytes: usize,
    numbers: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self { kept: Mutex::default(), newest: watch::channel(0).0 }
    }
}

impl Journal {
    /// Adds a line.
    pub(crate) fn add(&self, level: Level, text: String) {
        self.keep(unix_millis(), name(level), text);
    }

    /// Adds the lines of another journal.
    pub(crate) fn take_over(&self, other: &Self) {
        let lines = std::mem::take(&mut other.kept.lock().lines);
        lines.into_iter().for_each(|line| self.keep(line.time, line.level, line.text));
    }

    fn keep(&self, time: u64, level: &'static str, text: String) {
        let mut kept = self.kept.lock();
        kept.numbers += 1;
        kept.bytes += text.len();
        let number = kept.numbers;
        kept.lines.push_back(LogLine { number, time, level, text });
        while kept.lines.len() > MAX_LINES || (kept.bytes > MAX_BYTES && kept.lines.len() > 1) {
            let oldest = kept.lines.pop_front().expect("there are several");
            kept.bytes -= oldest.text.len();
        }
        // Under the lock: a reader that is told of a line would otherwise miss the one after it.
        self.newest.send_replace(number);
    }

    /// The lines after number `after` that are kept, oldest first.
    #[must_use]
    pub fn since(&self, after: u64) -> Vec<LogLine> {
        let kept = self.kept.lock();
        kept.lines.iter().filter(|line| line.number > after).cloned().collect()
    }

    /// Returns when there is a line after number `after`.
    pub async fn more(&self, after: u64) {
        let newest = self.newest.subscribe().wait_for(|newest| *newest > after).await.map(drop);
        newest.expect("the sender lives as long as the journal");
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_within_both_bounds() {
        let journal = Journal::default();
        (0..MAX_LINES + 5).for_each(|n| journal.add(Level::INFO, n.to_string()));
        let lines = journal.since(0);
        assert_eq!((lines.len(), lines[0].number), (MAX_LINES, 6));
        assert_eq!(journal.since(lines[0].number).len(), MAX_LINES - 1);
        journal.add(Level::WARN, "x".repeat(2 * MAX_BYTES));
        let lines = journal.since(0);
        assert_eq!((lines.len(), lines[0].level), (1, "warn"));
    }

    #[tokio::test]
    async fn a_journal_takes_over_what_was_said_before() {
        let (first, second) = (Journal::default(), Journal::default());
        first.add(Level::INFO, "one".into());
        second.add(Level::INFO, "two".into());
        first.take_over(&second);
        first.more(1).await;
        let texts: Vec<_> = first.since(0).into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["one", "two"]);
    }
}
