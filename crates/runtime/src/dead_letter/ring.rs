//! Dead letters in memory: those that are not on disk yet.
//!
//! Bounded in number and bytes, so that a disk that takes nothing costs letters
//! and never memory. Those that the writer is about to write stay until they are
//! written, and are not the ones to make room.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use super::{DeadLetter, Loss, Losses, Lost};
use crate::ActorName;

/// Dead letters that are kept in memory.
pub(super) const MAX_LETTERS: usize = 10_000;

/// Bytes of messages that are kept in memory.
const MAX_BYTES: usize = 64 << 20;

/// The letters, and what is counted with them.
#[derive(Default)]
pub(super) struct Ring {
    /// By their numbers.
    letters: VecDeque<Arc<DeadLetter>>,
    bytes: usize,
    /// The number that was given last.
    pub(super) numbers: u64,
    /// How many, from the oldest on, are being written.
    writing: usize,
    /// All that ever came, by actor and class of reason.
    pub(super) totals: HashMap<(ActorName, &'static str), u64>,
    /// When a dropped message of an actor was last kept.
    pub(super) last_drop: HashMap<ActorName, Instant>,
    pub(super) losses: Losses,
    /// Whether the writer waits for letters.
    pub(super) idle: bool,
    /// Whether the writer is to write what there is and end.
    pub(super) closing: bool,
    /// Whether it has.
    pub(super) ended: bool,
    /// Why letters are not written, while that is so.
    pub(super) trouble: Option<String>,
}

impl Ring {
    /// Adds the newest. The oldest that are not being written make room.
    pub(super) fn push(&mut self, letter: DeadLetter) {
        self.bytes += size(&letter);
        self.letters.push_back(Arc::new(letter));
        while self.is_over() {
            let Some(oldest) = self.letters.remove(self.writing) else { return };
            let bytes = size(&oldest);
            self.bytes -= bytes;
            self.losses.add(Loss::Memory, Lost { letters: 1, bytes: bytes as u64 });
        }
    }

    fn is_over(&self) -> bool {
        let waiting = self.letters.len() - self.writing;
        waiting > 1 && (self.letters.len() > MAX_LETTERS || self.bytes > MAX_BYTES)
    }

    /// The oldest, to be written: at most so many letters, and bytes but for the first.
    pub(super) fn begin_writing(&mut self, letters: usize, bytes: usize) -> Vec<Arc<DeadLetter>> {
        let mut sum = 0;
        let batch: Vec<_> = self
            .letters
            .iter()
            .take(letters)
            .take_while(|letter| {
                let fits = sum == 0 || sum + size(letter) <= bytes;
                sum += size(letter);
                fits
            })
            .cloned()
            .collect();
        self.writing = batch.len();
        batch
    }

    /// So many of those that were to be written are dealt with; the others wait again.
    pub(super) fn end_writing(&mut self, written: usize) {
        for letter in self.letters.drain(..written) {
            self.bytes -= size(&letter);
        }
        self.writing = 0;
    }

    /// The letters here, by their numbers.
    pub(super) fn letters(&self) -> impl Iterator<Item = &Arc<DeadLetter>> {
        self.letters.iter()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Takes a letter out, and tells whether it was here. None may be being written.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        debug_assert_eq!(self.writing, 0, "a letter that is being written cannot be taken out");
        let found = self.letters.binary_search_by_key(&number, |letter| letter.number);
        let Some(letter) = found.ok().and_then(|at| self.letters.remove(at)) else { return false };
        self.bytes -= size(&letter);
        true
    }
}

/// What a letter counts for.
fn size(letter: &DeadLetter) -> usize {
    letter.envelope.message.encoded_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::tests::letter;

    fn numbers(ring: &Ring) -> Vec<u64> {
        ring.letters().map(|letter| letter.number).collect()
    }

    #[test]
    fn what_is_being_written_is_not_what_makes_room() {
        let mut ring = Ring::default();
        let large = format!("\"{}\"", "x".repeat(MAX_BYTES / 3));
        (1..=2).for_each(|number| ring.push(letter(number, &large)));
        assert_eq!(ring.begin_writing(1, usize::MAX).len(), 1);
        (3..=5).for_each(|number| ring.push(letter(number, &large)));
        assert_eq!(numbers(&ring), [1, 5]);
        assert_eq!(ring.losses.of(Loss::Memory).letters, 3);
        ring.end_writing(1);
        assert_eq!(numbers(&ring), [5]);
        ring.end_writing(0);
        assert!(ring.remove(5) && !ring.remove(5));
        assert_eq!((ring.len(), ring.bytes), (0, 0));
    }

    #[test]
    fn a_batch_has_at_least_one_letter_and_otherwise_keeps_its_bounds() {
        let mut ring = Ring::default();
        (1..=5).for_each(|number| ring.push(letter(number, "\"some text\"")));
        let size = size(&letter(1, "\"some text\""));
        for (letters, bytes, expected) in [(9, 1, 1), (9, 2 * size, 2), (3, 9 * size, 3)] {
            assert_eq!(ring.begin_writing(letters, bytes).len(), expected);
            ring.end_writing(0);
        }
        assert_eq!(numbers(&ring), [1, 2, 3, 4, 5]);
    }
}
