//! Which dead letters somebody means.

use std::collections::BTreeSet;

use super::DeadLetter;
use crate::ActorName;

/// All that is given must fit; nothing given is every letter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these, where there are any.
    pub numbers: BTreeSet<u64>,
    /// Only those with greater numbers.
    pub after: u64,
    /// Only those for one actor.
    pub actor: Option<ActorName>,
    /// Only those of one class of reason.
    pub class: Option<String>,
    /// Only those whose actor ran a module whose digest begins so, in lower case.
    pub digest: Option<String>,
    /// Only those from this time on, in milliseconds since the Unix epoch.
    pub since: Option<u64>,
    /// Only those before this time, in milliseconds since the Unix epoch.
    pub until: Option<u64>,
    /// At most so many, the oldest.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether the letter is meant, but for the limit.
    #[must_use]
    pub fn fits(&self, letter: &DeadLetter) -> bool {
        let digest = |digest: &String| {
            letter.ran.is_some_and(|ran| ran.digest.to_string().starts_with(digest.as_str()))
        };
        (self.numbers.is_empty() || self.numbers.contains(&letter.number))
            && letter.number > self.after
            && self.actor.as_ref().is_none_or(|actor| letter.actor == *actor)
            && self.class.as_ref().is_none_or(|class| letter.reason.class() == class)
            && self.digest.as_ref().is_none_or(digest)
            && self.since.is_none_or(|since| letter.time >= since)
            && self.until.is_none_or(|until| letter.time < until)
    }

    /// Whether every letter there is fits.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Digest,
        dead_letter::{Ran, tests::letter},
    };

    #[test]
    fn everything_that_is_given_must_fit() {
        let mut subject = letter(7, "1");
        subject.ran = Some(Ran { digest: Digest::new([0xab; 32]), generation: 1 });
        subject.time = 1000;
        let all = Filter::default();
        let text = |text: &str| Some(text.to_owned());
        for (filter, fits) in [
            (all.clone(), true),
            (Filter { numbers: [7, 9].into(), ..all.clone() }, true),
            (Filter { numbers: [9].into(), ..all.clone() }, false),
            (Filter { after: 6, ..all.clone() }, true),
            (Filter { after: 7, ..all.clone() }, false),
            (Filter { actor: Some("a".parse().unwrap()), ..all.clone() }, true),
            (Filter { actor: Some("b".parse().unwrap()), ..all.clone() }, false),
            (Filter { class: text("trap"), ..all.clone() }, true),
            (Filter { class: text("tra"), ..all.clone() }, false),
            (Filter { digest: text("abab"), ..all.clone() }, true),
            (Filter { digest: text("abac"), ..all.clone() }, false),
            (Filter { since: Some(1000), until: Some(1001), ..all.clone() }, true),
            (Filter { since: Some(1001), ..all.clone() }, false),
            (Filter { until: Some(1000), ..all.clone() }, false),
            (Filter { class: text("trap"), after: 7, ..all }, false),
        ] {
            assert_eq!(filter.fits(&subject), fits, "{filter:?}");
        }
    }
}
