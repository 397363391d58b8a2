//! What scrapers are given.

use std::fs;

use crate::rig::{World, shaky};

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
