//! Dead letters that are no longer to be had, and why.

use std::ops::Sub;

use serde::Serialize;

/// Why letters are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The ring on disk was full, and newer ones pushed them out.
    PushedOut,
    /// They could not be written in time, and memory holds only so many.
    Memory,
    /// What is on disk is damaged or missing.
    Damaged,
    /// They were larger than the whole ring.
    TooLarge,
}

impl Loss {
    /// All of them, in the order of [`Losses`].
    pub const ALL: [Self; 4] = [Self::PushedOut, Self::Memory, Self::Damaged, Self::TooLarge];

    /// One word for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PushedOut => "pushed-out",
            Self::Memory => "memory",
            Self::Damaged => "damaged",
            Self::TooLarge => "too-large",
        }
    }

    /// What happened, and what to do about it.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Self::PushedOut => {
                "newer ones needed their room on disk; raise `dead_letters`, or replay or purge what is there"
            }
            Self::Memory => {
                "they could not be written to disk as fast as they came; see that the data folder has room and can be written"
            }
            Self::Damaged => "files in the data folder's `dead` are damaged; look after the disk",
            Self::TooLarge => "they were larger than `dead_letters` allows; raise it",
        }
    }
}

/// How many letters are lost. Where bytes are damaged it is not known how many letters
/// they held, and one is counted for each stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Letters.
    pub letters: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Lost {
    /// Adds others.
    pub(super) fn add(&mut self, other: Self) {
        self.letters += other.letters;
        self.bytes += other.bytes;
    }
}

/// What is lost since the daemon started, what it found missing at the start included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses([Lost; Loss::ALL.len()]);

impl Losses {
    /// What is lost for that reason.
    #[must_use]
    pub fn of(&self, loss: Loss) -> Lost {
        self.0[loss as usize]
    }

    /// Adds what is lost for that reason.
    pub(super) fn add(&mut self, loss: Loss, lost: Lost) {
        self.0[loss as usize].add(lost);
    }

    /// Adds others.
    pub(super) fn add_all(&mut self, other: Self) {
        Loss::ALL.into_iter().for_each(|loss| self.add(loss, other.of(loss)));
    }
}

impl Sub for Losses {
    type Output = Self;

    /// What came since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self(std::array::from_fn(|at| Lost {
            letters: self.0[at].letters - earlier.0[at].letters,
            bytes: self.0[at].bytes - earlier.0[at].bytes,
        }))
    }
}
