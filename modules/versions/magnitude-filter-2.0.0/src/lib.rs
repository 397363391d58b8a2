//! Passes on the earthquakes that are strong enough, and says how strong.
//!
//! The second version of the filter. It differs from the first in one thing: a
//! record that passes gets a `class`. The record is not rewritten for that; the
//! new field is put before the brace that closes it, and all else stays the text
//! that came.

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

const METADATA: &str = r#"{
    "component": "MagnitudeFilter",
    "description": "Passes on the earthquakes that are strong enough, and says how strong.",
    "inports": [{
        "name": "quake",
        "description": "One earthquake, with its magnitude in `mag`.",
        "port_type": "Object",
        "required": true
    }],
    "outports": [{
        "name": "strong",
        "description": "The record with a `class`, when its magnitude is `min_magnitude` or more.",
        "port_type": "Object"
    }],
    "config_schema": {
        "type": "object",
        "properties": {
            "min_magnitude": {
                "type": "number",
                "description": "The least magnitude that passes.",
                "default": 4.5
            }
        },
        "additionalProperties": false
    }
}"#;

/// Asked once, when the module is loaded.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// Asked once, when the module is loaded: a JSON string.
#[plugin_fn]
pub fn get_version() -> FnResult<&'static str> {
    Ok(concat!('"', env!("CARGO_PKG_VERSION"), '"'))
}

/// Asked for each actor before it starts: the actor's config in, a JSON bool out.
///
/// The schema has checked names and types by then; this adds what a schema says badly.
#[plugin_fn]
pub fn validate_config() -> FnResult<&'static str> {
    let config: Config = serde_json::from_slice(&input_bytes())?;
    // The scale has no ends, but whoever asks for 45 meant 4.5.
    Ok(if (-10.0..=10.0).contains(&config.min_magnitude) { "true" } else { "false" })
}

/// Takes one turn. An error goes back as text, and the message with it: nothing is lost.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    let input = input_bytes();
    let context: Context = serde_json::from_slice(&input)?;
    let record = context.payload.quake.data;
    let quake: Quake = serde_json::from_str(record.get())?;

    // A record without a magnitude is not strong.
    let strong = match quake.mag {
        Some(mag) if mag >= context.config.config.min_magnitude => {
            Some(classified(record, &quake, mag)?)
        }
        _ => None,
    };
    let strong = strong.as_deref().map(|data| Message { ty: "Object", data });
    Ok(serde_json::to_vec(&Answer { outputs: Outputs { strong } })?)
}

/// The record with its class, unless it has one.
fn classified(record: &RawValue, quake: &Quake, mag: f64) -> FnResult<Box<RawValue>> {
    let text = record.get();
    let text = match text.strip_suffix('}') {
        Some(open) if quake.class.is_none() => format!(r#"{open},"class":"{}"}}"#, class(mag)),
        _ => text.to_owned(),
    };
    Ok(RawValue::from_string(text)?)
}

/// The customary word for a magnitude.
fn class(mag: f64) -> &'static str {
    match mag {
        ..4.0 => "minor",
        ..5.0 => "light",
        ..6.0 => "moderate",
        ..7.0 => "strong",
        _ => "major",
    }
}

/// What a turn is given. Fields that the actor does not need are not named here.
#[derive(Deserialize)]
struct Context<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
    config: Surroundings,
}

/// One message, by the inport that it came through.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    quake: Message<'a>,
}

/// A message: a type, and data that stays the text it is.
#[derive(Deserialize, Serialize)]
struct Message<'a> {
    #[serde(rename = "type")]
    ty: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// What the daemon says of the actor, its configuration among it.
#[derive(Deserialize)]
struct Surroundings {
    config: Config,
}

/// The actor's configuration, as in its `config = { … }`.
#[derive(Deserialize)]
struct Config {
    #[serde(default = "usually_felt")]
    min_magnitude: f64,
}

/// Earthquakes from here on are felt by most people near them.
fn usually_felt() -> f64 {
    4.5
}

/// The part of a record that decides.
#[derive(Deserialize)]
#[serde(expecting = "the record of an earthquake")]
struct Quake {
    mag: Option<f64>,
    class: Option<IgnoredAny>,
}

/// What a turn answers: messages by outport.
#[derive(Serialize)]
struct Answer<'a> {
    outputs: Outputs<'a>,
}

/// A port that is left out gets no message.
#[derive(Serialize)]
struct Outputs<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    strong: Option<Message<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(record: &str, expected: &str) {
        let record: &RawValue = serde_json::from_str(record).expect("the case is JSON");
        let quake: Quake = serde_json::from_str(record.get()).expect("the case is a record");
        let mag = quake.mag.expect("the case has a magnitude");
        let text = classified(record, &quake, mag).expect("a record stays JSON");
        assert_eq!(text.get(), expected);
    }

    #[test]
    fn a_record_keeps_its_text_and_gets_a_class() {
        check(r#"{"mag":-0.8}"#, r#"{"mag":-0.8,"class":"minor"}"#);
        check(r#"{"mag":3.99}"#, r#"{"mag":3.99,"class":"minor"}"#);
        check(r#"{"mag":4}"#, r#"{"mag":4,"class":"light"}"#);
        check(r#"{"mag":5.0}"#, r#"{"mag":5.0,"class":"moderate"}"#);
        check(r#"{"mag":6e0}"#, r#"{"mag":6e0,"class":"strong"}"#);
        check(r#"{ "a":1e2, "mag":7 }"#, r#"{ "a":1e2, "mag":7 ,"class":"major"}"#);
    }

    #[test]
    fn a_class_that_is_there_stays() {
        check(r#"{"mag":5,"class":"mine"}"#, r#"{"mag":5,"class":"mine"}"#);
    }
}
