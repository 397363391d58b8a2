//! What an ingress is configured with, and what is made of it.

use reflowd_runtime::{ActorLog, ActorName};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{super::Services, *};

fn prepared(config: Value, env: &[(&str, &str)]) -> Result<(), String> {
    let listeners = Arc::new(Listeners::new(TaskTracker::new(), CancellationToken::new()));
    let services = Services { system: System::new(Handle::current()), listeners };
    let actor: ActorName = "in".parse().unwrap();
    let Value::Object(config) = config else { panic!("a config is an object") };
    let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let keys = reflowd_hot_reload::GenerationKeys { config, env, ..Default::default() };
    let log = ActorLog::new(actor.clone(), 1);
    let base = std::path::Path::new("/");
    let setting = Setting { actor: &actor, keys: &keys, log, base, services: &services };
    Builtin::HttpIn.prepare(&setting).map(|_| ()).map_err(|error| error.to_string())
}

fn route() -> Value {
    json!([{ "path": "/a", "port": "a" }])
}

#[tokio::test]
async fn a_config_that_does_not_fit_is_refused_with_what_to_do() {
    #[track_caller]
    fn refused(config: Value, env: &[(&str, &str)], says: &str) {
        let why = prepared(config, env).unwrap_err();
        assert!(why.contains(says), "{why}");
    }
    let on = |listen: &str| json!({ "listen": listen, "routes": route() });
    refused(on("8080"), &[], "an address such as 127.0.0.1:8080");
    refused(on("0.0.0.0:8080"), &[], "set a `token`");
    let with = |routes: Value| json!({ "listen": "127.0.0.1:0", "routes": routes });
    refused(with(json!([])), &[], "`routes` is empty");
    refused(with(json!([{ "path": "a", "port": "a" }])), &[], "begins with `/`");
    refused(with(json!([{ "path": "/a", "port": "a", "method": "GET" }])), &[], "POST, PUT");
    refused(with(json!([{ "path": "/a", "port": "a", "type": "Json" }])), &[], "no type `Json`");
    refused(with(json!([{ "path": "/a", "port": "a", "timeout": "1s" }])), &[], "`wait`");
    refused(with(json!([{ "path": "/a", "port": "a", "wait": "b" }])), &[], "actor.port");
    refused(
        with(json!([{ "path": "/a", "port": "a" }, { "path": "/a", "port": "b" }])),
        &[],
        "two routes are POST /a",
    );
    let keyed = json!({ "listen": "0.0.0.0:80", "routes": route(), "token": "T" });
    refused(keyed.clone(), &[], "of a value in the actor's `env`, which is empty");
    let literal = json!({ "listen": "0.0.0.0:80", "routes": route(), "token": "LITERAL" });
    let why = prepared(literal, &[("T", "0123456789abcdef")]).unwrap_err();
    assert!(why.contains("which has `T`") && !why.contains("LITERAL"), "{why}");
    refused(keyed.clone(), &[("T", "short")], "is shorter than 16 characters");
    assert_eq!(prepared(keyed, &[("T", "long enough to be one")]), Ok(()));
    let mut sized = on("127.0.0.1:0");
    sized["max_body"] = json!("1 GiB");
    refused(sized, &[], "up to 16 MiB".trim_start_matches("up to "));
    let mut paced = on("127.0.0.1:0");
    for rate in [0.0, -1.0, 1e-20, 1e300] {
        paced["rate"] = json!(rate);
        refused(paced.clone(), &[], "from 0.000001 to");
    }
}

#[test]
fn ports_are_those_of_the_routes() {
    let config = json!({
        "listen": "127.0.0.1:0",
        "routes": [
            { "path": "/a", "port": "one", "type": "Object" },
            { "path": "/b", "port": "two", "type": "Object" },
            { "path": "/c", "port": "two" },
        ],
    });
    let metadata = Builtin::HttpIn.metadata_with(config.as_object().unwrap()).unwrap();
    let ports: Vec<_> =
        metadata.outports.iter().map(|port| (port.name.as_str(), port.port_type)).collect();
    assert_eq!(ports, [("one", Type::Object), ("two", Type::Any)]);
    assert_eq!(metadata.outports[1].description, "bodies of POST /b, POST /c");
}

#[test]
fn a_token_is_the_whole_of_it() {
    let token = Token(Sha256::digest("correct horse battery").into());
    assert!(token.is(b"correct horse battery"));
    for other in ["", "correct horse", "correct horse battery ", "Correct horse battery"] {
        assert!(!token.is(other.as_bytes()), "{other}");
    }
}
