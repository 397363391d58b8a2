//! How a line of the text log has its fields: so that nothing in them can pass for a line.
//!
//! Errors, names and descriptions come from modules and messages. In a field, ends of lines
//! and whatever a terminal would act on are escaped; in a message, which may be of many
//! lines, each line after the first is indented.

use std::{
    error::Error,
    fmt::{self, Debug},
};

use reflowd_runtime::{printable, printable_lines};
use tracing::{
    Event,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

/// What stands before each line of a message but the first.
const INDENT: &str = "    ";

/// Writes fields as the library does by itself, but for what must not be written.
pub(super) struct TextFields;

/// The message and the fields of an event as one line, without colours.
pub(super) fn line(event: &Event<'_>) -> String {
    let mut line = String::new();
    TextFields.format_fields(Writer::new(&mut line), event).expect("a string takes everything");
    line
}

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut writing = Writing { writer, first: true, outcome: Ok(()) };
        fields.record(&mut writing);
        writing.outcome
    }
}

struct Writing<'w> {
    writer: Writer<'w>,
    first: bool,
    outcome: fmt::Result,
}

impl Writing<'_> {
    fn write(&mut self, name: &str, value: &str) -> fmt::Result {
        if !self.first {
            self.writer.write_char(' ')?;
        }
        self.first = false;
        if name == "message" {
            return self.writer.write_str(&printable_lines(value, INDENT));
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        let value = printable(value);
        if self.writer.has_ansi_escapes() {
            write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
        } else {
            write!(self.writer, "{name}={value}")
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        if self.outcome.is_ok() {
            self.outcome = self.write(name, value);
        }
    }
}

impl Visit for Writing<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.add("message", value),
            name => self.add(name, &format!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.add(field.name(), &value.to_string());
        let mut source = value.source();
        let mut sources = Vec::new();
        while let Some(cause) = source {
            sources.push(cause.to_string());
            source = cause.source();
        }
        if !sources.is_empty() {
            self.add(&format!("{}.sources", field.name()), &format!("[{}]", sources.join(", ")));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // What comes by way of the `log` crate says of itself where it comes from.
        if !field.name().starts_with("log.") {
            self.add(field.name(), &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex, PoisonError},
    };

    use thiserror::Error;
    use tracing::{info, subscriber::with_default};
    use tracing_subscriber::{fmt::layer, layer::SubscriberExt as _, registry};

    use super::*;

    #[derive(Debug, Error)]
    #[error("failed\n{FORGED}")]
    struct Failed(#[source] Cause);

    #[derive(Debug, Error)]
    #[error("because\n{FORGED}")]
    struct Cause;

    const FORGED: &str = "2026-11-23T10:34:49.410936Z  INFO forged \u{1b}[31m\u{9b}31m\u{202e}";

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the text log has of that.
    fn logged(colours: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let out = written.clone();
        let layer = layer()
            .with_writer(move || out.clone())
            .without_time()
            .with_target(false)
            .with_ansi(colours)
            .fmt_fields(TextFields);
        with_default(registry().with(layer), log);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn no_field_can_forge_a_line_or_drive_the_terminal() {
        let failed = Failed(Cause);
        for colours in [false, true] {
            let text = logged(colours, || {
                info!(
                    display = %FORGED,
                    debug = ?FORGED,
                    text = FORGED,
                    error = &failed as &dyn Error,
                    shown = %format_args!("a\n{FORGED}"),
                    "first\n{FORGED}"
                );
            });
            let wild = |c: char| c == '\u{9b}' || c == '\u{202e}';
            assert!(!text.contains(wild), "{text:?}");
            assert!(!text.contains("\u{1b}[31m"), "{text:?}");
            let forged = text.lines().filter(|line| line.starts_with("2026"));
            assert_eq!(forged.count(), 0, "{text}");
            assert_eq!(text.lines().count(), 2, "only a message has lines: {text}");
        }
    }

    #[test]
    fn what_is_harmless_is_written_as_ever() {
        let failed = io::Error::other("no room");
        let text = logged(false, || {
            info!(actor = %"a-b", n = 3, yes = true, text = "a \"b\"", error = &failed as &dyn Error, "done é");
        });
        assert_eq!(
            text,
            " INFO done é actor=a-b n=3 yes=true text=\"a \\\"b\\\"\" error=no room\n"
        );
        let text = logged(true, || info!(n = 3, "done"));
        assert!(text.contains("done \u{1b}[3mn\u{1b}[0m\u{1b}[2m=\u{1b}[0m3"), "{text:?}");
    }
}
