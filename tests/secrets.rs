//! Secrets are planted, guests say them in every way that they have, and nothing shows them.

use std::{fs, path::Path};

use crate::{
    connectors::Receiver,
    rig::{Daemon, PATIENCE, World, guest, repository},
    trace::collector,
};

/// How a guest can say what it knows, by its entry points.
const WAYS: [&str; 4] = ["log", "error", "answer", "print"];

/// Twenty secrets, each recognised by a part that nothing else has; some hard to find once
/// they stand in JSON.
fn secrets() -> Vec<String> {
    (0..20)
        .map(|n| {
            let part = format!("planted{n:02}");
            match n % 5 {
                0 => part,
                1 => format!("{part} with \"quotes\" and \\"),
                2 => format!("two lines\n{part}"),
                3 => format!("{part}-{}", "long".repeat(100)),
                _ => format!("ключ-{part}-é"),
            }
        })
        .collect()
}

/// Plants them: in credentials, in files and in the environment.
fn plant(world: &World, secrets: &[String]) -> (String, Vec<(String, String)>) {
    let (mut env, mut variables) = (Vec::new(), Vec::new());
    fs::create_dir(world.path("credentials")).unwrap();
    for (n, secret) in secrets.iter().enumerate() {
        let from = match n % 3 {
            0 => {
                fs::write(world.path(&format!("credentials/c{n}")), secret).unwrap();
                format!("{{ credential = \"c{n}\" }}")
            }
            1 => {
                fs::write(world.path(&format!("config/secret{n}")), secret).unwrap();
                format!("{{ file = \"secret{n}\" }}")
            }
            _ => {
                variables.push((format!("PLANTED_{n}"), secret.clone()));
                format!("{{ env = \"PLANTED_{n}\" }}")
            }
        };
        env.push(format!("S{n} = {from}"));
    }
    (env.join(", "), variables)
}

/// The flow, with an actor that says secrets to a receiver.
fn config(engine: &str, env: &str, receiver: &Receiver, more: &str) -> String {
    let actors = WAYS.map(|way| {
        format!("[actors.{way}]\nmodule = \"telltale\"\nentry_point = \"{way}\"\nretries = 0\nenv = {{ {env} }}\n")
    });
    format!(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\nautostart = false\nengine = \"{engine}\"\n{}\
         [actors.post]\nmodule = \"std:http-out\"\nretries = 0\nenv = {{ {env} }}\n\
         config = {{ url = \"http://{}/${{S0}}\", headers = {{ X-Key = \"${{S5}}\" }} }}\n{more}",
        actors.join(""),
        receiver.address,
    )
}

/// Everything that a reader can come by.
fn outputs(daemon: &Daemon) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in
        ["/v1/actors", "/v1/modules", "/v1/events", "/v1/dead-letters", "/metrics", "/readyz"]
    {
        found.push((path.to_owned(), daemon.get(path).body));
    }
    for way in WAYS {
        found.push((way.to_owned(), daemon.get(&format!("/v1/actors/{way}")).body));
        let logs = format!("/v1/actors/{way}/logs");
        found.push((logs.clone(), daemon.get(&logs).body));
    }
    let commands: [&[&str]; 9] = [
        &["ps"],
        &["ps", "--json"],
        &["events"],
        &["events", "--json"],
        &["dead", "list"],
        &["dead", "show", "1"],
        &["check"],
        &["reload"],
        &["inspect", "modules/telltale.wasm"],
    ];
    for command in commands {
        let output = daemon.world.run(command);
        let text = [output.stdout, output.stderr].concat();
        found.push((command.join(" "), String::from_utf8_lossy(&text).into_owned()));
    }
    found
}

/// The files of the data folder, as text where they have any.
fn files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            found.push((path.display().to_string(), text));
        }
    }
    found
}

#[test]
fn no_output_shows_a_secret() {
    search("direct", &WAYS);
}

#[test]
fn no_output_shows_a_secret_with_the_stock_engine() {
    // What a guest prints is nowhere to be seen with it.
    search("extism", &WAYS[..3]);
}

/// Plants and searches; `heard` are the ways that come to the log.
fn search(engine: &str, heard: &[&str]) {
    let secrets = secrets();
    let world = World::new("");
    let (env, variables) = plant(&world, &secrets);
    // A receiver that says back what it was told.
    let receiver = Receiver::new(&[(500, "not with planted00 and planted05")]);
    let (endpoint, spans) = collector();
    world.config(&config(engine, &env, &receiver, ""));
    let guest = fs::read(repository().join("tests/guests/telltale.wat")).unwrap();
    world.module("telltale", &wat::parse_bytes(&guest).unwrap());
    let mut command = world.command(&[]);
    command.env("CREDENTIALS_DIRECTORY", world.path("credentials"));
    command.env("REFLOWD_LOG", "trace,ureq=trace,extism=trace");
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    command.envs(variables);
    let daemon = world.start_as(command);
    for way in WAYS {
        daemon.send(&format!("{way}.in"), "1");
    }
    // Of four turns, two fail: an error, and an answer that is none. So does the request, which
    // is a span of its own.
    daemon.send("post.in", "1");
    assert!(receiver.next().0.starts_with("POST /planted00 "));
    daemon.until("all have said it", |daemon| {
        daemon.sum("reflowd_messages_completed_total") == 2.0
            && daemon.sum("reflowd_messages_dead_lettered_total") == 3.0
    });
    let spans: Vec<_> =
        (0..WAYS.len() + 2).map(|_| spans.recv_timeout(PATIENCE).unwrap().1.to_string()).collect();
    daemon.until("all is in the log", |d| {
        heard.iter().all(|way| {
            d.log_text().contains(&format!("\"actor\":\"{way}\",\"target\":\"guest\""))
                || d.log_text().contains(&format!("\"actor\":\"{way}\",\"error\""))
        })
    });
    let mut found = outputs(&daemon);
    // An edit that is refused is shown with its text.
    daemon.world.config(&config(engine, &env, &receiver, "[actors.more]\nmodule = \"nothing\"\n"));
    found.push(("refused".into(), daemon.reload().to_string()));
    found.extend(outputs(&daemon));
    found.push(("log".into(), daemon.log_text()));
    found.extend(files(&daemon.world.path("data")));
    found.push(("spans".into(), spans.join("\n")));

    let said = |way: &str, part: &str| {
        let text = found.iter().rev().find(|(name, _)| name == way).map(|(_, text)| text).unwrap();
        assert!(text.contains(part), "{way} does not say {part}: {text}");
    };
    // What is searched has the places where secrets would stand.
    said("log", r#"resolved_env\":{\"S0\":\"***\""#);
    said("dead show 1", "***");
    said("spans", "not with *** and ***");
    said("events", "nothing");
    let mut shown = Vec::new();
    for (name, text) in &found {
        for n in 0..secrets.len() {
            if text.contains(&format!("planted{n:02}")) {
                shown.push(format!("{n} in {name}"));
            }
        }
    }
    println!(
        "secrets planted {}, outputs searched {}, shown {}",
        secrets.len(),
        found.len(),
        shown.len()
    );
    assert!(shown.is_empty(), "{shown:?}\n{}", daemon.log_text());
}

#[test]
fn what_a_module_says_of_a_state_that_it_refuses_shows_no_secret() {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nautostart = false\n\
         [actors.a]\nmodule = \"a\"\nenv = { S = { file = \"token\" } }\n",
    );
    fs::write(world.path("config/token"), "planted-token").unwrap();
    world.module("a", &guest("relay"));
    let daemon = world.start();
    let set = daemon.world.run(&["state", "set", "a", "{\"k\":\"planted-token\"}"]);
    assert!(set.status.success(), "{set:?}");
    let text = fs::read_to_string(repository().join("tests/guests/telltale.wat")).unwrap();
    let says = "(call $error (call $block (i32.const 1000) (call $read))) (i32.const 1)";
    let text = text.replace("(export \"answer\")", "(export \"process\")");
    let end = text.rfind(')').unwrap();
    let migrates = format!("(func (export \"migrate_state\") (result i32) {says}))");
    daemon.world.module("a", &wat::parse_str(text[..end].to_owned() + &migrates).unwrap());
    let report = daemon.reload().to_string();
    assert!(report.contains("***") && !report.contains("planted"), "{report}");
    let seen = [daemon.get("/v1/events").body, daemon.log_text()].concat();
    assert!(seen.contains("***") && !seen.contains("planted"), "{seen}");
}
