//! One file of dead letters: a head, and then record after record.
//!
//! The head says how many letters were written when the file was last brought to
//! disk, so that letters which a cut took away without a trace are missed all the
//! same. Records are only added; what is written over is the head, and the mark
//! of a letter that goes.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Lost,
    record::{self, CHECKSUM, GONE, MARK, Record, checksum},
};

/// What the names of segments end with; before it stands the first number that may be in one.
const SUFFIX: &str = ".dead";

/// Only the daemon's user may read what actors were sent.
const MODE: u32 = 0o600;

/// Begins a segment.
const HEAD_MARK: [u8; MARK] = *b"\xffdead 1\xfe";

/// What stands before the records: mark, letters written, the last one's number, checksum.
pub(super) const HEAD: usize = MARK + 8 + 8 + CHECKSUM;

/// Where a letter that is kept stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) number: u64,
    pub(super) offset: u32,
    pub(super) gone: bool,
}

/// A file of dead letters, open.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    pub(super) file: Arc<File>,
    /// Bytes.
    pub(super) length: u64,
    /// In the order of their numbers.
    places: Vec<Place>,
    /// How many of them are not gone.
    pub(super) kept: usize,
    head: Head,
}

/// What the head says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Head {
    written: u64,
    last: u64,
}

impl Head {
    fn encode(self) -> [u8; HEAD] {
        let (written, last) = (self.written.to_le_bytes(), self.last.to_le_bytes());
        let sum = checksum(&[&written, &last]);
        let bytes = [&HEAD_MARK[..], &written, &last, &sum].concat();
        std::array::from_fn(|at| bytes[at])
    }

    fn at(bytes: &[u8]) -> Option<Self> {
        let (mark, rest) = bytes.split_first_chunk::<MARK>()?;
        let (written, rest) = rest.split_first_chunk::<8>()?;
        let (last, rest) = rest.split_first_chunk::<8>()?;
        let whole = *mark == HEAD_MARK && rest.starts_with(&checksum(&[written, last]));
        whole.then(|| Self {
            written: u64::from_le_bytes(*written),
            last: u64::from_le_bytes(*last),
        })
    }
}

/// What can be read of a segment's bytes.
#[derive(Debug, Default)]
pub(super) struct Scan {
    head: Head,
    places: Vec<Place>,
    /// What is missing or damaged.
    pub(super) lost: Lost,
}

/// Reads a whole segment. Pure.
///
/// Damage is skipped up to the next record that is whole. At least one letter is lost
/// for every damaged stretch, and as many as the head says were there and are not.
/// `first` is the first number that may be in it.
pub(super) fn scan(bytes: &[u8], first: u64) -> Scan {
    let mut scan = Scan::default();
    let (mut at, mut stretches, mut damaged, mut tail) = (0, 0u64, 0, 0);
    let head = Head::at(bytes);
    match head {
        Some(head) => {
            scan.head = head;
            at = HEAD;
        }
        // Nothing but an empty file has no byte to be damaged, and it lacks its head.
        None if bytes.is_empty() => stretches += 1,
        None => {}
    }
    let mut within = false;
    let mut highest = None;
    while at < bytes.len() {
        match Record::at(&bytes[at..]) {
            Some(record) => {
                (within, tail) = (false, 0);
                // A number that does not rise is what a write that failed half-way has left.
                let rises = highest.is_none_or(|highest| record.number > highest);
                if let (true, Ok(offset)) = (rises, u32::try_from(at)) {
                    highest = Some(record.number);
                    let place = Place { number: record.number, offset, gone: record.gone };
                    scan.places.push(place);
                }
                at += record.len();
            }
            None => {
                stretches += u64::from(!within);
                within = true;
                let next = record::next_mark(bytes, at + 1).unwrap_or(bytes.len());
                damaged += next - at;
                tail += next - at;
                at = next;
            }
        }
    }
    let found = scan.places.len() as u64;
    let missing = scan.head.written.saturating_sub(found);
    scan.lost = Lost { letters: missing.max(stretches), bytes: damaged as u64 };
    scan.head.written = scan.head.written.max(found);
    // What stands between two whole records has a number between theirs. At the end there
    // may have been as many as fit, and none of their numbers is to be given again.
    let hidden = tail.div_ceil(record::HEAD) as u64;
    scan.head.last = scan.head.last.max(highest.unwrap_or(first.saturating_sub(1)) + hidden);
    scan
}

impl Segment {
    /// Makes an empty segment for letters from number `first` on.
    pub(super) fn create(folder: &Path, first: u64) -> io::Result<Self> {
        let path = folder.join(format!("{first:020}{SUFFIX}"));
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(MODE).open(&path)?;
        let head = Head::default();
        if let Err(error) = file.write_all_at(&head.encode(), 0) {
            // Without a head it would be told as damaged at the next start.
            _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let file = Arc::new(file);
        Ok(Self { path, file, length: HEAD as u64, places: Vec::new(), kept: 0, head })
    }

    /// Opens a segment that is there, and tells what is lost of it.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, Lost)> {
        let mut options = OpenOptions::new();
        options.read(true);
        // Where nothing can be written, everything can still be read.
        let file = options.clone().write(true).open(&path).or_else(|_| options.open(&path))?;
        let length = file.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        let Scan { head, places, lost } = scan(&bytes, first_of(&path).unwrap_or(1));
        let kept = places.iter().filter(|place| !place.gone).count();
        Ok((Self { path, file: Arc::new(file), length, places, kept, head }, lost))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds records that belong together, whose letters have these numbers.
    ///
    /// # Errors
    /// They cannot be written; the segment is as it was.
    pub(super) fn append(&mut self, records: &[(u64, Vec<u8>)]) -> io::Result<()> {
        let bytes: Vec<u8> =
            records.iter().flat_map(|(_, record)| record.iter().copied()).collect();
        if let Err(error) = self.file.write_all_at(&bytes, self.length) {
            // What is left of it is written over by the next, or known as damaged.
            _ = self.file.set_len(self.length);
            return Err(error);
        }
        for (number, record) in records {
            let offset = u32::try_from(self.length).map_err(io::Error::other)?;
            self.places.push(Place { number: *number, offset, gone: false });
            self.length += record.len() as u64;
            self.kept += 1;
            self.head = Head { written: self.head.written + 1, last: *number };
        }
        Ok(())
    }

    /// Writes down how many letters there are. It counts once the file is synchronized.
    pub(super) fn write_head(&self) -> io::Result<()> {
        self.file.write_all_at(&self.head.encode(), 0)
    }

    /// The highest number that may ever have been in it.
    pub(super) fn last(&self) -> u64 {
        self.head.last
    }

    /// The letters that are not gone.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.places.iter().copied().filter(|place| !place.gone)
    }

    /// Where the letter of that number stands, if it is here and not gone.
    pub(super) fn find(&self, number: u64) -> Option<Place> {
        let at = self.places.binary_search_by_key(&number, |place| place.number).ok()?;
        Some(self.places[at]).filter(|place| !place.gone)
    }

    /// Takes a letter out of the list. On disk it stays until it is [marked](Self::mark).
    pub(super) fn forget(&mut self, number: u64) -> bool {
        let found = self.places.binary_search_by_key(&number, |place| place.number);
        match found {
            Ok(at) if !self.places[at].gone => {
                self.places[at].gone = true;
                self.kept -= 1;
                true
            }
            _ => false,
        }
    }

    /// Writes down that the letter at `offset` is gone.
    pub(super) fn mark(&self, offset: u32) -> io::Result<()> {
        self.file.write_all_at(&GONE, u64::from(offset))
    }
}

/// The first number that may be in the segment of that name; nothing where it is none.
pub(super) fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::tests::{Dice, letter};

    /// A synchronized segment's bytes, and the letters in it as text.
    fn written() -> (Vec<u8>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(folder.path(), 1).unwrap();
        let letters: Vec<_> = (1..=6).map(|n| letter(n, &format!("\"{}\"", n * 1111))).collect();
        let records: Vec<_> =
            letters.iter().map(|letter| (letter.number, record::encode(letter).unwrap())).collect();
        segment.append(&records).unwrap();
        segment.mark(segment.find(2).unwrap().offset).unwrap();
        segment.write_head().unwrap();
        let texts = letters.iter().map(|letter| format!("{letter:?}")).collect();
        (std::fs::read(segment.path()).unwrap(), texts)
    }

    /// What a reader sees of these bytes, and what it is told to be lost.
    #[track_caller]
    fn check(bytes: &[u8], texts: &[String]) -> (usize, Lost) {
        let Scan { places, lost, head } = scan(bytes, 1);
        assert!(bytes.len() < HEAD || head.last >= places.last().map_or(0, |place| place.number));
        for place in &places {
            let record = Record::at(&bytes[place.offset as usize..]).unwrap();
            let at = usize::try_from(place.number).unwrap() - 1;
            assert_eq!(format!("{:?}", record::decode(&record).unwrap()), texts[at]);
            assert!(!place.gone || place.number == 2, "a letter that was kept is gone");
        }
        (places.len(), lost)
    }

    #[test]
    fn a_whole_segment_has_all_letters_and_lacks_none() {
        let (bytes, texts) = written();
        assert_eq!(check(&bytes, &texts), (6, Lost::default()));
    }

    #[test]
    fn a_cut_at_any_byte_leaves_whole_letters_and_tells_the_others() {
        let (bytes, texts) = written();
        for cut in 0..bytes.len() {
            let (read, lost) = check(&bytes[..cut], &texts);
            assert!(lost.letters >= 1, "cut at {cut}: {lost:?}");
            if cut >= HEAD {
                assert_eq!(read as u64 + lost.letters, 6, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_hole_anywhere_is_skipped_up_to_the_next_whole_letter() {
        let (bytes, texts) = written();
        for from in 0..bytes.len() {
            for length in [1, 30, 400] {
                let mut holed = bytes.clone();
                let to = (from + length).min(bytes.len());
                holed[from..to].fill(0);
                if holed == bytes {
                    continue;
                }
                let (read, lost) = check(&holed, &texts);
                assert!(lost.letters >= 1 && lost.bytes > 0, "{from}..{to}: {lost:?}");
                assert!(read >= 6 - 3, "{from}..{to}: {read}");
            }
        }
    }

    #[test]
    fn a_thousand_flipped_bits_show_nothing_wrong() {
        let (bytes, texts) = written();
        let mut dice = Dice::new();
        for round in 0..1000 {
            // One more each time: from a single bit to a file that is all noise.
            let mut flipped = bytes.clone();
            for _ in 0..=round {
                let bit = dice.below(bytes.len() * 8);
                flipped[bit / 8] ^= 1 << (bit % 8);
            }
            if flipped == bytes {
                continue;
            }
            let (read, lost) = check(&flipped, &texts);
            assert!(lost.letters >= 1, "round {round}: {read} read, {lost:?}");
        }
    }

    #[test]
    fn what_a_failed_write_has_left_behind_the_letters_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(folder.path(), 1).unwrap();
        let record = |number| (number, record::encode(&letter(number, "1")).unwrap());
        segment.append(&[record(1), record(2)]).unwrap();
        // As if two had been written and the disk had said that they were not.
        let length = segment.length;
        segment.append(&[record(3), record(4)]).unwrap();
        segment.length = length;
        segment.append(&[(5, record::encode(&letter(5, "11111")).unwrap())]).unwrap();
        let Scan { places, .. } = scan(&std::fs::read(segment.path()).unwrap(), 1);
        let numbers: Vec<_> = places.iter().map(|place| place.number).collect();
        assert_eq!(numbers, [1, 2, 5]);
    }

    #[test]
    fn noise_that_holds_every_mark_is_read_to_its_end() {
        let (_, texts) = written();
        let mut dice = Dice::new();
        for _ in 0..200 {
            let mut noise = HEAD_MARK.to_vec();
            while noise.len() < 2000 {
                match dice.below(4) {
                    0 => noise.extend(record::KEPT),
                    1 => noise.extend(GONE),
                    2 => noise.extend(HEAD_MARK),
                    _ => noise.push(u8::try_from(dice.below(256)).unwrap()),
                }
            }
            assert_eq!(check(&noise, &texts).0, 0);
        }
    }
}
