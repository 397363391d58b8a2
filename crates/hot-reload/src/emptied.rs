//! Configuration files that lost everything they said.
//!
//! An empty file is a valid configuration without actors, and also what a
//! program leaves behind that truncated the file and then died. The second is
//! the more likely, so it takes somebody's word to believe the first.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// The files that said something before and say nothing now.
#[must_use]
pub fn emptied(
    before: &BTreeMap<PathBuf, Arc<str>>,
    now: &BTreeMap<PathBuf, Arc<str>>,
) -> Vec<PathBuf> {
    let blank = |path: &&PathBuf| {
        let said_something = before.get(*path).is_some_and(|text| !says_nothing(text));
        said_something && says_nothing(&now[*path])
    };
    now.keys().filter(blank).cloned().collect()
}

/// Whether a text has nothing but comments, such as the head of a truncated file.
fn says_nothing(text: &str) -> bool {
    text.lines().map(str::trim_start).all(|line| line.is_empty() || line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: Option<&str>, now: Option<&str>, held: bool) {
        let files = |text: Option<&str>| text.map(|text| ("a.toml".into(), text.into()));
        let [before, now] = [before, now].map(|text| files(text).into_iter().collect());
        assert_eq!(!emptied(&before, &now).is_empty(), held, "{before:?} {now:?}");
    }

    #[test]
    fn a_file_that_loses_everything_is_emptied() {
        check(Some("[actors.a]"), Some(""), true);
        check(Some("[actors.a]"), Some("\n  \n"), true);
        check(Some("# mine\n[actors.a]"), Some("# mine\n"), true);
        check(Some("# mine\n[actors.a]"), Some("  # mi"), true);
    }

    #[test]
    fn a_file_that_says_something_or_never_did_is_not() {
        check(Some("[actors.a]"), Some("[actors.b]"), false);
        check(Some(""), Some(""), false);
        check(Some("# soon"), Some(""), false);
        check(None, Some(""), false);
        check(Some("[actors.a]"), None, false);
    }
}
