//! Messages as they cross the border of the module.

use serde::{Deserialize, Serialize};
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
