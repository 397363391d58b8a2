//! Counts earthquakes by region.
//!
//! The counts are the actor's state. A turn is given the state and answers with
//! the new one, and nothing is remembered anywhere else: so the counts outlive
//! this module, and go on where they were when another version takes over.

use std::collections::BTreeMap;

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const METADATA: &str = r#"{
    "component": "RegionCount",
    "description": "Counts earthquakes by region.",
    "inports": [{
        "name": "quake",
        "description": "One earthquake, with where it was in `place`.",
        "port_type": "Object",
        "required": true
    }],
    "outports": [{
        "name": "counts",
        "description": "For each earthquake: its region, and how many there were, there and anywhere.",
        "port_type": "Object"
    }],
    "config_schema": null
}"#;

/// Regions that are counted by name. The state travels with every turn, so it has to stay small.
const MAX_REGIONS: usize = 300;

/// Where the regions beyond [`MAX_REGIONS`] are counted.
const ELSEWHERE: &str = "elsewhere";

/// Where records are counted that do not say where they were.
const UNKNOWN: &str = "unknown";

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

/// Takes one turn. An error goes back as text, and the state stays as it was.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    let input = input_bytes();
    let Context { payload, mut state } = serde_json::from_slice(&input)?;
    let quake: Quake = serde_json::from_str(payload.quake.data.get())?;

    let region = state.known(region(quake.place.as_deref()));
    let count = state.count(region);
    let total = state.regions.values().sum();

    let line = Line { region, count, total, mag: quake.mag, class: quake.class };
    let counts = Counted { ty: "Object", data: line };
    Ok(serde_json::to_vec(&Answer { outputs: Outputs { counts }, state: &state })?)
}

/// What follows the last comma of a place: `Alaska` in `9km NE of Anchorage, Alaska`.
fn region(place: Option<&str>) -> &str {
    let region = place.and_then(|place| place.rsplit(',').next()).unwrap_or_default().trim();
    if region.is_empty() { UNKNOWN } else { region }
}

/// What the actor remembers.
#[derive(Default, Deserialize, Serialize)]
struct State {
    #[serde(default)]
    regions: BTreeMap<String, u64>,
}

impl State {
    /// The name under which a region is counted.
    fn known<'a>(&self, region: &'a str) -> &'a str {
        let room = self.regions.len() < MAX_REGIONS;
        if room || self.regions.contains_key(region) { region } else { ELSEWHERE }
    }

    /// Counts one more, and says how many that makes.
    fn count(&mut self, region: &str) -> u64 {
        let count = self.regions.entry(region.to_owned()).or_default();
        *count += 1;
        *count
    }
}

/// What a turn is given. Fields that the actor does not need are not named here.
#[derive(Deserialize)]
struct Context<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
    state: State,
}

/// One message, by the inport that it came through.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    quake: Message<'a>,
}

/// A message whose data is still the text that came.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
}

/// The part of a record that is counted or shown.
#[derive(Deserialize)]
#[serde(expecting = "the record of an earthquake")]
struct Quake<'a> {
    place: Option<String>,
    #[serde(borrow)]
    mag: Option<&'a RawValue>,
    #[serde(borrow)]
    class: Option<&'a RawValue>,
}

/// What a turn answers: messages by outport, and the new state.
#[derive(Serialize)]
struct Answer<'a> {
    outputs: Outputs<'a>,
    state: &'a State,
}

#[derive(Serialize)]
struct Outputs<'a> {
    counts: Counted<'a>,
}

/// The message for the outport `counts`.
#[derive(Serialize)]
struct Counted<'a> {
    #[serde(rename = "type")]
    ty: &'a str,
    data: Line<'a>,
}

/// One line for a screen.
#[derive(Serialize)]
struct Line<'a> {
    region: &'a str,
    count: u64,
    total: u64,
    mag: Option<&'a RawValue>,
    /// Filled in by the second version of the filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(place: Option<&str>, expected: &str) {
        assert_eq!(region(place), expected);
    }

    #[test]
    fn the_region_follows_the_last_comma() {
        check(Some("9km NE of Anchorage, Alaska"), "Alaska");
        check(Some("2km S of Here, There, Everywhere"), "Everywhere");
        check(Some("Banda Sea"), "Banda Sea");
        check(Some("5km N of Nowhere, "), UNKNOWN);
        check(Some(""), UNKNOWN);
        check(None, UNKNOWN);
    }

    #[test]
    fn the_state_stays_small() {
        let mut state = State::default();
        for n in 0..2 * MAX_REGIONS {
            let name = n.to_string();
            let region = state.known(&name);
            state.count(region);
        }
        assert_eq!(state.regions.len(), MAX_REGIONS + 1);
        assert_eq!(state.regions[ELSEWHERE], MAX_REGIONS as u64);
        assert_eq!(state.known("7"), "7");
    }
}
