//! Text from modules and messages, as a terminal or a log may have it.
//!
//! Terminals act on some characters instead of showing them, and others turn the text after
//! them around. Both are escaped, so that what is shown is what is there.

use std::borrow::Cow;

/// Whether a character drives a terminal, ends a line or turns text around. A tab does not.
#[must_use]
pub fn is_wild(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}') || turns
}

/// The text as one line in which nothing has an effect.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_wild) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_wild(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The same for text of several lines, each but the first after `indent`, so that none passes
/// for something of its own.
#[must_use]
pub fn printable_lines(text: &str, indent: &str) -> String {
    let lines = text.trim_end_matches('\n').split('\n');
    let lines: Vec<_> = lines.map(|line| printable(line.trim_end_matches('\r'))).collect();
    lines.join(&format!("\n{indent}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_effect_is_escaped_and_the_rest_is_left() {
        assert_eq!(printable("a\tb é 漢"), "a\tb é 漢");
        assert_eq!(printable("a\nb\r\x1b[31m\u{9b}"), "a\\nb\\r\\u{1b}[31m\\u{9b}");
        assert_eq!(
            printable("\u{202e}\u{2066}\u{2028}\u{61c}"),
            "\\u{202e}\\u{2066}\\u{2028}\\u{61c}"
        );
    }

    #[test]
    fn lines_after_the_first_are_indented() {
        assert_eq!(printable_lines("a\r\nb\x1b\n\n", "  "), "a\n  b\\u{1b}");
    }
}
