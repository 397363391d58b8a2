//! Actors on the bench: what holds there holds with the daemon, since the same JSON goes in and out.

use reflowd_guest::{Actor, Bench, Former, Level, Message, Outcome, Port, Turn, Type, Value, json};
use serde::{Deserialize, Serialize};

/// Does what its input says.
#[derive(Default, Serialize, Deserialize)]
struct Puppet {
    #[serde(default)]
    turns: u32,
    #[serde(default)]
    last: Option<f64>,
}

#[derive(Deserialize)]
struct Wanted {
    step: u32,
}

impl Actor for Puppet {
    const COMPONENT: &str = "Strings";
    const DESCRIPTION: &str = "Does what it is told.";
    const VERSION: Option<&str> = Some("1.2.0");
    const INPORTS: &[Port] = &[Port::string("do").required().about("What."), Port::any("other")];
    const OUTPORTS: &[Port] = &[Port::float("number"), Port::any("any"), Port::flow("done")];
    const CONFIG_SCHEMA: Option<&str> = Some(r#"{"type": "object"}"#);

    fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
        self.turns += 1;
        match turn.take::<String>("do")?.as_str() {
            "numbers" => {
                turn.send("number", &1)?;
                turn.send("number", &2.5)?;
            }
            "kinds" => {
                for value in [
                    json!(null),
                    json!(true),
                    json!(1),
                    json!(1.5),
                    json!("x"),
                    json!([]),
                    json!({}),
                ] {
                    turn.send("any", &value)?;
                }
            }
            "flow" => turn.send_message("done", Message { ty: Type::Flow, data: Value::Null })?,
            "fail" => {
                turn.send("number", &9)?;
                turn.warn("about to fail");
                return Err("it was told to".into());
            }
            "config" => self.turns += turn.config::<Wanted>()?.step,
            "env" => turn.send("any", turn.env("REGION").unwrap_or("none").to_owned().as_str())?,
            "who" => turn.send("any", &turn.actor().to_owned())?,
            "other" => self.last = turn.get("other")?,
            other => return Err(format!("`{other}` is nothing to do").into()),
        }
        Ok(())
    }

    fn accepts(config: &Value) -> bool {
        config["step"] != 0
    }

    fn migrate(former: Former) -> Outcome<Self> {
        let turns = former.state["count"].as_u64().ok_or("there is no count")?;
        Ok(Self { turns: u32::try_from(turns).map_err(reflowd_guest::Error::new)?, last: None })
    }
}

fn bench() -> Bench<Puppet> {
    Bench::new()
}

#[test]
fn what_is_sent_has_the_type_that_the_port_declares() {
    let mut bench = bench();
    bench.process("do", "numbers").unwrap();
    let types: Vec<_> = bench.messages().iter().map(|(_, message)| message.ty).collect();
    assert_eq!(types, [Type::Float, Type::Float]);
    assert_eq!(bench.sent::<f64>("number"), [1.0, 2.5]);
    assert!(bench.messages().is_empty());
}

#[test]
fn by_a_port_for_anything_each_value_has_its_own_type() {
    let mut bench = bench();
    bench.process("do", "kinds").unwrap();
    let types: Vec<_> = bench.messages().iter().map(|(_, message)| message.ty).collect();
    use Type::{Array, Boolean, Float, Integer, Object, Optional, String};
    assert_eq!(types, [Optional, Boolean, Integer, Float, String, Array, Object]);
    bench.process("do", "flow").unwrap();
    assert_eq!(bench.messages().last().unwrap().1.ty, Type::Flow);
}

#[test]
fn a_turn_that_fails_leaves_only_its_log_behind() {
    let mut bench = bench();
    bench.process("do", "numbers").unwrap();
    bench.sent::<f64>("number");
    let error = bench.process("do", "fail").unwrap_err();
    assert_eq!(error.to_string(), "it was told to");
    assert_eq!((bench.state().turns, bench.messages().len()), (1, 0));
    assert_eq!(
        (bench.lines()[0].level, bench.lines()[0].text.as_str()),
        (Level::Warn, "about to fail")
    );
}

#[test]
fn errors_name_what_is_wrong() {
    let mut bench = bench();
    let said = |result: Outcome| result.unwrap_err().to_string();
    assert!(said(bench.process("do", 1)).starts_with("`do`: invalid type: integer"));
    assert_eq!(said(bench.process("other", 1)), "no message came by `do`");
    assert_eq!(said(bench.process("nowhere", 1)), "the actor has no inport `nowhere`");
    assert_eq!(said(bench.process("do", "dance")), "`dance` is nothing to do");
    assert!(said(bench.process("do", "config")).starts_with("config: missing field `step`"));
    let mut odd = Bench::<Puppet>::new().with_state(&json!({"turns": "many"}));
    assert!(said(odd.process("do", "numbers")).contains("migrate_state"));
}

#[test]
fn configuration_and_environment_are_at_hand() {
    let mut bench = bench().with_config(json!({"step": 10})).with_env("REGION", "eu");
    bench.process("do", "config").unwrap();
    assert_eq!(bench.state().turns, 11);
    bench.process("do", "env").unwrap();
    bench.process("do", "who").unwrap();
    assert_eq!(bench.sent::<String>("any"), ["eu", "bench"]);
}

#[test]
fn a_join_has_all_its_messages() {
    let mut bench = bench();
    let text = Message { ty: Type::String, data: json!("other") };
    let number = Message { ty: Type::Float, data: json!(2.5) };
    bench.join(&[("do", text), ("other", number)]).unwrap();
    assert_eq!(bench.state().last, Some(2.5));
}

#[test]
fn the_metadata_says_what_the_actor_says() {
    let expected = json!({
        "component": "Strings",
        "description": "Does what it is told.",
        "version": "1.2.0",
        "inports": [
            {"name": "do", "port_type": "String", "description": "What.", "required": true},
            {"name": "other", "port_type": "Any", "description": "", "required": false},
        ],
        "outports": [
            {"name": "number", "port_type": "Float", "description": "", "required": false},
            {"name": "any", "port_type": "Any", "description": "", "required": false},
            {"name": "done", "port_type": "Flow", "description": "", "required": false},
        ],
        "config_schema": {"type": "object"},
    });
    assert_eq!(bench().metadata(), expected);
    assert_eq!(Bench::<ByKey>::new().metadata()["component"], "ByKey");
}

#[test]
fn a_configuration_can_be_refused_and_a_state_migrated() {
    let bench = bench();
    assert_eq!(bench.accepts(&json!({"step": 1})), Ok(true));
    assert_eq!(bench.accepts(&json!({"step": 0})), Ok(false));
    let migrated = bench.migrate(Some("1.0.0"), &json!({"count": 3})).unwrap();
    assert_eq!(migrated, json!({"turns": 3, "last": null}));
    let strange = json!({"sum": 1});
    assert_eq!(bench.migrate(None, &strange).unwrap_err().to_string(), "there is no count");
}

#[test]
fn an_actor_without_a_state_begins_with_its_first() {
    assert_eq!(bench().migrate(None, &json!({})).unwrap(), json!({"turns": 0, "last": null}));
}

#[test]
fn a_state_of_its_own_that_it_does_not_migrate_is_taken_over_as_it_is() {
    let own = json!({"turns": 3, "last": 2.5});
    assert_eq!(bench().migrate(Some("2.0.0"), &own).unwrap(), own);
    // One field more is another form.
    let more = json!({"turns": 3, "last": 2.5, "first": 1});
    assert!(bench().migrate(Some("2.0.0"), &more).is_err());
}

/// Keeps its state key by key.
#[derive(Default, Serialize, Deserialize)]
struct ByKey;

impl Actor for ByKey {
    const INPORTS: &[Port] = &[Port::string("in")];

    fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
        let word: String = turn.take("in")?;
        let count: u32 = turn.state(&word)?.unwrap_or(0);
        turn.set_state(&word, &(count + 1))
    }
}

#[test]
fn a_state_can_be_kept_key_by_key() {
    let mut bench = Bench::<ByKey>::new();
    for word in ["a", "b", "a"] {
        bench.process("in", word).unwrap();
    }
    assert_eq!(bench.into_state::<Value>(), json!({"a": 2, "b": 1}));
}

#[test]
fn a_whole_number_is_one_however_it_is_written() {
    /// Adds what comes to a number of its state.
    #[derive(Default, Serialize, Deserialize)]
    struct Whole;

    impl Actor for Whole {
        const INPORTS: &[Port] = &[Port::integer("add")];

        fn process(&mut self, turn: &mut Turn<'_>) -> Outcome {
            let total: i64 = turn.state("total")?.unwrap_or(0);
            turn.set_state("total", &(total + turn.take::<i64>("add")?))
        }
    }
    let add = |before: Value, text: &str| {
        let mut bench = Bench::<Whole>::new().with_state(&json!({ "total": before }));
        let data: Value = serde_json::from_str(text).unwrap();
        bench.process("add", data)?;
        Outcome::Ok(bench.into_state::<Value>()["total"].clone())
    };
    for (text, value) in
        [("1.0", 1), ("1e3", 1000), ("-2.5e1", -25), ("-9.223372036854775808e18", i64::MIN)]
    {
        assert_eq!(add(json!(0), text), Ok(json!(value)), "{text}");
    }
    // JavaScript and Go keep their numbers so.
    assert_eq!(add(json!(2.0), "1"), Ok(json!(3)));
    for text in ["1.5", "1e30", "9223372036854775808", "\"1\""] {
        assert!(add(json!(0), text).is_err(), "{text}");
    }
    assert!(add(json!(0.5), "1").unwrap_err().to_string().starts_with("state `total`: invalid"));
}
