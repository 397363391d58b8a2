//! Decides when dead letters are worth an event.
//!
//! An actor that fails on every message makes thousands of letters a second, which would push
//! everything else out of the event history. The first letter of an actor and a class of reason is
//! reported at once; later ones are counted and reported together. All actors share a limit of
//! reports per second.
//!
//! Pure: it is told the time.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::ActorName;

/// The interval between reports on one actor and class of reason.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Reports on all actors together in [`SPAN`]. A broken database that every actor depends on must
/// not fill the history, which holds 10,000 events.
pub(super) const MAX_WORDS: u32 = 20;

/// The span to which the limit applies.
const SPAN: Duration = Duration::from_secs(1);

/// The reports made, and those pending.
#[derive(Default)]
pub(super) struct Tidings {
    of: BTreeMap<(ActorName, &'static str), Word>,
    /// The start of the current span, and the reports in it.
    span: Option<(Instant, u32)>,
}

/// The state of reports on one actor and class.
struct Word {
    /// The time of the last report.
    told: Option<Instant>,
    /// Letters since the last report.
    letters: u64,
    /// The number of the last of them, and its reason.
    last: u64,
    why: String,
}

/// A report on letters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) actor: ActorName,
    pub(super) class: &'static str,
    /// Letters since the last report.
    pub(super) letters: u64,
    /// The number of the last.
    pub(super) last: u64,
    pub(super) why: String,
}

impl Tidings {
    /// Counts a letter, and returns the report that is due with it.
    pub(super) fn came(
        &mut self,
        of: (ActorName, &'static str),
        number: u64,
        why: &dyn Fn() -> String,
        now: Instant,
    ) -> Option<News> {
        let word = self.of.entry(of.clone()).or_insert_with(|| Word {
            told: None,
            letters: 0,
            last: 0,
            why: String::new(),
        });
        if word.letters == 0 {
            // Of those that are told together, the first says why for all.
            word.why = why();
        }
        word.letters += 1;
        word.last = number;
        let due = is_due(word, now);
        (due && self.may_speak(now)).then(|| self.tell(&of, now)).flatten()
    }

    /// Returns the reports whose interval is over.
    pub(super) fn due(&mut self, now: Instant) -> Vec<News> {
        let waits = |word: &Word| word.letters > 0 && is_due(word, now);
        let due = self.of.iter().filter(|(_, word)| waits(word)).map(|(of, _)| of.clone());
        let due: Vec<_> = due.collect();
        let news = due
            .iter()
            .map_while(|of| self.may_speak(now).then(|| self.tell(of, now)))
            .flatten()
            .collect();
        // What has been quiet for long is told at once when it begins again.
        self.of.retain(|_, word| word.letters > 0 || !is_due(word, now));
        news
    }

    fn tell(&mut self, of: &(ActorName, &'static str), now: Instant) -> Option<News> {
        let word = self.of.get_mut(of)?;
        word.told = Some(now);
        Some(News {
            actor: of.0.clone(),
            class: of.1,
            letters: std::mem::take(&mut word.letters),
            last: word.last,
            why: std::mem::take(&mut word.why),
        })
    }

    /// Takes one of the span's reports, if any is left.
    fn may_speak(&mut self, now: Instant) -> bool {
        let span = self.span.get_or_insert((now, 0));
        if now.duration_since(span.0) >= SPAN {
            *span = (now, 0);
        }
        span.1 += 1;
        span.1 <= MAX_WORDS
    }
}

fn is_due(word: &Word, now: Instant) -> bool {
    word.told.is_none_or(|told| now.duration_since(told) >= EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(actor: &str) -> (ActorName, &'static str) {
        (actor.parse().unwrap(), "trap")
    }

    #[test]
    fn the_first_letter_is_told_at_once_and_those_after_it_together() {
        let (mut tidings, start) = (Tidings::default(), Instant::now());
        let mut come = |number, at: u64| {
            let now = start + Duration::from_secs(at);
            tidings.came(of("a"), number, &|| format!("why {number}"), now)
        };
        let first = come(1, 0).unwrap();
        assert_eq!((first.letters, first.last, first.why.as_str()), (1, 1, "why 1"));
        assert!((2..1000).all(|number| come(number, 9).is_none()));
        let then = come(1000, 10).unwrap();
        assert_eq!((then.letters, then.last, then.why.as_str()), (999, 1000, "why 2"));
    }

    #[test]
    fn the_last_letters_of_a_burst_are_told_though_no_other_comes() {
        let (mut tidings, start) = (Tidings::default(), Instant::now());
        for number in 1..=3 {
            _ = tidings.came(of("a"), number, &String::new, start);
        }
        assert_eq!(tidings.due(start + EVERY / 2), []);
        let due = tidings.due(start + EVERY);
        assert_eq!((due.len(), due[0].letters, due[0].last), (1, 2, 3));
        assert_eq!(tidings.due(start + EVERY * 3), []);
        assert!(tidings.of.is_empty(), "nothing is remembered of who is quiet");
    }

    #[test]
    fn however_many_actors_fail_there_are_so_many_words_a_second_and_none_is_left_out() {
        let (mut tidings, start) = (Tidings::default(), Instant::now());
        let actors: Vec<_> = (0..500).map(|n| of(&format!("a{n}"))).collect();
        let told = actors
            .iter()
            .filter(|of| tidings.came((*of).clone(), 1, &String::new, start).is_some());
        let mut told = u32::try_from(told.count()).unwrap();
        assert_eq!(told, MAX_WORDS);
        let mut seconds = 0;
        while told < 500 {
            seconds += 1;
            let news = tidings.due(start + SPAN * seconds);
            assert!(!news.is_empty() && news.len() <= MAX_WORDS as usize);
            told += u32::try_from(news.len()).unwrap();
        }
        assert_eq!((told, seconds), (500, 500 / MAX_WORDS - 1));
    }
}
