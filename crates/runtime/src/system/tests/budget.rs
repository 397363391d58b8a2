use super::*;
use crate::SendError;

/// What the messages of these tests carry: more than a queue may take without telling.
const LARGE: usize = 20_000;

fn large() -> Message {
    string(&"x".repeat(LARGE))
}

/// A source of large messages that counts those that left it.
struct Pump {
    metadata: Metadata,
    left: watch::Sender<usize>,
}

impl Source for Pump {
    fn digest(&self) -> Digest {
        Digest::new([7; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            loop {
                out.emit(&"out".parse().unwrap(), large()).await;
                self.left.send_modify(|left| *left += 1);
            }
        })
    }
}

/// A rig whose actor `a` is paused and whose queues may hold some ten large messages.
async fn narrow() -> Rig {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.system.budget().set_limit(10 * LARGE as u64);
    rig
}

#[tokio::test(start_paused = true)]
async fn over_the_budget_senders_are_refused_until_there_is_room() {
    let mut rig = narrow().await;
    let to = "a.in".parse().unwrap();
    let mut sent = 0;
    let refused = loop {
        match rig.system.send(&to, large(), None) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    let SendError::OverBudget { used, limit, .. } = &refused else { panic!("{refused}") };
    assert!(used > limit, "{refused}");
    assert!((9..12).contains(&sent), "{sent}");
    // Whoever waits is let in as soon as the queues hold less.
    let system = rig.system.clone();
    let waiting = system.send_waiting(&to, string("late"), None);
    tokio::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    rig.actor("a").resume().await;
    soon(waiting).await.unwrap();
    assert_eq!(rig.seen(sent + 1).await.last().unwrap(), "late");
    assert_eq!(rig.system.budget().used(), 0);
    rig.send("a.in", "again");
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn over_the_budget_sources_wait_and_an_event_says_so() {
    let mut rig = narrow().await;
    rig.defs.push(wire("pump.out", "a.in"));
    let (left, mut count) = watch::channel(0);
    let source = Ready::Source(Arc::new(Pump { metadata: metadata(&[]), left }));
    let start = Start {
        name: "pump".parse().unwrap(),
        ready: source,
        settings: Settings::default(),
        state: None,
        was: None,
    };
    rig.apply(Change { start: vec![start], ..Change::default() }).await;
    rig.system.open();
    rig.state("pump", ActorState::Blocked).await;
    let before = *count.borrow();
    assert!((9..12).contains(&before), "{before}");
    rig.actor("a").resume().await;
    soon(count.wait_for(|left| *left > 2 * before)).await.unwrap();
    let names: Vec<_> =
        rig.system.events().since(0).0.into_iter().map(|event| event.kind).collect();
    assert!(names.iter().any(|kind| matches!(kind, EventKind::OverBudget { .. })));
    assert!(names.iter().any(|kind| matches!(kind, EventKind::WithinBudget { .. })));
    rig.system.close().await;
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_on_wires_counts_too() {
    let mut rig = Rig::new().await;
    rig.start("b", marker(2, ""), small(1), &["sink"]).await;
    let many = fake(1, |_| {
        let outputs = (0..8).map(|_| ("out".parse().unwrap(), large())).collect();
        Ok(Effects { outputs, state: None })
    });
    rig.start("a", many, Settings::default(), &["b"]).await;
    rig.actor("b").pause().await;
    rig.state("b", ActorState::Paused).await;
    rig.send("a.in", "go");
    rig.state("a", ActorState::Blocked).await;
    assert!(rig.system.budget().used() > 8 * LARGE as u64);
    rig.actor("b").resume().await;
    rig.seen(8).await;
    rig.quiet().await;
    assert_eq!(rig.system.budget().used(), 0);
}
