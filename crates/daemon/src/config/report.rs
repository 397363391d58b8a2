//! What is wrong with a configuration, and how it is shown.
//!
//! A problem is a value: a code, a sentence, and places in files. Finding one
//! never stops the search for the next, and only a [`Report`] turns them into
//! text, so that the command line, the log and the admin API say the same.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    ops::Range,
    path::Path,
    sync::Arc,
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use reflowd_runtime::{ActorName, is_wild, printable_lines};
use serde_json::json;

use super::{mask::masked_urls, sources::Sources};

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

/// Problems, and the texts in which they are.
#[derive(Clone, Default)]
pub(crate) struct Report {
    diagnostics: Vec<Diagnostic>,
    sources: Arc<Sources>,
}

impl Report {
    /// No problems in these files.
    pub(crate) fn new(sources: Arc<Sources>) -> Self {
        Self { diagnostics: Vec::new(), sources }
    }

    /// Adds problems. All are shown in the order of the files and their lines.
    pub(crate) fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        self.diagnostics.extend(diagnostics.into_iter().map(Diagnostic::masked));
        let sources = &self.sources;
        self.diagnostics.sort_by_cached_key(|d| {
            d.labels.first().map(|l| (sources.order(&l.place.file), l.place.span.start))
        });
    }

    /// The problems.
    #[cfg(test)]
    pub(crate) fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The problems, for another report.
    pub(crate) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    /// Whether a problem of that code is among them.
    pub(crate) fn has(&self, code: &str) -> bool {
        self.diagnostics.iter().any(|problem| problem.code == code)
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
        let misfits: Vec<_> = self.diagnostics.extract_if(.., is_misfit).collect();
        let alone = |d: Diagnostic| {
            let sources = Arc::clone(&self.sources);
            (d.misfits.clone(), Self { diagnostics: vec![d], sources })
        };
        misfits.into_iter().map(alone).collect()
    }

    fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }

    /// The problems as a person reads them, each with its lines. Empty where there is none.
    pub(crate) fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            let gap = if i == 0 { "" } else { "\n" };
            let diagnostic = diagnostic.clone().printable();
            _ = writeln!(out, "{gap}{}", renderer.render(&[self.group(&diagnostic)]));
        }
        out
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group =
            Group::with_title(level.primary_title(&*diagnostic.message).id(diagnostic.code));
        let mut shown: Vec<&Path> = Vec::new();
        for label in &diagnostic.labels {
            let file: &Path = &label.place.file;
            if shown.contains(&file) {
                continue;
            }
            shown.push(file);
            group = group.element(self.snippet(diagnostic, file));
        }
        let notes = diagnostic.notes.iter().map(|text| Level::NOTE.message(&**text));
        let help = diagnostic.help.iter().map(|text| Level::HELP.message(&**text));
        group.elements(notes).elements(help)
    }

    /// The lines of one file that have to do with the problem.
    fn snippet<'a>(
        &'a self,
        diagnostic: &'a Diagnostic,
        file: &Path,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let mut snippet =
            Snippet::source(self.sources.shown_text(file)).path(self.sources.shown(file));
        for (i, label) in diagnostic.labels.iter().enumerate() {
            if &*label.place.file != file {
                continue;
            }
            let kind = if i == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let text = Some(&*label.text).filter(|text| !text.is_empty());
            snippet = snippet.annotation(kind.span(label.place.span.clone()).label(text));
        }
        snippet
    }

    /// The problems as a program reads them. Lines and columns count from 1, columns in characters.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let problems: Vec<_> = self.diagnostics.iter().map(|d| self.problem_json(d)).collect();
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
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
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
