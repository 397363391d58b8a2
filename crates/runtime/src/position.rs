//! The progress of sources through what they read.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::State;

/// Former things whose positions are kept. Each costs some hundred bytes of state, and no operator
/// switches a source among more by hand.
const MAX_FORMER: usize = 16;

/// The progress of a source, in numbers that only the source understands.
///
/// It is the source's [state](crate::Actor::state): kept, shown and set as that of any actor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Identifies what the source reads, so that another thing of the same name is not mistaken for
    /// it.
    pub of: [u64; 2],
    /// Where the next message begins.
    pub at: u64,
    /// The number of messages before it.
    pub count: u64,
    /// A digest of the beginning, which tells a copy from another thing with the same number. Zero
    /// if unknown.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub mark: [u64; 2],
}

fn is_unknown(mark: &[u64; 2]) -> bool {
    *mark == [0; 2]
}

/// The progress of a source in what it reads now and in what it read before. A source that is
/// pointed elsewhere and back resumes where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The source's name for the thing. Empty for a source that only ever reads one, and in the
    /// state of a former version.
    name: String,
    now: Option<Position>,
    /// The latest first.
    former: Vec<Trail>,
}

/// The progress of a source in one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trail {
    name: String,
    position: Position,
}

impl Trail {
    fn of_fields(mut fields: Map<String, Value>) -> Option<Self> {
        let name = match fields.remove("name") {
            None => String::new(),
            Some(name) => name.as_str()?.to_owned(),
        };
        let position = serde_json::from_value(Value::Object(fields)).ok()?;
        Some(Self { name, position })
    }

    fn to_fields(&self) -> Map<String, Value> {
        let position = serde_json::to_value(self.position).expect("numbers can be written");
        let Value::Object(mut fields) = position else { unreachable!("it is a struct") };
        if !self.name.is_empty() {
            fields.insert("name".into(), self.name.as_str().into());
        }
        fields
    }
}

impl Progress {
    /// Reads progress from a state; `None` if the state is something else.
    pub(crate) fn of_state(state: &State) -> Option<Self> {
        let mut fields: Map<String, Value> = serde_json::from_slice(state.text()).ok()?;
        let former: Vec<Map<_, _>> = match fields.remove("former") {
            Some(former) => serde_json::from_value(former).ok()?,
            None => Vec::new(),
        };
        let former: Vec<_> = former.into_iter().map(Trail::of_fields).collect::<Option<_>>()?;
        if fields.is_empty() {
            return (!former.is_empty()).then(|| Self { former, ..Self::default() });
        }
        let Trail { name, position } = Trail::of_fields(fields)?;
        Some(Self { name, now: Some(position), former })
    }

    /// The progress as a state; `None` if the source does not report any.
    pub(crate) fn to_state(&self) -> Option<State> {
        let now = self.now.map(|position| Trail { name: self.name.clone(), position });
        let mut fields = now.as_ref().map(Trail::to_fields).unwrap_or_default();
        if !self.former.is_empty() {
            let former = self.former.iter().map(|lane| Value::Object(lane.to_fields()));
            fields.insert("former".into(), former.collect());
        }
        if fields.is_empty() {
            return None;
        }
        let text = serde_json::to_vec(&fields).expect("names and numbers can be written");
        Some(State::new(text).expect("it is an object"))
    }

    /// Switches to the thing of that name and returns the progress in it.
    pub(crate) fn enter(&mut self, name: &str) -> Option<Position> {
        if self.name != name {
            // What no name was given for is what was read last, under whatever name.
            if let Some(position) = self.now.filter(|_| !self.name.is_empty()) {
                self.former.insert(0, Trail { name: std::mem::take(&mut self.name), position });
                self.now = None;
            }
            self.name = name.to_owned();
            if let Some(at) = self.former.iter().position(|lane| lane.name == name) {
                // It may have been read on under another name since.
                let of = self.former[at].position.of;
                let latest = self.known(of);
                self.former.remove(at);
                self.now = self.now.or(latest);
            }
            self.former.truncate(MAX_FORMER);
        }
        self.now
    }

    /// The progress in what the source reads now.
    pub(crate) fn now(&self) -> Option<Position> {
        self.now
    }

    pub(crate) fn come_to(&mut self, position: Option<Position>) {
        self.now = position;
    }

    /// The progress in the thing with that number, under any name.
    pub(crate) fn known(&self, of: [u64; 2]) -> Option<Position> {
        let former = self.former.iter().map(|lane| lane.position);
        self.now.into_iter().chain(former).find(|position| position.of == of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(of: u64, at: u64) -> Position {
        Position { of: [of, 0], at, count: at, mark: [0; 2] }
    }

    fn state(text: &str) -> State {
        State::new(text.as_bytes().to_vec()).unwrap()
    }

    #[track_caller]
    fn check(progress: &Progress, text: &str) {
        let written = progress.to_state().unwrap();
        let value = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        assert_eq!(value(written.text()), value(text.as_bytes()));
        assert_eq!(
            Progress::of_state(&state(text)).as_ref().map(|read| read.now),
            Some(progress.now)
        );
        assert_eq!(Progress::of_state(&state(text)).unwrap().to_state(), Some(written));
    }

    #[test]
    fn what_was_read_before_is_kept_by_name() {
        let mut progress = Progress::default();
        assert_eq!(progress.enter("a"), None);
        progress.come_to(Some(position(1, 10)));
        check(&progress, r#"{"at":10,"count":10,"name":"a","of":[1,0]}"#);
        assert_eq!(progress.enter("b"), None);
        check(&progress, r#"{"former":[{"at":10,"count":10,"name":"a","of":[1,0]}]}"#);
        progress.come_to(Some(position(2, 5)));
        assert_eq!(progress.known([1, 0]), Some(position(1, 10)));
        assert_eq!(progress.enter("a"), Some(position(1, 10)));
        assert_eq!(progress.enter("b"), Some(position(2, 5)));
        // The same thing by another name, and back.
        progress.come_to(Some(position(1, 30)));
        assert_eq!(progress.enter("a"), Some(position(1, 30)));
        progress.enter("b");
        progress.come_to(Some(position(2, 5)));
        // Entered again, it is where it is.
        assert_eq!(progress.enter("b"), Some(position(2, 5)));
        for n in 0..100 {
            progress.enter(&n.to_string());
            progress.come_to(Some(position(n, n)));
        }
        assert_eq!(progress.former.len(), MAX_FORMER);
        assert_eq!(progress.enter("98"), Some(position(98, 98)));
    }

    #[test]
    fn a_position_without_a_name_is_that_of_what_is_read_next() {
        let mut progress =
            Progress::of_state(&state(r#"{"of":[1,0],"at":10,"count":10}"#)).unwrap();
        assert_eq!(progress.enter("a"), Some(position(1, 10)));
        assert_eq!(progress.enter("b"), None);
        assert_eq!(progress.enter("a"), Some(position(1, 10)));
    }

    #[test]
    fn what_is_no_progress_is_refused() {
        for text in [
            "{}",
            r#"{"n":1}"#,
            r#"{"of":[1,0],"at":10}"#,
            r#"{"of":[1,0],"at":10,"count":1,"more":1}"#,
            r#"{"of":[1,0],"at":10,"count":-1}"#,
            r#"{"of":[1,0],"at":10,"count":1,"former":1}"#,
            r#"{"of":[1,0],"at":10,"count":1,"former":[{"at":1}]}"#,
        ] {
            assert_eq!(Progress::of_state(&state(text)), None, "{text}");
        }
    }
}
