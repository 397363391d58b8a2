//! The configuration as its author sees it: what is written, and what comes back.

use std::{ffi::OsString, time::Duration};

use proptest::prelude::*;
use reflowd_hot_reload::{GenerationKeys, ModuleRef};
use reflowd_loader::{Authorities, DownloadRules, EngineKind};
use reflowd_runtime::{
    Digest, EnginePer, GuestErrors, Metadata, Overflow, Persistence, SendMode, Settings,
    TrialRules, Trigger,
};

use super::{daemon::Keep, *};

/// Parses the texts and holds the flow against its modules.
fn check(
    sources: Sources,
    environment: &Environment,
    lookup: &dyn Fn(&ModuleRef) -> Lookup,
) -> (Config, Report) {
    let (config, mut report) = parse(sources, environment);
    report.extend(check_flow(&config, lookup).into_diagnostics());
    (config, report)
}

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
        ModuleRef::Builtin { name } if name == "http-in" => metadata(vec![], vec![]),
        ModuleRef::Builtin { .. } => {
            Lookup::Missing { looked_at: None, names: ["interval".into(), "stdout".into()].into() }
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
                names: ["bytes".into(), "counter".into()].into(),
            },
        },
        ModuleRef::Path { path, .. } => {
            Lookup::Missing { looked_at: Some(path.clone()), names: [].into() }
        }
        ModuleRef::Url { url, .. } if url.file_name() == "gone.wasm" => {
            Lookup::NotDownloaded { why: "the server answers 404".into() }
        }
        ModuleRef::Url { .. } => Lookup::Awaited,
    }
}

/// Everything that is wrong with these files.
fn report_of(sources: Sources, environment: &Environment) -> Report {
    check(sources, environment, &modules).1
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
    report.diagnostics().map(one).collect::<Vec<_>>().join(", ")
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

#[test]
fn an_actor_that_is_meant_is_shown_where_it_stands() {
    shows(
        r#"
[actors.tick]
module = "std:interval"
[actors.counter]
module = "counter"
[[wires]]
from = "tick.out"
to = ["countr.increment", "counter.reset"]
"#,
        r#"
error[E0201]: this wire goes to `countr`, and there is no such actor
 --> reflowd.toml:8:8
  |
4 | [actors.counter]
  |         ------- an actor with a similar name
...
8 | to = ["countr.increment", "counter.reset"]
  |        ^^^^^^ no such actor
  |
  = help: did you mean `counter`?

error[E0203]: what `tick.out` gives never fits `counter.reset`
 --> reflowd.toml:8:27
  |
7 | from = "tick.out"
  |        ---------- gives Integer
8 | to = ["countr.increment", "counter.reset"]
  |                           ^^^^^^^^^^^^^^^ takes Flow
  |
  = help: wire ports of types that fit, or put an actor between them that converts
"#,
    );
}

#[test]
fn text_that_is_not_toml_is_reported_line_by_line() {
    shows(
        "[daemon]\nquiet = #\ndrain = 1 2\n[actors.a]\nmodule = nothing\n",
        r#"
error[E0002]: this is not TOML: string values must be quoted, expected literal string
 --> reflowd.toml:2:9
  |
2 | quiet = #
  |         ^

error[E0002]: this is not TOML: string values must be quoted, expected literal string
 --> reflowd.toml:3:9
  |
3 | drain = 1 2
  |         ^^^

error[E0002]: this is not TOML: invalid float, expected `nan`
 --> reflowd.toml:5:10
  |
5 | module = nothing
  |          ^^^^^^^
"#,
    );
}

#[test]
fn what_is_written_takes_effect() {
    let config = good(
        r#"
[daemon]
modules = "../wasm"
data = "/var/lib/flow/./x/../y"
autostart = false
quiet = "50ms"
drain = "0s"
rescan = "1h 30m"
keep = { generations = 7, bytes = "2 GiB" }
dead_letters = "10 MiB"
engine = "direct"
memory_budget = "1 GiB"
allow_insecure_dir = true
module_size = 1_000_000
download_hosts = ["modules.internal", "*.example.com"]
download_timeout = "5s"

[admin]
socket = "flow.sock"
listen = "127.0.0.1:9670"

[defaults]
memory = "64 MiB"
timeout = "5s"
mailbox = 10
overflow = "drop-oldest"
allow_hosts = "*"

[actors.a]
module = "counter"

[actors.b]
module = { file = "./b.wasm", sha256 = "00000000000000000000000000000000000000000000000000000000000000ff" }
memory = 65536
timeout = "100ms"
mailbox = 1
mailbox_bytes = "1 KiB"
overflow = "block"
trigger = "all"
send = "now"
retries = 0
retries_timeout = 3
output = "1 MiB"
state_size = "2 MiB"
host_memory = "3 MiB"
state = "memory"
log_rate = 0
allow_hosts = ["api.example.com", "*.example.org", "::1"]
engine_per = "message"
entry_point = "step"
context_state = false
context_meta = true
max_hops = 5
trial = { turns = 10, time = "5s", max_failures = 1, guest_errors = "ignore" }
version = ">=1.2, <2"
was = "c"
config = { n = 1, f = 1.5, s = "x", t = 2026-01-02T03:04:05Z, l = [1, { k = true }], big = 18446744073709551615 }
env = { REGION = "eu" }

[actors.tick]
module = "std:interval"

[[wires]]
from = "a.error"
to = ["b.in", "b.other.port"]
overflow = "drop-newest"
"#,
    );
    let daemon = DaemonConfig {
        modules: "/etc/wasm".into(),
        data: "/var/lib/flow/y".into(),
        autostart: false,
        quiet: Duration::from_millis(50),
        drain: Duration::ZERO,
        rescan: Duration::from_secs(5400),
        watch: true,
        keep: Keep { generations: 7, bytes: 2 << 30 },
        dead_letters: 10 << 20,
        engine: EngineKind::Direct,
        memory_budget: Some(1 << 30),
        allow_insecure_dir: true,
        module_size: 1_000_000,
        downloads: DownloadRules {
            hosts: vec!["modules.internal".into(), "*.example.com".into()],
            timeout: Duration::from_secs(5),
            ..DownloadRules::default()
        },
    };
    assert_eq!(config.daemon, daemon);
    assert_eq!(config.admin.socket, Path::new("/etc/flow/flow.sock"));
    assert_eq!(config.admin.listen, Some("127.0.0.1:9670".parse().unwrap()));

    let a = &config.flow.actors[&name("a")];
    assert_eq!(a.module, ModuleRef::Stem { stem: "counter".into(), pin: None });
    assert_eq!(a.keys.memory, 64 << 20);
    assert_eq!(a.keys.allow_hosts, ["*"]);
    assert_eq!(a.origin, "reflowd.toml:29");
    let defaults = Settings {
        timeout: Duration::from_secs(5),
        mailbox: 10,
        overflow: Overflow::DropOldest,
        ..Settings::default()
    };
    assert_eq!(a.settings, defaults);

    let b = &config.flow.actors[&name("b")];
    let mut pin = [0; 32];
    pin[31] = 0xff;
    let pin = Some(Digest::new(pin));
    assert_eq!(b.module, ModuleRef::Path { path: "/etc/flow/b.wasm".into(), pin });
    let settings = Settings {
        timeout: Duration::from_millis(100),
        mailbox: 1,
        mailbox_bytes: 1 << 10,
        overflow: Overflow::Block,
        trigger: Trigger::All,
        send: SendMode::Now,
        retries: 0,
        retries_timeout: 3,
        output: 1 << 20,
        state_size: 2 << 20,
        host_memory: 3 << 20,
        state: Persistence::Memory,
        log_rate: 0,
        context_state: false,
        context_meta: true,
        max_hops: 5,
        trial: Some(TrialRules {
            turns: 10,
            time: Duration::from_secs(5),
            max_failures: 1,
            guest_errors: GuestErrors::Ignore,
        }),
    };
    assert_eq!(b.settings, settings);
    let config_json = serde_json::json!({
        "n": 1, "f": 1.5, "s": "x", "t": "2026-01-02T03:04:05Z", "l": [1, { "k": true }],
        "big": u64::MAX,
    });
    let keys = GenerationKeys {
        config: config_json.as_object().unwrap().clone(),
        env: BTreeMap::from([("REGION".into(), "eu".into())]),
        entry_point: Some("step".into()),
        memory: 65536,
        allow_hosts: vec!["api.example.com".into(), "*.example.org".into(), "::1".into()],
        engine_per: EnginePer::Message,
    };
    assert_eq!(b.keys, keys);
    assert_eq!(b.version.as_deref(), Some(">=1.2, <2"));
    assert_eq!(b.was, Some(name("c")));

    let tick = &config.flow.actors[&name("tick")];
    assert_eq!(tick.module, ModuleRef::Builtin { name: "interval".into() });
    let wires = config.flow.wires.iter();
    let wires: Vec<_> = wires.map(|w| (w.from.to_string(), w.to.to_string(), w.overflow)).collect();
    let newest = Some(Overflow::DropNewest);
    assert_eq!(
        wires,
        [
            ("a.error".into(), "b.in".into(), newest),
            ("a.error".into(), "b.other.port".into(), newest)
        ]
    );
}

#[test]
fn a_key_that_nobody_knows_is_an_error_wherever_it_stands() {
    finds("modules = 'x'", "1:1 E0101");
    finds("[demon]\ndata = 'x'", "1:2 E0101");
    finds("[daemon]\nmodule = 'x'", "2:1 E0101");
    finds("[daemon]\nkeep = { generation = 3 }", "2:10 E0101");
    finds("[admin]\nport = 1", "2:1 E0101");
    finds("[defaults]\nmail_box = 1", "2:1 E0101");
    finds("[actors.a]\nmodule = { file = 'counter', sha = 'x' }", "2:30 E0101");
    finds(
        "[actors.a]\nmodule = 'counter'\nenv = { A = { credentials = 'x' } }",
        "2:10 W0402, 3:13 E0104, 3:15 E0101",
    );
    finds("[[wires]]\nfrom = 'a.x'\nto = 'a.y'\nvia = 'b'", "2:9 E0201, 3:7 E0201, 4:1 E0101");
}

#[test]
fn a_value_of_the_wrong_kind_is_an_error() {
    finds("include = 3", "1:11 E0103");
    finds("include = ['a.toml', 3]", "1:22 E0103");
    finds("daemon = 3", "1:10 E0103");
    finds("[daemon]\nmodules = 3", "2:11 E0103");
    finds("[daemon]\nautostart = 'yes'", "2:13 E0103");
    finds("[daemon]\nquiet = 100", "2:9 E0103");
    finds("[daemon]\nquiet = true", "2:9 E0103");
    finds("[daemon]\nmemory_budget = 1.5", "2:17 E0103");
    finds("[daemon]\nkeep = 3", "2:8 E0103");
    finds("actors = []", "1:10 E0103");
    finds("[actors]\na = 'counter'", "2:5 E0103");
    finds("[actors.a]\nmodule = 3", "2:10 E0103");
    finds(
        "[actors.a]\nmodule = 'counter'\nmailbox = '7'\nallow_hosts = 7\noverflow = 1",
        "3:11 E0103, 4:15 E0103, 5:12 E0103",
    );
    finds("[actors.a]\nmodule = 'counter'\nconfig = [1]\nenv = 'x'", "3:10 E0103, 4:7 E0103");
    finds(
        "[actors.a]\nmodule = 'counter'\nenv = { A = 1, B = true, C = [1], D = 1.5 }",
        "3:13 E0103, 3:20 E0103, 3:30 E0103, 3:39 E0103",
    );
    finds("[actors.a]\nmodule = 'counter'\ntrial = 3", "3:9 E0103");
    finds("[defaults]\ntrial = { turns = 0, time = 60 }", "2:19 E0104, 2:29 E0103");
    finds("[defaults]\ntrial = { max_failure = 3, guest_errors = 'no' }", "2:11 E0101, 2:43 E0104");
    finds("wires = {}", "1:9 E0103");
    finds("wires = [1]", "1:10 E0103");
    finds("[[wires]]\nfrom = 1\nto = 2", "2:8 E0103, 3:6 E0103");
}

#[test]
fn a_value_that_cannot_be_is_an_error() {
    finds("[daemon]\nmodules = ''", "2:11 E0104");
    finds("[daemon]\nquiet = '0s'", "2:9 E0104");
    finds("[daemon]\nquiet = '30'", "2:9 E0104");
    finds("[daemon]\nquiet = '400days'", "2:9 E0104");
    finds("[daemon]\nquiet = '999999999999999999999y'", "2:9 E0104");
    finds("[daemon]\nquiet = '-1s'", "2:9 E0104");
    finds("[daemon]\nengine = 'wasm3'", "2:10 E0104");
    finds("[daemon]\nmemory_budget = -1", "2:17 E0104");
    finds("[daemon]\nmemory_budget = 99999999999999999999999999999999999999999999", "2:17 E0104");
    finds("[daemon]\nmemory_budget = 'much'", "2:17 E0104");
    finds("[daemon]\nmemory_budget = '-5 MiB'", "2:17 E0104");
    finds("[daemon]\nkeep = { generations = 0 }", "2:24 E0104");
    finds("[daemon]\ndead_letters = '1 KiB'", "2:16 E0104");
    finds("[admin]\nlisten = '9670'", "2:10 E0104");
    finds("[admin]\nlisten = 'localhost:9670'", "2:10 E0104");
    finds("[admin]\nlisten = '0.0.0.0:9670'", "2:10 E0104");
    finds("[defaults]\nmailbox = 0", "2:11 E0104");
    finds("[defaults]\nmailbox = 99999999999", "2:11 E0104");
    finds(
        "[defaults]\nmailbox_bytes = 0\nmax_hops = 0\nretries = 1001",
        "2:17 E0104, 3:12 E0104, 4:11 E0104",
    );
    finds("[defaults]\ntimeout = '0s'\nmemory = 1", "2:11 E0104, 3:10 E0104");
    finds("[defaults]\noverflow = 'drop'\ntrigger = 'some'", "2:12 E0104, 3:11 E0104");
    finds(
        "[defaults]\nallow_hosts = ['https://a.b', 'a:80', '', '*.', 'a.*']",
        "2:16 E0104, 2:31 E0104, 2:39 E0104, 2:43 E0104, 2:49 E0104",
    );
    finds("[defaults]\nentry_point = ''", "2:15 E0104");
    finds("[actors.a]\nmodule = ''", "2:10 E0104");
    finds("[actors.a]\nmodule = { file = 'counter', sha256 = 'ff' }", "2:39 E0104");
    finds("[actors.a]\nmodule = 'counter'\nversion = 'new'", "3:11 E0104");
    finds(
        "[actors.a]\nmodule = 'counter'\nconfig = { a = nan, b = [inf], c = { d = 1e999 } }",
        "3:16 E0104, 3:26 E0104, 3:42 E0104",
    );
    finds("[actors.a]\nmodule = 'counter'\nconfig = { a = 99999999999999999999 }", "3:16 E0104");
    finds(
        "[actors.a]\nmodule = 'counter'\nenv = { A = { file = 'x', env = 'y' }, B = {} }",
        "2:10 W0402, 3:13 E0104, 3:44 E0104",
    );
    finds(
        "[actors.a]\nmodule = 'counter'\nenv = { A = { credential = '../x' } }",
        "2:10 W0402, 3:28 E0104",
    );
}

#[test]
fn a_number_without_a_unit_is_told_how_to_write_it() {
    shows(
        "[defaults]\ntimeout = 30\n",
        r#"
error[E0103]: `timeout` is a number without a unit
 --> reflowd.toml:2:11
  |
2 | timeout = 30
  |           ^^ of what?
  |
  = help: write `timeout = "30s"` for seconds, or "30ms"
"#,
    );
}

#[test]
fn what_belongs_together_must_be_there() {
    finds("[actors.a]", "1:9 E0105");
    finds("[actors.a]\nmodule = { sha256 = 'ff' }", "2:10 E0105, 2:21 E0104");
    finds("[[wires]]\nfrom = 'a.b'", "1:1 E0105");
    finds("[[wires]]", "1:1 E0105, 1:1 E0105");
}

#[test]
fn names_are_held_to_their_rules() {
    finds("[actors.'a.b']\nmodule = 'counter'", "1:9 E0106");
    finds("[actors.'']\nmodule = 'counter'", "1:9 E0106");
    finds("[actors.a]\nmodule = 'counter'\nwas = 'a b'", "3:7 E0106");
    finds(
        "[actors.a]\nmodule = 'counter'\n[[wires]]\nfrom = 'a'\nto = 'a.'",
        "4:8 E0106, 5:6 E0106",
    );
}

#[test]
fn what_is_there_twice_is_shown_in_both_places() {
    let a = "[actors.a]\nmodule = 'counter'\n";
    finds(&format!("{a}{a}"), "3:9 E0107");
    let inside =
        "[actors.a]\nmodule = 'counter'\n[actors.a.config]\n[actors.a]\nmodule = 'bytes'\n";
    let shown = report_of(Sources::of_text(MAIN, inside), &environment()).render(false);
    let expected = r#"
error[E0107]: the actor `a` is defined twice
 --> reflowd.toml:4:9
  |
1 | [actors.a]
  |         - first here
...
4 | [actors.a]
  |         ^ here again
  |
  = help: remove one of them, or give it another name
"#;
    assert_eq!(shown.trim_end(), expected.trim(), "\n{shown}");
    finds(
        &format!(
            "{a}[[wires]]\nfrom = 'a.error'\nto = ['a.increment', 'a.increment']\noverflow = 'drop-newest'"
        ),
        "5:22 E0108",
    );

    let main = "include = ['flows/*.toml']\n[actors.a]\nmodule = 'counter'\n";
    let sources = Sources::of_text(MAIN, main)
        .with("/etc/flow/flows/more.toml", "\n[actors.a]\nmodule = 'bytes'\n");
    let shown = report_of(sources, &environment()).render(false);
    let expected = r#"
error[E0107]: the actor `a` is defined twice
 --> flows/more.toml:2:9
  |
2 | [actors.a]
  |         ^ here again
  |
 ::: reflowd.toml:2:9
  |
2 | [actors.a]
  |         - first here
  |
  = help: remove one of them, or give it another name
"#;
    assert_eq!(shown.trim_end(), expected.trim(), "\n{shown}");
}

#[test]
fn a_former_name_is_taken_over_once() {
    let b = "[actors.b]\nmodule = 'counter'\nwas = 'a'\n";
    let c = "[actors.c]\nmodule = 'counter'\nwas = 'a'\n";
    finds(b, "");
    finds(&format!("{b}{c}"), "6:7 E0111");
    finds(&format!("{b}[actors.a]\nmodule = 'counter'"), "3:7 E0111");
    finds("[actors.b]\nmodule = 'counter'\nwas = 'b'", "3:7 E0111");
}

/// A digest, as it stands in a configuration.
const SHA256: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

#[test]
fn a_module_may_come_from_a_url_whose_digest_is_known() {
    let text = format!(
        "[actors.a]\nmodule = {{ url = 'https://h/v1/a.wasm?token=x', sha256 = '{SHA256}' }}"
    );
    let config = good(&text);
    let ModuleRef::Url { url, sha256 } = &config.flow.actors["a"].module else {
        panic!("{config:?}");
    };
    assert_eq!(url.as_str(), "https://h/v1/a.wasm?token=x");
    assert_eq!(sha256.to_string(), SHA256);
    // Nothing is known of its ports yet.
    let wired = "[actors.tick]\nmodule = 'std:interval'\n[[wires]]\nfrom = 'tick.out'\nto = 'a.in'";
    finds(&format!("{text}\n{wired}"), "");
    finds(&text.replace("a.wasm", "gone.wasm"), "2:10 E0208");

    let url = |url: &str| format!("[actors.a]\nmodule = {{ url = '{url}', sha256 = '{SHA256}' }}");
    finds("[actors.a]\nmodule = 'https://x/y.wasm'", "2:10 E0105");
    finds("[actors.a]\nmodule = { url = 'https://x/y.wasm' }", "2:10 E0105");
    finds("[actors.a]\nmodule = { url = 'https://x/y.wasm', sha256 = 'ff' }", "2:47 E0104");
    finds("[actors.a]\nmodule = { url = 1, sha256 = 'ff' }", "2:18 E0103, 2:30 E0104");
    finds("[actors.a]\nmodule = {}", "2:10 E0105");
    finds(&url("http://example.com/a.wasm"), "2:18 E0104");
    finds(&url("https://me:secret@example.com/a.wasm"), "2:18 E0104");
    finds(&url("http://127.0.0.1:80/a.wasm"), "");
    finds(&url("https://h/a").replace("url", "file = 'a', url"), "2:30 E0104");
    finds(&url("https://h/a").replace("sha256", "sha"), "2:10 E0105, 2:33 E0101");
}

#[test]
fn a_token_in_a_url_is_not_shown() {
    let text = "[actors.a]\nmodule = { url = 'https://x/y.wasm?token=secret' }";
    let report = report_of(Sources::of_text(MAIN, text), &environment());
    assert!(!report.to_string().contains("secret"), "{report}");
}

#[test]
fn no_secret_is_shown_with_the_line_that_it_is_in() {
    shows(
        r#"
[actors.a]
module = { url = "https://h.example/x.wasm?token=QSECRET", sha256 = "zz" }
"#,
        r#"
error[E0104]: `sha256` is no digest
 --> reflowd.toml:3:69
  |
3 | module = { url = "https://h.example/x.wasm?*************", sha256 = "zz" }
  |                                                                     ^^^^ must be 64 hexadecimal digits
  |
  = help: `sha256sum FILE` and `reflowd inspect FILE` show it
"#,
    );
    shows(
        "[admin]\ntokens = { operate = \"literal-token-0123456789\" }",
        r#"
error[E0112]: a token stands in the configuration
 --> reflowd.toml:2:22
  |
2 | tokens = { operate = "************************" }
  |                      ^^^^^^^^^^^^^^^^^^^^^^^^^^ whoever can read this file has it
  |
  = help: write `{ credential = "…" }`, `{ file = "…" }` or `{ env = "…" }`
"#,
    );
    for text in [
        "[actors.a]\nmodule = 'https://user:PASSW0RD@h/x.wasm'",
        "[actors.a]\nmodule = { url = 'https://user:PASSW0RD@h/x.wasm', sha256 = '' }",
        "[actors.a]\nmodule = 'std:http-in'\nconfig = { token = 'PASSW0RD', x = 99999999999999999999 }",
        "[actors.a]\nmodul = 'x'\nmodule = 'm' # https://user:PASSW0RD@h/",
        "[admin]\nlisten = 'http://user:PASSW0RD@h/'",
        "[admin]\ntokens = { operate = PASSW0RD }",
    ] {
        let report = report_of(Sources::of_text(MAIN, text), &environment());
        assert!(report.errors() > 0, "{text}");
        for shown in [report.render(true), report.to_string(), report.to_json().to_string()] {
            assert!(!shown.contains("PASSW0RD"), "{shown}");
        }
    }
}

#[test]
fn a_token_that_no_header_can_have_is_refused() {
    for (token, problems) in [
        ("0123456789abcdef", ""),
        ("0123456789abcdef\r\n", ""),
        ("                      ", "2:20 E0112"),
        (" 0123456789abcdef", "2:20 E0112"),
        ("0123456789 abcdef", ""),
        ("0123456789abcdefé", "2:20 E0112"),
    ] {
        let vars = [("TOKEN".to_owned(), OsString::from(token))].into();
        let environment = Environment { vars, ..environment() };
        let text = "[admin]\ntokens = { operate={ env = 'TOKEN' } }";
        let report = report_of(Sources::of_text(MAIN, text), &environment);
        assert_eq!(brief(&report), problems, "{token:?}");
    }
}

#[test]
fn a_route_that_waits_for_a_port_that_is_not_there_is_refused() {
    let doors = |wait: &str| {
        let routes = format!(
            "[{{ path = '/x', port = 'n' }}, {{ path = '/y', port = 'n', wait = {wait} }}]"
        );
        format!(
            "[actors.count]\nmodule = 'counter'\n[actors.door]\nmodule = 'std:http-in'\n\
             config.listen = '127.0.0.1:0'\nconfig.routes = {routes}\n\
             [[wires]]\nfrom = 'door.n'\nto = 'count.increment'"
        )
    };
    finds(&doors("'count.count'"), "");
    finds(&doors("'count.error'"), "");
    finds(&doors("'door.n'"), "");
    finds(&doors("'nosuch.count'"), "6:82 E0201");
    finds(&doors("'count.increment'"), "6:88 E0202");
    // What is no port at all is for the connector to say.
    finds(&doors("'count'"), "");
    shows(
        &format!("\n{}", doors("'cont.count'")),
        r#"
error[E0201]: this route waits for `cont`, and there is no such actor
 --> reflowd.toml:7:82
  |
2 | [actors.count]
  |         ----- an actor with a similar name
...
7 | config.routes = [{ path = '/x', port = 'n' }, { path = '/y', port = 'n', wait = 'cont.count' }]
  |                                                                                  ^^^^ no such actor
  |
  = help: did you mean `count`?
"#,
    );
}

#[test]
fn downloads_are_held_to_what_the_daemon_allows() {
    let listed = |host: &str| {
        let actor = format!("url = 'https://{host}/a.wasm', sha256 = '{SHA256}'");
        format!("[daemon]\ndownload_hosts = ['*.b.c', 'd']\n[actors.a]\nmodule = {{ {actor} }}")
    };
    finds(&listed("a.b.c"), "");
    finds(&listed("D"), "");
    finds(&listed("b.c"), "4:10 E0104");
    finds("[daemon]\ndownload_hosts = ['*', 'https://x/']", "2:19 E0104, 2:24 E0104");
    finds("[daemon]\ndownload_timeout = '0s'", "2:20 E0104");
    finds("[daemon]\nauthorities = 'none.pem'", "2:15 E0104");
    finds("[daemon]\nauthorities = 1", "2:15 E0103");
}

#[test]
fn authorities_are_read_from_a_file_of_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let main = folder.path().join("reflowd.toml");
    let text = "[daemon]\nauthorities = 'ca.pem'";
    std::fs::write(&path, "nothing of the kind").unwrap();
    let (_, report) = parse(Sources::of_text(&main, text), &environment());
    assert_eq!(brief(&report), "2:15 E0104");
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    std::fs::write(&path, certificate.pem()).unwrap();
    let (config, report) = parse(Sources::of_text(&main, text), &environment());
    assert_eq!(brief(&report), "");
    assert_ne!(config.daemon.downloads.authorities, Authorities::default());
}

#[test]
fn what_a_later_version_may_do_is_refused_in_words() {
    finds(
        "[actors.a]\nmodule = { file = 'std:interval', sha256 = '0000000000000000000000000000000000000000000000000000000000000000' }",
        "2:19 E0104",
    );
    finds(
        "[defaults]\nmodule = 'counter'\nconfig = {}\nenv = {}\nwas = 'x'\nversion = '1'",
        "2:1 E0102, 3:1 E0102, 4:1 E0102, 5:1 E0102, 6:1 E0102",
    );
}

#[test]
fn the_flow_is_held_against_its_modules() {
    let tick = "[actors.tick]\nmodule = 'std:interval'\n";
    let a = "[actors.a]\nmodule = 'counter'\n";
    finds("[actors.a]\nmodule = 'std:intervl'", "2:10 E0205");
    finds("[actors.a]\nmodule = './no.wasm'", "2:10 E0205");
    finds("[actors.a]\nmodule = 'broken'", "2:10 E0206");
    // A port of a module that nobody has seen may well be there.
    finds(
        "[actors.a]\nmodule = 'broken'\n[actors.b]\nmodule = 'counter'\n[[wires]]\nfrom = 'a.x'\nto = 'b.increment'",
        "2:10 E0206",
    );
    finds(&format!("{tick}{a}[[wires]]\nfrom = 'tick.uot'\nto = 'a.increment'"), "6:14 E0202");
    finds(
        &format!("{tick}{a}[[wires]]\nfrom = 'tick.out'\nto = 'tick.in'"),
        "7:6 E0204, 7:12 E0202",
    );
    finds(
        &format!("{tick}[[wires]]\nfrom = 'a.x'\nto = 'tick.y'"),
        "2:10 W0406, 4:9 E0201, 5:12 E0202",
    );
    // Written with an escape, the whole string is shown.
    finds(
        &format!("{tick}{a}[[wires]]\nfrom = \"tick.\\u006but\"\nto = 'a.increment'"),
        "6:8 E0202",
    );
    // An actor whose definition is wrong is there all the same.
    finds(
        "[actors.b]\nmodule = 3\n[actors.a]\nmodule = 'counter'\n[[wires]]\nfrom = 'a.count'\nto = 'b.in'",
        "2:10 E0103",
    );
}

#[test]
fn a_wire_to_a_module_that_is_no_actor_yet_says_what_to_add() {
    shows(
        "[actors.a]\nmodule = 'counter'\n[[wires]]\nfrom = 'a.count'\nto = 'bytes.in'\n",
        r#"
error[E0201]: this wire goes to `bytes`, and there is no such actor
 --> reflowd.toml:5:7
  |
5 | to = 'bytes.in'
  |       ^^^^^ no such actor
  |
  = help: there is a module `bytes`: to wire its actor, add `[actors.bytes]` with `module = "bytes"`
"#,
    );
}

#[test]
fn windows_ends_of_lines_and_byte_order_marks_move_nothing() {
    finds("\u{feff}[actors.a]\r\nmodule = 'counter'\r\ntimout = 1\r\n", "3:1 E0101");
    finds("\u{feff}x = 1", "1:2 E0101");
}

#[test]
fn an_actors_own_errors_can_always_be_wired() {
    let flow = "[actors.a]\nmodule = 'counter'\n[actors.b]\nmodule = 'counter'\n[actors.c]\nmodule = 'bytes'\n[[wires]]\nfrom = 'a.error'\n";
    finds(&format!("{flow}to = 'b.increment'"), "");
    finds(&format!("{flow}to = 'c.in'"), "9:6 E0203");
    finds(&format!("{flow}to = 'c.error'"), "9:9 E0202");
}

#[test]
fn a_cycle_is_fine_where_one_mailbox_drops() {
    let actor = |name: &str, more: &str| format!("[actors.{name}]\nmodule = 'counter'\n{more}");
    let wire = |from: &str, to: &str, more: &str| {
        format!("[[wires]]\nfrom = '{from}.count'\nto = '{to}.increment'\n{more}")
    };
    let drops = "overflow = 'drop-oldest'\n";
    let blocks = "overflow = 'block'\n";
    let (a, b) = (actor("a", ""), actor("b", ""));
    let there = wire("a", "b", "");
    finds(&[&*a, &b, &there, &wire("b", "a", "")].concat(), "7:6 E0204");
    finds(&[&*a, &b, &there, &wire("b", "a", drops)].concat(), "");
    finds(&[&*a, &actor("b", drops), &there, &wire("b", "a", "")].concat(), "");
    // The wire's own word counts for more than the actor's.
    finds(
        &[&*a, &actor("b", drops), &wire("a", "b", blocks), &wire("b", "a", "")].concat(),
        "8:6 E0204",
    );
    // A wire from an actor to itself is a cycle too.
    finds(&[&*a, &wire("a", "a", "")].concat(), "5:6 E0204");
    // Two ways to the same actor are none.
    let (c, d) = (actor("c", ""), actor("d", ""));
    let fork = [wire("a", "b", ""), wire("a", "c", ""), wire("b", "d", ""), wire("c", "d", "")];
    finds(&[&*a, &b, &c, &d, &fork.concat()].concat(), "");
    // Of two cycles with a wire in common, both are named.
    let two = [wire("a", "b", ""), wire("b", "a", ""), wire("b", "c", ""), wire("c", "a", "")];
    let report =
        report_of(Sources::of_text(MAIN, [&*a, &b, &c, &two.concat()].concat()), &environment());
    let messages: Vec<_> = report.diagnostics().map(|d| &*d.message).collect();
    assert_eq!(
        messages,
        [
            "the cycle a → b → a can come to a standstill",
            "the cycle b → c → a → b can come to a standstill"
        ]
    );
}

#[test]
fn a_join_that_lacks_an_inport_is_warned_about() {
    let flow = "[actors.t]\nmodule = 'std:interval'\n[actors.j]\nmodule = 'join'\n[[wires]]\nfrom = 't.out'\nto = 'j.left'\n";
    finds(flow, "");
    let join = flow.replace("'join'\n", "'join'\ntrigger = 'all'\n");
    finds(&join, "5:11 W0401");
    finds(&format!("{join}[[wires]]\nfrom = 't.out'\nto = 'j.right'\n"), "");
    let report = report_of(Sources::of_text(MAIN, join), &environment());
    assert_eq!((report.errors(), report.warnings()), (0, 1));
}

#[test]
fn an_actor_with_more_than_its_messages_should_be_pinned() {
    finds("[actors.a]\nmodule = 'counter'\nallow_hosts = ['a.b']", "2:10 W0402");
    finds(
        "[actors.a]\nmodule = { file = 'counter', sha256 = '0000000000000000000000000000000000000000000000000000000000000000' }\nallow_hosts = ['a.b']",
        "",
    );
    finds("[actors.a]\nmodule = 'std:http-in'\nallow_hosts = ['a.b']", "");
}

#[test]
fn a_source_without_a_wire_is_warned_about() {
    let source = "[actors.t]\nmodule = 'std:interval'\n[actors.l]\nmodule = 'std:http-in'\n";
    finds(source, "2:10 W0406");
    finds(&format!("{source}[[wires]]\nfrom = 't.out'\nto = 'l'\n"), "7:6 E0106");
    finds(&format!("{source}[[wires]]\nfrom = 't.out'\nto = 'l.in'\n"), "");
}

#[test]
fn only_the_main_file_speaks_for_the_daemon() {
    let other = "include = []\n[daemon]\n[admin]\n[defaults]\n[actors.b]\nmodule = './b.wasm'\n[[wires]]\nfrom = 'a.error'\nto = 'b.in'";
    let main = "include = 'flows/*.toml'\n[defaults]\nmailbox = 3\n[actors.a]\nmodule = 'counter'";
    let sources = Sources::of_text(MAIN, main).with("/etc/flow/flows/b.toml", other);
    let (config, report) = parse(sources, &environment());
    assert_eq!(brief(&report), "1:1 E0102, 2:2 E0102, 3:2 E0102, 4:2 E0102");
    // The rest of the file counts, with its own paths and the main file's defaults.
    let b = &config.flow.actors[&name("b")];
    assert_eq!(b.module, ModuleRef::Path { path: "/etc/flow/flows/b.wasm".into(), pin: None });
    assert_eq!((b.settings.mailbox, &*b.origin), (3, "flows/b.toml:5"));
    assert_eq!(config.flow.wires.len(), 1);
}

#[test]
fn a_file_that_is_not_toml_hides_no_other_problem() {
    let main =
        "include = 'b.toml'\n[actors.a]\nmodule = 'countr'\n[[wires]]\nfrom = 'b.x'\nto = 'a.y'";
    let sources = Sources::of_text(MAIN, main).with("/etc/flow/b.toml", "[actors.b\nmodule = 'x'");
    // Whether `b` exists cannot be known, so the wire is not blamed for it.
    assert_eq!(brief(&report_of(sources, &environment())), "3:10 E0205, 1:10 E0002");
}

#[test]
fn a_connectors_path_goes_from_its_file() {
    let config = good(
        "[actors.a]\nmodule = 'std:file-in'\nconfig = { path = '../x.jsonl' }\n[actors.b]\nmodule = 'counter'\nconfig = { path = '../x.jsonl' }",
    );
    let path = |actor: &str| config.flow.actors[&name(actor)].keys.config["path"].clone();
    assert_eq!((path("a"), path("b")), ("/etc/x.jsonl".into(), "../x.jsonl".into()));
}

/// A folder with files in it.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn at(folder: &tempfile::TempDir) -> Environment {
    Environment { cwd: folder.path().canonicalize().unwrap(), ..Environment::default() }
}

#[test]
fn includes_are_read_in_the_order_of_their_names() {
    let actor = |name: &str| format!("[actors.{name}]\nmodule = 'counter'\n").into_bytes();
    let folder = folder(&[
        ("reflowd.toml", b"include = ['flows/*.toml', 'more/?.toml', 'one.toml']"),
        ("flows/b.toml", &actor("b")),
        ("flows/a.toml", &actor("a")),
        ("flows/.hidden.toml", b"no"),
        ("flows/c.toml~", b"no"),
        ("flows/deep/d.toml", b"no"),
        ("more/e.toml", &actor("e")),
        ("one.toml", &actor("one")),
        ("two.toml", b"no"),
    ]);
    let environment = at(&folder);
    let (config, report) = load(Path::new("reflowd.toml"), &environment).unwrap();
    assert_eq!(report.diagnostics().next(), None);
    let names: Vec<_> = config.flow.actors.keys().map(ActorName::as_str).collect();
    assert_eq!(names, ["a", "b", "e", "one"]);
    assert_eq!(config.files, ["one.toml", "reflowd.toml"].map(|p| environment.cwd.join(p)).into());
    let folders: Vec<_> = config.includes.iter().map(Include::folder).collect();
    assert_eq!(folders, [environment.cwd.join("flows"), environment.cwd.join("more")]);
}

#[test]
fn an_include_that_cannot_be_followed_is_shown() {
    let folder = folder(&[
        (
            "reflowd.toml",
            b"include = ['no.toml', 'flows/*.toml', 'a[.toml', 'coming/*.toml', '*/a.toml']\n",
        ),
        ("flows/bytes.toml", b"a = \"\xff\""),
        ("flows/dir.toml/x", b""),
    ]);
    let report = load(Path::new("reflowd.toml"), &at(&folder)).unwrap_err();
    assert_eq!(brief(&report), "1:12 E0003, 1:23 E0003, 1:23 E0003, 1:39 E0003, 1:67 E0003");
    let shown = report.render(false);
    assert!(shown.contains("cannot read `flows/bytes.toml`: not UTF-8 text: byte 5"), "{shown}");
}

#[test]
fn so_many_includes_are_taken_and_no_more() {
    let includes = |n: usize| {
        let text = format!("include = [{}]\n", "'flows/*.toml', ".repeat(n));
        load(Path::new("reflowd.toml"), &at(&folder(&[("reflowd.toml", text.as_bytes())])))
    };
    assert!(includes(1_000).is_ok());
    let report = includes(1_100).unwrap_err();
    assert_eq!(report.errors(), 1);
    assert!(report.render(false).contains("more than 1000 includes"), "{}", report.render(false));
}

#[test]
fn a_main_file_that_cannot_be_read_says_why() {
    let folder = folder(&[("bytes.toml", b"\xff"), ("folder/x", b"")]);
    let check = |path: &str, why: &str| {
        let report = load(Path::new(path), &at(&folder)).unwrap_err();
        assert_eq!(brief(&report), "E0001");
        assert!(report.render(false).contains(why), "{report:?}");
    };
    check("no.toml", "No such file");
    check("bytes.toml", "not UTF-8");
    check("folder", "not a regular file");
}

#[test]
fn the_file_is_the_one_that_is_named_or_the_first_usual_one() {
    let folder = folder(&[("config/reflowd.toml", b""), ("other.toml", b"")]);
    let mut environment = at(&folder);
    let cwd = environment.cwd.clone();
    assert_eq!(locate(None, &environment).unwrap(), cwd.join("config/reflowd.toml"));
    environment.vars.insert("REFLOWD_CONFIG".into(), "other.toml".into());
    assert_eq!(locate(None, &environment).unwrap(), cwd.join("other.toml"));
    // A name that was given is not passed over for another because nothing is there.
    assert_eq!(locate(Some(Path::new("no.toml")), &environment).unwrap(), cwd.join("no.toml"));
}

#[test]
fn without_a_file_the_tried_paths_are_listed() {
    let empty = Environment { cwd: "/nowhere".into(), ..Environment::default() };
    if Path::new("/etc/reflowd/reflowd.toml").exists() {
        return;
    }
    let shown = locate(None, &empty).unwrap_err().render(false);
    assert_eq!(
        shown.trim_end(),
        r#"
error[E0001]: there is no configuration file
 |
 = note: `--config` is not given and $REFLOWD_CONFIG is not set
 = note: tried `/nowhere/config/reflowd.toml`
 = note: tried `/etc/reflowd/reflowd.toml`
 = help: name one with `--config FILE`, or make one: an empty file will do
"#
        .trim(),
        "\n{shown}"
    );
}

#[test]
fn systemd_says_where_data_and_socket_are() {
    let mut environment = environment();
    environment.vars.insert("STATE_DIRECTORY".into(), "/var/lib/reflowd:/var/lib/more".into());
    environment.vars.insert("RUNTIME_DIRECTORY".into(), "/run/reflowd".into());
    let (config, _) = parse(Sources::of_text(MAIN, ""), &environment);
    assert_eq!(config.daemon.data, Path::new("/var/lib/reflowd"));
    assert_eq!(config.admin.socket, Path::new("/run/reflowd/reflowd.sock"));
}

#[test]
fn secrets_are_read_and_never_shown() {
    let folder = folder(&[
        (
            "reflowd.toml",
            b"[actors.a]\nmodule = 'counter'\nenv = { A = { credential = 'db' }, B = { file = 'token' }, C = { env = 'WORD' }, D = 'plain' }",
        ),
        ("secrets/db", b"hush-1\n"),
        ("token", b"hush-2\r\n\n"),
    ]);
    let mut environment = at(&folder);
    let cwd = environment.cwd.clone();
    environment.vars.insert("CREDENTIALS_DIRECTORY".into(), cwd.join("secrets").into());
    environment.vars.insert("WORD".into(), "hush-3".into());
    let (config, _) = load(Path::new("reflowd.toml"), &environment).unwrap();
    let values: Vec<_> = config.flow.actors[&name("a")].keys.env.values().cloned().collect();
    assert_eq!(values, ["hush-1", "hush-2\r\n", "hush-3", "plain"]);
    assert_eq!(config.secrets[&name("a")], ["A", "B", "C"].map(String::from).into());
    assert!(!format!("{config:?}").contains("hush"));
    // A change of a secret is a change of the configuration.
    assert!(
        config.secret_files.contains(&cwd.join("token"))
            && config.secret_files.contains(&cwd.join("secrets/db"))
    );
    let report = check_flow(&config, &modules);
    assert_eq!(brief(&report), "2:10 W0402");
}

#[test]
fn a_secret_that_cannot_be_read_is_shown_where_it_is_asked_for() {
    let folder = folder(&[
        (
            "reflowd.toml",
            b"[actors.a]\nmodule = 'counter'\nenv.A = { credential = 'db' }\nenv.B = { file = 'no' }\nenv.C = { env = 'WORD' }\nenv.D = { file = 'bytes' }\nenv.E = { file = '.' }\nenv.F = { file = 'large' }",
        ),
        ("bytes", b"\xff"),
        ("large", &vec![b'x'; (1 << 20) + 1]),
    ]);
    let mut environment = at(&folder);
    environment.vars.insert("WORD".into(), OsString::new());
    environment.vars.remove("WORD");
    let report = load(Path::new("reflowd.toml"), &environment).unwrap_err();
    assert_eq!(
        brief(&report),
        "3:24 E0110, 4:18 E0110, 5:17 E0110, 6:18 E0110, 7:18 E0110, 8:18 E0110"
    );
}

#[test]
fn files_that_a_stranger_could_change_are_refused_unless_that_is_meant() {
    let secret = "[actors.a]\nmodule = 'counter'\nenv.A = { file = 'secret' }\n";
    let files: [(&str, &[u8]); 3] = [
        ("reflowd.toml", b"include = ['more.toml']\n[daemon]\nallow_insecure_dir = false\n"),
        ("more.toml", secret.as_bytes()),
        ("secret", b"word"),
    ];
    let folder = folder(&files);
    let environment = at(&folder);
    let path = |name: &str| environment.cwd.join(name);
    let found = || match load(Path::new("reflowd.toml"), &environment) {
        Ok((_, report)) | Err(report) => {
            let said: Vec<_> = report.diagnostics().map(|d| d.message.clone()).collect();
            (brief(&report), said.join("\n"))
        }
    };
    use std::os::unix::fs::PermissionsExt as _;
    // Whoever runs the tests; only root can give a file away, so here anybody may write to it.
    let open = |name: &str, mode: u32| {
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    assert_eq!(found().0, "");
    for (name, at) in [("reflowd.toml", "E0004"), ("more.toml", "E0004"), ("secret", "3:18 E0110")]
    {
        open(name, 0o646);
        let (brief, said) = found();
        assert_eq!(brief, at, "{name}");
        assert!(said.contains(name) && said.contains("may be written to by anybody"), "{said}");
        let trusting = "include = ['more.toml']\n[daemon]\nallow_insecure_dir = true\n";
        let before = std::fs::read(path("reflowd.toml")).unwrap();
        std::fs::write(path("reflowd.toml"), trusting).unwrap();
        assert_eq!(found().0, "", "{name}, and that is meant");
        std::fs::write(path("reflowd.toml"), before).unwrap();
        open(name, 0o644);
    }
    if std::os::unix::fs::chown(path("secret"), Some(54_321), None).is_ok() {
        let (brief, said) = found();
        assert_eq!(brief, "3:18 E0110");
        assert!(said.contains("belongs to user 54321"), "{said}");
    }
}

#[test]
fn what_needs_a_restart_is_refused_in_those_words() {
    let old = good("[daemon]\ndata = 'd'\nquiet = '1s'\n[admin]\nsocket = 's'");
    assert_eq!(restart_only(&old, &old), []);
    let new = good(
        "[daemon]\nmodules = 'm'\ndata = './d'\ndrain = '1s'\nautostart = false\n[admin]\nsocket = 't'\n[actors.a]\nmodule = 'counter'",
    );
    let mut report = Report::new(Arc::clone(&new.sources));
    report.extend(restart_only(&old, &new));
    // `quiet` is gone, so it has no place; `data` is the same folder.
    assert_eq!(brief(&report), "E0301, 2:11 E0301, 4:9 E0301, 5:13 E0301, 7:10 E0301");
    assert_eq!(
        report.diagnostics().next().unwrap().message,
        "a change of `daemon.quiet` needs a restart"
    );
}

#[test]
fn a_report_is_data_too() {
    let text = "[actors.ä]\n# ü\n'ö' = 1 ; x\n";
    let report = report_of(Sources::of_text(MAIN, text), &environment());
    assert_eq!(report.to_json()["errors"], report.errors());
    let text = "[actors.a]\nmodule = 'counter'\nconfig = { 'ä' = 'ü', b = nan }\n";
    let report = report_of(Sources::of_text(MAIN, text), &environment());
    assert_eq!(
        report.to_json(),
        serde_json::json!({
            "errors": 1,
            "warnings": 0,
            "problems": [{
                "severity": "error",
                "code": "E0104",
                "message": "`b` is a number that JSON does not have",
                "labels": [{
                    "file": "reflowd.toml",
                    "line": 3,
                    "column": 27,
                    "text": "cannot be given to the module",
                }],
                "notes": [],
                "help": ["write it as a string"],
            }],
        })
    );
    assert_eq!(
        report.to_string(),
        "reflowd.toml:3:27: error[E0104]: `b` is a number that JSON does not have"
    );
}

#[test]
fn nesting_without_end_is_an_error_and_not_a_crash() {
    let deep = [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("[actors.a.config]\n{}x = 1", "x.".repeat(100_000)),
        format!("[actors.a.config.{}x]", "x.".repeat(100_000)),
        format!("a = {}", "{a=".repeat(100_000)),
    ];
    for text in deep {
        let report = report_of(Sources::of_text(MAIN, text), &environment());
        assert!(report.errors() > 0);
        assert!(!report.render(false).is_empty());
    }
}

#[test]
fn texts_that_were_read_elsewhere_are_as_good() {
    let main = Path::new(MAIN);
    let more = Path::new("/etc/flow/flows/b.toml");
    let texts = [(main, "include = 'flows/*.toml'\n"), (more, "[actors.b]\nmodule = 'countr'")];
    let report = report_of(Sources::of_texts(main, texts, &environment()), &environment());
    assert_eq!(report.to_string().split(' ').next(), Some("flows/b.toml:2:10:"));
}

#[test]
fn the_sample_is_right() {
    let text = include_str!("../../../../config/reflowd.toml");
    let config = good(text);
    assert!(!config.flow.actors.is_empty() && !config.flow.wires.is_empty());
}

#[test]
fn every_key_and_code_is_in_the_reference() {
    let reference = include_str!("../../../../config/REFERENCE.md");
    let text = "zz = 1\n[daemon]\nzz = 1\n[daemon.keep]\nzz = 1\n[admin]\nzz = 1\n[actors.a]\nmodule = 'counter'\nzz = 1\n[actors.a.trial]\nzz = 1\n[[wires]]\nzz = 1";
    let report = report_of(Sources::of_text(MAIN, text), &environment());
    let unknown = report.diagnostics().filter(|d| d.code == "E0101");
    let helps: String = unknown.map(|d| d.help[0].as_str()).collect();
    let keys: Vec<_> = helps.split('`').skip(1).step_by(2).collect();
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        let known = reference.contains(&format!("`{key}`"))
            || reference.contains(&format!("[{key}"))
            || reference.contains(&format!("{key} ="));
        assert!(known, "`{key}` is not in the reference");
    }
    let sources = [
        include_str!("../config.rs"),
        include_str!("actor.rs"),
        include_str!("check.rs"),
        include_str!("daemon.rs"),
        include_str!("reader.rs"),
        include_str!("restart.rs"),
        include_str!("wire.rs"),
    ];
    let strings = sources.iter().flat_map(|source| source.split('"'));
    let is_code = |text: &&str| {
        text.len() == 5 && text.starts_with(['E', 'W']) && text[1..].parse::<u16>().is_ok()
    };
    for code in strings.filter(is_code) {
        assert!(reference.contains(&format!("| {code} |")), "{code} is not in the reference");
    }
}

/// Text that is often nearly a configuration.
fn nearly() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[actors.",
        "a",
        "]",
        "\n",
        "module",
        " = ",
        "\"counter\"",
        "'",
        "\"",
        "[[wires]]",
        "from",
        "to",
        "'a.count'",
        "'a.increment'",
        "{",
        "}",
        "[",
        ",",
        "3",
        "nan",
        "1979-05-27",
        "timeout",
        "\"30s\"",
        "env",
        "include",
        "*",
        "daemon",
        "keep",
        "#",
        ".",
        "ä",
        "\u{202e}",
        "\r",
        "\t",
        "\0",
        "\\",
        "\"\"\"",
        "true",
        "-",
        "9999999999999999999999",
        "[defaults]",
        "[admin]",
        "listen",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

#[test]
fn ten_thousand_actors_are_checked_in_one_go() {
    let count = 10_000;
    let actor = |i| format!("[actors.a{i}]\nmodule = 'counter'\n");
    let wire = |i| format!("[[wires]]\nfrom = 'a{i}.count'\nto = 'a{}.increment'\n", i + 1);
    let actors: String = (0..count).map(actor).collect();
    let chain: String = (0..count - 1).map(wire).collect();
    finds(&[&*actors, &chain].concat(), "");
    let back = format!("[[wires]]\nfrom = 'a{}.count'\nto = 'a0.increment'\n", count - 1);
    finds(&[&*actors, &chain, &back].concat(), "20003:6 E0204");
}

proptest! {
    #[test]
    fn no_text_is_too_much(text in prop_oneof![nearly(), any::<String>()]) {
        let report = report_of(Sources::of_text(MAIN, text), &environment());
        let shown = report.render(true);
        prop_assert_eq!(shown.is_empty(), report.diagnostics().next().is_none());
        report.to_json();
    }
}

fn with_unknown_keys(actors: usize) -> String {
    (0..actors).map(|n| format!("[actors.a{n}]\nmodule = \"std:log\"\nbogus = 1\n")).collect()
}

#[test]
fn of_very_many_problems_the_first_are_shown_and_all_are_in_the_json() {
    let text =
        format!("{}[[wires]]\nfrom = \"nobody.x\"\nto = \"a1.in\"\n", with_unknown_keys(3000));
    let report = report_of(Sources::of_text("/etc/flow/reflowd.toml", text), &environment());
    assert!(report.errors() > 3000);
    let shown = report.render(false);
    assert_eq!(shown.matches("error[").count(), 100);
    let rest =
        format!("and {} more errors; `reflowd check --json` lists all\n", report.errors() - 100);
    assert!(shown.ends_with(&rest), "{}", &shown[shown.len() - 200..]);
    let brief = report.brief();
    assert_eq!(brief.matches("error[").count(), 10);
    assert!(brief.len() < 16 << 10, "an event is kept");
    assert_eq!(report.to_json()["problems"].as_array().unwrap().len(), report.errors());
}

#[test]
fn errors_are_shown_before_warnings_where_not_all_are() {
    let mut report = Report::default();
    report.extend((0..500).map(|n| Diagnostic::warning("W0401", format!("warning {n}"))));
    report.extend([Diagnostic::error("E0101", "the error")]);
    let shown = report.render(false);
    assert!(shown.contains("the error") && shown.contains("and 401 more warnings"), "{shown}");
}

#[test]
fn what_is_shown_of_a_problem_has_a_bound_whatever_it_is_about() {
    let long = "k".repeat(1 << 20);
    let text = format!("[actors.a]\nmodule = \"std:log\"\n{long} = 1\n");
    let report = report_of(Sources::of_text("/etc/flow/reflowd.toml", text), &environment());
    assert!(report.has("E0101"));
    for shown in [report.render(false), report.brief()] {
        assert!((100..8000).contains(&shown.len()), "{}", shown.len());
        assert!(shown.contains("reflowd.toml:3:1"), "{}", &shown[..200]);
    }
}

#[test]
fn problems_of_one_long_line_are_shown_by_their_surroundings_and_keep_their_columns() {
    let actors: Vec<_> =
        (0..2000).map(|n| format!("\"\u{e4}{n}\" = {{ module = \"std:log\" }}")).collect();
    let text = format!("actors = {{ {} }}\n", actors.join(", "));
    let column = |n: usize| {
        let at = text.find(&format!("\"\u{e4}{n}\"")).unwrap();
        text[..at].chars().count() + 1
    };
    let expected = [column(0), column(99), column(1999)];
    let report = report_of(Sources::of_text("/etc/flow/reflowd.toml", &*text), &environment());
    assert_eq!(report.errors(), 2000);
    let json = report.to_json();
    let found = [0, 99, 1999].map(|n: usize| json["problems"][n]["labels"][0]["column"].clone());
    assert_eq!(found.map(|c| usize::try_from(c.as_u64().unwrap()).unwrap()), expected);
    let shown = report.render(false);
    assert!(shown.contains(&format!("reflowd.toml:1:{}\n", expected[1])), "{shown}");
    assert!(shown.len() < 100 * 1200, "{} bytes of 100 problems", shown.len());
}

#[test]
fn places_far_apart_in_one_line_are_shown_without_what_is_between_them() {
    let wire = "{ from = \"a.x\", to = \"b.y\" }";
    let text = format!("wires = [{wire},{}{wire}]\n", " ".repeat(100_000));
    let report = report_of(Sources::of_text("/etc/flow/reflowd.toml", &*text), &environment());
    let shown = report.render(false);
    let at = format!("reflowd.toml:1:{}\n", text.rfind("\"b.y\"").unwrap() + 1);
    assert!(shown.contains("is there twice") && shown.contains(&at), "{shown}");
    assert!(shown.len() < 5000, "{} bytes", shown.len());
}

#[test]
fn places_far_apart_are_shown_in_two_pieces_with_their_own_lines() {
    let wire = "[[wires]]\nfrom = \"a.x\"\nto = \"b.y\"\n";
    let text = format!("{wire}{}{wire}", "\n".repeat(500));
    let config = parse(Sources::of_text("/etc/flow/reflowd.toml", text), &environment());
    let shown = config.1.render(false);
    let at = |line: usize| shown.contains(&format!("reflowd.toml:{line}:"));
    assert!((at(2) || at(3)) && (at(505) || at(506)), "{shown}");
    assert!(shown.lines().count() < 20, "{shown}");
}
