//! The problems of a configuration, and their presentation.
//!
//! A problem is a value: a code, a sentence, and places in files. Finding one
//! never stops the search for the next, and only a [`Report`] turns them into
//! text, so that the command line, the log and the admin API say the same.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::{self, Write as _},
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use reflowd_runtime::{ActorName, is_wild, printable_lines};
use serde_json::json;

use super::{mask::masked_urls, sources::Sources};

/// Problems of a report that are shown to people, errors first. Programs get all of them.
const MOST_SHOWN: usize = 100;

/// The same limit in an event or an answer of the admin API, many of which may be kept.
const MOST_TOLD: usize = 10;

/// Bytes of a report that are shown, however long its problems are.
const MOST_BYTES: usize = 256 << 10;

/// The same limit in an event.
const MOST_TOLD_BYTES: usize = 16 << 10;

/// Lines up to that many bytes are shown whole. Of a longer one, the part around the problem is
/// shown.
const LONGEST_LINE: usize = 1000;

/// Bytes that are shown on each side of a problem in a longer line.
const AROUND: usize = 60;

/// Places at most that many lines apart are shown in one piece, folded; others in two, so that the
/// time to show a problem does not grow with its file.
const NEAR: usize = 50;

/// A stretch of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The file, as the sources call it.
    pub(crate) file: Arc<Path>,
    /// Bytes of its text.
    pub(crate) span: Range<usize>,
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is taken; its author may have meant something else.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A place and what to see there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// Where.
    pub(crate) place: Place,
    /// What.
    pub(crate) text: String,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    /// How much it matters.
    pub(crate) severity: Severity,
    /// What kind of problem; keeps its meaning from version to version.
    pub(crate) code: &'static str,
    /// What is wrong, as a sentence without its full stop.
    pub(crate) message: String,
    /// Where it is wrong, first, and what else has to do with it.
    pub(crate) labels: Vec<Label>,
    /// What else is known.
    pub(crate) notes: Vec<String>,
    /// What to do.
    pub(crate) help: Vec<String>,
    /// The actors that do not fit each other, where modules had to be asked for that: those
    /// actors go on as they are, and all others change. Nobody, where the files alone show it.
    pub(crate) misfits: BTreeSet<ActorName>,
}

impl Diagnostic {
    /// A problem for which the configuration is refused.
    pub(crate) fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            labels: Vec::new(),
            notes: Vec::new(),
            help: Vec::new(),
            misfits: BTreeSet::new(),
        }
    }

    /// The same, as something that only the modules of these actors show.
    pub(crate) fn between(mut self, actors: impl IntoIterator<Item = ActorName>) -> Self {
        self.misfits.extend(actors);
        self
    }

    /// A problem that is only told.
    pub(crate) fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The same without what is secret in the URLs that it speaks of.
    fn masked(mut self) -> Self {
        for text in self.texts().filter(|text| text.contains("://")) {
            *text = masked_urls(text);
        }
        self
    }

    /// The same without what would have an effect on a terminal: modules have their say in it.
    fn printable(mut self) -> Self {
        for text in self.texts().filter(|text| text.contains(is_wild)) {
            *text = printable_lines(text, "");
        }
        self
    }

    fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        let labels = self.labels.iter_mut().map(|label| &mut label.text);
        labels.chain(&mut self.notes).chain(&mut self.help).chain([&mut self.message])
    }

    /// The same, with a place. The first place is where the problem is said to be.
    pub(crate) fn at(mut self, place: &Place, text: impl Into<String>) -> Self {
        self.labels.push(Label { place: place.clone(), text: text.into() });
        self
    }

    /// The same, with a place where there is one.
    pub(crate) fn at_some(self, place: Option<&Place>, text: impl Into<String>) -> Self {
        match place {
            Some(place) => self.at(place, text),
            None => self,
        }
    }

    /// The same, with something else that is known.
    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// The same, with what to do.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// The same, with what to do where that is known.
    pub(crate) fn help_some(self, text: Option<String>) -> Self {
        match text {
            Some(text) => self.help(text),
            None => self,
        }
    }
}

/// A part of a file that is shown.
struct LinePiece<'a> {
    /// Its lines, from 1.
    lines: Range<usize>,
    /// Its bytes.
    bytes: Range<usize>,
    /// Set if it is only a part of a line.
    is_cut: bool,
    /// Its labels, by their numbers.
    labels: Vec<(usize, &'a Label)>,
}

impl LinePiece<'_> {
    fn is_near(&self, lines: &Range<usize>) -> bool {
        lines.start <= self.lines.end + NEAR && self.lines.start <= lines.end + NEAR
    }
}

/// Shortens a text of a problem: keys and values may be of any length.
fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST_LINE) {
        Some((at, _)) => format!("{}…", &text[..at]).into(),
        None => text.into(),
    }
}

/// Problems, and the texts in which they are.
#[derive(Clone, Default)]
pub(crate) struct Report {
    /// As they were found.
    found: Vec<Diagnostic>,
    /// Their numbers in the order of their places, once somebody looks.
    order: OnceLock<Vec<usize>>,
    sources: Arc<Sources>,
}

impl Report {
    /// No problems in these files.
    pub(crate) fn new(sources: Arc<Sources>) -> Self {
        Self { found: Vec::new(), order: OnceLock::new(), sources }
    }

    /// Adds problems. All are shown in the order of the files and their lines.
    pub(crate) fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        self.found.extend(diagnostics.into_iter().map(Diagnostic::masked));
        // Sorted once somebody looks, and not each time that some are added.
        self.order = OnceLock::new();
    }

    /// The problems in the order of their places.
    pub(crate) fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        let order = self.order.get_or_init(|| {
            let place = |n: &usize| {
                let first = self.found[*n].labels.first();
                first.map(|label| (self.sources.order(&label.place.file), label.place.span.start))
            };
            let mut order: Vec<_> = (0..self.found.len()).collect();
            order.sort_by(|a, b| place(a).cmp(&place(b)));
            order
        });
        order.iter().map(|n| &self.found[*n])
    }

    /// The problems, for another report.
    pub(crate) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.found
    }

    /// Whether a problem of that code is among them.
    pub(crate) fn has(&self, code: &str) -> bool {
        self.found.iter().any(|problem| problem.code == code)
    }

    /// How many of them are errors.
    pub(crate) fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many of them are warnings.
    pub(crate) fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    /// Takes out the errors that only modules show: of each, the actors that do not fit, and it
    /// as a report of its own.
    pub(crate) fn take_misfits(&mut self) -> Vec<(BTreeSet<ActorName>, Self)> {
        let is_misfit = |d: &mut Diagnostic| d.severity == Severity::Error && !d.misfits.is_empty();
        let misfits: Vec<_> = self.found.extract_if(.., is_misfit).collect();
        self.order = OnceLock::new();
        let alone = |d: Diagnostic| {
            let sources = Arc::clone(&self.sources);
            (d.misfits.clone(), Self { found: vec![d], order: OnceLock::new(), sources })
        };
        misfits.into_iter().map(alone).collect()
    }

    fn count(&self, severity: Severity) -> usize {
        self.found.iter().filter(|d| d.severity == severity).count()
    }

    /// The problems for people, each with its lines. Empty if there are none. Of very many, the
    /// first are shown and the rest is counted.
    pub(crate) fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        self.rendered(&renderer, MOST_SHOWN, MOST_BYTES)
    }

    /// The same for events, logs and answers, which are kept.
    pub(crate) fn brief(&self) -> String {
        self.rendered(&Renderer::plain(), MOST_TOLD, MOST_TOLD_BYTES)
    }

    fn rendered(&self, renderer: &Renderer, most: usize, most_bytes: usize) -> String {
        // Errors keep the configuration from being used, so they come before warnings.
        let errors = self.errors().min(most);
        let room = |severity| match severity {
            Severity::Error => errors,
            Severity::Warning => most - errors,
        };
        let (mut shown, mut out) = ([0, 0], String::new());
        for diagnostic in self.diagnostics() {
            let of_its_kind = &mut shown[diagnostic.severity as usize];
            if *of_its_kind == room(diagnostic.severity) {
                continue;
            }
            let diagnostic = diagnostic.clone().printable();
            let gap = if out.is_empty() { "" } else { "\n" };
            let text = format!("{gap}{}\n", renderer.render(&[self.group(&diagnostic)]));
            if out.len() + text.len() > most_bytes {
                break;
            }
            *of_its_kind += 1;
            out.push_str(&text);
        }
        let rest = [
            (self.errors() - shown[Severity::Error as usize], Severity::Error),
            (self.warnings() - shown[Severity::Warning as usize], Severity::Warning),
        ];
        let rest = rest.iter().filter(|(n, _)| *n > 0).map(|(n, severity)| {
            format!("{n} more {}{}", severity.name(), if *n == 1 { "" } else { "s" })
        });
        let rest: Vec<_> = rest.collect();
        if !rest.is_empty() {
            let gap = if out.is_empty() { "" } else { "\n" };
            let rest = rest.join(" and ");
            _ = writeln!(out, "{gap}and {rest}; `reflowd check --json` lists all");
        }
        out
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = shortened(&diagnostic.message);
        let mut group = Group::with_title(level.primary_title(title).id(diagnostic.code));
        let mut shown: Vec<&Path> = Vec::new();
        for label in &diagnostic.labels {
            let file: &Path = &label.place.file;
            if shown.contains(&file) {
                continue;
            }
            shown.push(file);
            for piece in self.pieces(diagnostic, file) {
                group = self.show(group, file, &piece);
            }
        }
        let notes = diagnostic.notes.iter().map(|text| Level::NOTE.message(shortened(text)));
        let help = diagnostic.help.iter().map(|text| Level::HELP.message(shortened(text)));
        group.elements(notes).elements(help)
    }

    /// The parts of a file that have to do with the problem, the one with its place first.
    fn pieces<'a>(&'a self, diagnostic: &'a Diagnostic, file: &Path) -> Vec<LinePiece<'a>> {
        let labels = diagnostic.labels.iter().enumerate();
        let labels = labels.filter(|(_, label)| &*label.place.file == file);
        let mut pieces: Vec<LinePiece<'a>> = Vec::new();
        for (n, label) in labels {
            let (lines, bytes) = self.sources.lines(&label.place);
            let is_long = bytes.len() > LONGEST_LINE;
            let near =
                pieces.iter_mut().find(|piece| !piece.is_cut && !is_long && piece.is_near(&lines));
            match near {
                Some(piece) => {
                    piece.lines =
                        piece.lines.start.min(lines.start)..piece.lines.end.max(lines.end);
                    piece.bytes =
                        piece.bytes.start.min(bytes.start)..piece.bytes.end.max(bytes.end);
                    piece.labels.push((n, label));
                }
                None => {
                    let bytes =
                        if is_long { self.sources.around(&label.place, AROUND) } else { bytes };
                    pieces.push(LinePiece {
                        lines,
                        bytes,
                        is_cut: is_long,
                        labels: vec![(n, label)],
                    });
                }
            }
        }
        pieces
    }

    fn show<'a>(&'a self, group: Group<'a>, file: &Path, piece: &LinePiece<'a>) -> Group<'a> {
        let LinePiece { lines, bytes, is_cut, labels } = piece;
        let text = self.sources.shown_text(file).get(bytes.clone()).unwrap_or_default();
        let shown = self.sources.shown(file);
        let mut snippet = Snippet::source(text).line_start(lines.start);
        let mut group = group;
        if *is_cut {
            // The place in the file is not that in the text.
            let (line, column) = self.position(&labels[0].1.place);
            group = group.element(Origin::path(shown).line(line).char_column(column));
        } else {
            snippet = snippet.path(shown);
        }
        for (n, label) in labels {
            let kind = if *n == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let at = |byte: usize| byte.clamp(bytes.start, bytes.end) - bytes.start;
            let span = at(label.place.span.start)..at(label.place.span.end);
            let said = Some(shortened(&label.text)).filter(|text| !text.is_empty());
            snippet = snippet.annotation(kind.span(span).label(said));
        }
        group.element(snippet)
    }

    /// The problems for programs. Lines and columns count from 1, columns in characters.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self.diagnostics().map(|d| self.problem_json(d)).collect();
        json!({ "errors": self.errors(), "warnings": self.warnings(), "problems": problems })
    }

    fn problem_json(&self, diagnostic: &Diagnostic) -> serde_json::Value {
        let label = |label: &Label| {
            let (line, column) = self.position(&label.place);
            let file = self.sources.shown(&label.place.file);
            json!({ "file": file, "line": line, "column": column, "text": label.text })
        };
        json!({
            "severity": diagnostic.severity.name(),
            "code": diagnostic.code,
            "message": diagnostic.message,
            "labels": diagnostic.labels.iter().map(label).collect::<Vec<_>>(),
            "notes": diagnostic.notes,
            "help": diagnostic.help,
        })
    }

    /// Line and column of a place, both from 1, the column in characters.
    pub(crate) fn position(&self, place: &Place) -> (usize, usize) {
        self.sources.position(place)
    }
}

/// One line for each problem, as a log wants it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            if let Some(label) = diagnostic.labels.first() {
                let (line, column) = self.position(&label.place);
                write!(f, "{}:{line}:{column}: ", self.sources.shown(&label.place.file))?;
            }
            write!(
                f,
                "{}[{}]: {}",
                diagnostic.severity.name(),
                diagnostic.code,
                diagnostic.message
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}
