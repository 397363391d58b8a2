//! What scrapers are given.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::rig::{PATIENCE, World, guest, repository, shaky};

#[test]
fn all_actors_that_are_gone_are_one_series() {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\n\
         [defaults]\nretries = 0\n",
    );
    for name in ["one", "two", "three"] {
        world.module(name, &shaky("v1", "third"));
    }
    let daemon = world.start();
    for name in ["one", "two"] {
        // The first succeeds and the second traps.
        for seq in [0, 2] {
            daemon.send(&format!("{name}.in"), &format!("{{\"sender\":0,\"seq\":{seq}}}"));
        }
    }
    let of =
        |actor: &str| format!("reflowd_dead_letters_total{{actor=\"{actor}\",reason=\"trap\"}}");
    daemon.until("both have failed once", |d| d.sum("reflowd_dead_letters_total") == 2.0);
    assert_eq!(daemon.metrics().get(&of("one")), Some(&1.0));
    for name in ["one", "two"] {
        fs::remove_file(daemon.world.path(&format!("modules/{name}.wasm"))).unwrap();
    }
    daemon.until("they are gone", |d| {
        daemon.post("/v1/reload?allow_removal", "");
        d.get("/v1/actors").json().as_array().is_none_or(|all| all.len() == 1)
    });
    let body = daemon.get("/metrics").body;
    assert!(!body.contains("actor=\"one\"") && !body.contains("actor=\"two\""), "{body}");
    assert_eq!(daemon.metrics().get(&of("(gone)")), Some(&2.0));
    assert_eq!(daemon.sum("reflowd_messages_completed_total"), 2.0);
}

#[test]
fn the_process_is_told_of_under_the_names_that_all_scrapers_know() {
    let daemon = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n").start();
    let figure = |name: &str| {
        let metrics = daemon.metrics();
        *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:?}"))
    };
    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", daemon.pid())).unwrap();
    let status = |name: &str| {
        let status = proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    // What is counted goes on meanwhile, and so is only near.
    let resident = figure("process_resident_memory_bytes") / 1024.0;
    assert!((resident / status("VmRSS:") - 1.0).abs() < 0.5, "{resident}");
    assert!(figure("process_virtual_memory_bytes") > resident * 1024.0);
    assert!(figure("process_threads") >= 5.0, "two of control, two of turns, one of the log");
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    assert!((figure("process_open_fds") - open as f64).abs() < 10.0);
    let limits = proc("limits");
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let soft = limit.split_whitespace().next().unwrap().parse::<f64>().unwrap();
    assert_eq!(figure("process_max_fds"), soft);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let started = figure("process_start_time_seconds");
    assert!(started <= now && now - started < PATIENCE.as_secs_f64(), "{started} {now}");
    assert!((started + figure("reflowd_uptime_seconds") - now).abs() < PATIENCE.as_secs_f64());
    daemon.until("it has used time", |_| figure("process_cpu_seconds_total") > 0.0);
    assert_eq!(figure("process_start_time_seconds"), started, "it does not move");
}

#[test]
fn the_last_look_at_disk_is_told_of_and_whether_it_was_a_success() {
    let config =
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nrescan = \"1h\"\nwatch = false\n";
    let daemon = World::new(config).start();
    // Whether the last look was a success, when it was, and when the last success was.
    let figures = || {
        let metrics = daemon.metrics();
        ["successful", "timestamp_seconds", "success_timestamp_seconds"]
            .map(|what| metrics[&format!("reflowd_config_last_reload_{what}")])
    };
    let [successful, began, success] = figures();
    assert_eq!((successful, success), (1.0, began), "the start was one");
    daemon.world.config(&format!("{config}[actors.a]\nmodul = \"std:stdout\"\n"));
    daemon.reload();
    let [successful, failed, success] = figures();
    assert_eq!(successful, 0.0);
    assert!(began <= success && success < failed, "{began} {success} {failed}");
    daemon.world.config(&format!("{config}[actors.a]\nmodule = \"std:stdout\"\n"));
    daemon.reload();
    let [successful, last, success] = figures();
    assert_eq!((successful, success), (1.0, last));
    assert!(last > failed);
}

#[test]
fn what_an_actor_needs_of_its_host_memory_is_told_and_what_it_is_refused() {
    let config = "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nautostart = false\n\
                  [actors.relay]\nmodule = \"relay\"\nhost_memory = \"1 MiB\"\n";
    let world = World::new(config);
    world.module("relay", &guest("relay"));
    let daemon = world.start();
    let figures = || {
        let metrics = daemon.metrics();
        ["bytes", "refused_total"]
            .map(|what| metrics[&format!("reflowd_host_memory_{what}{{actor=\"relay\"}}")])
    };
    assert_eq!(figures(), [0.0, 0.0]);
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    daemon.send("relay.in", &text(300_000));
    daemon.until("it is through", |d| d.sum("reflowd_messages_completed_total") == 1.0);
    let [most, refused] = figures();
    assert!((300_000.0..=f64::from(1 << 20)).contains(&most) && refused == 0.0, "{most}");
    daemon.send("relay.in", &text(2 << 20));
    daemon.until("it is a dead letter", |d| d.sum("reflowd_dead_letters_total") == 1.0);
    assert_eq!(figures(), [most, 1.0], "what was not held is no figure");
    let letters = daemon.get("/v1/dead-letters").body;
    assert!(letters.contains("`host_memory` allows 1048576"), "{letters}");
    daemon.check_books();
}

#[test]
fn the_reference_has_every_metric_as_scrapers_are_told_of_it() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    // Some are there only with a collector for traces.
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let page = world.start_as(command).get("/metrics").body;
    let said = |word: &str| -> BTreeMap<String, String> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(&format!("# {word} ")));
        lines.filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.into(), b.into())).collect()
    };
    let (types, help) = (said("TYPE"), said("HELP"));
    let rows: BTreeSet<String> = types
        .iter()
        .map(|(name, of)| format!("| `{name}` | {of} | {} |", help[name].trim_end_matches('.')))
        .collect();
    let reference = fs::read_to_string(repository().join("config/REFERENCE.md")).unwrap();
    let (_, section) = reference.split_once("\n## Metrics\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let written: BTreeSet<String> =
        section.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
    let missing: Vec<_> = rows.difference(&written).collect();
    let untrue: Vec<_> = written.difference(&rows).collect();
    assert!(
        missing.is_empty() && untrue.is_empty(),
        "in \"Metrics\" of config/REFERENCE.md, write {missing:#?} and strike {untrue:#?}"
    );
}
