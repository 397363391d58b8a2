//! Changes side by side, and turns that are in their way.

use tokio_util::task::TaskTracker;

use super::*;

/// Moves on by that much of the paused clock.
async fn after(millis: u64) {
    time::sleep(Duration::from_millis(millis)).await;
}

/// A program whose turns do not end before the gate opens.
fn slow(digest: u8) -> (Fake, watch::Sender<bool>) {
    let (open, gate) = watch::channel(false);
    (Fake { gate: Some(gate), ..marker(digest, "") }, open)
}

/// A rig with `slow`, which is in a turn, and `quick` beside it.
async fn beside_a_slow_one(settings: Settings) -> (Rig, watch::Sender<bool>) {
    let mut rig = Rig::new().await;
    let (program, open) = slow(1);
    rig.start("slow", program, settings, &["sink"]).await;
    rig.start("quick", marker(2, "-old"), Settings::default(), &["sink"]).await;
    rig.send("slow.in", "held");
    while !rig.actor("slow").mailbox().is_in_hand() {
        tokio::task::yield_now().await;
    }
    (rig, open)
}

async fn swapping(actors: &[(&str, Fake)]) -> Change {
    let mut swap = Vec::new();
    for (name, program) in actors {
        let program = Fake { act: Arc::clone(&program.act), ..marker(program.digest, "") };
        swap.push((name.parse().unwrap(), Rig::ready(program).await));
    }
    Change { swap, ..Change::default() }
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_for_the_turns_of_others() {
    let (mut rig, open) = beside_a_slow_one(Settings::default()).await;
    let (system, change) = (rig.system.clone(), swapping(&[("slow", marker(3, ""))]).await);
    let waits = TaskTracker::new().spawn(async move { system.apply(change).await });
    after(10).await;
    let begun = Instant::now();
    rig.swap("quick", marker(4, "-new")).await;
    rig.send("quick.in", "1");
    assert_eq!(rig.seen(1).await, ["1-new"]);
    assert_eq!(begun.elapsed(), Duration::ZERO, "the paused clock has not moved on");
    assert!(!waits.is_finished());
    open.send_replace(true);
    soon(waits).await.unwrap();
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_quick_goes_on_while_a_slow_turn_of_its_group_is_waited_for() {
    let (mut rig, open) = beside_a_slow_one(Settings::default()).await;
    let change = swapping(&[("slow", marker(3, "")), ("quick", marker(4, "-new"))]).await;
    let (system, (say, mut said)) = (rig.system.clone(), watch::channel(Vec::new()));
    let waits = TaskTracker::new().spawn(async move {
        let mut waits_for = |actors: &[ActorName]| _ = say.send_replace(actors.to_vec());
        let halted = system.halt_for(&change, &mut waits_for).await;
        system.apply(change).await;
        system.go_on(halted).await;
    });
    let slow_only = |actors: &Vec<ActorName>| actors.iter().eq([&"slow".parse().unwrap()]);
    soon(said.wait_for(slow_only)).await.unwrap();
    for n in 1..=3_usize {
        let sent = Instant::now();
        rig.send("quick.in", "x");
        assert_eq!(rig.seen(n).await[n - 1], "x-old");
        assert_eq!(sent.elapsed(), Duration::ZERO, "it was not halted");
        after(2_000).await;
    }
    open.send_replace(true);
    soon(waits).await.unwrap();
    rig.send("quick.in", "y");
    assert_eq!(rig.seen(5).await[3..], ["held", "y-new"]);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_not_complete_is_let_go_and_tried_again() {
    // Two that are slow, whose turns end a second and a half apart.
    let (mut rig, open) = beside_a_slow_one(Settings::default()).await;
    let (program, later) = slow(5);
    rig.start("later", program, Settings::default(), &["sink"]).await;
    rig.send("later.in", "late");
    while !rig.actor("later").mailbox().is_in_hand() {
        tokio::task::yield_now().await;
    }
    let change = swapping(&[("slow", marker(3, "-new")), ("later", marker(4, "-new"))]).await;
    let system = rig.system.clone();
    let waits = TaskTracker::new().spawn(async move {
        let halted = system.halt_for(&change, &mut |_| {}).await;
        system.apply(change).await;
        system.go_on(halted).await;
    });
    after(100).await;
    open.send_replace(true);
    after(500).await;
    // It is halted after its turn, for the other's turn to end.
    rig.send("slow.in", "next");
    after(400).await;
    assert_eq!(rig.seen(1).await, ["held"]);
    after(600).await;
    assert_eq!(rig.seen(2).await[1], "next", "it has gone on, and is what it was");
    later.send_replace(true);
    soon(waits).await.unwrap();
    rig.send("slow.in", "last");
    assert_eq!(rig.seen(4).await[3], "last-new");
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_third_of_the_time_out_those_that_are_halted_stay_so() {
    let timeout = Duration::from_secs(30);
    let (mut rig, open) = beside_a_slow_one(Settings { timeout, ..Settings::default() }).await;
    let change = swapping(&[("slow", marker(3, "")), ("quick", marker(4, "-new"))]).await;
    let (program, later) = slow(5);
    rig.start("later", program, Settings { timeout, ..Settings::default() }, &["sink"]).await;
    rig.send("later.in", "late");
    while !rig.actor("later").mailbox().is_in_hand() {
        tokio::task::yield_now().await;
    }
    let more = swapping(&[("later", marker(6, ""))]).await;
    let change = Change { swap: change.swap.into_iter().chain(more.swap).collect(), ..change };
    let system = rig.system.clone();
    let waits = TaskTracker::new().spawn(async move {
        let halted = system.halt_for(&change, &mut |_| {}).await;
        system.apply(change).await;
        system.go_on(halted).await;
    });
    after(10_500).await;
    open.send_replace(true);
    after(100).await;
    rig.send("slow.in", "next");
    after(5_000).await;
    assert_eq!(rig.seen(1).await, ["held"], "it waits for the other");
    later.send_replace(true);
    soon(waits).await.unwrap();
    assert_eq!(rig.seen(3).await.len(), 3);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_takes_longer_than_its_time_while_somebody_waits_is_cut_short() {
    // Such a turn does not count the time for which it waits for a core.
    let timeout = Duration::from_secs(2);
    let mut rig = Rig::new().await;
    let acts = fake(1, |context| Ok(out(&text(&context.payload[0].1))));
    let endless = Fake { patient: true, gate: Some(watch::channel(false).1), ..acts };
    rig.start("slow", endless, Settings { timeout, ..Settings::default() }, &["sink"]).await;
    rig.send("slow.in", "1");
    rig.send("slow.in", "2");
    after(60_000).await;
    assert!(rig.actor("slow").mailbox().is_in_hand(), "nobody has waited for it");
    let begun = Instant::now();
    let change = swapping(&[("slow", marker(3, "-new"))]).await;
    let halted = soon(rig.system.halt_for(&change, &mut |_| {})).await;
    rig.system.apply(change).await;
    rig.system.go_on(halted).await;
    assert_eq!(begun.elapsed(), timeout);
    assert_eq!(rig.seen(2).await, ["1-new", "2-new"]);
    rig.quiet().await;
    let meters = rig.actor("slow");
    assert_eq!((meters.meters().failures(), meters.meters().turns_ok.get()), (0, 2));
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_leaves_nobody_halted() {
    let (mut rig, open) = beside_a_slow_one(Settings::default()).await;
    let change = swapping(&[("slow", marker(3, "")), ("quick", marker(4, ""))]).await;
    let system = rig.system.clone();
    let waits =
        TaskTracker::new().spawn(async move { drop(system.halt_for(&change, &mut |_| {}).await) });
    after(100).await;
    waits.abort();
    open.send_replace(true);
    rig.send("slow.in", "1");
    rig.send("quick.in", "2");
    rig.seen(3).await;
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn differences_of_wires_that_meet_leave_each_other_alone() {
    let mut rig = Rig::new().await;
    for name in ["a", "b", "c", "d"] {
        rig.start(name, marker(1, name), Settings::default(), &[]).await;
    }
    let system = &rig.system;
    let connect = |from: &str, to: &str| {
        let change = Change { connect: vec![wire(from, to)], ..Change::default() };
        async move { system.apply(change).await }
    };
    let ends =
        |from: &str, to: &str| WireEnds { from: from.parse().unwrap(), to: to.parse().unwrap() };
    tokio::join!(
        connect("a.out", "sink.in"),
        connect("a.out", "b.in"),
        connect("b.out", "c.in"),
        connect("c.out", "sink.in"),
    );
    let cut = Change { cut: vec![ends("b.out", "c.in")], ..Change::default() };
    tokio::join!(system.apply(cut), connect("b.out", "d.in"), connect("d.out", "sink.in"));
    let wires = rig.system.wires();
    let wires: Vec<_> = wires.iter().map(|w| format!("{} {}", w.from(), w.to())).collect();
    let expected = ["a.out b.in", "a.out sink.in", "b.out d.in", "c.out sink.in", "d.out sink.in"];
    assert_eq!(wires, expected);
    rig.send("a.in", "");
    let mut seen = rig.seen(2).await;
    seen.sort();
    assert_eq!(seen, ["a", "abd"]);
    rig.quiet().await;
}
