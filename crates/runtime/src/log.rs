//! Where a guest's log lines go, and how many of them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::Level;

use crate::{ActorName, Journal, Secrets, printable};

/// The longest log line of a guest, in bytes; the rest is cut.
const MAX_LINE: usize = 8 << 10;

/// One actor's log. Clones write to the same log under the same rate.
#[derive(Clone)]
pub struct ActorLog(Arc<Inner>);

struct Inner {
    actor: ActorName,
    secrets: Secrets,
    bucket: Mutex<Bucket>,
    /// Its own until the actor runs, and then that of the actor's name.
    journal: Mutex<Arc<Journal>>,
}

/// What one second allows. Pure: it is told the time.
struct Bucket {
    rate: u32,
    second: Option<Instant>,
    left: u32,
    /// Lines left out in this second.
    missed: u64,
    /// Lines left out ever.
    suppressed: u64,
}

impl ActorLog {
    /// A log that takes `rate` lines a second.
    #[must_use]
    pub fn new(actor: ActorName, rate: u32) -> Self {
        Self::masked(actor, rate, Secrets::default())
    }

    /// The same, in which no secret is shown.
    #[must_use]
    pub fn masked(actor: ActorName, rate: u32, secrets: Secrets) -> Self {
        let bucket = Bucket { rate, second: None, left: rate, missed: 0, suppressed: 0 };
        let bucket = Mutex::new(bucket);
        Self(Arc::new(Inner { actor, secrets, bucket, journal: Mutex::default() }))
    }

    /// Changes the rate from the next second on.
    pub fn set_rate(&self, rate: u32) {
        self.0.bucket.lock().rate = rate;
    }

    /// Keeps the last lines in `journal` from now on, with those that there are already.
    pub(crate) fn keep_in(&self, journal: &Arc<Journal>) {
        let mut own = self.0.journal.lock();
        if !Arc::ptr_eq(&own, journal) {
            journal.take_over(&own);
            *own = Arc::clone(journal);
        }
    }

    /// Writes one line, unless the actor has had its share of this second.
    ///
    /// The text comes from a guest: what is no UTF-8 is replaced, control and direction
    /// characters are escaped, and what is longer than 8 KiB is cut. The work and the
    /// memory for it do not grow with what is cut off.
    pub fn line(&self, level: Level, text: &[u8]) {
        let now = Instant::now();
        let (allowed, suppressed) = self.0.bucket.lock().take(now);
        let actor = &self.0.actor;
        if suppressed > 0 {
            tracing::warn!(target: "guest", %actor, suppressed, "log lines over the rate were left out");
            let text = format!("({suppressed} lines over the rate were left out)");
            self.0.journal.lock().add(Level::WARN, text);
        }
        if !allowed {
            return;
        }
        // Replacing never makes text shorter, so this is all that the line can show, and a
        // character more, which tells that there was more.
        let shown = MAX_LINE + self.0.secrets.longest() + char::MAX_LEN_UTF8;
        let text = String::from_utf8_lossy(&text[..text.len().min(shown)]);
        let text = clean(&self.0.secrets.mask_start(&text, MAX_LINE));
        match level {
            Level::ERROR => tracing::error!(target: "guest", %actor, "{text}"),
            Level::WARN => tracing::warn!(target: "guest", %actor, "{text}"),
            Level::INFO => tracing::info!(target: "guest", %actor, "{text}"),
            Level::DEBUG => tracing::debug!(target: "guest", %actor, "{text}"),
            Level::TRACE => tracing::trace!(target: "guest", %actor, "{text}"),
        }
        self.0.journal.lock().add(level, text);
    }

    /// Lines left out since the actor started.
    #[must_use]
    pub fn suppressed(&self) -> u64 {
        self.0.bucket.lock().suppressed
    }
}

impl Bucket {
    /// Whether a line may pass, and how many were left out in the second before.
    fn take(&mut self, now: Instant) -> (bool, u64) {
        let mut before = 0;
        let fresh = self.second.is_none_or(|s| now.duration_since(s).as_secs() >= 1);
        if fresh {
            self.second = Some(now);
            self.left = self.rate;
            before = std::mem::take(&mut self.missed);
        }
        if self.left == 0 {
            self.missed += 1;
            self.suppressed += 1;
            return (false, before);
        }
        self.left -= 1;
        (true, before)
    }
}

/// Text that cannot forge a log line or turn it around.
fn clean(text: &str) -> String {
    let mut end = text.len().min(MAX_LINE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = printable(text[..end].trim_end()).into_owned();
    if end < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_over_the_rate_are_counted() {
        let log = ActorLog::new("a".parse().unwrap(), 2);
        for _ in 0..5 {
            log.line(Level::INFO, b"x");
        }
        assert_eq!(log.suppressed(), 3);
        tokio::time::advance(Duration::from_secs(1)).await;
        log.line(Level::INFO, b"x");
        assert_eq!(log.suppressed(), 3);
    }

    #[test]
    fn a_line_is_cut_and_says_so_whatever_its_bytes() {
        let secrets = Secrets::default();
        secrets.add(["hidden-word"]);
        let log = ActorLog::masked("a".parse().unwrap(), 100, secrets);
        let (far, near) = ("x".repeat(MAX_LINE - 6), "x".repeat(20));
        let cut = format!("{far}hidden-word");
        let lines = [b"\xff".repeat(1 << 20), cut.into_bytes(), near.clone().into_bytes()];
        lines.iter().for_each(|line| log.line(Level::INFO, line));
        let kept = log.0.journal.lock().since(0);
        let texts: Vec<_> = kept.iter().map(|line| line.text.as_str()).collect();
        assert!(texts[0].len() <= MAX_LINE + 3 && texts[0].ends_with('…'), "{}", texts[0].len());
        assert!(
            texts[1].ends_with("***") && !texts[1].contains("hidden"),
            "the cut shows no secret"
        );
        assert_eq!(texts[2], near);
    }

    #[test]
    fn a_guest_cannot_forge_a_line() {
        assert_eq!(clean("a\nINFO b\x1b[31m\u{202e}"), "a\\nINFO b\\u{1b}[31m\\u{202e}");
        assert!(clean(&"é".repeat(MAX_LINE)).len() <= MAX_LINE + 4);
    }
}
