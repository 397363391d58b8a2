//! Looks at real files, written in all the ways in which files are written.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod looks;
mod notice;

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use reflowd_runtime::Digest;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use sha2::{Digest as _, Sha256};

/// The digest of a module of those bytes.
fn digest(bytes: impl AsRef<[u8]>) -> Digest {
    Digest::new(Sha256::digest(bytes.as_ref()).into())
}

/// A named pipe that nobody writes to.
fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Writes beside the file and renames over it.
fn replace(path: &Path, bytes: &str) {
    let temporary = path.with_file_name(".new.Ab12Cd");
    fs::write(&temporary, bytes).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// As Kubernetes mounts a configuration: files are links through `..data`,
/// which is swapped for a link to another folder.
fn swap_data(folder: &Path, version: &str, name: &str, bytes: &str) {
    let data = folder.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join(name), bytes).unwrap();
    let link = folder.join("..data_tmp");
    symlink(format!("..{version}"), &link).unwrap();
    fs::rename(link, folder.join("..data")).unwrap();
    let file = folder.join(name);
    if fs::symlink_metadata(&file).is_err() {
        symlink(PathBuf::from("..data").join(name), file).unwrap();
    }
}

/// Sets a file's modification time back to what another has.
fn copy_time(from: &Path, to: &Path) {
    let time = fs::metadata(from).unwrap().modified().unwrap();
    File::options().append(true).open(to).unwrap().set_modified(time).unwrap();
}
