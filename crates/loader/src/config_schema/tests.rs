use serde_json::json;

use super::*;

/// One draft in which a `$ref` stands alone, and one in which it need not.
const DRAFTS: [&str; 2] =
    ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"];

/// The result of checking `config` against `schema`.
fn result(schema: &Value, config: &Value) -> Result<(), String> {
    check(schema).map_err(|error| error.to_string())?;
    fit(schema, config).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(schema: &Value, config: &Value, part: &str) {
    let found = result(schema, config);
    assert!(found.as_ref().is_err_and(|why| why.contains(part)), "{found:?}, expected {part}");
}

/// `levels` definitions, each of which is `keyword` of the next one, `times` over.
fn tower(keyword: &str, levels: usize, times: usize, last: &Value) -> Value {
    let mut defs = Map::new();
    for level in 0..levels {
        let next = json!({"$ref": format!("#/$defs/a{}", level + 1)});
        defs.insert(format!("a{level}"), json!({keyword: vec![next; times]}));
    }
    defs.insert(format!("a{levels}"), last.clone());
    json!({"$ref": "#/$defs/a0", "$defs": defs})
}

#[test]
fn violations_say_where() {
    let schema = json!({"type":"object","properties":{"n":{"type":"integer"}}});
    assert_eq!(result(&schema, &json!({"n": 1})), Ok(()));
    refused(&schema, &json!({"n": "x"}), "/n: \"x\" is not of type \"integer\"");
    let large = "x".repeat(100_000);
    let why = result(&schema, &json!({"n": large})).unwrap_err();
    assert!(why.len() < 1_000, "{} bytes", why.len());
}

#[test]
fn definitions_that_name_each_other_twice_are_refused_and_not_evaluated_for_ever() {
    for last in [json!(true), json!(false), json!({"type": "string"}), json!({"type": "object"})] {
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for draft in DRAFTS {
                let mut schema = tower(keyword, 60, 2, &last);
                schema["$schema"] = draft.into();
                _ = result(&schema, &json!({}));
            }
        }
    }
    refused(&tower("anyOf", 60, 2, &json!({"type": "string"})), &json!({}), "steps");
}

#[test]
fn alternatives_without_a_reference_are_counted_too() {
    let mut schema = json!({"type": "string"});
    for _ in 0..30 {
        schema = json!({"anyOf": [schema.clone()], "unevaluatedProperties": false,
            "not": {"not": {"type": "object"}}});
    }
    _ = result(&schema, &json!({"a": 1}));
}

#[test]
fn definitions_in_a_chain_do_not_use_up_the_stack() {
    for draft in DRAFTS {
        for wrap in [None, Some("allOf"), Some("not")] {
            let mut defs = Map::new();
            let count = 4_000;
            for n in 0..count {
                let next = json!({"$ref": format!("#/$defs/{}", n + 1)});
                let this = match wrap {
                    None => next,
                    Some("not") => json!({"not": next}),
                    Some(keyword) => json!({keyword: [next]}),
                };
                defs.insert(n.to_string(), this);
            }
            defs.insert(count.to_string(), json!({"type": "object"}));
            let schema = json!({"$schema": draft, "allOf": [{"$ref": "#/$defs/0"}], "$defs": defs});
            assert!(schema.to_string().len() < MAX_SIZE);
            _ = result(&schema, &json!({}));
        }
    }
}

#[test]
fn a_schema_that_is_itself_ends() {
    for schema in [
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#/anyOf/0"}]}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a",
            "definitions": {"a": {"$ref": "#/definitions/b"}, "b": {"$ref": "#/definitions/a"}}}),
        json!({"$dynamicAnchor": "x", "anyOf": [{"$dynamicRef": "#x"}, {"not": {"$dynamicRef": "#x"}}]}),
    ] {
        _ = result(&schema, &json!({"a": {"a": {}}}));
    }
    // Twice at each level of the configuration, which is 60 levels deep.
    let schema = json!({"type": "object", "additionalProperties": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}});
    let config = (0..60).fold(json!(1), |inner, _| json!({"a": inner}));
    refused(&schema, &config, "steps");
}

#[test]
fn steps_that_take_long_themselves_are_ended_by_their_time() {
    // Each step holds the configuration against thousands of objects.
    let values: Vec<_> = (0..20_000).map(|n| json!({"a": n})).collect();
    refused(&tower("anyOf", 15, 2, &json!({"enum": values})), &json!({"a": -1}), "of a processor");
}

#[test]
fn what_is_not_counted_cannot_be_referred_to() {
    let hidden = |at: &str| json!({"$ref": format!("#/{at}/a"), "properties": {"x": {"const": {"a": {}}, "enum": [{}]}}, "const": {"a": {"anyOf": []}}});
    for at in [
        "const",
        "%63onst",
        "properties/x/const",
        "properties/x/enum/0",
        "allOf/0/dependentRequired",
    ] {
        refused(&hidden(at), &json!({}), "within a value");
    }
    // A property may be named as it likes, and a value may look as it likes.
    let schema = json!({"properties": {"enum": {"type": "string"}, "n": {"$ref": "#/properties/enum"},
        "c": {"const": {"allOf": 1}}, "d": {"dependentRequired": {"x": ["y"]}}}});
    assert_eq!(
        result(&schema, &json!({"n": "x", "c": {"allOf": 1}, "d": {"x": 1, "y": 2}})),
        Ok(())
    );
    refused(&schema, &json!({"n": 1}), "/n:");
    refused(&schema, &json!({"c": {"allOf": 2}}), "/c:");
    refused(&schema, &json!({"d": {"x": 1}}), "/d:");
}

#[test]
fn counting_changes_no_verdict() {
    let seventh = "http://json-schema.org/draft-07/schema#";
    for (schema, config, fits) in [
        (json!(true), json!({}), true),
        (json!(false), json!({}), false),
        (
            json!({"properties": {"a": {"enum": [{"$ref": "x"}]}}}),
            json!({"a": {"$ref": "x"}}),
            true,
        ),
        (json!({"properties": {"a": {"enum": [{"$ref": "x"}]}}}), json!({"a": 1}), false),
        (json!({"additionalProperties": false, "properties": {"a": {}}}), json!({"a": 1}), true),
        (json!({"additionalProperties": false, "properties": {"a": {}}}), json!({"b": 1}), false),
        (
            json!({"unevaluatedProperties": false, "allOf": [{"properties": {"a": true}}]}),
            json!({"a": 1}),
            true,
        ),
        (
            json!({"unevaluatedProperties": false, "allOf": [{"properties": {"a": true}}]}),
            json!({"b": 1}),
            false,
        ),
        (
            json!({"properties": {"a": {"prefixItems": [{"type": "integer"}], "items": false}}}),
            json!({"a": [1]}),
            true,
        ),
        (
            json!({"properties": {"a": {"prefixItems": [{"type": "integer"}], "items": false}}}),
            json!({"a": [1, 2]}),
            false,
        ),
        // Before 2019 what stands beside a reference does not count.
        (
            json!({"$schema": seventh, "definitions": {"o": {"type": "object"}}, "$ref": "#/definitions/o", "maxProperties": 0}),
            json!({"a": 1}),
            true,
        ),
        (
            json!({"$defs": {"o": {"type": "object"}}, "$ref": "#/$defs/o", "maxProperties": 0}),
            json!({"a": 1}),
            false,
        ),
        (
            json!({"$schema": seventh, "definitions": {"s": {"type": "string"}}, "properties": {"a": {"$ref": "#/definitions/s"}}}),
            json!({"a": 1}),
            false,
        ),
        (
            json!({"$defs": {"t": {"$anchor": "t", "type": "object", "properties": {"next": {"$ref": "#t"}}, "additionalProperties": false}}, "$ref": "#t"}),
            json!({"next": {"next": {}}}),
            true,
        ),
        (
            json!({"$defs": {"t": {"$anchor": "t", "type": "object", "properties": {"next": {"$ref": "#t"}}, "additionalProperties": false}}, "$ref": "#t"}),
            json!({"next": {"next": {"x": 1}}}),
            false,
        ),
        (json!({"allOf": [{"minProperties": 1}, {"$ref": "#/allOf/0"}]}), json!({}), false),
        (json!({"patternProperties": {"^a(?=b)": {"type": "string"}}}), json!({"ab": 1}), false),
    ] {
        let plain = jsonschema::validator_for(&schema).unwrap();
        assert_eq!(plain.is_valid(&config), fits, "{schema} {config}, by the library alone");
        assert_eq!(
            result(&schema, &config).is_ok(),
            fits,
            "{schema} {config}: {:?}",
            result(&schema, &config)
        );
    }
}

#[test]
fn what_is_no_schema_is_shown_as_it_was_written() {
    refused(&json!({"properties": {"a": {"type": "no-such"}}}), &json!({}), "no JSON Schema");
    let why =
        result(&json!({"properties": {"a": {"type": 1, "allOf": 3}}}), &json!({})).unwrap_err();
    assert!(!why.contains(COUNTED), "{why}");
    let why = result(&json!({"required": {"a": {}}}), &json!({})).unwrap_err();
    assert!(!why.contains(COUNTED), "{why}");
    // Nothing is fetched for it.
    refused(&json!({"$ref": "http://127.0.0.1:1/x.json"}), &json!({}), "no JSON Schema");
    refused(&json!({"$ref": "file:///etc/passwd"}), &json!({}), "no JSON Schema");
}

#[test]
fn size_and_patterns_are_bounded() {
    let list: Vec<_> = (0..30_000).collect();
    refused(&json!({"enum": [vec![list; 2]]}), &json!({}), "bytes, and 262144 are allowed");
    let patterns = |n: usize| -> Value {
        let by_pattern: Map<_, _> = (0..n).map(|n| (format!("^a{n}$"), json!(true))).collect();
        json!({"patternProperties": by_pattern})
    };
    assert_eq!(result(&patterns(MAX_PATTERNS), &json!({"a1": 1})), Ok(()));
    refused(&patterns(MAX_PATTERNS + 1), &json!({}), "regular expressions, and 200 are allowed");
    let long = json!({"properties": {"a": {"pattern": "a".repeat(MAX_PATTERN + 1)}}});
    refused(&long, &json!({}), "1001 bytes in one regular expression");
}

#[test]
fn patterns_that_blow_up_or_go_back_for_ever_end() {
    let pattern = |text: &str| json!({"properties": {"a": {"pattern": text}}});
    let a = json!({"a": format!("{}!", "a".repeat(10_000))});
    for text in ["^(a+)+$", "^(?=(a+)+$)(a|aa)+$", "(a*)*\\1b", "((a*)*)*$"] {
        _ = result(&pattern(text), &a);
    }
    refused(&pattern("(a*)*\\1b"), &a, "backtracking");
    for text in ["(a{1000}){1000}", "(\\w{200}){20}", "(((a{30}){30}){30}){30}"] {
        refused(&pattern(text), &json!({}), "is not a \"regex\"");
    }
}
