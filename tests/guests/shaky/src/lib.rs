//! An actor that fails as a test wants it to, and keeps a count in its state.
//!
//! What it does wrong stands in [`SCRIPT`], which a test writes over in the module's
//! bytes: so one file is as many versions as a test needs, each with its own digest.

use std::hint::black_box;

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize};

/// `SHAKY `, a stamp, a way to fail, and spaces.
///
/// | way | |
/// |---|---|
/// | `steady` | never fails |
/// | `third` | traps on every third number |
/// | `hangs` | computes for ever on every tenth number |
/// | `breaks` | keeps the count as text, and traps on every fifth number once it has |
static SCRIPT: [u8; 32] = *b"SHAKY v1 steady                 ";

const METADATA: &str = r#"{
    "component": "Shaky",
    "description": "Fails as a test wants it to.",
    "inports": [{ "name": "in", "description": "{sender, seq}", "port_type": "Any", "required": true }],
    "outports": [{ "name": "out", "description": "{sender, seq, stamp, count}", "port_type": "Object" }],
    "config_schema": null
}"#;

/// The module's ports.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// One message in, one message out, and one more in the count. A poisoned message, or a
/// count that is no number, is more than any version can bear.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    let script = str::from_utf8(black_box(&SCRIPT)).expect("the script is text");
    let mut words = script.split_whitespace().skip(1);
    let (stamp, way) = (words.next().unwrap_or("?"), words.next().unwrap_or("steady"));
    let input = input_bytes();
    let context: Context = serde_json::from_slice(&input)?;
    let Numbered { sender, seq, poison } = context.payload.message.data;
    assert!(!poison, "poisoned");
    let count = match (context.state.count, way) {
        (None, _) => 1,
        (Some(Count::Number(count)), _) => count + 1,
        (Some(Count::Text(text)), "breaks") => {
            assert!(seq % 5 != 4, "a fifth");
            text.parse::<u64>().expect("a number") + 1
        }
        (Some(Count::Text(text)), _) => panic!("a count of {text:?}"),
    };
    match way {
        "third" => assert!(seq % 3 != 2, "a third"),
        "hangs" => while black_box(seq % 10 == 9) {},
        _ => {}
    }
    let kept = if way == "breaks" { Count::Text(count.to_string()) } else { Count::Number(count) };
    let data = Stamped { sender, seq, stamp, count };
    let answer = Answer {
        outputs: Outputs { out: StampedMessage { ty: "Object", data } },
        state: State { count: Some(kept) },
    };
    Ok(serde_json::to_vec(&answer)?)
}

#[derive(Deserialize)]
struct Context {
    payload: Payload,
    state: State,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "in")]
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    data: Numbered,
}

/// Who sent a message, and which of the sender's it is.
#[derive(Deserialize)]
struct Numbered {
    sender: u64,
    seq: u64,
    #[serde(default)]
    poison: bool,
}

#[derive(Deserialize, Serialize)]
struct State {
    count: Option<Count>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Count {
    Number(u64),
    Text(String),
}

#[derive(Serialize)]
struct Answer<'a> {
    outputs: Outputs<'a>,
    state: State,
}

#[derive(Serialize)]
struct Outputs<'a> {
    out: StampedMessage<'a>,
}

#[derive(Serialize)]
struct StampedMessage<'a> {
    #[serde(rename = "type")]
    ty: &'static str,
    data: Stamped<'a>,
}

#[derive(Serialize)]
struct Stamped<'a> {
    sender: u64,
    seq: u64,
    stamp: &'a str,
    count: u64,
}
