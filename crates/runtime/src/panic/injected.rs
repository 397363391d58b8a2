//! Panics on purpose, so that tests can see what becomes of them in the real program.
//!
//! The daemon reads the variable once, before anything else runs. Setting it takes control of the
//! daemon's start anyway; no file and no request can.

use std::{
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use thiserror::Error;

use super::Boundary;

/// The panics to inject. Empty outside tests.
static INJECTED: OnceLock<Vec<Injected>> = OnceLock::new();

/// Panics at one boundary.
#[derive(Debug)]
struct Injected {
    boundary: Boundary,
    /// Passes through the boundary before the first panic.
    skip: u64,
    /// The number of panics.
    times: u64,
    reached: AtomicU64,
}

/// The specification of panics is malformed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InjectError {
    /// No boundary has that name.
    #[error("there is no boundary `{0}`; they are {names}", names = names())]
    Unknown(String),
    /// A number is malformed.
    #[error(
        "`{0}` is no wish for panics; write `boundary`, `boundary*TIMES` or `boundary@SKIP*TIMES`"
    )]
    Malformed(String),
}

fn names() -> String {
    let names = Boundary::ALL.iter().map(|boundary| boundary.name());
    names.collect::<Vec<_>>().join(", ")
}

/// Injects panics from now on: `pass*2,admin-request@10` breaks the next two passes and the
/// eleventh request. Only the first call in a process counts.
///
/// # Errors
/// The specification is malformed.
pub fn inject(wish: &str) -> Result<(), InjectError> {
    let injected = wish.split(',').map(str::parse).collect::<Result<Vec<_>, _>>()?;
    _ = INJECTED.set(injected);
    Ok(())
}

impl FromStr for Injected {
    type Err = InjectError;

    fn from_str(text: &str) -> Result<Self, InjectError> {
        let malformed = |_| InjectError::Malformed(text.to_owned());
        let (rest, times) = text.trim().split_once('*').unwrap_or((text.trim(), "1"));
        let (name, skip) = rest.split_once('@').unwrap_or((rest, "0"));
        let boundary = Boundary::ALL.iter().find(|boundary| boundary.name() == name);
        Ok(Self {
            boundary: *boundary.ok_or_else(|| InjectError::Unknown(name.to_owned()))?,
            skip: skip.parse().map_err(malformed)?,
            times: times.parse().map_err(malformed)?,
            reached: AtomicU64::new(0),
        })
    }
}

/// Panics if that is due here.
pub(super) fn reach(boundary: Boundary) {
    // In all other daemons this is one load.
    let Some(injected) = INJECTED.get() else { return };
    for injected in injected.iter().filter(|injected| injected.boundary == boundary) {
        let before = injected.reached.fetch_add(1, Ordering::Relaxed);
        let due = before >= injected.skip && before - injected.skip < injected.times;
        assert!(!due, "a panic for a test, number {before}");
    }
}
