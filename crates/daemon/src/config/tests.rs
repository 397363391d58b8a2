//! The configuration as its author sees it: what is written, and what comes back.

use std::{ffi::OsString, time::Duration};

use proptest::prelude::*;
use reflowd_hot_reload::ModuleRef;
use reflowd_runtime::{Metadata, Overflow, Persistence, Trigger};

use super::*;

/// The main file of every test that needs no real one.
const MAIN: &str = "/etc/flow/reflowd.toml";

/// A process with nothing around it.
fn environment() -> Environment {
    Environment { cwd: "/etc/flow".into(), ..Environment::default() }
}

/// The modules and connectors that there are in these tests.
fn modules(module: &ModuleRef) -> Lookup {
    let port = |name: &str, ty: &str| serde_json::json!({ "name": name, "port_type": ty });
    let metadata = |inports, outports| {
        let text =
            serde_json::json!({ "component": "c", "inports": inports, "outports": outports });
        Lookup::Known(serde_json::from_value::<Metadata>(text).unwrap())
    };
    match module {
        ModuleRef::Builtin { name } if name == "interval" => {
            metadata(vec![], vec![port("out", "Integer")])
        }
        ModuleRef::Builtin { .. } => {
            Lookup::Missing { looked_at: None, names: vec!["interval".into(), "stdout".into()] }
        }
        ModuleRef::Stem { stem, .. } => match &**stem {
            "counter" => metadata(
                vec![port("increment", "Any"), port("reset", "Flow")],
                vec![port("count", "Integer")],
            ),
            "bytes" => metadata(vec![port("in", "Stream")], vec![port("out", "Stream")]),
            "join" => {
                let mut left = port("left", "Any");
                left["required"] = true.into();
                let mut right = port("right", "Any");
                right["required"] = true.into();
                metadata(vec![left, right], vec![port("out", "Any")])
            }
            "broken" => Lookup::Broken { why: "the module does not export `get_metadata`".into() },
            stem => Lookup::Missing {
                looked_at: Some(format!("/etc/flow/modules/{stem}.wasm").into()),
                names: vec!["bytes".into(), "counter".into()],
            },
        },
        ModuleRef::Path { path, .. } => {
            Lookup::Missing { looked_at: Some(path.clone()), names: vec![] }
        }
    }
}

/// Everything that is wrong with these files.
fn report_of(sources: Sources, environment: &Environment) -> Report {
    let (config, mut report) = parse(sources, environment);
    report.extend(check_flow(&config, &modules).diagnostics().to_vec());
    report
}

/// What is shown for the main file `text` when it stands in `reflowd.toml`.
#[track_caller]
fn shows(text: &str, expected: &str) {
    let report = report_of(Sources::of_text(MAIN, text), &environment());
    let shown = report.render(false);
    assert_eq!(shown.trim_end(), expected.trim(), "\n{shown}");
}

/// Where and what the problems in the main file `text` are: `line:column code`, separated by commas.
#[track_caller]
fn finds(text: &str, expected: &str) {
    let report = report_of(Sources::of_text(MAIN, text), &environment());
    assert_eq!(brief(&report), expected, "{report:?}");
}

fn brief(report: &Report) -> String {
    let one = |d: &Diagnostic| match d.labels.first() {
        Some(label) => {
            let (line, column) = report.position(&label.place);
            format!("{line}:{column} {}", d.code)
        }
        None => d.code.to_owned(),
    };
    report.diagnostics().iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The configuration in the main file `text`, which has nothing wrong with it.
#[track_caller]
fn good(text: &str) -> Config {
    let (config, report) = parse(Sources::of_text(MAIN, text), &environment());
    assert_eq!(brief(&report), "", "{report:?}");
    config
}

fn name(name: &str) -> ActorName {
    name.parse().unwrap()
}

#[test]
fn an_empty_file_is_a_configuration_without_actors() {
    let config = good("");
    assert_eq!(config.flow, Flow::default());
    assert_eq!(config.daemon.modules, Path::new("/etc/flow/modules"));
    assert_eq!(config.daemon.data, Path::new("/etc/flow/data"));
    assert_eq!(config.admin.socket, Path::new("/etc/flow/data/reflowd.sock"));
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.files, BTreeSet::from([MAIN.into()]));
}

#[test]
fn an_unknown_key_comes_with_the_one_that_was_meant() {
    shows(
        r#"
[actors.a]
module = "counter"
timout = "5s"
"#,
        r#"
error[E0101]: unknown key `timout` in `actors.a`
 --> reflowd.toml:4:1
  |
4 | timout = "5s"
  | ^^^^^^ no such key
  |
  = help: `timout`: did you mean `timeout`?
"#,
    );
}

#[test]
fn a_wire_to_a_missing_port_is_told_the_ports() {
    shows(
        r#"
[actors.tick]
module = "std:interval"

[actors.count]
module = "counter"

[[wires]]
from = "tick.out"
to   = "count.incremnt"
"#,
        r#"
error[E0202]: `count` has no inport `incremnt`
  --> reflowd.toml:10:15
   |
 6 | module = "counter"
   |          --------- the module that it runs
...
10 | to   = "count.incremnt"
   |               ^^^^^^^^ no such inport
   |
   = note: its inports are `increment` and `reset`
   = help: did you mean `count.increment`?
"#,
    );
}

#[test]
fn a_wire_between_types_that_never_fit_is_refused() {
    shows(
        r#"
[actors.tick]
module = "std:interval"
[actors.b]
module = "bytes"
[[wires]]
from = "tick.out"
to = "b.in"
"#,
        r#"
error[E0203]: what `tick.out` gives never fits `b.in`
 --> reflowd.toml:8:6
  |
7 | from = "tick.out"
  |        ---------- gives Integer
8 | to = "b.in"
  |      ^^^^^^ takes Stream
  |
  = help: wire ports of types that fit, or put an actor between them that converts
"#,
    );
}

#[test]
fn a_cycle_of_waiting_mailboxes_is_named() {
    shows(
        r#"
[actors.a]
module = "counter"
[actors.b]
module = "counter"
[[wires]]
from = "a.count"
to = "b.increment"
[[wires]]
from = "b.count"
to = "a.increment"
"#,
        r#"
error[E0204]: the cycle a → b → a can come to a standstill
  --> reflowd.toml:8:6
   |
 8 | to = "b.increment"
   |      ^^^^^^^^^^^^^ every mailbox on it waits for the next
...
11 | to = "a.increment"
   |      -------------
   |
   = help: give one of these wires, or one of the actors, `overflow = "drop-oldest"` or "drop-newest"
"#,
    );
}

#[test]
fn a_missing_module_is_told_where_it_was_looked_for() {
    shows(
        r#"
[actors.a]
module = "countr"
"#,
        r#"
error[E0205]: there is no module `countr`
 --> reflowd.toml:3:10
  |
3 | module = "countr"
  |          ^^^^^^^^ not found
  |
  = note: looked for `/etc/flow/modules/countr.wasm`
  = help: did you mean `counter`?
"#,
    );
}

#[test]
fn five_mistakes_in_one_file_are_five_problems() {
    let text = r#"
[actors.tick]
module = "std:interval"
timout = "5s"

[actors.bytes]
module = "bytes"

[actors.a]
module = "counter"

[actors.b]
module = "counter"

[actors.lost]
module = "countr"

[[wires]]
from = "tick.out"
to = "a.incremnt"

[[wires]]
from = "tick.out"
to = "bytes.in"

[[wires]]
from = "a.count"
to = "b.increment"

[[wires]]
from = "b.count"
to = "a.increment"
"#;
    finds(text, "4:1 E0101, 16:10 E0205, 20:9 E0202, 24:6 E0203, 28:6 E0204");
    shows(
        text,
        r#"
error[E0101]: unknown key `timout` in `actors.tick`
 --> reflowd.toml:4:1
  |
4 | timout = "5s"
  | ^^^^^^ no such key
  |
  = help: `timout`: did you mean `timeout`?

error[E0205]: there is no module `countr`
  --> reflowd.toml:16:10
   |
16 | module = "countr"
   |          ^^^^^^^^ not found
   |
   = note: looked for `/etc/flow/modules/countr.wasm`
   = help: did you mean `counter`?

error[E0202]: `a` has no inport `incremnt`
  --> reflowd.toml:20:9
   |
10 | module = "counter"
   |          --------- the module that it runs
...
20 | to = "a.incremnt"
   |         ^^^^^^^^ no such inport
   |
   = note: its inports are `increment` and `reset`
   = help: did you mean `a.increment`?

error[E0203]: what `tick.out` gives never fits `bytes.in`
  --> reflowd.toml:24:6
   |
23 | from = "tick.out"
   |        ---------- gives Integer
24 | to = "bytes.in"
   |      ^^^^^^^^^^ takes Stream
   |
   = help: wire ports of types that fit, or put an actor between them that converts

error[E0204]: the cycle a → b → a can come to a standstill
  --> reflowd.toml:28:6
   |
28 | to = "b.increment"
   |      ^^^^^^^^^^^^^ every mailbox on it waits for the next
...
32 | to = "a.increment"
   |      -------------
   |
   = help: give one of these wires, or one of the actors, `overflow = "drop-oldest"` or "drop-newest"
"#,
    );
}
