//! The ring of dead letters on disk: a folder of segments, bounded in bytes.
//!
//! Letters are added to the newest segment; when there is no room any more, the
//! oldest one goes as a whole. A letter that is taken away is marked in its place,
//! which needs no room, so it works on a full disk too. The store does what it is
//! told and never waits; when to write and to synchronize is the writer's to say.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::{
    DeadLetter, Filter, Loss, Losses, Lost,
    record::{self, GONE, Record},
    segment::{self, HEAD, Place, Segment},
};

/// How many segments the ring is made of: so much of it goes at a time.
const SEGMENTS: u64 = 16;

/// The sizes between which a segment is, in bytes, whatever the bound.
const SEGMENT_MIN: u64 = 64 << 10;
const SEGMENT_MAX: u64 = 64 << 20;

/// Something about the dead letters on disk does not work.
#[derive(Debug, Error)]
#[error(
    "{path} cannot be {done}; see that there is room and that the user that runs reflowd may write it"
)]
pub struct StoreError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was tried.
    pub done: &'static str,
    /// Why.
    pub source: io::Error,
}

/// What to say when something at `path` cannot be `done`.
fn failed(path: &Path, done: &'static str) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |source| StoreError { path, done, source }
}

/// The segments of a folder.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    /// Bytes that all segments may have together.
    bound: u64,
    /// By their numbers. Letters are added to the last.
    segments: VecDeque<Segment>,
    /// Marks that could not be written: letters that are gone, and would be back after a restart.
    unmarked: Vec<(Arc<File>, PathBuf, u32)>,
    /// What was written since it was last brought to disk.
    unsynced: Vec<(Arc<File>, PathBuf)>,
    /// Numbers up to this one may have been given to letters.
    last: u64,
}

impl Store {
    /// Opens what is in `folder`, which is made if it is not there, and tells what of it
    /// is lost.
    ///
    /// # Errors
    /// The folder cannot be read. Of a file that cannot be, only its letters are lost.
    pub(super) fn open(folder: &Path, bound: u64) -> Result<(Self, Lost), StoreError> {
        // On a disk that takes nothing, there is still something to be read, or at
        // least the daemon to be run. The first letter will be told of.
        _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let mut paths = Vec::new();
        match fs::read_dir(folder) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(failed(folder, "read"))?.path();
                    paths.extend(segment::first_of(&path).map(|first| (first, path)));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(folder, "read")(error)),
        }
        paths.sort();
        let mut store = Self {
            folder: folder.into(),
            bound,
            segments: VecDeque::new(),
            unmarked: Vec::new(),
            unsynced: Vec::new(),
            last: 0,
        };
        let mut all = Lost::default();
        for (first, path) in paths {
            let length = fs::metadata(&path).map_or(0, |found| found.len());
            let (last, lost) = match Segment::open(path) {
                Ok((segment, lost)) => {
                    let last = segment.last();
                    store.segments.push_back(segment);
                    (last, lost)
                }
                Err(_) => {
                    let could_be = length.div_ceil(record::HEAD as u64);
                    (first + could_be, Lost { letters: 1, bytes: length })
                }
            };
            // No number is given twice, whatever the damaged bytes have held.
            store.last = store.last.max(last);
            all.add(lost);
        }
        Ok((store, all))
    }

    /// The highest number that a letter here may have had.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes that it has on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Bytes that it may have on disk.
    pub(super) fn bound(&self) -> u64 {
        self.bound
    }

    /// Letters that are kept.
    pub(super) fn kept(&self) -> usize {
        self.segments.iter().map(|segment| segment.kept).sum()
    }

    /// Adds letters, whose numbers must rise. Tells how many have been dealt with; those
    /// after them, and an error, where that is not all. What had to make room is added to
    /// `losses`, and so is a letter that is larger than the whole ring.
    pub(super) fn append(
        &mut self,
        letters: &[Arc<DeadLetter>],
        losses: &mut Losses,
    ) -> (usize, Result<(), StoreError>) {
        let mut done = 0;
        while done < letters.len() {
            match self.append_some(&letters[done..], losses) {
                Ok(count) => done += count,
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// Adds as many of the letters, at least one, as belong into one segment.
    fn append_some(
        &mut self,
        letters: &[Arc<DeadLetter>],
        losses: &mut Losses,
    ) -> Result<usize, StoreError> {
        let Some(first) = letters.first() else { return Ok(0) };
        let fits = |record: &Vec<u8>| (HEAD + record.len()) as u64 <= self.bound;
        let Some(record) = record::encode(first).filter(fits) else {
            let bytes = first.envelope.message.encoded_len() as u64;
            losses.add(Loss::TooLarge, Lost { letters: 1, bytes });
            return Ok(1);
        };
        let capacity = self.capacity();
        let mut batch = record.len() as u64;
        let begun = self
            .segments
            .back()
            .is_some_and(|last| last.length == HEAD as u64 || last.length + batch <= capacity);
        if !begun {
            self.begin(first.number)?;
        }
        let length = self.segments.back().map_or(0, |last| last.length);
        let mut records = vec![(first.number, record)];
        for letter in &letters[1..] {
            let Some(record) = record::encode(letter) else { break };
            batch += record.len() as u64;
            if length + batch > capacity {
                batch -= record.len() as u64;
                break;
            }
            records.push((letter.number, record));
        }
        while self.segments.len() > 1 && self.bytes() + batch > self.bound {
            let gone = self.drop_oldest()?;
            losses.add(Loss::PushedOut, gone);
        }
        let last = self.segments.back_mut().expect("a segment has just been begun");
        last.append(&records).map_err(failed(last.path(), "written"))?;
        let (file, path) = (Arc::clone(&last.file), last.path().to_path_buf());
        self.last = self.last.max(last.last());
        self.written_to(file, path);
        Ok(records.len())
    }

    /// The size at which a segment is full.
    fn capacity(&self) -> u64 {
        (self.bound / SEGMENTS).clamp(SEGMENT_MIN, SEGMENT_MAX)
    }

    /// Begins another segment, after bringing down how many letters the last one has.
    fn begin(&mut self, first: u64) -> Result<(), StoreError> {
        if let Some(full) = self.segments.back() {
            full.write_head().map_err(failed(full.path(), "written"))?;
            let (file, path) = (Arc::clone(&full.file), full.path().to_path_buf());
            self.written_to(file, path);
        }
        // It may have been removed, or not been makeable before.
        _ = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        let segment =
            Segment::create(&self.folder, first).map_err(failed(&self.folder, "written to"))?;
        self.segments.push_back(segment);
        Ok(())
    }

    fn drop_oldest(&mut self) -> Result<Lost, StoreError> {
        let Some(oldest) = self.segments.front() else { return Ok(Lost::default()) };
        match fs::remove_file(oldest.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(oldest.path(), "removed")(error));
            }
            _ => {}
        }
        // What was taken away before takes room and is no loss.
        let kept = oldest.kept as u64;
        let gone = Lost { letters: kept, bytes: if kept == 0 { 0 } else { oldest.length } };
        self.unmarked.retain(|(file, ..)| !Arc::ptr_eq(file, &oldest.file));
        self.segments.pop_front();
        Ok(gone)
    }

    fn written_to(&mut self, file: Arc<File>, path: PathBuf) {
        if !self.unsynced.iter().any(|(known, _)| Arc::ptr_eq(known, &file)) {
            self.unsynced.push((file, path));
        }
    }

    /// Takes letters away, for good. Gives which of these numbers there were.
    ///
    /// A segment that has none left goes as a whole.
    ///
    /// # Errors
    /// Beside those: the first that could not be marked, and so would be back after a
    /// restart if [`mark_again`](Self::mark_again) did not succeed until then.
    pub(super) fn remove(&mut self, numbers: &[u64]) -> (Vec<u64>, Result<(), StoreError>) {
        let (mut removed, mut result) = (Vec::new(), Ok(()));
        for &number in numbers {
            let of = self.segments.iter_mut().find_map(|segment| {
                let place = segment.find(number)?;
                segment.forget(number).then_some((segment, place))
            });
            let Some((segment, place)) = of else { continue };
            removed.push(number);
            let (file, path) = (Arc::clone(&segment.file), segment.path().to_path_buf());
            match segment.mark(place.offset) {
                Ok(()) => self.written_to(file, path),
                Err(error) => {
                    let error = failed(&path, "written")(error);
                    result = result.and(Err(error));
                    self.unmarked.push((file, path, place.offset));
                }
            }
        }
        self.clear_empty();
        (removed, result)
    }

    /// Removes old segments without a letter. The newest stays, for its numbers.
    fn clear_empty(&mut self) {
        let last = self.segments.len().saturating_sub(1);
        let mut at = 0;
        self.segments.retain(|segment| {
            at += 1;
            let needed = at > last || segment.kept > 0;
            // One that cannot be removed holds nothing but what is marked.
            needed || fs::remove_file(segment.path()).is_err()
        });
    }

    /// Whether there are letters that are gone and not marked so.
    pub(super) fn has_unmarked(&self) -> bool {
        !self.unmarked.is_empty()
    }

    /// Tries again to mark letters that are gone.
    ///
    /// # Errors
    /// One still cannot be.
    pub(super) fn mark_again(&mut self) -> Result<(), StoreError> {
        while let Some((file, path, offset)) = self.unmarked.pop() {
            if let Err(error) = file.write_all_at(&GONE, u64::from(offset)) {
                let error = failed(&path, "written")(error);
                self.unmarked.push((file, path, offset));
                return Err(error);
            }
            self.written_to(file, path);
        }
        Ok(())
    }

    /// What is to be brought to disk, for a caller that holds no lock meanwhile.
    ///
    /// # Errors
    /// It cannot be written how many letters there are.
    pub(super) fn take_unsynced(&mut self) -> Result<Vec<(Arc<File>, PathBuf)>, StoreError> {
        if let Some(last) = self.segments.back()
            && self.unsynced.iter().any(|(file, _)| Arc::ptr_eq(file, &last.file))
        {
            last.write_head().map_err(failed(last.path(), "written"))?;
        }
        Ok(std::mem::take(&mut self.unsynced))
    }

    /// Whether anything was written since the last [`take_unsynced`](Self::take_unsynced).
    pub(super) fn is_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Takes a letter out that turned out to be damaged, and tells whether it was there.
    pub(super) fn forget(&mut self, number: u64) -> bool {
        self.segments.iter_mut().any(|segment| segment.forget(number))
    }

    /// The letters that are there now and that may fit, to be read without holding anything up.
    pub(super) fn reader(&self, filter: &Filter) -> Reader {
        let parts = self.segments.iter().map(|segment| {
            let places: VecDeque<Place> = if filter.numbers.is_empty() {
                segment.places().filter(|place| place.number > filter.after).collect()
            } else {
                filter.numbers.iter().filter_map(|number| segment.find(*number)).collect()
            };
            (Arc::clone(&segment.file), places)
        });
        Reader { parts: parts.filter(|(_, places)| !places.is_empty()).collect() }
    }
}

/// Brings files to disk. Blocks.
///
/// # Errors
/// One cannot be.
pub(super) fn sync(files: &[(Arc<File>, PathBuf)]) -> Result<(), StoreError> {
    for (file, path) in files {
        file.sync_data().map_err(failed(path, "brought to disk"))?;
    }
    Ok(())
}

/// Letters that were on disk when it was made, read one by one. It keeps the files that
/// it reads open, so a segment that goes meanwhile is still read to its end.
pub(super) struct Reader {
    parts: VecDeque<(Arc<File>, VecDeque<Place>)>,
}

/// What a reader finds where a letter should be.
pub(super) enum Found {
    Letter(Box<DeadLetter>),
    /// It is damaged, or of a form that this version does not know.
    Damaged {
        number: u64,
        bytes: u64,
    },
}

impl Iterator for Reader {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let (file, places) = self.parts.front_mut()?;
            let Some(place) = places.pop_front() else {
                self.parts.pop_front();
                continue;
            };
            match read(file, place) {
                Read::Letter(letter) => return Some(Found::Letter(letter)),
                // Taken away since.
                Read::Gone => {}
                Read::Damaged(bytes) => {
                    return Some(Found::Damaged { number: place.number, bytes });
                }
            }
        }
    }
}

enum Read {
    Letter(Box<DeadLetter>),
    Gone,
    Damaged(u64),
}

fn read(file: &File, place: Place) -> Read {
    let offset = u64::from(place.offset);
    let mut head = [0; record::HEAD];
    if file.read_exact_at(&mut head, offset).is_err() {
        return Read::Damaged(0);
    }
    let length = record::length(&head);
    let there = file.metadata().map_or(0, |found| found.len()).saturating_sub(offset);
    let mut bytes = vec![0; length.min(usize::try_from(there).unwrap_or(usize::MAX))];
    let damaged = Read::Damaged(bytes.len() as u64);
    if file.read_exact_at(&mut bytes, offset).is_err() {
        return damaged;
    }
    match Record::at(&bytes).filter(|record| record.number == place.number) {
        Some(record) if record.gone => Read::Gone,
        Some(record) => {
            record::decode(&record).map_or(damaged, |letter| Read::Letter(Box::new(letter)))
        }
        None => damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::tests::letter;

    fn numbers(store: &Store) -> Vec<u64> {
        store
            .reader(&Filter::default())
            .map(|found| match found {
                Found::Letter(letter) => letter.number,
                Found::Damaged { number, .. } => panic!("{number} is damaged"),
            })
            .collect()
    }

    fn add(store: &mut Store, numbers: std::ops::RangeInclusive<u64>, size: usize) -> Losses {
        let data = format!("\"{}\"", "x".repeat(size));
        let mut losses = Losses::default();
        for number in numbers {
            let (done, result) = store.append(&[Arc::new(letter(number, &data))], &mut losses);
            result.unwrap();
            assert_eq!(done, 1);
        }
        losses
    }

    #[test]
    fn the_oldest_make_room_and_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        let losses = add(&mut store, 1..=300, 10_000);
        let kept = numbers(&store);
        let gone = losses.of(Loss::PushedOut);
        assert_eq!(gone.letters, 300 - kept.len() as u64);
        assert!(gone.bytes > gone.letters * 10_000, "{gone:?}");
        assert_eq!(kept, (300 - kept.len() as u64 + 1..=300).collect::<Vec<_>>());
        assert!(store.bytes() <= 1 << 20 && kept.len() > 80, "{} {}", store.bytes(), kept.len());
        let on_disk: u64 = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(on_disk, store.bytes());
    }

    #[test]
    fn letters_of_every_size_up_to_the_bound_are_kept_and_larger_ones_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        let mut number = 0;
        for size in [1, 60_000, 70_000, 500_000, 1_000_000, 1_040_000, 10] {
            number += 1;
            let losses = add(&mut store, number..=number, size);
            assert_eq!(losses.of(Loss::TooLarge), Lost::default(), "{size}");
            assert!(store.bytes() <= 1 << 20);
            assert_eq!(numbers(&store).last(), Some(&number), "{size}");
        }
        let losses = add(&mut store, 8..=8, 1 << 20);
        assert_eq!(losses.of(Loss::TooLarge).letters, 1);
        assert_eq!(numbers(&store), [6, 7]);
    }

    #[test]
    fn what_was_taken_away_stays_away_and_its_number_is_not_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        add(&mut store, 1..=30, 9_000);
        let (removed, result) = store.remove(&[1, 2, 2, 30, 99]);
        result.unwrap();
        assert_eq!(removed, [1, 2, 30]);
        drop(store);
        let (mut store, lost) = Store::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((lost, store.last()), (Lost::default(), 30));
        assert_eq!(numbers(&store), (3..=29).collect::<Vec<_>>());
        let (removed, result) = store.remove(&(1..=30).collect::<Vec<_>>());
        result.unwrap();
        assert_eq!((removed.len(), store.kept()), (27, 0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let (store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((numbers(&store).len(), store.last()), (0, 30));
    }

    #[test]
    fn a_letter_that_a_full_disk_did_not_take_is_handed_back_and_taken_later() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        add(&mut store, 1..=3, 10);
        // A handle that cannot write stands for a disk that takes nothing.
        let path = store.segments[0].path().to_path_buf();
        let file = Arc::new(File::open(&path).unwrap());
        let writable = std::mem::replace(&mut store.segments[0].file, file);
        let letters = [Arc::new(letter(4, "4")), Arc::new(letter(5, "5"))];
        let (done, result) = store.append(&letters, &mut Losses::default());
        assert_eq!(done, 0);
        let said = result.unwrap_err().to_string();
        assert!(said.contains("cannot be written; see that there is room"), "{said}");
        let (removed, result) = store.remove(&[2]);
        assert!(result.is_err() && store.has_unmarked());
        assert_eq!((removed, numbers(&store)), (vec![2], vec![1, 3]));
        store.segments[0].file = Arc::clone(&writable);
        store.unmarked[0].0 = writable;
        store.mark_again().unwrap();
        let (done, result) = store.append(&letters, &mut Losses::default());
        result.unwrap();
        assert_eq!((done, numbers(&store)), (2, vec![1, 3, 4, 5]));
        let (store, lost) = Store::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((lost, numbers(&store)), (Lost::default(), vec![1, 3, 4, 5]));
    }

    #[test]
    fn damage_that_comes_while_it_is_open_is_found_when_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        add(&mut store, 1..=3, 10);
        let place = store.segments[0].find(2).unwrap();
        let at = u64::from(place.offset) + record::HEAD as u64 + 5;
        store.segments[0].file.write_all_at(b"\0", at).unwrap();
        let found: Vec<_> = store
            .reader(&Filter::default())
            .map(|found| match found {
                Found::Letter(letter) => Ok(letter.number),
                Found::Damaged { number, bytes } => Err((number, bytes > 0)),
            })
            .collect();
        assert_eq!(found, [Ok(1), Err((2, true)), Ok(3)]);
    }

    #[test]
    fn numbers_rise_whatever_was_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(folder.path(), 1 << 20).unwrap();
        add(&mut store, 1..=9, 10);
        let path = store.segments[0].path().to_path_buf();
        drop(store);
        let length = fs::metadata(&path).unwrap().len();
        fs::write(&path, vec![7; usize::try_from(length).unwrap()]).unwrap();
        let (store, lost) = Store::open(folder.path(), 1 << 20).unwrap();
        let last = store.last();
        assert!(last >= 9 && lost.bytes == length, "{last} {lost:?}");
        // A start in which nothing happened costs no number.
        drop(store);
        assert_eq!(Store::open(folder.path(), 1 << 20).unwrap().0.last(), last);
    }

    #[test]
    fn what_is_not_ours_in_the_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let (store, lost) = Store::open(folder.path(), 1 << 20).unwrap();
        assert_eq!((store.kept(), lost), (0, Lost::default()));
        assert!(folder.path().join("notes.txt").exists());
    }
}
