//! Those who look on at an actor as it runs: its taps, and the readers of its log.
//!
//! They belong to the actor's name. A swap, another task or an actor that goes and comes
//! back leaves them where they are, as long as somebody looks or the actor is there.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::{ActorName, journal::Journal, tap::Taps};

/// Those of one actor.
#[derive(Clone, Default)]
pub(crate) struct Onlookers {
    pub(crate) taps: Arc<Taps>,
    pub(crate) journal: Arc<Journal>,
}

/// Those of all actors, by name. It keeps none alive.
#[derive(Default)]
pub(crate) struct Gallery(Mutex<HashMap<ActorName, Known>>);

type Known = (Weak<Taps>, Weak<Journal>);

impl Gallery {
    /// Those of the actor of that name, from now on.
    pub(crate) fn of(&self, name: &ActorName) -> Onlookers {
        let mut all = self.0.lock();
        let known = all.get(name);
        let taps = known.and_then(|(taps, _)| taps.upgrade()).unwrap_or_default();
        let journal = known.and_then(|(_, journal)| journal.upgrade()).unwrap_or_default();
        // Names that nobody looks at any more would otherwise add up.
        if all.len() == all.capacity() {
            all.retain(|_, (taps, journal)| taps.strong_count() + journal.strong_count() > 0);
        }
        all.insert(name.clone(), (Arc::downgrade(&taps), Arc::downgrade(&journal)));
        Onlookers { taps, journal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onlookers_stay_while_somebody_looks() {
        let gallery = Gallery::default();
        let name: ActorName = "a".parse().unwrap();
        let first = gallery.of(&name);
        let tap = first.taps.open(crate::TapFilter::default()).unwrap();
        drop(first);
        assert_eq!(gallery.of(&name).taps.len(), 1);
        drop(tap);
        assert_eq!(gallery.of(&name).taps.len(), 0);
        for n in 0..10_000 {
            gallery.of(&format!("n{n}").parse().unwrap());
        }
        assert!(gallery.0.lock().len() < 100, "names that are gone do not add up");
    }
}
