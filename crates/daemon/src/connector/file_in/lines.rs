//! The path of lines from an open file to the wires.

use std::path::Path;

use reflowd_runtime::{Emitter, EventKind, Message, PortName, Position, Type, UnreadableItem};
use serde::Deserialize;
use tokio::{
    task::coop,
    time::{self, Instant},
};
use tracing::warn;

use super::{
    line_splitter::{LineContent, MAX_LINE, SplitLine},
    opened::Opened,
    pace::Pace,
    unreadable::{UnreadableLines, Untold},
};

/// Bytes of an unreadable line that are shown with the reason and kept as a dead letter.
const SHOWN: usize = 64 << 10;

/// The content of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LineFormat {
    /// A JSON value.
    #[default]
    Json,
    /// Any text: a `String`.
    Text,
}

impl LineFormat {
    /// The message in a line; `None` for a blank one.
    fn message(self, line: &bytes::Bytes) -> Result<Option<Message>, String> {
        match self {
            Self::Json if line.iter().all(u8::is_ascii_whitespace) => Ok(None),
            Self::Json => match Message::from_plain(line, line) {
                Ok(message) => Ok(Some(message)),
                Err(_) if is_utf16(line) => {
                    Err("it is UTF-16; write UTF-8, or convert it with `iconv`".into())
                }
                Err(error) => Err(error.to_string()),
            },
            Self::Text => {
                let text = std::str::from_utf8(line).map_err(|error| {
                    format!("it is not UTF-8 from its byte {} on", error.valid_up_to() + 1)
                })?;
                let text = serde_json::to_vec(text).expect("a string can be encoded");
                Ok(Some(Message::new(Type::String, text).expect("it is a string")))
            }
        }
    }
}

/// Whether a line begins with the byte order mark of UTF-16, or is the rest of such a file.
fn is_utf16(line: &[u8]) -> bool {
    matches!(line, [0xff, 0xfe, ..] | [0xfe, 0xff, ..])
}

/// The path of lines from a file to the wires.
pub(super) struct LineReader<'a> {
    pub(super) path: &'a Path,
    pub(super) form: LineFormat,
    pub(super) out: Emitter,
    pub(super) out_port: PortName,
    pub(super) pace: Option<Pace>,
    pub(super) unreadable: UnreadableLines,
}

impl LineReader<'_> {
    /// Puts out the complete lines up to the present end of the file. Returns whether the file had
    /// new bytes.
    pub(super) async fn read_on(&mut self, opened: &mut Opened) -> std::io::Result<bool> {
        let mut came = false;
        while opened.read().await? {
            came = true;
            while let Some((line, come)) = opened.next() {
                self.put(line, Some(come)).await;
            }
            self.tell();
        }
        Ok(came)
    }

    /// Puts out a last line without an end.
    pub(super) async fn put_rest(&mut self, opened: &mut Opened) {
        if let Some((line, come)) = opened.rest() {
            self.put(line, Some(come)).await;
        }
    }

    /// Puts out the whole file as it is now, without noting progress. Returns whether it had lines.
    pub(super) async fn pass(&mut self, mut opened: Opened) -> std::io::Result<bool> {
        let mut any = false;
        loop {
            let more = opened.read().await?;
            while let Some((line, _)) = if more { opened.next() } else { opened.rest() } {
                any = true;
                self.put(line, None).await;
            }
            self.tell();
            if !more {
                return Ok(any);
            }
        }
    }

    async fn put(&mut self, line: SplitLine, come: Option<Position>) {
        let (message, shown) = match &line.content {
            LineContent::Whole(bytes) => (self.form.message(bytes), bytes),
            LineContent::TooLong(beginning) => {
                (Err(format!("it is longer than {} MiB", MAX_LINE >> 20)), beginning)
            }
        };
        match message {
            Ok(None) => self.out.come_to(come),
            Ok(Some(message)) => {
                self.keep_pace().await;
                self.out.emit_from(&self.out_port, message, come).await;
            }
            Err(why) => {
                let what = excerpt(shown);
                let why = format!("{}:{}: no message: {why}", self.path.display(), line.number);
                self.keep_pace().await;
                let refused = UnreadableItem { port: &self.out_port, what: &what, why: &why };
                self.out.refuse(&refused, come).await;
                self.unreadable.add(line.number, why);
                self.tell();
            }
        }
        coop::consume_budget().await;
    }

    async fn keep_pace(&mut self) {
        if let Some(pace) = &mut self.pace {
            time::sleep_until(pace.next(Instant::now())).await;
        }
    }

    /// Reports unreadable lines if that is due.
    pub(super) fn tell(&mut self) {
        if let Some(untold) = self.unreadable.due(Instant::now()) {
            self.say(untold);
        }
    }

    fn say(&self, untold: Untold) {
        let Untold { lines, first, last, why } = untold;
        warn!(actor = %self.out.actor(), lines, first, last, why, "lines are not valid messages");
        self.out.record(EventKind::Unreadable { actor: self.out.actor().clone(), lines, why });
    }
}

/// Unreadable lines are reported even when the source is dropped.
impl Drop for LineReader<'_> {
    fn drop(&mut self) {
        if let Some(untold) = self.unreadable.rest() {
            self.say(untold);
        }
    }
}

/// A line as text for people.
fn excerpt(line: &[u8]) -> String {
    let shown = &line[..line.len().min(SHOWN)];
    let text = String::from_utf8_lossy(shown);
    match line.len() - shown.len() {
        0 => text.into_owned(),
        more => format!("{text}… ({more} bytes more)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(form: LineFormat, line: &[u8], expected: Result<Option<(Type, &str)>, &str>) {
        let message = form.message(&bytes::Bytes::copy_from_slice(line));
        match (message, expected) {
            (Ok(None), Ok(None)) => {}
            (Ok(Some(message)), Ok(Some((ty, data)))) => {
                assert_eq!((message.ty(), &message.data()[..]), (ty, data.as_bytes()));
            }
            (Err(why), Err(says)) => assert!(why.contains(says), "{why}"),
            (got, _) => panic!("{line:?} as {form:?}: {got:?}"),
        }
    }

    #[test]
    fn a_line_is_json_or_text() {
        check(LineFormat::Json, b"{\"a\": 1}", Ok(Some((Type::Object, "{\"a\": 1}"))));
        check(LineFormat::Json, b" \t", Ok(None));
        check(LineFormat::Json, b"GET / 200", Err("expected value"));
        check(LineFormat::Json, b"\xff\xfe{\0}\0", Err("iconv"));
        check(
            LineFormat::Text,
            b"GET \"/\" 200",
            Ok(Some((Type::String, "\"GET \\\"/\\\" 200\""))),
        );
        // Numbers and JSON are text like any other, and so is an empty line.
        check(LineFormat::Text, b"1", Ok(Some((Type::String, "\"1\""))));
        check(LineFormat::Text, b"", Ok(Some((Type::String, "\"\""))));
        check(LineFormat::Text, b"caf\xe9", Err("not UTF-8 from its byte 4"));
    }

    #[test]
    fn a_long_line_is_shown_in_part() {
        assert_eq!(excerpt(b"abc"), "abc");
        let long = excerpt(&vec![b'x'; SHOWN + 5]);
        assert!(long.ends_with("xx… (5 bytes more)") && long.len() < SHOWN + 30);
    }
}
