//! The names by which actors and ports are called.
//!
//! Names are shared strings: cloning one counts a reference, so that every
//! envelope, metric and log line can carry its own.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The longest actor name, in bytes: a metric label and a file name both bear it.
const MAX_ACTOR_NAME: usize = 63;

/// The name of an actor: `[A-Za-z0-9][A-Za-z0-9_-]{0,62}`.
///
/// It has no dot, because `actor.port` is how a port is written, and nothing
/// that a file name, a URL or a metric label would have to escape.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorName(Arc<str>);

/// Why a string cannot name an actor.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` cannot name an actor: use 1 to 63 letters, digits, `_` or `-`, starting with a letter or digit"
)]
pub struct ActorNameError(String);

impl ActorName {
    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ActorName {
    type Err = ActorNameError;

    fn from_str(name: &str) -> Result<Self, ActorNameError> {
        let fits = (1..=MAX_ACTOR_NAME).contains(&name.len())
            && name.as_bytes()[0].is_ascii_alphanumeric()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if fits { Ok(Self(name.into())) } else { Err(ActorNameError(name.into())) }
    }
}

/// The name of a port, as the module's metadata gives it: 1 to 256 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName(Arc<str>);

/// Why a string cannot name a port.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PortNameError {
    /// It has no characters.
    #[error("a port's name is empty")]
    Empty,
    /// It has that many bytes.
    #[error("a port's name has {0} bytes, and at most {max} are allowed; shorten it", max = PortName::MAX_LEN)]
    TooLong(usize),
}

impl PortName {
    /// The longest name, in bytes: messages on their way and the metrics of wires bear it.
    pub const MAX_LEN: usize = 256;

    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortName {
    type Err = PortNameError;

    fn from_str(name: &str) -> Result<Self, PortNameError> {
        match name.len() {
            0 => Err(PortNameError::Empty),
            1..=PortName::MAX_LEN => Ok(Self(name.into())),
            long => Err(PortNameError::TooLong(long)),
        }
    }
}

/// One port of one actor, written `actor.port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRef {
    /// The actor.
    pub actor: ActorName,
    /// Its port.
    pub port: PortName,
}

/// Why a string is not `actor.port`.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PortRefError {
    /// There is no dot.
    #[error("`{0}` names no port: write `actor.port`")]
    NoPort(String),
    /// What stands before the dot cannot name an actor.
    #[error(transparent)]
    Actor(#[from] ActorNameError),
    /// Nothing stands after the dot.
    #[error(transparent)]
    Port(#[from] PortNameError),
}

impl FromStr for PortRef {
    type Err = PortRefError;

    fn from_str(text: &str) -> Result<Self, PortRefError> {
        let (actor, port) =
            text.split_once('.').ok_or_else(|| PortRefError::NoPort(text.into()))?;
        Ok(Self { actor: actor.parse()?, port: port.parse()? })
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.actor, self.port)
    }
}

macro_rules! string_like {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

string_like!(ActorName);
string_like!(PortName);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, good: bool) {
        assert_eq!(name.parse::<ActorName>().is_ok(), good, "{name:?}");
    }

    #[test]
    fn an_actor_name_is_short_and_plain() {
        check("a", true);
        check("0-tick_2", true);
        check(&"x".repeat(63), true);
        check(&"x".repeat(64), false);
        check("", false);
        check("-a", false);
        check("_a", false);
        check("a.b", false);
        check("a/b", false);
        check("ä", false);
    }

    #[test]
    fn a_port_name_has_a_bound() {
        let parsed = |bytes: usize| "x".repeat(bytes).parse::<PortName>().map(drop);
        assert_eq!(parsed(0), Err(PortNameError::Empty));
        let max = PortName::MAX_LEN;
        assert_eq!(parsed(max), Ok(()));
        assert_eq!(parsed(max + 1), Err(PortNameError::TooLong(max + 1)));
    }

    #[test]
    fn a_port_is_written_after_the_first_dot() {
        let port: PortRef = "tick.out.1".parse().unwrap();
        assert_eq!((port.actor.as_str(), port.port.as_str()), ("tick", "out.1"));
        assert!("tick".parse::<PortRef>().is_err());
        assert!("tick.".parse::<PortRef>().is_err());
        assert!(".out".parse::<PortRef>().is_err());
    }
}
