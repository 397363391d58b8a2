//! The folder in which the daemon keeps what outlives it, and the lock on it.
//!
//! One daemon to a folder: the lock is the operating system's, so it goes with
//! the process that holds it, however that ends, and never has to be cleared away.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use reflowd_hot_reload::read_own_file;
use rustix::fs::OFlags;
use thiserror::Error;

/// The layout of the folder that this daemon reads and writes. The second has checksums
/// over generations and states, which a daemon of the first would take for damage.
const LAYOUT: u32 = 2;

/// What a layout's number is preceded by in the file `VERSION`.
const LAYOUT_PREFIX: &str = "reflowd data ";

/// The data folder, held by this process for as long as the value lives.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

/// The data folder cannot be used.
#[derive(Debug, Error)]
pub(crate) enum DataFolderError {
    /// It is missing and cannot be made.
    #[error(
        "the data folder {path} cannot be made; make it for the user that runs reflowd, or set `data` to another"
    )]
    Make {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it cannot be read or written.
    #[error(
        "{path} in the data folder cannot be {done}; let the user that runs reflowd write it, or set `data` to another folder"
    )]
    Use {
        /// The file.
        path: PathBuf,
        /// What was tried.
        done: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Another daemon holds it.
    #[error("the data folder {path} is in use by another reflowd{}; stop that one, or set `data` to another folder", of_process(*.holder))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Its process.
        holder: Option<u32>,
    },
    /// It is of another version of reflowd.
    #[error(
        "the data folder {path} has the layout `{found}`, and this reflowd knows up to {LAYOUT}; run the newer reflowd, or set `data` to another folder"
    )]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What its `VERSION` says.
        found: String,
    },
}

fn of_process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl DataFolder {
    /// Makes the folder where it is missing, locks it and checks its layout.
    ///
    /// # Errors
    /// It cannot be used, and what to do about it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataFolderError> {
        // What actors keep is nobody else's to read.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| DataFolderError::Make { path: path.into(), source })?;
        let lock = lock(path)?;
        check_layout(path)?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, DataFolderError> {
        let path = self.path.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| DataFolderError::Use { path: path.clone(), done: "made", source })?;
        Ok(path)
    }
}

/// What to say when something at `path` cannot be `done`.
fn use_error(path: &Path, done: &'static str) -> impl FnOnce(io::Error) -> DataFolderError + use<> {
    let path = path.to_path_buf();
    move |source| DataFolderError::Use { path, done, source }
}

/// Takes the lock, and writes into its file who has it.
fn lock(folder: &Path) -> Result<File, DataFolderError> {
    let path = folder.join("lock");
    let failed = |done| use_error(&path, done);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // What a link leads to is not the daemon's to write.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(&path)
        .map_err(failed("opened"))?;
    if !file.metadata().map_err(failed("opened"))?.is_file() {
        return Err(failed("opened")(io::Error::other("it is no regular file")));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Without a number the message is only less helpful.
            _ = file.read_to_string(&mut holder);
            let holder = holder.trim().parse().ok();
            return Err(DataFolderError::Locked { path: folder.into(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed("locked")(source)),
    }
    file.set_len(0).map_err(failed("written"))?;
    writeln!(file, "{}", std::process::id()).map_err(failed("written"))?;
    Ok(file)
}

/// Refuses what a newer daemon has left, and marks a new or older folder as ours.
fn check_layout(folder: &Path) -> Result<(), DataFolderError> {
    let path = folder.join("VERSION");
    let failed = |done| use_error(&path, done);
    let found = match read_own_file(&path).map(String::from_utf8) {
        // A crash between making and filling it leaves it empty.
        Ok(Ok(text)) if text.is_empty() => None,
        Ok(Ok(text)) => Some(text),
        Ok(Err(_)) => Some("no text".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("read")(error)),
    };
    let number = |text: &str| text.trim().strip_prefix(LAYOUT_PREFIX)?.parse::<u32>().ok();
    match found {
        Some(found) if number(&found) == Some(LAYOUT) => Ok(()),
        Some(found) if number(&found).is_none_or(|number| number > LAYOUT) => {
            let found = found.trim().chars().take(40).collect();
            Err(DataFolderError::Layout { path: folder.into(), found })
        }
        _ => fs::write(&path, format!("{LAYOUT_PREFIX}{LAYOUT}\n")).map_err(failed("written")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_new_folder_is_for_its_owner_alone() {
        let temp = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(&temp.path().join("a/b")).unwrap();
        let state = folder.folder("state").unwrap();
        for path in [folder.path(), &state] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn a_lock_that_is_a_link_or_a_pipe_is_refused_and_nothing_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let (lock, precious) = (temp.path().join("lock"), temp.path().join("precious"));
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &lock).unwrap();
        let error = DataFolder::open(temp.path()).unwrap_err().to_string();
        assert!(error.contains("/lock in the data folder cannot be opened"), "{error}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        fs::remove_file(&lock).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &lock, FileType::Fifo, mode, 0).unwrap();
        DataFolder::open(temp.path()).unwrap_err();
    }

    #[test]
    fn a_second_daemon_is_refused_and_told_by_whom() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataFolder::open(temp.path()).unwrap();
        let error = DataFolder::open(temp.path()).unwrap_err().to_string();
        let holder = format!("(process {})", std::process::id());
        let folder = temp.path().display().to_string();
        assert!(error.contains(&holder) && error.contains(&folder), "{error}");
        drop(first);
        DataFolder::open(temp.path()).unwrap();
    }

    #[test]
    fn a_lock_file_that_is_left_behind_locks_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("lock"), "1234567\n").unwrap();
        let _folder = DataFolder::open(temp.path()).unwrap();
        let text = fs::read_to_string(temp.path().join("lock")).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[track_caller]
    fn layout(text: &str, fits: bool) {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("VERSION"), text).unwrap();
        let opened = DataFolder::open(temp.path());
        assert_eq!(opened.is_ok(), fits, "{text:?}: {opened:?}");
        let written = fs::read_to_string(temp.path().join("VERSION")).unwrap();
        let expected = if fits { "reflowd data 2\n" } else { text };
        assert_eq!(written, expected, "{text:?}");
    }

    #[test]
    fn a_folder_of_a_newer_daemon_is_refused() {
        layout("reflowd data 1\n", true);
        layout("reflowd data 2\n", true);
        layout("", true);
        layout("reflowd data 3\n", false);
        layout("something else", false);
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_named() {
        // A file where a folder should be stops every user, root included.
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataFolder::open(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("file/data cannot be made; make it"), "{error}");
        fs::create_dir(temp.path().join("lock")).unwrap();
        let error = DataFolder::open(temp.path()).unwrap_err().to_string();
        assert!(error.contains("/lock in the data folder cannot be opened"), "{error}");
    }
}
