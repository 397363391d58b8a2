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

/// What ends a text that was cut.
const CUT: char = '…';

/// The values that the configuration calls secret. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Arc<ArcSwap<Vec<Hidden>>>);

/// One form in which a secret can turn up. Never printed.
#[derive(Clone, PartialEq, Eq)]
struct Hidden(String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(MASK)
    }
}

impl Secrets {
    /// Values to mask from now on, beside those before: what was secret stays so.
    pub fn add<'v>(&self, values: impl IntoIterator<Item = &'v str>) {
        let forms = values.into_iter().filter(|value| value.len() >= SHORTEST).flat_map(forms);
        let forms: Vec<_> = forms.map(Hidden).collect();
        self.0.rcu(|present| {
            let mut all = Vec::clone(present);
            for form in &forms {
                if !all.contains(form) {
                    all.push(form.clone());
                }
            }
            // The longest first, so that one which is part of another does not uncover the rest.
            all.sort_by_key(|form| std::cmp::Reverse(form.0.len()));
            all
        });
    }

    /// The text with every secret masked, those that were cut short included.
    #[must_use]
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for Hidden(secret) in self.0.load().iter() {
            if text.contains(secret) {
                text = text.replace(secret, MASK).into();
            }
            while let Some((from, to)) = cut(&text, secret) {
                text = format!("{}{MASK}{}", &text[..from], &text[to..]).into();
            }
        }
        text
    }
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

/// Where a text was cut within a secret: the part of it that is left.
fn cut(text: &str, secret: &str) -> Option<(usize, usize)> {
    text.match_indices(CUT).find_map(|(end, _)| {
        let longest = secret.len().min(end);
        (SHORTEST..=longest).rev().find_map(|length| {
            let part = secret.get(..length)?;
            text[..end].ends_with(part).then_some((end - length, end))
        })
    })
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
    }

    #[test]
    fn nothing_prints_them() {
        let secrets = Secrets::default();
        secrets.add(["hush-1"]);
        assert!(!format!("{secrets:?}").contains("hush"));
    }
}
