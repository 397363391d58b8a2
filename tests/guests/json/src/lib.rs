//! Doubles a number: the least that an ordinary actor does with JSON.
//!
//! The benchmarks' yardstick. It reads its input and a state of three keys into
//! values and writes one output, as a first actor of anybody's would.

mod double;

use extism_pdk::{FnResult, input_bytes, plugin_fn};

const METADATA: &str = r#"{
    "component": "Json",
    "description": "Doubles a number.",
    "inports": [{ "name": "value", "description": "A number.", "port_type": "Integer", "required": true }],
    "outports": [{ "name": "out", "description": "Twice the number.", "port_type": "Integer" }],
    "config_schema": null
}"#;

/// The module's ports.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// One number in, twice the number out.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    Ok(double::double(&input_bytes())?)
}
