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

pub(super) struct Library {
    loader: Loader,
    kept: Arc<Kept>,
    /// Locked only where it is used, on a thread that may block.
    scanner: Arc<Mutex<Scanner>>,
    loaded: HashMap<Digest, Arc<dyn Module>>,
    /// What this process has kept itself, and so need not read to know that it is good.
    kept_here: BTreeSet<Digest>,
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
            Self::Bytes(_) | Self::Load(_) => None,
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
            loaded: HashMap::new(),
            kept_here: BTreeSet::new(),
        }
    }

    /// Looks at the disk. The bytes of modules that are loaded are not read again.
    pub(super) async fn look(&self, look: Look, depth: Depth) -> Snapshot {
        let scanner = Arc::clone(&self.scanner);
        let has: BTreeSet<Digest> = self.loaded.keys().copied().collect();
        blocking(move || scanner.lock().scan(&look, &has, depth, Moment::now())).await
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&Arc<dyn Module>> {
        self.loaded.get(digest)
    }

    /// Loads a module that went live before, from the data folder.
    ///
    /// # Errors
    /// Its bytes cannot be had, or are no module that can run.
    pub(super) async fn take_again(
        &mut self,
        digest: Digest,
        place: &ModulePlace,
    ) -> Result<(), TakeError> {
        if self.loaded.contains_key(&digest) {
            return Ok(());
        }
        self.take(digest, place, &Snapshot::default()).await.map(|_| ())
    }

    /// Loads the module from the look's bytes, the file or the data folder.
    ///
    /// # Errors
    /// The bytes cannot be had, or are no module that can run.
    pub(super) async fn take(
        &mut self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
    ) -> Result<&Arc<dyn Module>, TakeError> {
        let bytes = self.bytes(digest, place, snapshot).await.map_err(TakeError::Bytes)?;
        let source = Source::Bytes { name: place.to_string(), bytes };
        let module = self.loader.load(source).await.map_err(TakeError::Load)?;
        Ok(self.loaded.entry(digest).insert_entry(module).into_mut())
    }

    /// Keeps the module in the data folder: what goes live must outlive its file.
    ///
    /// # Errors
    /// The bytes cannot be had, or there is no room for them.
    pub(super) async fn store(
        &mut self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
        needed: BTreeSet<Digest>,
        former: BTreeSet<Digest>,
    ) -> Result<(), StoreError> {
        let kept = Arc::clone(&self.kept);
        if self.kept_here.contains(&digest) && blocking(move || kept.has(&digest)).await {
            return Ok(());
        }
        let bytes = self.bytes(digest, place, snapshot).await.map_err(StoreError::Bytes)?;
        let recent = self.loaded.keys().copied().chain(former).collect();
        let claims = Claims { needed, recent };
        let kept = Arc::clone(&self.kept);
        blocking(move || kept.keep(digest, &bytes, &claims)).await.map_err(StoreError::Keep)?;
        self.kept_here.insert(digest);
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
    pub(super) fn retain(&mut self, used: &BTreeSet<Digest>) {
        let loader = &self.loader;
        self.loaded.retain(|digest, _| {
            let keep = used.contains(digest);
            if !keep {
                loader.forget(digest);
            }
            keep
        });
        self.kept_here.retain(|digest| used.contains(digest));
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
