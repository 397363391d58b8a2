//! Passes on the earthquakes that are strong enough.
//!
//! An actor is two functions: `get_metadata` says which ports there are, and
//! `process` takes one turn, JSON in and JSON out. This one never rewrites a
//! record: it reads the magnitude, and what it lets through is the very text
//! that came, so that no digit and no space changes.

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const METADATA: &str = r#"{
    "component": "MagnitudeFilter",
    "description": "Passes on the earthquakes that are strong enough.",
    "inports": [{
        "name": "quake",
        "description": "One earthquake, with its magnitude in `mag`.",
        "port_type": "Object",
        "required": true
    }],
    "outports": [{
        "name": "strong",
        "description": "The same record, when its magnitude is `min_magnitude` or more.",
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
    let strong = quake.mag.is_some_and(|mag| mag >= context.config.config.min_magnitude);
    let strong = strong.then_some(Message { ty: "Object", data: record });
    Ok(serde_json::to_vec(&Answer { outputs: Outputs { strong } })?)
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
