//! The configuration as a JSON Schema, for editors that complete and check as one types.
//!
//! The reader asks for keys one by one and is the authority; this says the same once more
//! in another language. A test has the reader tell which keys it asks for, and which words
//! it takes, and holds this page against them.

use serde_json::{Map, Value, json};

/// The schema of the main file; an included one is the same with fewer tables.
pub(crate) fn schema() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "reflowd configuration",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "include": described(strings(), "Patterns for more files, such as \"flows/*.toml\"; main file only"),
            "daemon": described(daemon(), "The daemon itself; main file only"),
            "admin": described(admin(), "Where the daemon is talked to; main file only"),
            "defaults": described(table(shared()), "What holds for every actor that does not set it itself; main file only"),
            "actors": {
                "description": "The actors, by name",
                "type": "object",
                "propertyNames": { "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$" },
                "additionalProperties": actor(),
            },
            "wires": {
                "description": "The wires between ports",
                "type": "array",
                "items": wire(),
            },
        },
    })
}

fn daemon() -> Value {
    table([
        ("modules", path("The watched folder", "modules")),
        ("data", path("What the daemon keeps", "data")),
        (
            "autostart",
            boolean("Whether a module that no actor uses becomes an actor of its own", true),
        ),
        ("quiet", duration("How long a file must have stood still before it counts", "100ms")),
        (
            "rescan",
            duration("Time between two looks at the folders when no event asks for one", "5s"),
        ),
        ("watch", boolean("Whether the system is asked to tell of changes", true)),
        ("drain", duration("How long a stop waits for mailboxes to empty", "10s")),
        (
            "keep",
            described(
                table([
                    (
                        "generations",
                        integer("Generations of an actor that are kept", 1, Some(1000), 5),
                    ),
                    ("bytes", size("Bytes of all kept modules together", "1 GiB")),
                ]),
                "How much of what went live is kept",
            ),
        ),
        ("dead_letters", size("Bytes that dead letters take on disk", "256 MiB")),
        ("engine", choice("What runs modules", &["direct", "extism"])),
        (
            "memory_budget",
            described(
                sizes(),
                "Bytes that all queues hold together; half of the machine's or cgroup's memory, where it is not set",
            ),
        ),
        (
            "allow_insecure_dir",
            boolean("Whether a modules folder that others may write to is taken", false),
        ),
        ("module_size", size("The largest module", "32 MiB")),
        ("download_timeout", duration("How long the download of a module may take", "60s")),
        (
            "download_hosts",
            described(
                strings(),
                "The only hosts that modules are downloaded from, where it is set",
            ),
        ),
        (
            "authorities",
            described(
                text(),
                "A PEM file with certificates of authorities that may vouch for a server",
            ),
        ),
    ])
}

fn admin() -> Value {
    table([
        ("socket", described(text(), "The Unix socket of the admin API")),
        (
            "listen",
            described(
                text(),
                "A TCP address for the same API, such as \"127.0.0.1:9670\"; loopback only, unless there are tokens",
            ),
        ),
        (
            "tokens",
            described(
                json!({ "type": "object", "additionalProperties": false, "properties": {
                    "read": { "type": "object" },
                    "send": { "type": "object" },
                    "operate": { "type": "object" },
                } }),
                "What callers over TCP have to show, by role: `{ operate = { file = \"…\" } }`",
            ),
        ),
    ])
}

/// The keys that `[defaults]` and an actor have in common.
fn shared() -> Vec<(&'static str, Value)> {
    vec![
        ("memory", size("Linear memory of one engine", "100 MiB")),
        (
            "entry_point",
            described(
                json!({ "type": "string", "minLength": 1, "default": "process" }),
                "The export that takes turns",
            ),
        ),
        ("engine_per", choice("How long an engine lives", &["actor", "message"])),
        (
            "allow_hosts",
            described(
                strings(),
                "Hosts that the module may reach by HTTP: names, \"*.example.com\", or \"*\"",
            ),
        ),
        ("timeout", duration("Wall clock of one turn, host calls included", "30s")),
        ("mailbox", integer("Messages that the mailbox holds", 1, Some(1 << 24), 1024)),
        ("mailbox_bytes", size("Bytes that the mailbox holds", "16 MiB")),
        ("overflow", overflow("What happens to a message that finds the mailbox full")),
        ("trigger", choice("What starts a turn", &["any", "all"])),
        ("send", choice("When `__send_output` leaves", &["on-success", "now"])),
        ("retries", integer("Further attempts after a trap", 0, Some(1000), 2)),
        ("retries_timeout", integer("Further attempts after a time-out", 0, Some(1000), 0)),
        ("output", size("Bytes that one turn puts out", "16 MiB")),
        ("state_size", size("Bytes of the encoded state", "16 MiB")),
        ("host_memory", size("Bytes that the host holds for the actor", "96 MiB")),
        ("state", choice("Whether the state is written to disk", &["snapshot", "memory"])),
        ("log_rate", integer("Log lines a second", 0, Some(1_000_000), 100)),
        ("context_state", boolean("Whether the module finds its state in the context", true)),
        (
            "context_meta",
            boolean("Whether the module finds the message's envelope in the context", false),
        ),
        (
            "max_hops",
            integer(
                "Hops after which a message is taken for a runaway loop",
                1,
                Some(u64::from(u32::MAX)),
                10_000,
            ),
        ),
        (
            "trial",
            described(
                json!({ "oneOf": [{ "type": "boolean" }, trial()] }),
                "What a new version has to prove before it stays; `false`: nothing",
            ),
        ),
    ]
}

fn trial() -> Value {
    table([
        (
            "turns",
            integer(
                "Turns that succeed, after which the version has passed",
                1,
                Some(u64::from(u32::MAX)),
                1000,
            ),
        ),
        ("time", duration("Time since the swap, after which it has passed too", "60s")),
        (
            "max_failures",
            integer(
                "Messages that only the version before could process, at which it goes back",
                1,
                Some(u64::from(u32::MAX)),
                3,
            ),
        ),
        (
            "guest_errors",
            choice("Whether an error that the module returns is a failure", &["count", "ignore"]),
        ),
    ])
}

fn actor() -> Value {
    let own = [
        ("module", described(module(), "What the actor runs")),
        (
            "version",
            described(text(), "The version that the module must have, such as \">=1.2, <2\""),
        ),
        (
            "config",
            described(json!({ "type": "object" }), "Given to the module as its configuration"),
        ),
        (
            "env",
            described(
                json!({ "type": "object", "additionalProperties": env() }),
                "Given to the module as `resolved_env`",
            ),
        ),
        (
            "was",
            described(text(), "The actor's former name, whose mailbox and state it takes over"),
        ),
    ];
    let mut table = table(own.into_iter().chain(shared()));
    table["required"] = json!(["module"]);
    table
}

fn module() -> Value {
    let mut named = table([
        ("file", described(text(), "The name of a file in the modules folder, or a path")),
        ("url", described(text(), "An address to download from; needs `sha256`")),
        (
            "sha256",
            described(
                json!({ "type": "string", "pattern": "^[0-9A-Fa-f]{64}$" }),
                "The digest that the bytes must have",
            ),
        ),
    ]);
    let digest = json!(["url", "sha256"]);
    named["oneOf"] = json!([{ "required": ["file"] }, { "required": digest }]);
    json!({ "oneOf": [{ "type": "string", "minLength": 1 }, named] })
}

/// A value of `env`, itself or where it comes from.
fn env() -> Value {
    let mut place = table([
        ("credential", described(text(), "A file in $CREDENTIALS_DIRECTORY")),
        ("file", described(text(), "A file")),
        ("env", described(text(), "A variable of the daemon")),
    ]);
    place["minProperties"] = json!(1);
    place["maxProperties"] = json!(1);
    json!({ "oneOf": [{ "type": "string" }, place] })
}

fn wire() -> Value {
    let port = json!({ "type": "string", "pattern": "^[^.]+\\..+$" });
    let ports = json!({ "oneOf": [port.clone(), { "type": "array", "items": port.clone() }] });
    let mut table = table([
        ("from", described(port, "`actor.outport`")),
        ("to", described(ports, "`actor.inport`, or a list of them: one wire to each")),
        (
            "overflow",
            overflow(
                "What happens when the mailbox at its end is full; that of the receiving actor, where it is not set",
            ),
        ),
    ]);
    table["required"] = json!(["from", "to"]);
    table
}

/// A table with these keys and no others.
fn table(keys: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let properties: Map<String, Value> =
        keys.into_iter().map(|(key, schema)| (key.to_owned(), schema)).collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn described(mut schema: Value, words: &str) -> Value {
    schema["description"] = words.into();
    schema
}

fn text() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

fn strings() -> Value {
    json!({ "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
}

fn path(words: &str, default: &str) -> Value {
    let mut schema = described(text(), words);
    schema["default"] = default.into();
    schema
}

fn boolean(words: &str, default: bool) -> Value {
    json!({ "type": "boolean", "default": default, "description": words })
}

fn integer(words: &str, least: u64, most: Option<u64>, default: u64) -> Value {
    let mut schema =
        json!({ "type": "integer", "minimum": least, "default": default, "description": words });
    if let Some(most) = most {
        schema["maximum"] = most.into();
    }
    schema
}

fn duration(words: &str, default: &str) -> Value {
    let pattern = "^\\s*\\d+(\\.\\d+)?\\s*[A-Za-zµ]+(\\s*\\d+(\\.\\d+)?\\s*[A-Za-zµ]+)*\\s*$";
    json!({ "type": "string", "pattern": pattern, "default": default, "description": words })
}

/// A size as text with its unit, or a number of bytes.
fn sizes() -> Value {
    json!({ "oneOf": [
        { "type": "string", "pattern": "^\\s*[0-9.]+\\s*[A-Za-z]*\\s*$" },
        { "type": "integer", "minimum": 0 },
    ] })
}

fn size(words: &str, default: &str) -> Value {
    let mut schema = described(sizes(), words);
    schema["default"] = default.into();
    schema
}

/// One of a few words, the first of which is the default.
fn choice(words: &str, choices: &[&str]) -> Value {
    json!({ "enum": choices, "default": choices[0], "description": words })
}

fn overflow(words: &str) -> Value {
    json!({ "enum": ["block", "drop-newest", "drop-oldest"], "description": words })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::config::{Environment, Sources, parse};

    /// A key that no table has, and that is like none.
    const NO_KEY: &str = "qqqq";

    /// Each table, as it is written with that key in it, and where the schema has it.
    const TABLES: [(&str, &str); 12] = [
        ("qqqq = 1", ""),
        ("[daemon]\nqqqq = 1", "/properties/daemon"),
        ("[daemon]\nkeep = { qqqq = 1 }", "/properties/daemon/properties/keep"),
        ("[admin]\nqqqq = 1", "/properties/admin"),
        ("[admin]\ntokens = { qqqq = 1 }", "/properties/admin/properties/tokens"),
        ("[defaults]\nqqqq = 1", "/properties/defaults"),
        ("[defaults]\ntrial = { qqqq = 1 }", "/properties/defaults/properties/trial/oneOf/1"),
        ("[actors.a]\nmodule = \"m\"\nqqqq = 1", "/properties/actors/additionalProperties"),
        (
            "[actors.a]\nmodule = \"m\"\ntrial = { qqqq = 1 }",
            "/properties/actors/additionalProperties/properties/trial/oneOf/1",
        ),
        (
            "[actors.a]\nmodule = { file = \"m\", qqqq = 1 }",
            "/properties/actors/additionalProperties/properties/module/oneOf/1",
        ),
        (
            "[actors.a]\nmodule = \"m\"\nenv = { A = { env = \"B\", qqqq = 1 } }",
            "/properties/actors/additionalProperties/properties/env/additionalProperties/oneOf/1",
        ),
        ("[[wires]]\nfrom = \"a.out\"\nto = \"b.in\"\nqqqq = 1", "/properties/wires/items"),
    ];

    /// Everything that the reader has against a text.
    fn problems(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reflowd.toml");
        std::fs::write(&path, text).unwrap();
        let environment = Environment::of_process();
        let (_, report) = parse(Sources::read(&path, &environment), &environment);
        report.render(false)
    }

    /// The names in backticks that follow `words` in `text`, up to the end of the line.
    fn names_after(text: &str, words: &str) -> BTreeSet<String> {
        let at = text.find(words).unwrap_or_else(|| panic!("no `{words}` in:\n{text}"));
        let line = text[at + words.len()..].lines().next().unwrap();
        let quoted = line.split(['`', '"']).skip(1).step_by(2);
        quoted.map(ToOwned::to_owned).collect()
    }

    fn keys(table: &Value) -> BTreeSet<String> {
        let properties = table["properties"].as_object().expect("a table has properties");
        properties.keys().cloned().collect()
    }

    #[test]
    fn the_schema_has_the_keys_that_the_reader_asks_for() {
        let schema = schema();
        for (text, at) in TABLES {
            let asked = names_after(&problems(text), "the keys here are ");
            let mut written = keys(schema.pointer(at).expect("the schema has the table"));
            if at == "/properties/defaults" {
                // It asks for these to say that they belong elsewhere.
                written.extend(["module", "version", "config", "env", "was"].map(String::from));
            }
            assert_eq!(asked, written, "{text}\nat {at}");
        }
    }

    #[test]
    fn every_table_of_the_schema_is_held_against_the_reader() {
        fn tables(schema: &Value, at: &str, found: &mut BTreeSet<String>) {
            if schema.get("properties").is_some() {
                found.insert(at.to_owned());
            }
            let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
            match schema {
                Value::Object(map) => map.iter().for_each(|(key, value)| {
                    tables(value, &format!("{at}/{}", escaped(key)), found);
                }),
                Value::Array(list) => list
                    .iter()
                    .enumerate()
                    .for_each(|(n, value)| tables(value, &format!("{at}/{n}"), found)),
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        tables(&schema(), "", &mut found);
        let held: BTreeSet<String> = TABLES.iter().map(|(_, at)| (*at).to_owned()).collect();
        assert_eq!(found, held);
    }

    #[test]
    fn the_schema_has_the_words_that_the_reader_takes() {
        let schema = schema();
        let mut words = 0;
        for (text, at) in TABLES {
            for (key, value) in schema.pointer(at).unwrap()["properties"].as_object().unwrap() {
                let Some(choices) = value["enum"].as_array() else { continue };
                let choices: BTreeSet<String> =
                    choices.iter().map(|word| word.as_str().unwrap().to_owned()).collect();
                let said = problems(&text.replace("qqqq = 1", &format!("{key} = \"{NO_KEY}\"")));
                assert_eq!(names_after(&said, "it is one of "), choices, "{key}:\n{said}");
                words += 1;
            }
        }
        assert!(words > 8, "only {words} keys are words");
    }

    /// A configuration as the schema sees it.
    fn value_of(text: &str) -> Value {
        fn json(value: toml::Value) -> Value {
            match value {
                toml::Value::String(text) => text.into(),
                toml::Value::Integer(number) => number.into(),
                toml::Value::Float(number) => number.into(),
                toml::Value::Boolean(truth) => truth.into(),
                toml::Value::Datetime(time) => time.to_string().into(),
                toml::Value::Array(list) => list.into_iter().map(json).collect(),
                toml::Value::Table(table) => {
                    table.into_iter().map(|(key, value)| (key, json(value))).collect()
                }
            }
        }
        json(toml::Value::Table(text.parse().unwrap()))
    }

    #[test]
    fn good_configurations_are_valid_and_slips_are_not() {
        let schema = schema();
        let validator = jsonschema::validator_for(&schema).unwrap();
        jsonschema::meta::validate(&schema).expect("it is a schema");
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let sample = std::fs::read_to_string(repository.join("config/reflowd.toml")).unwrap();
        let check = |text: &str, good: bool| {
            let errors: Vec<_> =
                validator.iter_errors(&value_of(text)).map(|error| error.to_string()).collect();
            assert_eq!(errors.is_empty(), good, "{text}\n{errors:?}");
            let said = problems(text);
            assert_eq!(!said.contains("error["), good, "the reader says otherwise:\n{said}");
        };
        let errors: Vec<_> =
            validator.iter_errors(&value_of(&sample)).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0], "the sample");
        check("", true);
        check(
            "[daemon]\nquiet = \"1m 30s\"\ndead_letters = 1048576\nkeep = { bytes = \"2 GiB\" }",
            true,
        );
        check("[defaults]\ntrial = { turns = 5 }\noverflow = \"drop-oldest\"", true);
        check(
            "[actors.a]\nmodule = \"m\"\ntrial = false\nenv = { A = \"b\" }\nconfig = { x = [1] }",
            true,
        );
        check(
            "[actors.a]\nmodule = \"std:interval\"\n[actors.b]\nmodule = \"std:stdout\"\n[[wires]]\nfrom = \"a.out\"\nto = [\"b.in\"]",
            true,
        );
        check("[actors.a]\nmodule = \"m\"\ntimout = \"1s\"", false);
        check("[actors.a]\nmodule = \"m\"\nmailbox = 0", false);
        check("[actors.a]\ntimeout = \"1s\"", false);
        check("[actors.a]\nmodule = \"m\"\nstate = \"durably\"", false);
        check("[daemon]\ndrain = 5", false);
        check("[[wires]]\nfrom = \"a.out\"", false);
    }
}
