//! Values that no log, error or event shows.
//!
//! A guest is given secrets in its environment and may say them: in a log line, in an
//! error, in an answer of which the error shows the beginning. What it says is searched
//! for every value that the configuration calls secret, of whichever actor, since a
//! guest can have one from another's message. What messages carry is data and is left alone.

use std::{borrow::Cow, sync::Arc};

use arc_swap::ArcSwap;

/// What is shown in a secret's place.
const MASK: &str = "***";

/// The shortest value that is masked, in bytes: shorter ones are parts of ordinary words.
const SHORTEST: usize = 4;

/// The shortest line of a longer value that is masked by itself, in bytes: a key of many
/// lines is often said line by line, and a shorter line is hardly ever one.
const SHORTEST_LINE: usize = 8;

/// What ends a text that was cut.
const CUT: char = '…';

/// What stands before that where the cut was within a character.
const BROKEN: char = '\u{fffd}';

/// The values that the configuration calls secret. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Arc<ArcSwap<Vec<Hidden>>>);

/// One form in which a secret can turn up. Never printed.
#[derive(Clone)]
struct Hidden {
    text: String,
    /// For each beginning of the text, how long the longest of its ends is that is a
    /// beginning too: what is left of a match when the next byte does not go on with it
    /// (after Knuth, Morris and Pratt).
    shorter: Vec<usize>,
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(MASK)
    }
}

impl Secrets {
    /// Values to mask from now on, beside those before: what was secret stays so.
    pub fn add<'v>(&self, values: impl IntoIterator<Item = &'v str>) {
        let forms = values.into_iter().flat_map(parts).flat_map(forms);
        let forms: Vec<_> = forms.map(Hidden::new).collect();
        self.0.rcu(|present| {
            let mut all = Vec::clone(present);
            for form in &forms {
                if !all.iter().any(|known: &Hidden| known.text == form.text) {
                    all.push(form.clone());
                }
            }
            // The longest first, so that one which is part of another does not uncover the rest.
            all.sort_by_key(|form| std::cmp::Reverse(form.text.len()));
            all
        });
    }

    /// The text with every secret masked, those that were cut short included.
    #[must_use]
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for secret in self.0.load().iter() {
            if text.contains(&secret.text) {
                text = text.replace(&secret.text, MASK).into();
            }
            if let Some(masked) = secret.mask_cut(&text) {
                text = masked.into();
            }
        }
        text
    }

    /// The first `limit` bytes of a text, or somewhat more, with every secret masked. The
    /// work does not grow with what is left out.
    #[must_use]
    pub fn mask_start<'t>(&self, text: &'t str, limit: usize) -> Cow<'t, str> {
        // What begins within the limit is seen whole.
        let end = text.floor_char_boundary(limit.saturating_add(self.longest()));
        if end == text.len() {
            return self.mask(text);
        }
        self.mask(&format!("{}{CUT}", &text[..end])).into_owned().into()
    }
}

impl Secrets {
    /// Bytes of the longest form that is masked.
    pub(crate) fn longest(&self) -> usize {
        self.0.load().first().map_or(0, |secret| secret.text.len())
    }
}

impl Hidden {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut shorter = vec![0; bytes.len()];
        for end in 1..bytes.len() {
            let mut length = shorter[end - 1];
            while length > 0 && bytes[length] != bytes[end] {
                length = shorter[length - 1];
            }
            shorter[end] = length + usize::from(bytes[length] == bytes[end]);
        }
        Self { text, shorter }
    }

    /// The text with the secret masked wherever it was cut short; nothing, if it was not.
    /// Takes time in proportion to the text.
    fn mask_cut(&self, text: &str) -> Option<String> {
        let before = |at| text[..at].strip_suffix(BROKEN).map_or(at, str::len);
        let mut cuts = text.match_indices(CUT).map(|(at, _)| before(at));
        let mut next = cuts.next()?;
        let secret = self.text.as_bytes();
        let mut masked = String::new();
        // How much of the secret ends here, and up to where the text has been taken.
        let (mut length, mut taken) = (0, 0);
        for (at, byte) in text.bytes().enumerate() {
            if at == next {
                if length >= SHORTEST {
                    masked.push_str(&text[taken..at - length]);
                    masked.push_str(MASK);
                    (length, taken) = (0, at);
                }
                match cuts.next() {
                    Some(later) => next = later,
                    None => break,
                }
            }
            while length > 0 && (length == secret.len() || secret[length] != byte) {
                length = self.shorter[length - 1];
            }
            length += usize::from(secret[length] == byte);
        }
        (taken > 0).then(|| masked + &text[taken..])
    }
}

/// What of a value is secret: all of it, also without the blanks around it, which are
/// left out where it is used, and each of its lines.
fn parts(value: &str) -> impl Iterator<Item = &str> {
    let lines = value.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_LINE);
    [value, value.trim()].into_iter().filter(|part| part.len() >= SHORTEST).chain(lines)
}

/// A value as it is, and as it stands in JSON, once and within JSON that is text itself.
fn forms(value: &str) -> Vec<String> {
    let mut forms = vec![value.to_owned()];
    for _ in 0..2 {
        let last = forms.last().expect("there is one from the start");
        let quoted = serde_json::to_string(last).expect("text can be encoded");
        let escaped = quoted[1..quoted.len() - 1].to_owned();
        if escaped == *last {
            break;
        }
        forms.push(escaped);
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(secrets: &[&str], text: &str, expected: &str) {
        let masked = Secrets::default();
        masked.add(secrets.iter().copied());
        assert_eq!(masked.mask(text), expected, "{secrets:?}");
    }

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        check(&["hush-1"], "nothing", "nothing");
        check(&["hush-1"], "hush-1 and hush-1", "*** and ***");
        check(&["hush", "hush-1"], "hush-1", "***");
        check(&["ab"], "ab", "ab");
        check(&["a\"b\nc"], r#"{"x":"a\"b\nc"}"#, r#"{"x":"***"}"#);
        check(&["a\"b\nc"], r#"{"x":"a\\\"b\\nc"}"#, r#"{"x":"***"}"#);
    }

    #[test]
    fn a_secret_that_was_cut_is_masked_too() {
        check(
            &["hush-hush"],
            "it begins with hush-h… (300 bytes)",
            "it begins with ***… (300 bytes)",
        );
        check(&["hush-hush"], "hus…", "hus…");
        check(&["hush-hush"], "hush-hu… and hush-…", "***… and ***…");
        check(&["häää-1"], "hää…", "***…");
        check(&["häää-1"], "hää\u{fffd}…", "***\u{fffd}…");
        check(&["ababac"], "abababa…", "ab***…");
        check(&["hush-hush"], "hush-hush-h… hush-…", "***-h… ***…");
    }

    #[test]
    fn the_lines_of_a_secret_are_secrets_and_the_blanks_around_it_are_none() {
        check(&["first-line-1\nsecond-line\nx\n"], "second-line, x", "***, x");
        check(&[" hush-1\n\n"], "Bearer hush-1", "Bearer ***");
    }

    #[test]
    fn a_long_text_is_masked_as_far_as_it_is_shown() {
        let secrets = Secrets::default();
        secrets.add(["hush-hush"]);
        let text = format!("{}hush-hush and {}", "x".repeat(98), "y".repeat(1 << 20));
        assert_eq!(secrets.mask_start(&text, 100), format!("{}*** a…", "x".repeat(98)));
        let text = format!("{}hush-hush", "x".repeat(104));
        assert_eq!(secrets.mask_start(&text, 100), format!("{}***…", "x".repeat(104)));
        assert_eq!(secrets.mask_start("hush-hush", 100), "***");
    }

    #[test]
    fn nothing_prints_them() {
        let secrets = Secrets::default();
        secrets.add(["hush-1"]);
        assert!(!format!("{secrets:?}").contains("hush"));
    }
}
