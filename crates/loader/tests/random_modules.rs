//! Modules made at random are refused by name or run within their limits.
//!
//! `REFLOWD_SMITH` says how many there are in all, `REFLOWD_SEED` from which seed
//! on; each has the next seed. What fails names its own, and `REFLOWD_SEED=…
//! REFLOWD_SMITH=1` runs it alone. The seeds of a run are otherwise the same each
//! time.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "seeds and counts are printed")]

mod generated;
mod guest;
mod limited;
mod random;
mod scenario;

use std::{collections::BTreeMap, time::Duration};

use arbitrary::Unstructured;
use limited::{Went, try_out};
use reflowd_loader::{InvalidBinary, LoadErrorKind};
use reflowd_runtime::PrepareError;
use scenario::{Scenario, alike, engines, see};

/// Modules of every kind together.
const MODULES: u64 = 2_400;

/// The seed of a case, told if the case panics.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("it failed with REFLOWD_SEED={}", self.0);
        }
    }
}

/// How often each thing happened.
#[derive(Default)]
struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn add(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Prints them, and expects each of these among them where all cases have run.
    fn tell(&self, kind: &str, never_none: &[&str]) {
        println!("{kind}: {:?}", self.0);
        for what in never_none {
            assert!(self.of(what) > 0 || is_replay(), "{kind}: no {what} among {:?}", self.0);
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

fn is_replay() -> bool {
    setting("REFLOWD_SMITH").is_some_and(|count| count < MODULES)
}

/// The seeds of a part of the modules; at least one.
fn seeds(one_of: u64) -> impl Iterator<Item = u64> {
    let (first, count) = (setting("REFLOWD_SEED"), setting("REFLOWD_SMITH"));
    let first = first.unwrap_or(0);
    let count = (count.unwrap_or(MODULES) / one_of).max(1);
    println!("{count} modules from seed {first}");
    first..first + count
}

/// What becomes of a seed: some modules are small, some larger.
fn make<T>(seed: u64, make: fn(&mut Unstructured<'_>) -> arbitrary::Result<T>) -> Option<T> {
    let bytes = random::bytes(seed, 512 << (seed % 5));
    // Random bytes may end in the middle of something that has no shorter form.
    make(&mut Unstructured::new(&bytes)).ok()
}

/// Whether it is only that the module names a type of the host's values, or has too
/// much of something, both of which generated modules may.
fn may_be_generated(why: &InvalidBinary) -> bool {
    match why {
        InvalidBinary::OverLimit { .. } => true,
        InvalidBinary::FeatureOff(off) => off == &["`externref`"],
        _ => false,
    }
}

/// The word for why a module is refused; for a bound, what there is too much of.
fn reason(why: &LoadErrorKind, word: &str) -> String {
    match why {
        LoadErrorKind::InvalidBinary(InvalidBinary::OverLimit { what, .. }) => {
            format!("refused: over the limit of {what}")
        }
        _ => format!("refused: {word}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_module_is_refused_for_what_is_wrong_with_it() {
    let loader = limited::loader();
    let mut counts = Counts::default();
    for seed in seeds(3) {
        let _case = Case(seed);
        // Half of them use nothing that is off, so that nothing is wrong with their bytes.
        let sound = seed % 2 == 0;
        let made = make(seed, if sound { generated::allowed } else { generated::anything });
        let Some(bytes) = made else {
            counts.add("not generated");
            continue;
        };
        counts.add("generated");
        let Went::Refused(error) = try_out(&loader, bytes).await else {
            panic!("a module that has no metadata is loaded");
        };
        assert!(
            match &error.kind {
                LoadErrorKind::MissingExport { name, .. } => name == "get_metadata",
                LoadErrorKind::InvalidBinary(why) => !sound || may_be_generated(why),
                _ => false,
            },
            "{error:?}"
        );
        counts.add(reason(&error.kind, error.reason()));
    }
    counts.tell("any modules", &["refused: missing-export", "refused: invalid-binary"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_actor_stays_within_its_limits() {
    let loader = limited::loader();
    let mut counts = Counts::default();
    for seed in seeds(3) {
        let _case = Case(seed);
        let Some(bytes) = make(seed, generated::actor) else {
            counts.add("not generated");
            continue;
        };
        counts.add("generated");
        if generated::calls_the_host(&bytes) {
            counts.add("calls the host");
        }
        match try_out(&loader, bytes).await {
            Went::Refused(error) => {
                use LoadErrorKind as Kind;
                assert!(
                    match &error.kind {
                        Kind::InvalidBinary(why) => may_be_generated(why),
                        Kind::MemoryTooSmall { .. }
                        | Kind::InitFailed(_)
                        | Kind::InitTimeout(_)
                        | Kind::AskFailed { .. }
                        | Kind::MetadataTimeout(_) => true,
                        _ => false,
                    },
                    "{error:?}"
                );
                counts.add(reason(&error.kind, error.reason()));
            }
            Went::Unprepared(error) => {
                assert!(matches!(error, PrepareError::Instantiate(_)), "{error:?}");
                counts.add("unprepared");
            }
            Went::Ran(ended) => {
                counts.add("loaded");
                for word in ended {
                    counts.add(format!("turn: {word}"));
                }
            }
        }
    }
    counts.tell(
        "actors",
        &["calls the host", "loaded", "turn: answer", "turn: trap", "turn: timeout"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_actor_ends_alike_on_every_engine() {
    let engines = engines();
    let mut counts = Counts::default();
    for seed in seeds(3) {
        let _case = Case(seed);
        let Some(module) = make(seed, generated::predictable_actor) else {
            counts.add("not generated");
            continue;
        };
        let Some(module) = generated::comparable(module) else {
            counts.add("left out");
            continue;
        };
        counts.add("compared");
        let mut scenario = Scenario::new(&format!("REFLOWD_SEED={seed}"), module);
        scenario.timeout = Duration::from_secs(20);
        scenario.turns.extend(scenario.turns.clone());
        let all = see(&engines, &scenario).await;
        for class in alike(&engines, &scenario, all).classes() {
            counts.add(class);
        }
    }
    counts.tell("actors on every engine", &["done", "trap"]);
    assert!(
        counts.of("compared") - counts.of("invalid-binary") >= 200 || is_replay(),
        "{:?}",
        counts.0
    );
}
