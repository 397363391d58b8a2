//! The modules that a reconciler has at hand: those loaded, and where their bytes
//! come from.
//!
//! Bytes come from the look itself, from the file where it still holds them, or
//! from the data folder. Whatever reads or writes does so on a thread that may block.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use reflowd_loader::{LoadError, Loader, Source};
use reflowd_runtime::{Digest, Module, panic::blocking};
use thiserror::Error;

use crate::{
    Claims, Depth, FetchError, KeepError, Kept, Look, ModulePlace, Moment, ReadKeptError,
    ScanOptions, Scanner, Snapshot,
};

/// Clones share what is at hand: rollouts take from it side by side.
#[derive(Clone)]
pub(super) struct Library {
    loader: Loader,
    kept: Arc<Kept>,
    /// Locked only where it is used, on a thread that may block.
    scanner: Arc<Mutex<Scanner>>,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    loaded: HashMap<Digest, Arc<dyn Module>>,
    /// What this process has kept itself, and so need not read to know that it is good.
    kept_here: BTreeSet<Digest>,
    /// Of the modules in the data folder, those that must stay and those that should.
    claims: Claims,
}

/// The bytes of a module cannot be had.
#[derive(Debug, Error)]
pub(super) enum BytesError {
    /// Its file has them no more, and they are not kept either.
    #[error(transparent)]
    File(FetchError),
    /// It has no file that holds them, and they are not kept, or damaged.
    #[error(transparent)]
    Kept(ReadKeptError),
}

impl TakeError {
    /// The kept module that is damaged, where that is why.
    pub(super) fn damaged(&self) -> Option<&Path> {
        match self {
            Self::Bytes(BytesError::Kept(ReadKeptError::Damaged { path })) => Some(path),
            Self::Bytes(_) | Self::Load(_) | Self::Broke => None,
        }
    }
}

/// A module could not be loaded.
#[derive(Debug, Error)]
pub(super) enum TakeError {
    /// Its bytes cannot be had.
    #[error(transparent)]
    Bytes(BytesError),
    /// It is no module that can run.
    #[error(transparent)]
    Load(LoadError),
    /// This program broke over it, outside of what reads and compiles it.
    #[error("reflowd itself broke over it, which is a bug in it; it is tried again")]
    Broke,
}

/// A module was not kept.
#[derive(Debug, Error)]
pub(super) enum StoreError {
    /// Its bytes cannot be had.
    #[error(transparent)]
    Bytes(BytesError),
    /// The data folder does not take it.
    #[error(transparent)]
    Keep(KeepError),
}

impl Library {
    pub(super) fn new(loader: Loader, kept: Arc<Kept>, options: ScanOptions) -> Self {
        Self {
            loader,
            kept,
            scanner: Arc::new(Mutex::new(Scanner::new(options))),
            shelf: Arc::default(),
        }
    }

    /// Looks at the disk. The bytes of modules that are loaded are not read again.
    pub(super) async fn look(&self, look: Look, depth: Depth) -> Snapshot {
        let scanner = Arc::clone(&self.scanner);
        let has: BTreeSet<Digest> = self.shelf.lock().loaded.keys().copied().collect();
        blocking(move || scanner.lock().scan(&look, &has, depth, Moment::now())).await
    }

    /// The module, if it is loaded.
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<dyn Module>> {
        self.shelf.lock().loaded.get(digest).cloned()
    }

    /// Says which kept modules must stay, and which should where there is room.
    pub(super) fn claim(&self, claims: Claims) {
        self.shelf.lock().claims = claims;
    }

    /// The kept modules that must stay.
    pub(super) fn needed(&self) -> BTreeSet<Digest> {
        self.shelf.lock().claims.needed.clone()
    }

    /// These must stay too.
    pub(super) fn claim_more(&self, needed: &BTreeSet<Digest>) {
        self.shelf.lock().claims.needed.extend(needed);
    }

    /// Loads a module that went live before, from the data folder.
    ///
    /// # Errors
    /// Its bytes cannot be had, or are no module that can run.
    pub(super) async fn take_again(
        &self,
        digest: Digest,
        place: &ModulePlace,
    ) -> Result<(), TakeError> {
        if self.get(&digest).is_some() {
            return Ok(());
        }
        self.take(digest, place, &Snapshot::default()).await
    }

    /// Loads the module from the look's bytes, the file or the data folder.
    ///
    /// # Errors
    /// The bytes cannot be had, or are no module that can run.
    pub(super) async fn take(
        &self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
    ) -> Result<(), TakeError> {
        let bytes = self.bytes(digest, place, snapshot).await.map_err(TakeError::Bytes)?;
        let source = Source::Bytes { name: place.to_string(), bytes };
        let module = self.loader.load(source).await.map_err(TakeError::Load)?;
        self.shelf.lock().loaded.insert(digest, module);
        Ok(())
    }

    /// Keeps the module in the data folder: what goes live must outlive its file.
    ///
    /// # Errors
    /// The bytes cannot be had, or there is no room for them.
    pub(super) async fn store(
        &self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        let kept = Arc::clone(&self.kept);
        let kept_here = self.shelf.lock().kept_here.contains(&digest);
        if kept_here && blocking(move || kept.has(&digest)).await {
            return Ok(());
        }
        let bytes = self.bytes(digest, place, snapshot).await.map_err(StoreError::Bytes)?;
        let (kept, shelf) = (Arc::clone(&self.kept), Arc::clone(&self.shelf));
        let keeping = move || {
            let claims = {
                let shelf = shelf.lock();
                let mut claims = shelf.claims.clone();
                claims.needed.insert(digest);
                claims.recent.extend(shelf.loaded.keys());
                claims
            };
            kept.keep(digest, &bytes, &claims)
        };
        blocking(keeping).await.map_err(StoreError::Keep)?;
        self.shelf.lock().kept_here.insert(digest);
        Ok(())
    }

    /// Whether the data folder would take the module after those that are `coming`, to which
    /// it is added.
    ///
    /// # Errors
    /// The bytes cannot be had, or there is no room for them.
    pub(super) async fn room(
        &self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
        needed: &BTreeSet<Digest>,
        coming: &mut BTreeMap<Digest, u64>,
    ) -> Result<(), StoreError> {
        if coming.contains_key(&digest) {
            return Ok(());
        }
        let kept = Arc::clone(&self.kept);
        if blocking(move || kept.read(&digest).is_ok()).await {
            return Ok(());
        }
        let bytes = self.bytes(digest, place, snapshot).await.map_err(StoreError::Bytes)?;
        let (kept, needed) = (Arc::clone(&self.kept), needed.clone());
        let (size, before) = (bytes.len() as u64, coming.values().sum());
        let room = blocking(move || kept.room(&digest, size, &needed, before)).await;
        room.map_err(StoreError::Keep)?;
        coming.insert(digest, size);
        Ok(())
    }

    /// Lets go of the modules that are not among those.
    pub(super) fn retain(&self, used: &BTreeSet<Digest>) {
        let (loader, mut shelf) = (&self.loader, self.shelf.lock());
        shelf.loaded.retain(|digest, _| {
            let keep = used.contains(digest);
            if !keep {
                loader.forget(digest);
            }
            keep
        });
        shelf.kept_here.retain(|digest| used.contains(digest));
    }

    async fn bytes(
        &self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
    ) -> Result<Bytes, BytesError> {
        if let Some(bytes) = snapshot.bytes.get(&digest) {
            return Ok(bytes.clone());
        }
        let (scanner, kept) = (Arc::clone(&self.scanner), Arc::clone(&self.kept));
        let file = place.file().map(Path::to_owned);
        blocking(move || match file {
            Some(file) => {
                let fetched = scanner.lock().fetch(&file, &digest);
                fetched.or_else(|error| {
                    kept.read(&digest).map_err(|kept| match kept {
                        ReadKeptError::Damaged { .. } => BytesError::Kept(kept),
                        _ => BytesError::File(error),
                    })
                })
            }
            None => kept.read(&digest).map_err(BytesError::Kept),
        })
        .await
    }
}
