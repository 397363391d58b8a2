//! What one look at the disk says of every file.
//!
//! That nothing can be said is as much of an answer as what a file holds, and what
//! nothing can be said of nothing follows from.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use reflowd_runtime::Digest;
use thiserror::Error;
use tokio::time::Instant;

use crate::{flow::ModuleRef, plan::builtin_digest, stranger::Stranger};

/// What one look says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight<T> {
    /// It is there, and this is what it holds.
    Present(T),
    /// It is there and has not stood still: look again soon.
    Unsettled,
    /// It is not there, and may be back in a moment.
    Missing,
    /// It is not there, and that is meant.
    Gone,
    /// Nothing can be said, so nothing follows from it.
    Unknown(Trouble),
}

/// Why nothing can be said of a file or a folder.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Trouble {
    /// The folder is not there.
    #[error("the folder does not exist; make it, or mount what holds it")]
    FolderMissing,
    /// The path leads to something else.
    #[error("this is not a folder")]
    NotAFolder,
    /// The system does not let us look.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// The folder was on another file system before, which may be unmounted.
    #[error(
        "the folder is on another device than before; mount what was there, or reload with removals allowed"
    )]
    OtherDevice,
    /// The folder was replaced while it was listed.
    #[error("the folder changed while it was being listed")]
    Moving,
    /// Anybody on the machine could put code there.
    #[error("anybody may write to {}; take away the permission (chmod o-w)", .0.display())]
    Insecure(PathBuf),
    /// A user who runs neither the machine nor the daemon nor the folder could change the file.
    #[error("{} {}", .path.display(), Stranger::User(*.owner))]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The number of its owner.
        owner: u32,
    },
    /// The folder holds too many files.
    #[error("the folder holds more than {max} files")]
    TooMany {
        /// The most that it may hold.
        max: usize,
    },
    /// The file is over the limit.
    #[error("the file has {size} bytes, and {max} are allowed")]
    TooLarge {
        /// Bytes of the file.
        size: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// A configuration file is not UTF-8.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// A module is not downloaded yet, though that was tried.
    #[error("{0}")]
    NotDownloaded(String),
    /// A configuration file that must be there is not.
    #[error("the configuration file is not there; what it said last stays in force")]
    ConfigMissing,
    /// In the place of a configuration file that must be there is something else.
    #[error("this is {0} and no configuration file; what the file said last stays in force")]
    ConfigOdd(&'static str),
}

/// What one look at the disk has found.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The files of the watched folder, by name. Files that nobody has seen yet
    /// or that have been reported gone are not among them.
    pub modules: BTreeMap<OsString, Sight<Digest>>,
    /// Why the watched folder cannot be read, where it cannot.
    pub modules_trouble: Option<Trouble>,
    /// The modules asked for by path.
    pub paths: BTreeMap<PathBuf, Sight<Digest>>,
    /// The modules asked for by URL. Those on their way are [`Sight::Unsettled`].
    pub downloads: BTreeMap<Digest, Sight<Digest>>,
    /// The configuration files, those included by pattern among them.
    pub configs: BTreeMap<PathBuf, Sight<Arc<str>>>,
    /// The bytes of new modules, as far as they fit.
    pub bytes: BTreeMap<Digest, Bytes>,
    /// What bears the name of a file that counts and is none, and what it is instead.
    pub oddities: BTreeMap<PathBuf, &'static str>,
    /// Folders about which nothing can be said.
    pub troubles: BTreeMap<PathBuf, Trouble>,
    /// The files that links have led to.
    pub targets: BTreeSet<PathBuf>,
    /// When to look again, where a later look will know more.
    pub again: Option<Instant>,
}

impl<T> Sight<T> {
    /// What the file holds, where that can be said.
    #[must_use]
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(content) => Some(content),
            _ => None,
        }
    }
}

impl Snapshot {
    /// What the look says of the module `stem` in the watched folder.
    #[must_use]
    pub fn stem(&self, stem: &str) -> Sight<Digest> {
        let seen = self.modules.get(OsStr::new(&format!("{stem}.wasm"))).cloned();
        seen.unwrap_or_else(|| match &self.modules_trouble {
            Some(trouble) => Sight::Unknown(trouble.clone()),
            None => Sight::Gone,
        })
    }

    /// What the look says of a module, wherever it comes from.
    #[must_use]
    pub fn module(&self, module: &ModuleRef) -> Sight<Digest> {
        match module {
            ModuleRef::Stem { stem, .. } => self.stem(stem),
            // A path that has not been looked at yet will be next time.
            ModuleRef::Path { path, .. } => {
                self.paths.get(path).cloned().unwrap_or(Sight::Unsettled)
            }
            ModuleRef::Url { sha256, .. } => {
                self.downloads.get(sha256).cloned().unwrap_or(Sight::Unsettled)
            }
            ModuleRef::Builtin { name } => Sight::Present(builtin_digest(name)),
        }
    }

    /// The configuration's texts, when each is known: half of a configuration
    /// is another configuration.
    ///
    /// # Errors
    /// The files of which nothing certain can be said now. What the configuration
    /// said last stays in force.
    pub fn sources(&self) -> Result<BTreeMap<PathBuf, Arc<str>>, Vec<PathBuf>> {
        let certain = |sight: &Sight<_>| matches!(sight, Sight::Present(_) | Sight::Gone);
        let doubtful = self.configs.iter().filter(|(_, sight)| !certain(sight));
        let doubtful: Vec<_> = doubtful.map(|(path, _)| path.clone()).collect();
        if doubtful.is_empty() { Ok(self.known_sources()) } else { Err(doubtful) }
    }

    /// The configuration's texts as far as they are known.
    #[must_use]
    pub fn known_sources(&self) -> BTreeMap<PathBuf, Arc<str>> {
        let known = self.configs.iter();
        known
            .filter_map(|(path, sight)| Some((path.clone(), Arc::clone(sight.present()?))))
            .collect()
    }

    /// The configuration files of which a look cannot say what they hold, and why. Those that
    /// may be known in a moment are not among them.
    pub fn config_troubles(&self) -> impl Iterator<Item = (&Path, &Trouble)> {
        self.configs.iter().filter_map(|(path, sight)| match sight {
            Sight::Unknown(trouble) => Some((path.as_path(), trouble)),
            _ => None,
        })
    }

    /// The files that have not stood still.
    pub fn unsettled(&self) -> impl Iterator<Item = &Path> {
        fn moving<K: AsRef<Path>, T>(
            sights: &BTreeMap<K, Sight<T>>,
        ) -> impl Iterator<Item = &Path> {
            let moving = sights.iter().filter(|(_, sight)| matches!(sight, Sight::Unsettled));
            moving.map(|(path, _)| path.as_ref())
        }
        moving(&self.modules).chain(moving(&self.paths)).chain(moving(&self.configs))
    }
}
