//! The files of a configuration, as one snapshot of their texts.
//!
//! Everything after reading works on this value, so that what is checked, what
//! is shown in an error and what is applied are the same bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use reflowd_hot_reload::{Include, IncludeError};
use thiserror::Error;

use super::{
    environment::{Environment, normal},
    mask::masked,
    report::Place,
};

/// The largest configuration file, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Patterns of the main file. Every file of their folders is held against each of them.
pub(super) const MAX_INCLUDES: usize = 1_000;

/// Bytes of a line that are searched for a column.
const STRETCH: usize = 4096;

/// The texts of the main file and of the files that it includes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    main: PathBuf,
    cwd: PathBuf,
    texts: BTreeMap<PathBuf, Result<Arc<Text>, Arc<SourceError>>>,
}

/// A text that knows its lines.
#[derive(Debug)]
struct Text {
    text: String,
    /// Where each line starts.
    lines: Vec<usize>,
    /// For each stretch of [`STRETCH`] bytes, a byte at which a character starts and how many
    /// are before it; once somebody asks for a column. A line may be as long as its file.
    marks: OnceLock<Vec<(usize, usize)>>,
    /// The same without secrets, once somebody is shown it.
    shown: OnceLock<String>,
}

impl Text {
    fn new(text: String) -> Arc<Self> {
        let lines = text.match_indices('\n').map(|(at, _)| at + 1);
        let lines = [0].into_iter().chain(lines).collect();
        Arc::new(Self { text, lines, marks: OnceLock::new(), shown: OnceLock::new() })
    }

    /// The number of the line, from 0, in which a byte is.
    fn line(&self, byte: usize) -> usize {
        self.lines.partition_point(|start| *start <= byte).max(1) - 1
    }

    /// Where a line ends, its end not included.
    fn end_of(&self, line: usize) -> usize {
        self.lines.get(line + 1).map_or(self.text.len(), |next| next - 1)
    }

    /// The number of characters before that byte.
    fn characters(&self, byte: usize) -> usize {
        let marks = self.marks.get_or_init(|| {
            let mut marks = vec![(0, 0)];
            for (count, (at, _)) in self.text.char_indices().enumerate() {
                if at >= marks.len() * STRETCH {
                    marks.push((at, count));
                }
            }
            marks
        });
        let (at, count) = marks[marks.partition_point(|(at, _)| *at <= byte) - 1];
        count + self.text.get(at..byte).unwrap_or_default().chars().count()
    }

    /// The same byte, or else the first before it at which a character starts.
    fn boundary(&self, byte: usize) -> usize {
        (0..=byte.min(self.text.len()))
            .rev()
            .find(|at| self.text.is_char_boundary(*at))
            .unwrap_or(0)
    }
}

/// Why a file has no text.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// A folder, a pipe or a device.
    #[error("not a regular file")]
    NotAFile,
    /// Larger than a configuration can be.
    #[error("larger than 4 MiB")]
    TooLarge,
    /// Bytes that are no text.
    #[error("not UTF-8 text: byte {0} is wrong")]
    NotText(usize),
}

/// What an include names.
pub(super) enum Included {
    /// One file, which must be there.
    File(PathBuf),
    /// The files of a folder that fit, be there any or none.
    Files(Include),
}

impl Included {
    /// `pattern`, taken from the folder `base`.
    ///
    /// # Errors
    /// The pattern is not one, for example for an open bracket.
    pub(super) fn new(base: &Path, pattern: &str) -> Result<Self, IncludeError> {
        if pattern.contains(['*', '?', '[', ']', '{', '}']) {
            Include::new(base, pattern).map(Self::Files)
        } else {
            Ok(Self::File(normal(&base.join(pattern))))
        }
    }

    /// Whether that file is meant. Absolute.
    pub(super) fn is_match(&self, path: &Path) -> bool {
        match self {
            Self::File(file) => path == file,
            Self::Files(include) => {
                path.parent() == Some(include.folder())
                    && path.file_name().is_some_and(|name| include.matches(name))
            }
        }
    }

    /// The files that are meant and, of a folder, there.
    fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::File(file) => vec![file.clone()],
            Self::Files(include) => {
                // A folder that is not there yet may come.
                let entries = std::fs::read_dir(include.folder()).into_iter().flatten().flatten();
                entries.map(|entry| entry.path()).filter(|path| self.is_match(path)).collect()
            }
        }
    }
}

impl Sources {
    /// Reads the main file and what it includes. A file that cannot be read is part of the result.
    pub(crate) fn read(main: &Path, environment: &Environment) -> Self {
        let main = environment.absolute(main);
        let text = read(&main);
        let mut sources =
            Self { cwd: environment.cwd.clone(), main: main.clone(), ..Self::default() };
        let patterns =
            text.as_ref().map_or_else(|_| Vec::new(), |text| include_patterns(&text.text));
        sources.texts.insert(main, text.map_err(Arc::new));
        for pattern in patterns {
            // A wrong pattern is reported where it stands, when the file is parsed.
            let included = Included::new(sources.base(), &pattern);
            for path in included.iter().flat_map(Included::paths) {
                let text = |path: &PathBuf| read(path).map_err(Arc::new);
                sources.texts.entry(path).or_insert_with_key(text);
            }
        }
        sources
    }

    /// Texts that somebody else has read: the main file's and those of what it includes.
    pub(crate) fn of_texts<'t>(
        main: &Path,
        texts: impl IntoIterator<Item = (&'t Path, &'t str)>,
        environment: &Environment,
    ) -> Self {
        let texts = texts.into_iter().map(|(path, text)| (path.into(), Ok(Text::new(text.into()))));
        let (main, cwd) = (main.into(), environment.cwd.clone());
        Self { main, cwd, texts: texts.collect() }
    }

    /// A main file of that text. For texts that are not in files.
    #[cfg(test)]
    pub(crate) fn of_text(main: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let main = main.into();
        let cwd = main.parent().unwrap_or(Path::new("/")).into();
        let texts = BTreeMap::from([(main.clone(), Ok(Text::new(text.into())))]);
        Self { main, cwd, texts }
    }

    /// The same, with another file of that text.
    #[cfg(test)]
    pub(crate) fn with(mut self, path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.texts.insert(path.into(), Ok(Text::new(text.into())));
        self
    }

    /// The main file. Absolute.
    pub(crate) fn main(&self) -> &Path {
        &self.main
    }

    /// The folder from which the main file's paths go.
    pub(crate) fn base(&self) -> &Path {
        self.main.parent().unwrap_or(Path::new("/"))
    }

    /// Every file, the main file first.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, Result<&str, &SourceError>)> {
        let (main, others): (Vec<_>, Vec<_>) =
            self.texts.iter().partition(|(path, _)| **path == self.main);
        main.into_iter().chain(others).map(|(path, text)| (&**path, outcome(text)))
    }

    /// What became of one file. `None` where nothing names it.
    pub(crate) fn get(&self, path: &Path) -> Option<Result<&str, &SourceError>> {
        self.texts.get(path).map(outcome)
    }

    /// The text of a file; empty where it has none.
    pub(super) fn text(&self, file: &Path) -> &str {
        self.get(file).and_then(Result::ok).unwrap_or_default()
    }

    /// The text of a file for others to see: the same, with `*` for each byte of a secret.
    pub(super) fn shown_text(&self, file: &Path) -> &str {
        let Some(Ok(text)) = self.texts.get(file) else { return "" };
        text.shown.get_or_init(|| masked(&text.text))
    }

    /// How a file is called in messages: from the working directory where it is below that.
    pub(super) fn shown(&self, file: &Path) -> String {
        let below =
            if self.cwd == Path::new("/") { None } else { file.strip_prefix(&self.cwd).ok() };
        below.unwrap_or(file).display().to_string()
    }

    /// Where a file comes among the others.
    pub(super) fn order<'f>(&self, file: &'f Path) -> (bool, &'f Path) {
        (*file != self.main, file)
    }

    /// The lines, from 1, in which a place is, and their bytes.
    pub(super) fn lines(&self, place: &Place) -> (Range<usize>, Range<usize>) {
        let Some(Ok(text)) = self.texts.get(&*place.file) else { return (1..2, 0..0) };
        let (first, last) = (text.line(place.span.start), text.line(place.span.end));
        (first + 1..last + 2, text.lines[first]..text.end_of(last))
    }

    /// The bytes of a place's lines that are no further from it than so many.
    pub(super) fn around(&self, place: &Place, bytes: usize) -> Range<usize> {
        let Some(Ok(text)) = self.texts.get(&*place.file) else { return 0..0 };
        let line = text.line(place.span.start);
        let start = place.span.start.saturating_sub(bytes).max(text.lines[line]);
        // A large place is only shown in part.
        let end = place.span.end.min(place.span.start + bytes) + bytes;
        text.boundary(start)..text.boundary(end.min(text.end_of(line)))
    }

    /// Line and column of a place, both from 1, the column in characters.
    pub(super) fn position(&self, place: &Place) -> (usize, usize) {
        let Some(Ok(text)) = self.texts.get(&*place.file) else { return (1, 1) };
        let (line, at) = (text.line(place.span.start), place.span.start);
        (line + 1, text.characters(at) - text.characters(text.lines[line]) + 1)
    }

    /// `file:line` of a place.
    pub(super) fn origin(&self, place: &Place) -> String {
        format!("{}:{}", self.shown(&place.file), self.position(place).0)
    }
}

fn outcome(text: &Result<Arc<Text>, Arc<SourceError>>) -> Result<&str, &SourceError> {
    text.as_ref().map(|text| &*text.text).map_err(|error| &**error)
}

fn read(path: &Path) -> Result<Arc<Text>, SourceError> {
    // Opening a pipe waits for its writer, so look before opening.
    if !path.metadata().map_err(SourceError::Read)?.is_file() {
        return Err(SourceError::NotAFile);
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(SourceError::Read)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(SourceError::Read)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(SourceError::TooLarge);
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| SourceError::NotText(error.utf8_error().valid_up_to()))?;
    Ok(Text::new(text))
}

/// The include patterns of a text, as far as they can be made out.
fn include_patterns(text: &str) -> Vec<String> {
    let (table, _) = toml::de::DeTable::parse_recoverable(text);
    let Some(value) = table.get_ref().get("include") else { return Vec::new() };
    let listed = value.get_ref().as_array().into_iter().flatten();
    let texts =
        value.get_ref().as_str().into_iter().chain(listed.filter_map(|v| v.get_ref().as_str()));
    texts.take(MAX_INCLUDES).map(str::to_owned).collect()
}
