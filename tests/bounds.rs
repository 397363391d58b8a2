//! What a module or a file has the daemon compute for it has a bound: whoever goes over it
//! is refused by name, and everybody else is served.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::rig::{Daemon, World, guest};

/// A module that says this of itself, and answers nothing to any message.
fn describing(metadata: &Value) -> Vec<u8> {
    let text = metadata.to_string();
    let mut data = String::new();
    text.bytes().for_each(|byte| write!(data, "\\{byte:02x}").unwrap());
    let (length, pages) = (text.len(), text.len() / 65_536 + 1);
    let module = format!(
        r#"(module
          (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
          (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
          (import "extism:host/env" "output_set" (func $output (param i64 i64)))
          (memory {pages})
          (data (i32.const 0) "{data}")
          (func (export "get_metadata") (result i32)
            (local $block i64) (local $at i32)
            (local.set $block (call $alloc (i64.const {length})))
            (loop $next
              (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $at)))
                (i32.load8_u (local.get $at)))
              (local.set $at (i32.add (local.get $at) (i32.const 1)))
              (br_if $next (i32.lt_u (local.get $at) (i32.const {length}))))
            (call $output (local.get $block) (i64.const {length}))
            (i32.const 0))
          (func (export "process") (result i32) (i32.const 0)))"#
    );
    wat::parse_str(module).unwrap()
}

/// A schema of two kilobytes that takes 2⁴⁰ steps.
fn endless_schema(keyword: &str) -> Value {
    let mut defs = serde_json::Map::new();
    for level in 0..40 {
        let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
        defs.insert(format!("a{level}"), json!({keyword: [next, next]}));
    }
    defs.insert("a40".into(), json!({"type": "string"}));
    json!({"$ref": "#/$defs/a0", "$defs": defs})
}

pub(crate) fn with_schema(schema: &Value) -> Vec<u8> {
    describing(&json!({
        "component": "Bomb",
        "inports": [{"name": "in", "port_type": "Any"}],
        "outports": [],
        "config_schema": schema,
    }))
}

const CONFIG: &str = r#"
    [daemon]
    modules = "../modules"
    data = "../data"
    quiet = "10ms"
"#;

/// A new module is taken up, and so is an edit: the control side lives.
fn goes_on(daemon: &Daemon, config: &str) {
    daemon.world.module("late", &guest("relay"));
    daemon.wait_event("started", "late");
    daemon.world.config(&format!("{config}\n[actors.edited]\nmodule = \"late\"\n"));
    daemon.wait_event("started", "edited");
    assert_eq!(daemon.post("/v1/reload", "").status, 200);
    daemon.world.config(config);
    std::fs::remove_file(daemon.world.path("modules/late.wasm")).unwrap();
    daemon.until("the other one is gone", |daemon| daemon.actor("late").is_null());
}

#[test]
fn a_schema_that_no_one_can_evaluate_is_refused_and_everything_else_goes_on() {
    for keyword in ["allOf", "anyOf"] {
        let world = World::new(CONFIG);
        world.module("bomb", &with_schema(&endless_schema(keyword)));
        world.module("good", &guest("relay"));
        let daemon = world.start();
        daemon.wait_event("started", "good");
        let refused = daemon.events(0).find(|event| {
            event["event"] == "change-refused" && event["actors"].to_string().contains("bomb")
        });
        let why = refused["why"].as_str().unwrap();
        assert!(why.contains("config_schema") && why.contains("steps"), "{why}");
        goes_on(&daemon, CONFIG);
        let configured = format!("{CONFIG}\n[actors.bomb]\nmodule = \"bomb\"\n");
        daemon.world.config(&configured);
        daemon.until("the edit is judged", |daemon| {
            daemon.reload().to_string().contains("config_schema")
        });
        let (_, _, world) = daemon.stop();
        let checked = world.run(&["check"]);
        assert_eq!(checked.status.code(), Some(78), "{checked:?}");
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(text.contains("the actor `bomb` cannot start") && text.contains("steps"), "{text}");
    }
}

#[test]
fn an_include_that_no_matcher_can_be_made_of_is_an_error_of_the_configuration() {
    let include = |pattern: &str| format!("include = [\"{pattern}\"]\n{CONFIG}");
    let nested = "{a".repeat(250) + &"}".repeat(250);
    let world = World::new(&include(&nested));
    let checked = world.run(&["check"]);
    assert_eq!(checked.status.code(), Some(78), "{checked:?}");
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(text.contains("E0003"), "{text}");
    world.config(CONFIG);
    world.module("good", &guest("relay"));
    let daemon = world.start();
    daemon.world.config(&include(&nested));
    daemon.events(0).find(|event| event["event"] == "config-refused");
    goes_on(&daemon, CONFIG);
}

#[test]
fn inspect_says_of_a_file_over_the_size_that_the_file_is_wrong() {
    let world = World::new(CONFIG);
    let file = std::fs::File::create(world.path("large.wasm")).unwrap();
    file.set_len((32 << 20) + 1).unwrap();
    let output = world.run(&["inspect", "large.wasm"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("`module_size` allows 33554432"), "{text}");
    // What cannot be read at all is no fault of a module.
    let output = world.run(&["inspect", "nowhere.wasm"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
