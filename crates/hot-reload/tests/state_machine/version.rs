//! Versions of modules that fail in every way in which an engine fails.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    Context, Digest, Effects, Engine, Failure, FailureKind, InstantiateError, LeftState, Message,
    Metadata, MigrateError, Port, Program, State, Turn, Type,
};
use serde_json::{Value, json};
use tokio::time::{self, Instant};

/// An actor's part in the flow: `front` → `work` → `back` → `sink`; beside them `left` and
/// `right` → `join` → `sink`, and a listener that gets what `back` puts out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Front,
    Work,
    Back,
    Left,
    Right,
    Join,
    Sink,
    Listener,
}

impl Role {
    pub(crate) const CHAIN: [Self; 3] = [Self::Front, Self::Work, Self::Back];
    /// Those whose versions change.
    pub(crate) const SWAPPED: [Self; 4] = [Self::Front, Self::Work, Self::Back, Self::Join];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Work => "work",
            Self::Back => "back",
            Self::Left => "left",
            Self::Right => "right",
            Self::Join => "join",
            Self::Sink => "sink",
            Self::Listener => "listener",
        }
    }

    fn inports(self) -> &'static [&'static str] {
        if self == Self::Join { &["left", "right"] } else { &["in"] }
    }
}

/// The ways in which versions behave.
const BEHAVIOURS: u8 = 9;

/// What the turns are counted under, by the form of the state. A version understands its
/// own form and no other; one of a later form makes its own of an earlier one.
const FORMS: [&str; 3] = ["turns", "ones", "twos"];

/// What the turns are counted under in a state that nobody understands.
const BROKEN: &str = "broken";

/// The form of a state: nothing where there is no state yet, or it is broken.
pub(crate) fn form_of(state: &State) -> Option<u8> {
    let state: Value = serde_json::from_slice(state.text()).unwrap();
    let form = FORMS.iter().position(|key| state.get(key).is_some())?;
    Some(u8::try_from(form).unwrap())
}

/// The turns that a state has counted, broken or not.
pub(crate) fn turns_in(state: &State) -> u64 {
    let state: Value = serde_json::from_slice(state.text()).unwrap();
    let mut keys = FORMS.iter().chain([&BROKEN]);
    keys.find_map(|key| state.get(key)?.as_u64()).unwrap_or(0)
}

/// Whether some version understands the state.
pub(crate) fn is_sound(state: &State) -> bool {
    let state: Value = serde_json::from_slice(state.text()).unwrap();
    state.get(BROKEN).is_none()
}

/// What the versions of a history leave outside of the flow.
#[derive(Default)]
pub(crate) struct Outside {
    /// What the sink has got, in order.
    pub(crate) out: Mutex<Vec<Value>>,
    /// What the listener has got, in order.
    pub(crate) heard: Mutex<Vec<Value>>,
    /// Messages whose first attempt has trapped.
    tried: Mutex<BTreeSet<(u64, u64)>>,
}

impl Outside {
    pub(crate) fn tried(&self) -> usize {
        self.tried.lock().unwrap().len()
    }
}

/// One version of what an actor runs.
#[derive(Clone)]
pub(crate) struct Version {
    role: Role,
    /// How it behaves, and the form of its state.
    number: u8,
    metadata: Metadata,
    outside: Arc<Outside>,
}

/// How a version fails, of its own fault.
enum Way {
    Traps,
    Hangs,
    AnswersBadly,
    ReturnsError,
}

impl Version {
    pub(crate) fn new(role: Role, number: u8, outside: &Arc<Outside>) -> Self {
        let port = |name: &&str| Port {
            name: name.parse().unwrap(),
            description: String::new(),
            port_type: Type::Any,
            required: true,
        };
        let metadata = Metadata {
            component: role.name().into(),
            description: String::new(),
            inports: role.inports().iter().map(port).collect(),
            outports: vec![port(&"out")],
            config_schema: None,
            version: None,
        };
        Self { role, number, metadata, outside: Arc::clone(outside) }
    }

    /// The one that behaves so, with a state of that form.
    pub(crate) fn behaving(role: Role, behaviour: u8, form: u8, outside: &Arc<Outside>) -> Self {
        Self::new(role, form * BEHAVIOURS + behaviour, outside)
    }

    fn behaviour(&self) -> u8 {
        self.number % BEHAVIOURS
    }

    /// The form of the state that it understands.
    pub(crate) fn form(&self) -> u8 {
        self.number / BEHAVIOURS
    }

    /// The version of a digest that [`Program::digest`] has given.
    pub(crate) fn of(role: Role, digest: Digest, outside: &Arc<Outside>) -> Self {
        let same = |version: &Self| version.digest() == digest;
        (0..=u8::MAX).map(|number| Self::new(role, number, outside)).find(same).unwrap()
    }

    /// Whether its first turn leaves a state that no version understands.
    pub(crate) fn breaks_the_state(&self) -> bool {
        self.behaviour() == 7
    }

    /// How the version fails on a message of that number.
    fn fails(&self, seq: u64) -> Option<Way> {
        match self.behaviour() {
            3 if seq.is_multiple_of(3) => Some(Way::Traps),
            4 if seq.is_multiple_of(4) => Some(Way::Hangs),
            5 if seq % 3 == 1 => Some(Way::AnswersBadly),
            6 if seq % 3 == 2 => Some(Way::ReturnsError),
            8 if seq.is_multiple_of(9) => Some(Way::Traps),
            _ => None,
        }
    }

    fn act(&self, context: &Context) -> Result<Effects, FailureKind> {
        let trap = |why: &str| Err(FailureKind::Trap(why.into()));
        let messages: Vec<Value> = context
            .payload
            .iter()
            .map(|(_, message)| serde_json::from_slice(message.data()).unwrap())
            .collect();
        match self.role {
            Role::Sink => {
                self.outside.out.lock().unwrap().extend(messages);
                return Ok(Effects::default());
            }
            Role::Listener => {
                self.outside.heard.lock().unwrap().extend(messages);
                return Ok(Effects::default());
            }
            Role::Left | Role::Right => {
                return Ok(Effects {
                    outputs: vec![("out".parse().unwrap(), context.payload[0].1.clone())],
                    state: None,
                });
            }
            Role::Front | Role::Work | Role::Back | Role::Join => {}
        }
        let count = match form_of(&context.state) {
            Some(form) if form == self.form() => turns_in(&context.state) + 1,
            None if context.state == State::default() => 1,
            Some(_) | None => return trap("a state of another form"),
        };
        let message = &messages[0];
        let (sender, seq) = identity(message);
        if self.role == Role::Work {
            match message["kind"].as_str() {
                Some("Poison") => return trap("poison"),
                Some("Hangs") => return Err(FailureKind::Timeout(Duration::ZERO)),
                Some("Once") if self.outside.tried.lock().unwrap().insert((sender, seq)) => {
                    return trap("the first attempt");
                }
                _ => {}
            }
        }
        match self.fails(seq) {
            Some(Way::Traps) => return trap("a bad version"),
            Some(Way::Hangs) => return Err(FailureKind::Timeout(Duration::ZERO)),
            Some(Way::AnswersBadly) => return Err(FailureKind::Turn("no result".into())),
            Some(Way::ReturnsError) => return Err(FailureKind::Guest("no".into())),
            None => {}
        }
        let out = if self.role == Role::Join {
            json!({ "left": messages[0], "right": messages[1], "join": count })
        } else {
            let mut out = message.clone();
            out[self.role.name()] = count.into();
            out
        };
        let own = FORMS[usize::from(self.form())];
        let key = if self.breaks_the_state() { BROKEN } else { own };
        Ok(Effects {
            outputs: vec![(
                "out".parse().unwrap(),
                Message::new(Type::Object, out.to_string()).unwrap(),
            )],
            state: Some(State::new(json!({ key: count }).to_string()).unwrap()),
        })
    }
}

/// The sender of a message, and its number there.
pub(crate) fn identity(message: &Value) -> (u64, u64) {
    (message["sender"].as_u64().unwrap(), message["seq"].as_u64().unwrap())
}

impl Program for Version {
    fn digest(&self) -> Digest {
        let mut bytes = [self.number; 32];
        bytes[0] = self.role as u8;
        Digest::new(bytes)
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn migrates_state(&self) -> bool {
        self.form() > 0
    }

    fn migrate_state(&self, left: LeftState) -> BoxFuture<'_, Result<State, MigrateError>> {
        let migrated = match form_of(&left.state) {
            Some(form) if form == self.form() => Ok(left.state),
            Some(form) if form < self.form() => {
                let key = FORMS[usize::from(self.form())];
                Ok(State::new(json!({ key: turns_in(&left.state) }).to_string()).unwrap())
            }
            Some(_) | None => Err(MigrateError::Failed { why: "does not know that form".into() }),
        };
        Box::pin(async { migrated })
    }

    fn acts_outside(&self) -> bool {
        matches!(self.role, Role::Sink | Role::Listener)
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let engine: Box<dyn Engine> = Box::new(Running(self.clone()));
        Box::pin(async { Ok(engine) })
    }
}

/// An engine of a version.
struct Running(Version);

impl Engine for Running {
    fn turn(self: Box<Self>, context: Context, deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            // Others take their turns meanwhile.
            tokio::task::yield_now().await;
            match self.0.act(&context) {
                Ok(effects) => Ok((self as Box<dyn Engine>, effects)),
                Err(kind @ FailureKind::Timeout(_)) => {
                    time::sleep_until(deadline).await;
                    Err(Failure { kind, engine: None })
                }
                Err(kind @ FailureKind::Trap(_)) => Err(Failure { kind, engine: None }),
                Err(kind) => Err(Failure { kind, engine: Some(self) }),
            }
        })
    }
}
