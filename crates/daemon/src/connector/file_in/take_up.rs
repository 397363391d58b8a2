//! Where reading begins: where it was left, if that can be found.
//!
//! Everything here reads folders and files, and blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use reflowd_runtime::{Emitter, Position};

use super::{
    identity::{Age, identity, is},
    opened::Opened,
    rotation::{FileRemains, copied, next_younger, remains, renamed},
};

/// Where reading begins.
pub(super) enum Start {
    /// Where it was left, or at the first line if nothing was read before.
    At(Opened),
    /// At the first line of another file than the one read before.
    Elsewhere(Opened, Gap),
    /// The file does not exist yet.
    Nowhere,
}

/// Why the rest of a file after that position may never be read.
pub(super) struct Gap {
    pub(super) after: Position,
    pub(super) why: String,
}

/// Opens the file at a path where it was left, if it is the same.
pub(super) fn here(path: &Path, come: Option<Position>, out: &Emitter) -> io::Result<Start> {
    let Some(file) = open(path)? else { return Ok(Start::Nowhere) };
    let of = file.metadata()?;
    let come = come.filter(|come| is(&of, come.of)).or_else(|| out.known(identity(&of)));
    let opened = match come {
        Some(come) => Opened::go_on(&file, come)?,
        None => None,
    };
    Ok(Start::At(opened.map_or_else(|| Opened::begin(file), Ok)?))
}

/// Opens the file that was followed last, under its rotated name if it has one, or else the one at
/// the path.
pub(super) fn followed(path: &Path, come: Option<Position>, out: &Emitter) -> io::Result<Start> {
    let Some(come) = come else { return here(path, None, out) };
    let there = open(path)?;
    if let Some(file) = &there
        && is(&file.metadata()?, come.of)
    {
        if let Some(opened) = Opened::go_on(file, come)? {
            return Ok(Start::At(opened));
        }
        if let Some(opened) = go_on_in(copied(path, &come, 0), come)? {
            return Ok(Start::At(opened));
        }
        let opened = Opened::begin(file.try_clone()?)?;
        let why = "it was cut or written anew while nobody read it, and no copy of it is beside it";
        return Ok(Start::Elsewhere(opened, Gap { after: come, why: why.into() }));
    }
    for same in [renamed(path, &come), copied(path, &come, 0)] {
        if let Some(opened) = go_on_in(same, come)? {
            return Ok(Start::At(opened));
        }
    }
    let next = Age::of(come.of).and_then(|age| next_younger(path, age, &come));
    let next = match next {
        Some(next) => open(&next)?,
        None => None,
    };
    let Some(file) = next.or(there) else { return Ok(Start::Nowhere) };
    let why = match remains(path, &come) {
        FileRemains::Nothing => return Ok(Start::At(Opened::begin(file)?)),
        FileRemains::Compressed(rest) => {
            format!("it was compressed while nobody read it; see {}", rest.display())
        }
        FileRemains::Unknown => "it was moved elsewhere or removed while nobody read it".into(),
    };
    Ok(Start::Elsewhere(Opened::begin(file)?, Gap { after: come, why }))
}

/// Opens the successor of a file that was read to its end and has lost its name.
pub(super) fn next(path: &Path, age: Option<Age>, read: &Position) -> io::Result<Opened> {
    let next = age.and_then(|age| next_younger(path, age, read));
    Opened::begin(Opened::file(next.as_deref().unwrap_or(path))?)
}

/// Opens a copy of a file that was cut, if it was made since then and has unread lines; or else the
/// file itself, from its first line.
pub(super) fn cut(path: &Path, read: Position, since: u64) -> io::Result<Option<Opened>> {
    let copy = copied(path, &read, since);
    let longer = copy.filter(|copy| fs::metadata(copy).is_ok_and(|copy| copy.len() > read.at));
    go_on_in(longer, read)
}

fn go_on_in(path: Option<PathBuf>, come: Position) -> io::Result<Option<Opened>> {
    let file = match path {
        Some(path) => open(&path)?,
        None => None,
    };
    file.map_or(Ok(None), |file| Opened::go_on(&file, come))
}

/// The file, if it exists.
fn open(path: &Path) -> io::Result<Option<fs::File>> {
    match Opened::file(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
