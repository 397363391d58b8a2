//! Tally in Rust: adds what comes to a count in its state.
//!
//! The folders beside this one hold the same actor in other languages; a test
//! takes all of them through the same turns.

use extism_pdk::{FnResult, Json, config, host_fn, info, plugin_fn};
use serde::{Deserialize, Serialize};

const METADATA: &str = r#"{
    "component": "Tally",
    "description": "Adds what comes to a count.",
    "inports": [{ "name": "in", "description": "What to add.", "port_type": "Integer", "required": true }],
    "outports": [{ "name": "out", "description": "The count.", "port_type": "Integer" }],
    "config_schema": null
}"#;

#[host_fn("extism:host/user")]
extern "ExtismHost" {
    fn __get_state(key: String) -> String;
    fn __set_state(key: String, value: String);
}

/// The module's ports.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// The crate's version.
#[plugin_fn]
pub fn get_version() -> FnResult<&'static str> {
    Ok(concat!('"', env!("CARGO_PKG_VERSION"), '"'))
}

/// One number in, the count out.
#[plugin_fn]
pub fn process(Json(context): Json<Context>) -> FnResult<Json<Answer>> {
    let mut value = context.payload.message.data;
    if value < 0 {
        return Err(extism_pdk::Error::msg(format!("in: {value} is negative")).into());
    }
    if let Some(step) = config::get("step")? {
        value *= step.parse::<i64>()?;
    }
    // SAFETY: both functions take and give handles that the glue has made.
    let before = unsafe { __get_state("count".into())? };
    let count = value + serde_json::from_str::<Option<i64>>(&before)?.unwrap_or(0);
    // SAFETY: as above.
    unsafe { __set_state("count".into(), count.to_string())? };
    info!("count is {count}");
    Ok(Json(Answer { outputs: Outputs { out: Message { ty: "Integer".into(), data: count } } }))
}

/// What comes.
#[derive(Deserialize)]
pub struct Context {
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "in")]
    message: Message,
}

#[derive(Deserialize, Serialize)]
struct Message {
    #[serde(rename = "type")]
    ty: String,
    data: i64,
}

/// What goes.
#[derive(Serialize)]
pub struct Answer {
    outputs: Outputs,
}

#[derive(Serialize)]
struct Outputs {
    out: Message,
}
