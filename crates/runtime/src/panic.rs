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
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind},
    time::Duration,
};

use tokio::{task::JoinError, time::Instant};

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
    /// The last panic of this thread.
    static NOTED: Cell<Option<Noted>> = const { Cell::new(None) };
}

/// What the process's hook sees of a panic.
struct Noted {
    words: String,
    /// File, line and column.
    place: Option<String>,
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
        let place = NOTED.take().and_then(|noted| noted.place);
        Self { boundary, words: said(panic).to_owned(), place }
    }

    /// The panic that this thread is unwinding with, for what drops with a thread that has no
    /// boundary: it belongs to a library. Nobody has been [told](Self::tell) of it.
    #[must_use]
    pub fn unwinding(boundary: Boundary) -> Self {
        let noted = NOTED.take().unwrap_or_else(|| Noted { words: WORDLESS.into(), place: None });
        Self { boundary, words: noted.words, place: noted.place }
    }

    /// Tells of it, as of every other that a boundary catches.
    pub fn tell(&self) {
        standing::broke(self);
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
    let place = panic.location().map(ToString::to_string);
    NOTED.set(Some(Noted { words: said(panic.payload()).to_owned(), place }));
}

/// Does work that blocks on a thread that is for that, and waits for it. A panic of it goes on
/// here, with the place where it was, to the boundary that the caller is in.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let within = || catch_unwind(AssertUnwindSafe(work)).map_err(|words| (words, NOTED.take()));
    match tokio::task::spawn_blocking(within).await.map_err(JoinError::try_into_panic) {
        Ok(Ok(done)) => done,
        Ok(Err((words, noted))) => {
            // Whatever catches it does so in this very call, on this thread.
            NOTED.set(noted);
            resume_unwind(words)
        }
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is ending, and everything on it with it.
        Err(Err(_)) => std::future::pending().await,
    }
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

/// Said of a panic that says nothing itself.
const WORDLESS: &str = "a panic without words";

/// When something that breaks again and again is tried again.
#[derive(Clone, Debug, Default)]
pub struct Breakage {
    pauses: Pauses,
    until: Option<Instant>,
}

impl Breakage {
    /// It broke. Gives when to try again.
    pub fn broke(&mut self, boundary: Boundary) -> Instant {
        let now = Instant::now();
        if self.until.is_some_and(|until| now >= until + boundary::LASTED) {
            self.pauses.succeeded();
        }
        let until = now + boundary.again_after(&mut self.pauses);
        self.until = Some(until);
        until
    }

    /// Until when it is left alone, or was.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether it is left alone now.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }
}

/// The words of a panic, as far as it had any.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        WORDLESS
    }
}

#[cfg(test)]
mod tests;
