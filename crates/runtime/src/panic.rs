//! Where panics end, and what becomes of what they hit.
//!
//! A panic is an error of this program, and there is always one more. So every task, thread and
//! request runs within a [`Boundary`]: a panic goes no further, costs what was in hand there and
//! nothing else, is told as an event, and shows as a failed part of the daemon until the part
//! works again. What goes on for ever begins anew, after pauses that grow.
//!
//! Where what was in hand is the daemon's own data (actors, wires, books), nobody can say what a
//! panic has left of it. Then the daemon [ends](untrusted) and saves what it holds: its next
//! process begins with data that are whole.
//!
//! Like the log, this is kept once for the process: some of the threads serve all of it.

mod boundary;
mod standing;
mod injected;

use std::{
    any::Any,
    cell::Cell,
    fmt,
    panic::{PanicHookInfo, resume_unwind},
    time::Duration,
};

pub use boundary::{Boundary, PartRole};
pub use injected::{InjectError, inject};
pub use standing::{PartHealth, tell_events, untrusted};

/// Pauses before what has broken is begun again; the last repeats.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

/// The same for threads that serve all the others.
const SHORT_PAUSES: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// A panic that a boundary has caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    boundary: Boundary,
    words: String,
    /// File, line and column, where a hook has noted them.
    place: Option<String>,
}

impl Panic {
    /// A panic of this thread that was caught just now.
    fn caught(boundary: Boundary, panic: &(dyn Any + Send)) -> Self {
        Self { boundary, words: said(panic).to_owned(), place: PLACE.take() }
    }

    /// Panics on, to the next boundary outside.
    pub fn go_on(self) -> ! {
        resume_unwind(Box::new(self.to_string()))
    }

    /// The boundary that has caught it.
    #[must_use]
    pub fn boundary(&self) -> Boundary {
        self.boundary
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reflowd itself broke, which is a bug in it: {}", self.words)?;
        match &self.place {
            Some(place) => write!(f, " at {place}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Panic {}

/// Remembers where a panic is. For the process's panic hook: what catches it is not told.
pub fn note_place(panic: &PanicHookInfo<'_>) {
    PLACE.set(panic.location().map(ToString::to_string));
}

/// Pauses that grow with each attempt that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    broken: usize,
    lengths: &'static [Duration],
}

impl Default for Pauses {
    fn default() -> Self {
        Self { broken: 0, lengths: &PAUSES }
    }
}

impl Pauses {
    /// For what others cannot do without for long.
    #[must_use]
    pub fn short() -> Self {
        Self { broken: 0, lengths: &SHORT_PAUSES }
    }

    /// The pause before the next attempt.
    pub fn after_another(&mut self) -> Duration {
        let pause = self.lengths[self.broken.min(self.lengths.len() - 1)];
        self.broken += 1;
        pause
    }

    /// An attempt has succeeded.
    pub fn succeeded(&mut self) {
        self.broken = 0;
    }
}

/// The words of a panic, as far as it had any.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "a panic without words"
    }
}

#[cfg(test)]
mod tests;
