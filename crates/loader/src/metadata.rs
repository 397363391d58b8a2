//! The metadata of a module, read from the JSON of `get_metadata`.
//!
//! Guests write this, so every error names the port or field that is wrong
//! rather than the place in the JSON where a parser gave up.

use std::{borrow::Cow, collections::HashSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reflowd_runtime::{Metadata, Port, PortName, PortNameError, Type, excerpt};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::config_schema::{self, InvalidSchema};

/// The reason why the answer of `get_metadata` is not metadata.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidMetadata {
    /// Not the JSON object that was asked for.
    #[error(
        "expected {{\"component\": …, \"inports\": […], \"outports\": […]}}: {why}; it answered {answer}"
    )]
    Shape {
        /// What the parser missed.
        why: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// The module has no name.
    #[error("`component` is empty; name the component")]
    NoComponent,
    /// A port has no name.
    #[error("an {direction} has an empty name; name it")]
    NoPortName {
        /// `inport` or `outport`.
        direction: &'static str,
    },
    /// Two ports of one direction have one name.
    #[error("two {direction}s are named `{port}`; rename one")]
    DoublePort {
        /// `inport` or `outport`.
        direction: &'static str,
        /// The name.
        port: String,
    },
    /// A port of a type that does not exist.
    #[error("the {direction} `{port}` has unknown type `{ty}`; the types are {}", types())]
    UnknownType {
        /// `inport` or `outport`.
        direction: &'static str,
        /// The port.
        port: String,
        /// The type that it claims.
        ty: String,
    },
    /// A field is longer, or ports are more, than the limit.
    #[error("{what} has {found} {unit}, and at most {max} are allowed; reduce them")]
    OverBound {
        /// The field.
        what: String,
        /// Its size.
        found: usize,
        /// Bytes, or ports.
        unit: &'static str,
        /// Its limit.
        max: usize,
    },
    /// The schema for the configuration cannot be used.
    #[error(transparent)]
    Schema(#[from] InvalidSchema),
}

/// Limits on the parts of the metadata. All of it is kept as long as the module, shown in answers
/// and written to logs.
struct FieldLimit {
    unit: &'static str,
    max: usize,
}

/// The whole answer. Most of it can only be the schema.
const ANSWER: FieldLimit = FieldLimit { unit: "bytes", max: 1 << 20 };
/// Text that is shown wherever the module is: its component's name, its version.
const NAME: FieldLimit = FieldLimit { unit: "bytes", max: 256 };
/// Text for people: about a page.
const DESCRIPTION: FieldLimit = FieldLimit { unit: "bytes", max: 16 << 10 };
/// Ports of one direction. Each one is looked at for every wire.
const PORTS: FieldLimit = FieldLimit { unit: "ports", max: 1_000 };

impl FieldLimit {
    fn check(&self, what: impl Into<String>, found: usize) -> Result<(), InvalidMetadata> {
        let &Self { unit, max } = self;
        if found <= max {
            return Ok(());
        }
        Err(InvalidMetadata::OverBound { what: what.into(), found, unit, max })
    }
}

fn types() -> String {
    Type::ALL.map(Type::name).join(", ")
}

/// Reads metadata, in plain JSON or as a JSON string that holds base64 of it. Blocks.
///
/// # Errors
/// The metadata is invalid.
pub(crate) fn read(answer: &[u8]) -> Result<Metadata, InvalidMetadata> {
    ANSWER.check("its JSON", answer.len())?;
    // An error of the parser shows a whole string that stands in another thing's place.
    let shape = |why: String| {
        let why = excerpt(why.as_bytes());
        InvalidMetadata::Shape { why, answer: excerpt(answer) }
    };
    let text = unwrap_base64(answer);
    let written: Written = serde_json::from_slice(&text).map_err(|e| shape(e.to_string()))?;
    if written.component.trim().is_empty() {
        return Err(InvalidMetadata::NoComponent);
    }
    let description = written.description.unwrap_or_default();
    NAME.check("`component`", written.component.len())?;
    NAME.check("`version`", written.version.as_ref().map_or(0, String::len))?;
    DESCRIPTION.check("`description`", description.len())?;
    let inports = ports("inport", written.inports)?;
    let outports = ports("outport", written.outports)?;
    if let Some(schema) = &written.config_schema {
        config_schema::check(schema)?;
    }
    Ok(Metadata {
        component: written.component,
        description,
        inports,
        outports,
        config_schema: written.config_schema,
        version: written.version,
    })
}

fn ports(direction: &'static str, written: Vec<WrittenPort>) -> Result<Vec<Port>, InvalidMetadata> {
    PORTS.check(format!("`{direction}s`"), written.len())?;
    let mut seen = HashSet::new();
    let port = |port: WrittenPort| {
        let name = port.name.parse::<PortName>().map_err(|error| match error {
            PortNameError::Empty => InvalidMetadata::NoPortName { direction },
            PortNameError::TooLong(found) => InvalidMetadata::OverBound {
                what: format!("the name of an {direction}"),
                found,
                unit: "bytes",
                max: PortName::MAX_LEN,
            },
        })?;
        if !seen.insert(port.name.clone()) {
            return Err(InvalidMetadata::DoublePort { direction, port: port.name });
        }
        let Some(port_type) = Type::from_name(&port.port_type) else {
            let (port, ty) = (port.name, excerpt(port.port_type.as_bytes()));
            return Err(InvalidMetadata::UnknownType { direction, port, ty });
        };
        let description = port.description.unwrap_or_default();
        DESCRIPTION
            .check(format!("`description` of the {direction} `{name}`"), description.len())?;
        Ok(Port { name, description, port_type, required: port.required.unwrap_or(false) })
    };
    written.into_iter().map(port).collect()
}

/// Whether an answer is a JSON string instead of the JSON itself.
pub(crate) fn is_wrapped(answer: &[u8]) -> bool {
    answer.trim_ascii_start().first() == Some(&b'"')
}

/// Some builds of the Go SDK answer with a JSON string that holds base64 of the
/// JSON. Anything else is handed back as it is, for its reader to judge.
pub(crate) fn unwrap_base64(answer: &[u8]) -> Cow<'_, [u8]> {
    let decode = || {
        let text: Cow<'_, str> = serde_json::from_slice(answer).ok()?;
        STANDARD.decode(text.as_bytes()).ok()
    };
    if !is_wrapped(answer) {
        return Cow::Borrowed(answer);
    }
    decode().map_or(Cow::Borrowed(answer), Cow::Owned)
}

/// Metadata as guests write it. Null counts as missing.
#[derive(Deserialize)]
struct Written {
    component: String,
    description: Option<String>,
    inports: Vec<WrittenPort>,
    outports: Vec<WrittenPort>,
    config_schema: Option<Value>,
    version: Option<String>,
}

#[derive(Deserialize)]
struct WrittenPort {
    name: String,
    description: Option<String>,
    port_type: String,
    required: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: &str, expected: Result<(), &str>) {
        let found = read(answer.as_bytes()).map(|_| ()).map_err(|e| e.to_string());
        match (&found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(text), Err(part)) if text.contains(part) => {}
            _ => panic!("{answer}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn metadata_is_read_or_the_error_names_the_fault() {
        let with = |ports: &str, rest: &str| {
            format!(r#"{{"component":"c","inports":[{ports}],"outports":[]{rest}}}"#)
        };
        check(&with("", ""), Ok(()));
        check(&with("", r#","description":null,"config_schema":null,"author":"x""#), Ok(()));
        check(&with(r#"{"name":"in","port_type":"Any"}"#, ""), Ok(()));
        check(r#"{"component":" ","inports":[],"outports":[]}"#, Err("`component` is empty"));
        check(r#"{"component":"c","inports":[]}"#, Err("missing field `outports`"));
        check("", Err("expected {\"component\""));
        check("<html>", Err("it answered <html>"));
        check(&with(r#"{"name":"","port_type":"Any"}"#, ""), Err("an inport has an empty name"));
        let double = r#"{"name":"a","port_type":"Any"},{"name":"a","port_type":"Flow"}"#;
        check(&with(double, ""), Err("two inports are named `a`"));
        let unknown = r#"{"name":"a","port_type":"Number"}"#;
        check(&with(unknown, ""), Err("the inport `a` has unknown type `Number`"));
        check(&with("", r#","config_schema":{"type":"no-such"}"#), Err("no JSON Schema"));
        check(&with("", r#","config_schema":{"type":"object"}"#), Ok(()));
        let remote = r#","config_schema":{"$ref":"http://127.0.0.1:1/x.json"}"#;
        check(&with("", remote), Err("no JSON Schema"));
        let file = r#","config_schema":{"$ref":"file:///etc/passwd"}"#;
        check(&with("", file), Err("no JSON Schema"));
    }

    #[test]
    fn every_part_of_the_metadata_has_a_bound() {
        let long = |bytes: usize| "x".repeat(bytes);
        let with = |ports: &str, rest: &str| {
            format!(r#"{{"component":"c","inports":[{ports}],"outports":[]{rest}}}"#)
        };
        let named =
            |bytes| format!(r#"{{"component":"{}","inports":[],"outports":[]}}"#, long(bytes));
        let described = |bytes| with("", &format!(r#","description":"{}""#, long(bytes)));
        let versioned = |bytes| with("", &format!(r#","version":"{}""#, long(bytes)));
        let port = |name: &str, text: &str| {
            format!(r#"{{"name":"{name}","port_type":"Any","description":"{text}"}}"#)
        };
        let ports =
            |count| (0..count).map(|n| port(&n.to_string(), "")).collect::<Vec<_>>().join(",");
        let over = |what: &str, max: usize| format!("{what} has {} ", max + 1);
        for (at, beyond, what, max) in [
            (named(NAME.max), named(NAME.max + 1), "`component`", NAME.max),
            (versioned(NAME.max), versioned(NAME.max + 1), "`version`", NAME.max),
            (
                described(DESCRIPTION.max),
                described(DESCRIPTION.max + 1),
                "`description`",
                DESCRIPTION.max,
            ),
            (with(&ports(PORTS.max), ""), with(&ports(PORTS.max + 1), ""), "`inports`", PORTS.max),
            (
                with(&port(&long(PortName::MAX_LEN), ""), ""),
                with(&port(&long(PortName::MAX_LEN + 1), ""), ""),
                "the name of an inport",
                PortName::MAX_LEN,
            ),
            (
                with(&port("a", &long(DESCRIPTION.max)), ""),
                with(&port("a", &long(DESCRIPTION.max + 1)), ""),
                "`description` of the inport `a`",
                DESCRIPTION.max,
            ),
        ] {
            check(&at, Ok(()));
            check(&beyond, Err(&over(what, max)));
        }
        let blanks =
            |bytes: usize| format!("{}{}", with("", ""), " ".repeat(bytes - with("", "").len()));
        check(&blanks(ANSWER.max), Ok(()));
        check(&blanks(ANSWER.max + 1), Err(&over("its JSON", ANSWER.max)));
        let ty = format!(r#"{{"name":"a","port_type":"{}"}}"#, long(1000));
        let why = read(with(&ty, "").as_bytes()).unwrap_err().to_string();
        assert!(why.len() < 600, "{why}");
    }

    #[test]
    fn metadata_may_be_wrapped() {
        let inner = r#"{"component":"c","inports":[],"outports":[]}"#;
        check(&format!("\"{}\"", STANDARD.encode(inner)), Ok(()));
        check("\"not base64!\"", Err("it answered \"not base64!\""));
    }
}
