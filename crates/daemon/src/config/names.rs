//! Names that somebody may have meant.

/// How alike two names must be for one to be offered for the other, from 0 to 1.
const LIKENESS: f64 = 0.8;

/// The name among `known` that is most like `name`, where one is like it at all.
pub(crate) fn similar<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = name.to_lowercase().replace('-', "_");
    let scored = known.into_iter().map(|other| {
        let score = strsim::jaro_winkler(&plain, &other.to_lowercase().replace('-', "_"));
        (score, other)
    });
    let likely = scored.filter(|(score, other)| *score >= LIKENESS && *other != name);
    // The first of equals, so that the answer does not depend on what else is there.
    likely.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, other)| other)
}

/// Names in a sentence: `` `a`, `b` and `c` ``.
pub(crate) fn list<'k>(names: impl IntoIterator<Item = &'k str>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match &names[..] {
        [] => "none".into(),
        [one] => one.clone(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, known: &[&str], expected: Option<&str>) {
        assert_eq!(similar(name, known.iter().copied()), expected, "{name}");
    }

    #[test]
    fn a_slip_finds_the_name_that_was_meant() {
        check("timout", &["mailbox", "timeout", "trigger"], Some("timeout"));
        check("max-hops", &["max_hops", "mailbox"], Some("max_hops"));
        check("Timeout", &["timeout"], Some("timeout"));
        check("incremnt", &["reset", "increment"], Some("increment"));
        check("colour", &["mailbox", "timeout", "trigger"], None);
        check("x", &["max_hops"], None);
        check("x", &[], None);
    }

    #[test]
    fn names_are_listed_as_in_a_sentence() {
        assert_eq!(list([]), "none");
        assert_eq!(list(["a"]), "`a`");
        assert_eq!(list(["a", "b", "c"]), "`a`, `b` and `c`");
    }
}
