//! Where the log goes and how it looks: text for people, fields for the journal, JSON for
//! everything else that reads.

mod queue;
mod journal;
mod text;

use std::{
    backtrace::Backtrace,
    ffi::OsStr,
    io::{self, IsTerminal},
    os::fd::AsFd,
    panic, thread,
    time::Duration,
};

use reflowd_runtime::panic::note_place;
use rustix::fs::fstat;
use tracing::{Metadata, error, warn};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// What libraries may log where nobody asks for more.
const QUIET: &str = "wasmtime=warn,cranelift=warn";

/// Libraries that log nothing, whoever asks: they tell what passes through them, such as a
/// request's URL or a guest's error, and know of no secrets.
const SILENT: [&str; 2] = ["ureq", "extism"];

/// The parts under whose names reflowd logs.
const PARTS: [&str; 6] =
    ["reflowd", "reflowd_hot_reload", "reflowd_loader", "reflowd_runtime", "audit", "guest"];

/// How much is logged.
const LEVEL: &str = "REFLOWD_LOG";

/// How it is written.
const FORMAT: &str = "REFLOWD_LOG_FORMAT";

pub(crate) use queue::lost_lines;

use self::{
    journal::{Journal, JournalSender},
    queue::Queue,
    text::TextFields,
};

/// How long the end of the process waits for what is still to be written.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// The log of this process. What has not been written yet is written when it drops.
pub(crate) struct Log {
    queue: Queue,
    format: Format,
}

impl Log {
    /// Keeps room for what is logged from now on: the last lines.
    pub(crate) fn end(&self) {
        self.queue.end();
    }

    /// Writes a line for people after all that was logged.
    pub(crate) fn say(&self, text: &str) {
        match self.format {
            Format::Journal => self.queue.add(&journal::said(text)),
            Format::Text | Format::Json => self.queue.add(format!("{text}\n").as_bytes()),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.flush(PATIENCE);
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    Journal,
}

impl Format {
    /// What is asked for, or else what standard error is made for. Nothing, where
    /// what is asked for is not known.
    fn choose(asked: &str, terminal: bool, journal: bool) -> Option<Self> {
        match asked.trim() {
            "" | "auto" if terminal => Some(Self::Text),
            "" | "auto" if journal => Some(Self::Journal),
            "" | "auto" | "json" => Some(Self::Json),
            "text" => Some(Self::Text),
            "journal" => Some(Self::Journal),
            _ => None,
        }
    }
}

/// Logs from now on.
///
/// # Errors
/// The system has no thread for it.
///
/// # Panics
/// If it is called twice.
pub(crate) fn start() -> io::Result<Log> {
    let asked = |name| std::env::var(name).unwrap_or_default();
    let (filter, level) = filter(&asked(LEVEL));
    let stderr = io::stderr();
    let journal =
        std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| is_stream(&stderr, &stream));
    let wanted = Format::choose(&asked(FORMAT), stderr.is_terminal(), journal);
    let mut format = wanted.unwrap_or(Format::Json);
    let mut no_journal = None;
    let journal = (format == Format::Journal).then(JournalSender::new);
    let journal = journal.and_then(|sender| sender.map_err(|error| no_journal = Some(error)).ok());
    let left_out = |lines| warn!(lines, "lines of the log were left out");
    let queue = match journal {
        Some(journal) => Queue::start(journal, left_out)?,
        None => {
            format = if format == Format::Journal { Format::Json } else { format };
            Queue::start(io::stderr(), left_out)?
        }
    };
    let to = queue.clone();
    let layer = match format {
        Format::Journal => Journal::new(to).boxed(),
        Format::Text => text(to),
        Format::Json => json(to),
    };
    let filter = filter.and(filter_fn(may_log));
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    log_panics();
    if let Some(problem) = level {
        warn!(
            "{LEVEL} is not understood, logging at info: {problem}; write a level, such as `debug`, or `reflowd=debug,info`"
        );
    }
    if wanted.is_none() {
        warn!(
            "{FORMAT}=`{}` is not known, logging as JSON; it is `auto`, `text`, `json` or `journal`",
            asked(FORMAT)
        );
    }
    if let Some(error) = no_journal {
        warn!(%error, "the journal does not take the log, logging as JSON");
    }
    Ok(Log { queue, format })
}

/// Has panics go the way of the log, which holds up nobody.
fn log_panics() {
    let traced = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    panic::set_hook(Box::new(move |panic| {
        note_place(panic);
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        if traced {
            error!(thread, "{panic}\n{}", Backtrace::force_capture());
        } else {
            error!(thread, "{panic}");
        }
    }));
}

/// A layer of any kind.
type Boxed = Box<dyn Layer<tracing_subscriber::Registry> + Send + Sync>;

/// Whether standard error shows colours.
pub(crate) fn has_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn text(to: Queue) -> Boxed {
    let colours = has_colours();
    let layer = fmt::layer().with_writer(move || to.clone()).fmt_fields(TextFields);
    layer.with_target(false).with_ansi(colours).boxed()
}

fn json(to: Queue) -> Boxed {
    fmt::layer().with_writer(move || to.clone()).json().flatten_event(true).boxed()
}

/// Whether a file is the one that `$JOURNAL_STREAM` names by its device and inode. Where
/// it is not, somebody has put another in the place of the journal's.
fn is_stream(file: &impl AsFd, stream: &OsStr) -> bool {
    let Some((device, inode)) = stream.to_str().and_then(|text| text.split_once(':')) else {
        return false;
    };
    let Ok(stat) = fstat(file) else { return false };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

/// What is logged, and what is wrong with the wish where it cannot be had.
fn filter(asked: &str) -> (EnvFilter, Option<String>) {
    let asked = if asked.trim().is_empty() { "info" } else { asked };
    // What is asked for comes last and so goes before.
    let filter = EnvFilter::try_new(format!("{QUIET},{asked}")).map_err(|error| error.to_string());
    match slip(asked).map_or(filter, Err) {
        Ok(filter) => (filter, None),
        Err(problem) => (EnvFilter::new(format!("{QUIET},info")), Some(problem)),
    }
}

/// A word that is no level, or no part of reflowd.
///
/// The filter takes both for targets. As nothing is logged under them, a daemon with
/// `REFLOWD_LOG=verbose` would say nothing at all.
fn slip(asked: &str) -> Option<String> {
    // Within a span's braces a comma separates nothing.
    if asked.contains(['[', '{']) {
        return None;
    }
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_part = |target: &str| {
        let target = target.split("::").next().unwrap_or_default();
        PARTS.iter().any(|part| part.starts_with(target))
    };
    asked.split(',').map(str::trim).find_map(|directive| match directive.split_once('=') {
        None if directive.is_empty() || is_level(directive) || is_part(directive) => None,
        None => Some(format!("`{directive}` is no level")),
        Some((target, _)) if target.starts_with("reflowd") && !is_part(target.trim()) => {
            Some(format!("there is no part `{}`; there are {}", target.trim(), PARTS.join(", ")))
        }
        Some(_) => None,
    })
}

/// Whether its author may log at all.
fn may_log(event: &Metadata<'_>) -> bool {
    !SILENT.iter().any(|library| event.target().starts_with(library))
}

#[cfg(test)]
mod tests {
    use std::os::linux::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_level_alone_does_not_bring_in_the_engine_s_own_log() {
        for (asked, has, has_not) in [
            ("", "info", "debug"),
            ("debug", "wasmtime=warn", "wasmtime=debug"),
            ("debug,wasmtime=debug", "wasmtime=debug", "wasmtime=warn"),
        ] {
            let (filter, problem) = filter(asked);
            let filter = filter.to_string();
            assert!(problem.is_none(), "{asked}");
            assert!(filter.contains(has) && !filter.contains(has_not), "{asked}: {filter}");
        }
    }

    #[test]
    fn a_wish_that_makes_no_sense_is_told_and_logs_at_info() {
        for (asked, why) in [
            ("reflowd=loud", "error parsing level filter"),
            ("verbose", "`verbose` is no level"),
            ("warn, hyper", "`hyper` is no level"),
            ("warn,reflowd_hotreload=info", "there is no part `reflowd_hotreload`"),
        ] {
            let (filter, problem) = filter(asked);
            assert!(
                problem.as_ref().is_some_and(|text| text.contains(why)),
                "{asked}: {problem:?}"
            );
            assert!(filter.to_string().contains("info"), "{asked}: {filter}");
        }
    }

    #[test]
    fn a_wish_for_one_part_is_taken_as_it_stands() {
        for asked in [
            "WARN",
            "off",
            "3",
            "warn,",
            "reflowd_runtime",
            "warn,reflowd_hot_reload=info",
            "warn,reflowd_hot_reload::reconciler=debug",
            "audit=off,guest=debug,hyper=trace",
            "[turn{actor=a}]=debug",
        ] {
            let (_, problem) = filter(asked);
            assert_eq!(problem, None, "{asked}");
        }
    }

    #[track_caller]
    fn check(asked: &str, terminal: bool, journal: bool, format: Option<Format>) {
        assert_eq!(Format::choose(asked, terminal, journal), format, "{asked}");
    }

    #[test]
    fn the_format_is_what_is_asked_for_or_what_standard_error_is_made_for() {
        check("", true, false, Some(Format::Text));
        check("", true, true, Some(Format::Text));
        check("auto", false, true, Some(Format::Journal));
        check("", false, false, Some(Format::Json));
        check("json", true, true, Some(Format::Json));
        check("text", false, true, Some(Format::Text));
        check("journal", true, false, Some(Format::Journal));
        check("xml", true, false, None);
    }

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let (device, inode) = (metadata.st_dev(), metadata.st_ino());
        assert!(is_stream(&file, OsStr::new(&format!("{device}:{inode}"))));
        assert!(!is_stream(&file, OsStr::new(&format!("{device}:{}", inode + 1))));
        assert!(!is_stream(&file, OsStr::new("")));
        assert!(!is_stream(&file, OsStr::new("a:b")));
    }
}
