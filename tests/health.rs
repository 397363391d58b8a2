//! What probes are told.

use crate::rig::{World, guest, repository};

#[test]
fn a_probe_that_asks_for_more_is_told_of_each_part() {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\n\
         [actors.relay]\nmodule = \"relay\"\n[actors.step]\nmodule = \"telltale\"\nentry_point = \"answer\"\n",
    );
    world.module("relay", &guest("relay"));
    let telltale = std::fs::read(repository().join("tests/guests/telltale.wat")).unwrap();
    world.module("telltale", &wat::parse_bytes(&telltale).unwrap());
    let daemon = world.start();
    assert_eq!(daemon.get("/livez").body, "alive\n");
    assert_eq!(daemon.get("/readyz").body, "ready\n");
    let good = daemon.get("/readyz?verbose");
    assert_eq!(good.status, 200);
    for line in ["[+] actors: 2 run", "[+] config: ", "[+] queues: 0 of ", "[+] books: "] {
        assert!(good.body.contains(line), "{line}: {}", good.body);
    }
    // What it answers is never a result.
    (0..10).for_each(|_| daemon.send("step.in", "1"));
    daemon.until("it has failed", |d| d.actor("step")["state"] == "failed");
    daemon.world.module("relay", b"not a module");
    daemon.reload();
    // It serves all the same, and says what somebody may want to look at.
    let worse = daemon.get("/readyz?verbose");
    assert_eq!(worse.status, 200);
    for line in ["[-] actors: of 2, step is failed", "[-] config: 1 actors are not"] {
        assert!(worse.body.contains(line), "{line}: {}", worse.body);
    }
}
