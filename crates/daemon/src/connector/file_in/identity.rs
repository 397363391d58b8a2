//! The identity of a file.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    time::SystemTime,
};

use reflowd_runtime::Position;
use sha2::{Digest, Sha256};

/// Bytes at the beginning by which a file is recognized: some lines of a log, with timestamps that
/// no other log shares.
const HEAD: usize = 1024;

/// The identity of a file.
///
/// It is the inode number and, on file systems that have it, the time of creation, since a number
/// is reused once its file is removed. Without that time the device is part of it; otherwise not,
/// because many devices change their number at a reboot.
pub(super) fn identity(file: &fs::Metadata) -> [u64; 2] {
    match made(file) {
        0 => with_device(file),
        made => [file.ino(), made],
    }
}

/// Whether the file has that identity. Those that a former version has noted include the device.
pub(super) fn is(file: &fs::Metadata, of: [u64; 2]) -> bool {
    identity(file) == of || with_device(file) == of
}

fn with_device(file: &fs::Metadata) -> [u64; 2] {
    [file.dev().rotate_left(32) ^ file.ino(), made(file)]
}

fn made(file: &fs::Metadata) -> u64 {
    file.created().ok().and_then(nanos).unwrap_or(0)
}

/// The times at which a file was made and last written, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    pub(super) made: u64,
    pub(super) written: u64,
}

impl Age {
    pub(super) fn of_file(file: &fs::Metadata) -> Option<Self> {
        Some(Self { made: nanos(file.created().ok()?)?, written: nanos(file.modified().ok()?)? })
    }

    /// The age of a removed file, as far as its identity tells it.
    pub(super) fn of(identity: [u64; 2]) -> Option<Self> {
        let made = identity[1];
        (made > 0).then_some(Self { made, written: made })
    }
}

pub(super) fn nanos(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// The first bytes of a file, as far as they have been read.
///
/// Files only grow, so a difference means another file, or one that was cut and has grown again.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    bytes: Vec<u8>,
    mark: [u64; 2],
}

impl Head {
    /// The head of a file after `read` bytes of it.
    pub(super) fn read(file: &fs::File, read: u64) -> io::Result<Self> {
        let length = usize::try_from(read).unwrap_or(HEAD).min(HEAD);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self { bytes, mark: [0; 2] })
    }

    /// Adds bytes that were read at that offset.
    pub(super) fn extend(&mut self, at: u64, read: &[u8]) {
        if at == self.bytes.len() as u64 && self.bytes.len() < HEAD {
            let more = (HEAD - self.bytes.len()).min(read.len());
            self.bytes.extend_from_slice(&read[..more]);
        }
    }

    /// Whether the file begins with these bytes.
    pub(super) fn is_of(&self, file: &fs::File) -> io::Result<bool> {
        match Self::read(file, self.bytes.len() as u64) {
            Ok(head) => Ok(head.bytes == self.bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The length and the checksum of the bytes before `at`, for the state: a file may not have
    /// been put out further than that.
    pub(super) fn mark(&mut self, at: u64) -> [u64; 2] {
        let length = usize::try_from(at).unwrap_or(HEAD).min(self.bytes.len());
        if self.mark[0] != length as u64 {
            let hash = Sha256::digest(&self.bytes[..length]);
            let hash = hash[..8].try_into().expect("it has 32 bytes");
            self.mark = [length as u64, u64::from_le_bytes(hash)];
        }
        self.mark
    }
}

/// Whether the file can be the one that was read: it begins alike and is as long. A former version
/// has noted no beginning; then any may be.
pub(super) fn may_be(file: &fs::File, come: &Position) -> io::Result<bool> {
    if file.metadata()?.len() < come.at {
        return Ok(false);
    }
    let [length, _] = come.mark;
    match Head::read(file, length) {
        Ok(mut head) => Ok(length == 0 || head.mark(length) == come.mark),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the position includes a checksum of the file's beginning.
pub(super) fn is_marked(come: &Position) -> bool {
    come.mark[0] > 0
}
