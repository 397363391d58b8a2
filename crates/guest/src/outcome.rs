//! How a turn ends.

use std::fmt;

/// Why a turn does not succeed: the message goes to the actor's port `error` where that
/// is wired, and becomes a dead letter otherwise. The state stays as it was.
///
/// Anything that says something can be one: `Err("too large".into())`, or `?` on an
/// error of JSON or of a number that does not parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

/// What a turn comes to.
pub type Outcome<T = ()> = Result<T, Error>;

impl Error {
    /// An error that says `text`.
    #[must_use]
    pub fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Errors that many turns meet.
macro_rules! from {
    ($($error:ty),*) => {
        $(
            impl From<$error> for Error {
                fn from(error: $error) -> Self {
                    Self::new(error)
                }
            }
        )*
    };
}

from!(&str, String, serde_json::Error, std::num::ParseIntError, std::num::ParseFloatError);
