//! What tells a file from all others.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    time::SystemTime,
};

use reflowd_runtime::Position;
use sha2::{Digest, Sha256};

/// Bytes at the beginning of a file by which it is known again: some lines of a log, whose
/// times no other log shares.
const HEAD: usize = 1024;

/// A number that no other file has.
///
/// That is the one that the file system gives it, with the time at which it was made where the
/// file system knows that, since the number of a file that was removed is given to another.
/// Where it does not, the device is a part of it; where it does, it is not: many devices have
/// another number after a reboot.
pub(super) fn identity(file: &fs::Metadata) -> [u64; 2] {
    match made(file) {
        0 => with_device(file),
        made => [file.ino(), made],
    }
}

/// Whether that is the number of the file. One that a former version has noted has the device
/// in it.
pub(super) fn is(file: &fs::Metadata, of: [u64; 2]) -> bool {
    identity(file) == of || with_device(file) == of
}

fn with_device(file: &fs::Metadata) -> [u64; 2] {
    [file.dev().rotate_left(32) ^ file.ino(), made(file)]
}

fn made(file: &fs::Metadata) -> u64 {
    file.created().ok().and_then(nanos).unwrap_or(0)
}

/// When a file was made and last written, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    pub(super) made: u64,
    pub(super) written: u64,
}

impl Age {
    pub(super) fn of_file(file: &fs::Metadata) -> Option<Self> {
        Some(Self { made: nanos(file.created().ok()?)?, written: nanos(file.modified().ok()?)? })
    }

    /// What is known of a file that is gone.
    pub(super) fn of(identity: [u64; 2]) -> Option<Self> {
        let made = identity[1];
        (made > 0).then_some(Self { made, written: made })
    }
}

pub(super) fn nanos(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// The bytes that a file begins with, as far as they have been read.
///
/// Files only grow, so what differs in them is another file, or one that was cut and has
/// grown again.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    bytes: Vec<u8>,
    mark: [u64; 2],
}

impl Head {
    /// The head of a file of which so many bytes have been read.
    pub(super) fn read(file: &fs::File, read: u64) -> io::Result<Self> {
        let length = usize::try_from(read).unwrap_or(HEAD).min(HEAD);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self { bytes, mark: [0; 2] })
    }

    /// Takes in what was read at that place.
    pub(super) fn extend(&mut self, at: u64, read: &[u8]) {
        if at == self.bytes.len() as u64 && self.bytes.len() < HEAD {
            let more = (HEAD - self.bytes.len()).min(read.len());
            self.bytes.extend_from_slice(&read[..more]);
        }
    }

    /// Whether a file begins with it.
    pub(super) fn is_of(&self, file: &fs::File) -> io::Result<bool> {
        match Self::read(file, self.bytes.len() as u64) {
            Ok(head) => Ok(head.bytes == self.bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many bytes they are and what stands for them, as the state has it: of those before
    /// `at`, since a file may be put out no further than that.
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

/// Whether a file begins as the one did in which a source had come so far, and is as long.
/// One whose beginning is not known, because a former version has not noted it, may.
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

/// Whether it is known what the file began with in which a source had come so far.
pub(super) fn is_marked(come: &Position) -> bool {
    come.mark[0] > 0
}
