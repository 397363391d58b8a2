//! What the process has around it, as a value.
//!
//! Nothing below this file looks at the process's variables or its working
//! directory, so a test says what they are.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use thiserror::Error;

/// The largest secret, in bytes. Certificates fit; a log file that somebody named by mistake does not.
const MAX_SECRET: u64 = 1 << 20;

/// The variables and the working directory of a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// The environment variables whose names are UTF-8.
    pub(crate) vars: BTreeMap<String, OsString>,
    /// The working directory. Absolute.
    pub(crate) cwd: PathBuf,
}

/// Why a file that holds a secret cannot be used. Never says what is in it.
#[derive(Debug, Error)]
pub(crate) enum SecretError {
    /// It cannot be opened or read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("`{0}` is not a regular file")]
    NotAFile(PathBuf),
    /// Larger than a secret can be.
    #[error("`{0}` is larger than 1 MiB")]
    TooLarge(PathBuf),
    /// Bytes that cannot be given to a guest as a string.
    #[error("`{0}` is not UTF-8 text")]
    NotText(PathBuf),
}

impl Environment {
    /// That of this process.
    pub(crate) fn of_process() -> Self {
        let vars = std::env::vars_os();
        let vars = vars.filter_map(|(k, v)| k.into_string().ok().map(|k| (k, v))).collect();
        // Without a working directory (it was removed) only absolute paths work.
        let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
        Self { vars, cwd }
    }

    /// A variable that is set and not empty.
    pub(crate) fn var(&self, name: &str) -> Option<&OsStr> {
        self.vars.get(name).map(OsString::as_os_str).filter(|v| !v.is_empty())
    }

    /// The first folder in a variable that systemd sets to a list of folders.
    pub(crate) fn folder(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(self.var(name)?).next().filter(|path| path.is_absolute())
    }

    /// `path` from the working directory, without `.` and `..`.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        normal(&self.cwd.join(path))
    }

    /// The text of a file that holds a secret, without the newline at its end.
    ///
    /// # Errors
    /// The file is unreadable, not a regular file, over 1 MiB or not UTF-8.
    pub(crate) fn read_secret(&self, path: &Path) -> Result<String, SecretError> {
        let read = |source| SecretError::Read { path: path.into(), source };
        // Opening a pipe waits for its writer, so look before opening.
        if !path.metadata().map_err(read)?.is_file() {
            return Err(SecretError::NotAFile(path.into()));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(read)?;
        file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > MAX_SECRET {
            return Err(SecretError::TooLarge(path.into()));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| SecretError::NotText(path.into()))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }
}

/// `path` without `.` and `..`, by its text alone: the file need not be there.
pub(super) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => _ = out.pop(),
            part => out.push(part),
        }
    }
    out
}
