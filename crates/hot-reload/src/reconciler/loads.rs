//! Modules that are being loaded.
//!
//! A pass never waits for a module. It says which it needs and goes on with those that are
//! there; the end of a load is a reason for another pass. What has come of a load is kept
//! until a pass has taken note of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    num::NonZero,
    sync::Arc,
    thread::available_parallelism,
};

use reflowd_runtime::Digest;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::{
    lanes::{Lanes, Rank},
    library::{Library, TakeError},
};
use crate::{ModulePlace, Snapshot};

pub(super) struct Loads {
    library: Library,
    lanes: Lanes,
    under_way: BTreeMap<Digest, UnderWay>,
    ended: BTreeMap<Digest, Ended>,
    tasks: JoinSet<(Digest, Ended)>,
    /// The look whose modules are asked for now.
    batch: u64,
}

struct UnderWay {
    place: ModulePlace,
    task: AbortHandle,
}

/// What has come of a load.
pub(super) struct Ended {
    /// Where the module was found.
    pub(super) place: ModulePlace,
    pub(super) result: Result<(), TakeError>,
}

impl Loads {
    pub(super) fn new(library: Library) -> Self {
        let cores = available_parallelism().map_or(1, NonZero::get);
        Self {
            library,
            lanes: Lanes::new(cores),
            under_way: BTreeMap::new(),
            ended: BTreeMap::new(),
            tasks: JoinSet::new(),
            batch: 0,
        }
    }

    /// Another look has begun.
    pub(super) fn begin_batch(&mut self) {
        self.batch += 1;
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.note(ended);
        }
    }

    /// Has a module loaded, unless it is being loaded, or was and nobody has taken note yet.
    pub(super) fn want(&mut self, digest: Digest, place: &ModulePlace, snapshot: &Arc<Snapshot>) {
        if self.under_way.contains_key(&digest) || self.ended.contains_key(&digest) {
            return;
        }
        let size = snapshot.bytes.get(&digest).map_or(u64::MAX, |bytes| bytes.len() as u64);
        let (rank, lanes) = (Rank { batch: self.batch, size }, self.lanes.clone());
        let (library, snapshot) = (self.library.clone(), Arc::clone(snapshot));
        let (from, place) = (place.clone(), place.clone());
        let task = self.tasks.spawn(async move {
            let load = async { library.take(digest, &place, &snapshot).await };
            let result = lanes.take_turn(rank, load).await;
            (digest, Ended { place, result })
        });
        self.under_way.insert(digest, UnderWay { place: from, task });
    }

    /// Whether a module is being loaded.
    pub(super) fn is_under_way(&self, digest: &Digest) -> bool {
        self.under_way.contains_key(digest)
    }

    /// The modules that are being loaded.
    pub(super) fn under_way(&self) -> BTreeSet<Digest> {
        self.under_way.keys().copied().collect()
    }

    /// What has come of loads, as far as nobody has taken note of it.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&Digest, &Ended)> {
        self.ended.iter()
    }

    /// Somebody has taken note of all that.
    pub(super) fn noted(&mut self) {
        self.ended.clear();
    }

    /// Gives up what nobody asks for any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Digest) -> bool) {
        self.under_way.retain(|digest, load| {
            let keep = wanted(digest);
            if !keep {
                load.task.abort();
            }
            keep
        });
        self.ended.retain(|digest, _| wanted(digest));
    }

    /// Returns when a load has ended, well or not. Cancel at will.
    pub(super) async fn ended(&mut self) {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.note(ended),
            None => pending().await,
        }
    }

    fn note(&mut self, ended: Result<(Id, (Digest, Ended)), JoinError>) {
        match ended {
            Ok((_, (digest, ended))) => {
                if self.under_way.remove(&digest).is_some() {
                    self.ended.insert(digest, ended);
                }
            }
            // One that was given up is not among them any more.
            Err(error) => {
                let mut loads = self.under_way.iter();
                let broken = loads.find(|(_, load)| load.task.id() == error.id());
                let Some(digest) = broken.map(|(digest, _)| *digest) else { return };
                if let Some(UnderWay { place, .. }) = self.under_way.remove(&digest) {
                    self.ended.insert(digest, Ended { place, result: Err(TakeError::Broke) });
                }
            }
        }
    }
}
