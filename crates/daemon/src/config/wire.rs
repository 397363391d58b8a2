//! The wires: `[[wires]]`.

use std::collections::BTreeMap;

use reflowd_hot_reload::WireSpec;
use reflowd_runtime::{Overflow, PortRef};

use super::{
    Parsing, WirePlace,
    reader::{Item, Table},
    report::{Diagnostic, Place},
};

/// How `overflow` is written.
pub(super) const OVERFLOW: [(&str, Overflow); 3] = [
    ("block", Overflow::Block),
    ("drop-newest", Overflow::DropNewest),
    ("drop-oldest", Overflow::DropOldest),
];

impl Parsing<'_> {
    /// Reads the wires of one file.
    pub(super) fn wires(&mut self, top: &mut Table<'_>) {
        let Some(item) = top.get("wires") else { return };
        if !matches!(item.value, toml::de::DeValue::Array(_)) {
            item.unfit::<()>("a list of tables: write `[[wires]]`");
            return;
        }
        for item in item.list() {
            if let Some(table) = item.table("wires".into(), "a table with `from` and `to`") {
                self.wire(&item, table);
            }
        }
    }

    fn wire(&mut self, whole: &Item<'_>, mut table: Table<'_>) {
        let from = table.get("from");
        let to = table.get("to");
        let overflow = table.choice("overflow", &OVERFLOW);
        table.finish();
        for (key, item) in [("from", &from), ("to", &to)] {
            if item.is_none() {
                let message = format!("this wire has no `{key}`");
                whole.refuse::<()>("E0105", message, |d| {
                    d.at(&whole.place, "").help(format!("add `{key} = \"actor.port\"`"))
                });
            }
        }
        let from = from.and_then(|item| {
            let text = item.string("a port in quotes, such as \"tick.out\"")?;
            port(&item, text)
        });
        let to = to.map(|item| item.strings()).unwrap_or_default();
        let to: Vec<_> = to.iter().filter_map(|(item, text)| port(item, text)).collect();
        self.config.places.unread_wires |= from.is_none() || to.is_empty();
        let Some((from, from_place)) = from else { return };
        for (to, to_place) in to {
            let origin = self.sources.origin(&from_place);
            let wire = WireSpec { from: from.clone(), to, overflow, origin };
            self.config.flow.wires.push(wire);
            let place = WirePlace { from: from_place.clone(), to: to_place };
            self.config.places.wires.push(place);
        }
    }

    /// Leaves one of each two equal wires, and reports the other.
    pub(super) fn doubled_wires(&mut self) {
        let config = &mut *self.config;
        let wires = std::mem::take(&mut config.flow.wires);
        let places = std::mem::take(&mut config.places.wires);
        let mut seen: BTreeMap<(PortRef, PortRef), Place> = BTreeMap::new();
        for (wire, place) in wires.into_iter().zip(places) {
            if let Some(first) = seen.get(&(wire.from.clone(), wire.to.clone())) {
                let message =
                    format!("the wire from `{}` to `{}` is there twice", wire.from, wire.to);
                self.problems.add(
                    Diagnostic::error("E0108", message)
                        .at(&place.to, "here again")
                        .at(first, "first here")
                        .help("remove one: every message would arrive twice"),
                );
                continue;
            }
            seen.insert((wire.from.clone(), wire.to.clone()), place.to.clone());
            config.flow.wires.push(wire);
            config.places.wires.push(place);
        }
    }
}

fn port(item: &Item<'_>, text: &str) -> Option<(PortRef, Place)> {
    match text.parse::<PortRef>() {
        Ok(port) => Some((port, item.place.clone())),
        Err(error) => item.refuse("E0106", error.to_string(), |d| {
            d.at(&item.place, "not a port")
                .help("write the actor, a dot and the port: \"actor.port\"")
        }),
    }
}
