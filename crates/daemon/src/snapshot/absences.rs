//! How long actors have been gone of which there still are states.
//!
//! What counts is time in which a daemon has run, by a clock that only goes on. The machine's
//! clock may be wrong by weeks when it starts, and no state is thrown away on its word. Where
//! the note is lost, states are kept for longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::Duration,
};

use reflowd_hot_reload::{Sealed, read_own_file, unseal};
use tokio::time::Instant;

use super::replace;

/// How long a daemon runs before it removes the state of an actor that is gone.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The title of what the note holds, with the version of its form.
const TITLE: &str = "reflowd absences 1";

/// The note's name, which is none of a state.
const NAME: &str = "absences";

/// The files whose actors are gone, with the time for which they have been.
#[derive(Debug, Default)]
pub(super) struct Absences {
    seconds: BTreeMap<String, u64>,
    /// Up to when that is counted; nothing before the first look of this process.
    counted: Option<Instant>,
    /// What the note says.
    noted: BTreeMap<String, u64>,
}

impl Absences {
    /// What earlier daemons have counted in that folder.
    pub(super) fn read(folder: &Path) -> Self {
        let text = read_own_file(&folder.join(NAME)).unwrap_or_default();
        let seconds: BTreeMap<_, _> = match unseal(&text) {
            Ok(Sealed { title: TITLE, content }) => {
                serde_json::from_slice(content).unwrap_or_default()
            }
            // Counting begins anew.
            Ok(_) | Err(_) => BTreeMap::new(),
        };
        Self { noted: seconds.clone(), seconds, counted: None }
    }

    /// Counts on for the files whose actors are gone now, and gives those that have been for
    /// long enough.
    pub(super) fn look(&mut self, gone: BTreeSet<String>, now: Instant) -> Vec<String> {
        let more = self.counted.map_or(0, |last| now.duration_since(last).as_secs());
        let before = std::mem::take(&mut self.seconds);
        for name in gone {
            // Of one that has just been noticed nobody knows since when.
            let seconds = before.get(&name).map_or(0, |seconds| seconds.saturating_add(more));
            self.seconds.insert(name, seconds);
        }
        self.counted = Some(now);
        let long = self.seconds.iter().filter(|(_, seconds)| **seconds >= KEPT.as_secs());
        long.map(|(name, _)| name.clone()).collect()
    }

    /// The files whose actors are gone.
    pub(super) fn names(&self) -> Vec<String> {
        self.seconds.keys().cloned().collect()
    }

    /// A file is in use again, or gone too.
    pub(super) fn end(&mut self, name: &str) {
        self.seconds.remove(name);
    }

    /// Notes for the next daemon what is counted, if that is news. Blocks.
    ///
    /// # Errors
    /// The folder does not take it.
    pub(super) fn write(&mut self, folder: &Path) -> io::Result<()> {
        if self.noted == self.seconds {
            return Ok(());
        }
        let text = serde_json::to_vec(&self.seconds).expect("names and numbers can be written");
        replace(folder, &folder.join(NAME), TITLE, &text)?;
        self.noted.clone_from(&self.seconds);
        Ok(())
    }
}
