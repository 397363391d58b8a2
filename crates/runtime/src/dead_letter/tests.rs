//! The rings as one: what is put is listed, whatever happens to the daemon or its disk.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use super::*;
use crate::{EventKind, Message, Type};

/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// A letter for `a.in` with that data.
pub(super) fn letter(number: u64, data: &str) -> DeadLetter {
    DeadLetter {
        number,
        time: 1_700_000_000_000 + number,
        actor: "a".parse().unwrap(),
        reason: Reason::Failed(FailureKind::Trap("unreachable".into())),
        ran: None,
        attempts: 3,
        envelope: envelope(data),
    }
}

fn envelope(data: &str) -> Envelope {
    let message = Message::new(Type::Any, data.to_owned()).unwrap();
    Envelope::entering("in".parse().unwrap(), message, None)
}

/// Numbers at random. Their seed is printed, and taken back as `REFLOWD_SEED`.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new() -> Self {
        let seed = match std::env::var("REFLOWD_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => unix_millis(),
        };
        println!("REFLOWD_SEED={seed}");
        Self(seed)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }
}

/// Dead letters with a folder for them.
struct Rig {
    letters: Arc<DeadLetters>,
    events: Arc<Events>,
    keeper: Option<Keeper>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    fn start(folder: &Path, bytes: u64) -> Self {
        let (letters, events) = (Arc::new(DeadLetters::default()), Arc::new(Events::default()));
        let (keeper, thread) = letters.keep(folder, bytes, &events).unwrap();
        Self { letters, events, keeper: Some(keeper), thread: Some(thread) }
    }

    fn put(&self, data: impl ToString) {
        let actor = "a".parse().unwrap();
        let ran = Ran { digest: Digest::new([1; 32]), generation: 2 };
        let reason = Reason::Failed(FailureKind::Trap("unreachable".into()));
        self.letters.put(&actor, &envelope(&data.to_string()), reason, Some(ran), 1);
    }

    fn numbers(&self) -> Vec<u64> {
        self.letters.list().iter().map(|letter| letter.number).collect()
    }

    /// Waits for an event.
    fn event(&self, fits: impl Fn(&EventKind) -> bool) -> EventKind {
        let (past, mut live) = self.events.since(0);
        let mut past = past.into_iter();
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let event = past.next().or_else(|| live.try_recv().ok());
            match event {
                Some(event) if fits(&event.kind) => return event.kind,
                Some(_) => {}
                None => std::thread::yield_now(),
            }
            assert!(std::time::Instant::now() < until, "the event never came");
        }
    }

    /// Ends as a stop does.
    fn stop(mut self) {
        self.keeper.take().unwrap().close(PATIENCE).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.keeper.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn letters_outlive_a_stop_byte_for_byte_and_numbers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(folder.path(), 1 << 20);
    (0..500).for_each(|n| rig.put(n));
    let before = format!("{:?}", rig.letters.list());
    rig.stop();
    let rig = Rig::start(folder.path(), 1 << 20);
    assert_eq!(format!("{:?}", rig.letters.list()), before);
    rig.put(500);
    assert_eq!(rig.numbers(), (1..=501).collect::<Vec<_>>());
    assert_eq!(rig.letters.lost(), Losses::default());
    rig.stop();
}

#[test]
fn a_purged_letter_stays_away_wherever_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(folder.path(), 1 << 20);
    (0..2000).for_each(|n| rig.put(n));
    // Some of these are on disk by now, some in memory, some on their way.
    let numbers = (1..=2000).filter(|n| n % 3 == 0).collect();
    let (purged, result) = rig.letters.purge(Filter { numbers, ..Filter::default() });
    result.unwrap();
    assert_eq!(purged, 666);
    let left: Vec<_> = (1..=2000).filter(|n| n % 3 != 0).collect();
    assert_eq!(rig.numbers(), left);
    rig.stop();
    let rig = Rig::start(folder.path(), 1 << 20);
    assert_eq!(rig.numbers(), left);
    let (purged, result) = rig.letters.purge(Filter { limit: Some(4), ..Filter::default() });
    result.unwrap();
    assert_eq!((purged, rig.numbers()[0]), (4, 7));
    rig.stop();
}

#[test]
fn every_letter_is_listed_once_while_it_moves_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(folder.path(), 64 << 20);
    for n in 0..3000 {
        rig.put(n);
        if n % 100 == 0 {
            assert_eq!(rig.numbers(), (1..=n + 1).collect::<Vec<_>>());
        }
    }
    rig.stop();
}

#[test]
fn a_disk_that_takes_nothing_is_told_and_costs_no_letter_until_memory_is_full() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("dead");
    // A file where the folder should be stops every user, root included.
    let rig = Rig::start(&folder, 64 << 20);
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    (0..5).for_each(|n| rig.put(n));
    let event = rig.event(|kind| matches!(kind, EventKind::DeadLettersInMemory { .. }));
    let EventKind::DeadLettersInMemory { why } = event else { unreachable!() };
    assert!(why.contains("cannot be written to; see that there is room"), "{why}");
    assert_eq!((rig.numbers(), rig.letters.stock().on_disk), ((1..=5).collect(), 0));
    for n in 5..ring::MAX_LETTERS + 7 {
        rig.put(n);
    }
    assert_eq!(rig.letters.lost().of(Loss::Memory).letters, 7);
    rig.event(
        |kind| matches!(kind, EventKind::DeadLettersLost { reason, .. } if reason == "memory"),
    );
    fs::remove_file(&folder).unwrap();
    rig.event(|kind| matches!(kind, EventKind::DeadLettersOnDisk));
    let numbers = rig.numbers();
    let last = ring::MAX_LETTERS as u64 + 7;
    assert_eq!((numbers.len(), numbers.last()), (ring::MAX_LETTERS, Some(&last)));
    rig.stop();
    let rig = Rig::start(&folder, 64 << 20);
    assert_eq!(rig.numbers(), numbers);
    rig.stop();
}

#[test]
fn what_a_cut_or_a_flipped_bit_has_cost_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(folder.path(), 1 << 20);
    (0..20).for_each(|n| rig.put(n));
    rig.stop();
    let path = &segments(folder.path())[0];
    let length = fs::metadata(path).unwrap().len();
    File::options().write(true).open(path).unwrap().set_len(length - 3).unwrap();
    let rig = Rig::start(folder.path(), 1 << 20);
    assert_eq!(rig.numbers(), (1..=19).collect::<Vec<_>>());
    let event = rig.event(|kind| matches!(kind, EventKind::DeadLettersLost { .. }));
    let EventKind::DeadLettersLost { letters, bytes, reason, .. } = event else { unreachable!() };
    assert_eq!((letters, &*reason), (1, "damaged"));
    assert!(bytes > 100, "{bytes}");
    rig.stop();
}

#[test]
fn a_stop_whose_disk_takes_nothing_tells_what_is_lost() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("dead");
    let mut rig = Rig::start(&folder, 1 << 20);
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    (0..5).for_each(|n| rig.put(n));
    let closed = rig.keeper.take().unwrap().close(PATIENCE);
    assert_eq!(closed, Err(Unwritten { letters: 5 }));
}
