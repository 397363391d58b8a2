//! The README's steps, as a new user takes them.

use crate::rig::{World, repository};

/// The repository's sample, copied into a folder of its own.
pub(crate) fn sample() -> World {
    let config = std::fs::read_to_string(repository().join("config/reflowd.toml")).unwrap();
    let world = World::new(&config);
    std::fs::create_dir(world.path("config/sample")).unwrap();
    std::fs::create_dir(world.path("modules/versions")).unwrap();
    for file in [
        "config/sample/earthquakes.jsonl",
        "modules/magnitude-filter.wasm",
        "modules/region-count.wasm",
        "modules/versions/magnitude-filter-2.0.0.wasm",
    ] {
        std::fs::copy(repository().join(file), world.path(file)).unwrap();
    }
    world
}

fn magnitude(line: &str) -> f64 {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["mag"].as_f64().unwrap_or_else(|| panic!("no magnitude in {line}"))
}

#[test]
fn the_readme_leads_to_results_and_both_edits_take_effect() {
    let mut daemon = sample().start();
    // Results come at once, and only strong earthquakes pass.
    for _ in 0..5 {
        let line = daemon.line().unwrap();
        assert!(magnitude(&line) >= 4.5, "{line}");
        assert!(!line.contains("class"), "{line}");
    }

    // Edit the threshold, and weaker ones pass while the counts go on.
    let path = daemon.world.path("config/reflowd.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("min_magnitude = 4.5", "min_magnitude = 2.5")).unwrap();
    daemon.wait_event("swapped", "filter");
    while magnitude(&daemon.line().unwrap()) >= 4.5 {}

    // Copy another version of the filter over the running one.
    let from = daemon.world.path("modules/versions/magnitude-filter-2.0.0.wasm");
    std::fs::copy(from, daemon.world.path("modules/magnitude-filter.wasm")).unwrap();
    while !daemon.line().unwrap().contains("class") {}
    assert_eq!(daemon.actor("filter")["version"], "2.0.0");
    assert_eq!(daemon.actor("filter")["generation"], 3);

    // The state of the counting actor has outlived all of it.
    let total = daemon.line().unwrap();
    let total: serde_json::Value = serde_json::from_str(&total).unwrap();
    assert!(total["total"].as_u64().unwrap() > 5, "{total}");

    daemon.signal("-TERM");
    let (status, last, world) = daemon.ended();
    assert!(status.success(), "{last}");
    let file = std::fs::read_to_string(world.path("data/strong.jsonl")).unwrap();
    assert!(file.lines().count() > 5);
    assert!(file.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}
