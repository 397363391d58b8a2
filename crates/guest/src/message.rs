//! Messages as they cross the border of the module.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What kind of data a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those that every message carries")]
pub enum Type {
    Flow,
    Event,
    Boolean,
    Integer,
    Float,
    String,
    Object,
    Array,
    Stream,
    Optional,
    Any,
    Error,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Its kind.
    #[serde(rename = "type")]
    pub ty: Type,
    /// What it carries; null where it carries nothing.
    #[serde(default)]
    pub data: Value,
}

/// Reads a value. Where a whole number is wanted, `1.0` and `1e3` are such, as JavaScript and
/// Go write them.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> serde_json::Result<T> {
    T::deserialize(value).or_else(|error| {
        let whole = value.as_f64().and_then(whole).ok_or(error)?;
        T::deserialize(&Value::from(whole))
    })
}

/// The integer that a float is, where it is one.
fn whole(float: f64) -> Option<i64> {
    // The first float over the largest integer.
    let bound = -(i64::MIN as f64);
    #[expect(clippy::cast_possible_truncation, reason = "nothing is cut: it is whole and fits")]
    (float.fract() == 0.0 && (-bound..bound).contains(&float)).then_some(float as i64)
}

impl Type {
    /// The type that a value has by itself.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Optional,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_f64() => Self::Float,
            Value::Number(_) => Self::Integer,
            Value::String(_) => Self::String,
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
        }
    }
}
