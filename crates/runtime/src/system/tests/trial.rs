use super::*;
use crate::{Fall, GuestErrors, Precondition, TrialOutcome, TrialRules, TrialView, Trialing};

/// Three failures are too many, five successes enough.
const RULES: TrialRules = TrialRules {
    turns: 5,
    time: Duration::from_secs(60),
    max_failures: 3,
    guest_errors: GuestErrors::Count,
};

fn settings() -> Settings {
    Settings { retries: 0, trial: Some(RULES), ..Settings::default() }
}

/// Puts out what comes in with a mark, and fails on what `fails` says.
fn picky(digest: u8, mark: &'static str, fails: fn(&str) -> bool) -> Fake {
    fake(digest, move |context| {
        let text = text(&context.payload[0].1);
        if fails(&text) {
            return Err(FailureKind::Trap("unreachable".into()));
        }
        Ok(out(&format!("{text}{mark}")))
    })
}

/// Adds a letter to the state in each turn, and puts the state out. The letter `x` in
/// the state is more than `fails` can bear.
fn letters(digest: u8, letter: &'static str, bears_x: bool) -> Fake {
    fake(digest, move |context| {
        let state = std::str::from_utf8(context.state.text()).unwrap();
        let input = text(&context.payload[0].1);
        if (state.contains('x') && !bears_x) || input == "poison" {
            return Err(FailureKind::Trap("a state like that".into()));
        }
        let known = state.trim_matches(['{', '}']).trim_start_matches("\"s\":").trim_matches('"');
        let known = format!("{known}{letter}");
        let state = State::new(format!("{{\"s\":\"{known}\"}}")).unwrap();
        Ok(Effects { state: Some(state), ..out(&known) })
    })
}

impl Rig {
    async fn exchange(&self, swaps: Vec<(&str, Fake)>, trialing: Trialing) {
        let mut swap = Vec::new();
        for (name, program) in swaps {
            swap.push((name.parse().unwrap(), Self::ready(program).await));
        }
        soon(self.system.apply(Change { swap, trialing, ..Change::default() })).await;
    }

    /// Puts a former generation back, with the state that the trial has put aside for it.
    async fn go_back(&self, name: &str, program: Fake) -> Changed {
        let states = self.actor(name).fallback().map(|state| (name.parse().unwrap(), state));
        let swap = vec![(name.parse().unwrap(), Self::ready(program).await)];
        let trialing = Trialing::GoingBack;
        let states = states.into_iter().collect();
        soon(self.system.apply(Change { swap, trialing, states, ..Change::default() })).await
    }

    /// Swaps in a generation that makes `state` of the present one.
    async fn migrate(&self, name: &str, program: Fake, state: &'static str) {
        let halted = self.system.halt([&name.parse().unwrap()].into_iter()).await;
        let before = self.actor(name).epoch_state();
        let after = before.followed_by(State::new(state).unwrap(), before.turns);
        let swap = vec![(name.parse().unwrap(), Self::ready(program).await)];
        let states = [(name.parse().unwrap(), after)].into();
        let trialing = Trialing::OnTrial;
        soon(self.system.apply(Change { swap, trialing, states, ..Change::default() })).await;
        self.system.go_on(halted).await;
    }

    async fn try_out(&self, name: &str, program: Fake) {
        self.exchange(vec![(name, program)], Trialing::OnTrial).await;
    }

    /// Waits until the trial of an actor has an outcome.
    async fn verdict(&self, name: &str) -> TrialView {
        loop {
            match self.actor(name).trial() {
                Some(view) if view.outcome != TrialOutcome::Running => return view,
                _ => soon(self.system.trial_ended()).await,
            }
        }
    }

    fn trial(&self, name: &str) -> TrialView {
        self.actor(name).trial().unwrap()
    }

    fn opinions(&self) -> Vec<(bool, &'static str, u32)> {
        let events = self.system.events().since(0).0.into_iter();
        events
            .filter_map(|event| match event.kind {
                EventKind::Opinion { stands, state, failures, .. } => {
                    let states = ["present", "before-migration", "at-swap"];
                    let known = states.into_iter().find(|known| *known == state);
                    Some((stands, known.unwrap(), failures))
                }
                _ => None,
            })
            .collect()
    }
}

fn fell(why: &str) -> TrialOutcome {
    TrialOutcome::Fell(Fall { why: why.into(), restore_state: false, lost_turns: 0 })
}

#[tokio::test(start_paused = true)]
async fn the_judge_takes_over_what_a_new_generation_fails_on_in_its_place() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, "-old"), settings(), &["sink"]).await;
    rig.try_out("a", picky(2, "-new", |text| text.starts_with("bad"))).await;
    for message in ["1", "bad2", "3", "bad4", "5"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(5).await, ["1-new", "bad2-old", "3-new", "bad4-old", "5-new"]);
    rig.quiet().await;
    assert_eq!(rig.opinions(), [(true, "present", 1), (true, "present", 2)]);
    let counts = rig.actor("a").mailbox().counts();
    assert_eq!((counts.completed, counts.dead_lettered), (5, 0));
    let meters = rig.actor("a");
    let meters = meters.meters();
    assert_eq!((meters.turns_ok.get(), meters.opinions.get()), (3, 2));
    assert_eq!(rig.trial("a").outcome, TrialOutcome::Running);
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_fails_too_often_takes_no_further_turn_until_another_takes_its_place() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, "-old"), settings(), &["sink"]).await;
    rig.try_out("a", picky(2, "-new", |_| true)).await;
    for message in ["1", "2", "3", "4", "5"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.verdict("a").await.outcome, fell("trapped: unreachable"));
    assert_eq!(rig.seen(3).await, ["1-old", "2-old", "3-old"]);
    let status = rig.state("a", ActorState::Resting).await;
    assert_eq!(status.why.unwrap(), "is being rolled back: trapped: unreachable");
    rig.actor("a").retry().await;
    assert_eq!(rig.actor("a").mailbox().len(), 2);
    rig.exchange(vec![("a", marker(1, "-back"))], Trialing::GoingBack).await;
    assert_eq!(rig.seen(5).await[3..], ["4-back", "5-back"]);
    rig.quiet().await;
    assert_eq!(rig.actor("a").meters().rollbacks.get(), 1);
    assert_eq!(rig.actor("a").trial(), None);
}

#[tokio::test(start_paused = true)]
async fn one_time_out_is_enough() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, "-old"), settings(), &["sink"]).await;
    let (_open, gate) = watch::channel(false);
    rig.try_out("a", Fake { gate: Some(gate), ..marker(2, "-new") }).await;
    rig.send("a.in", "1");
    assert_eq!(rig.verdict("a").await.outcome, fell("timed out after 30s"));
    assert_eq!(rig.seen(1).await, ["1-old"]);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_a_new_generation_has_broken_is_restored_and_its_turns_are_lost() {
    let mut rig = Rig::new().await;
    rig.start("a", letters(1, "a", false), settings(), &["sink"]).await;
    rig.send("a.in", "1");
    rig.seen(1).await;
    // It breaks the state, and cannot bear that itself.
    let bad = fake(2, |context| {
        let state = std::str::from_utf8(context.state.text()).unwrap();
        if state.contains("xx") {
            return Err(FailureKind::Trap("no such state".into()));
        }
        let state = State::new(state.replace("\"}", "x\"}")).unwrap();
        Ok(Effects { state: Some(state), ..out("new") })
    });
    rig.try_out("a", bad).await;
    for message in ["2", "3", "4", "5"] {
        rig.send("a.in", message);
    }
    let fall = Fall { why: "trapped: no such state".into(), restore_state: true, lost_turns: 2 };
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Fell(fall));
    assert_eq!(rig.opinions(), [(false, "present", 0), (true, "at-swap", 1)]);
    // Nothing of the second opinion has happened, and the message is still there.
    assert_eq!(rig.seen(3).await, ["a", "new", "new"]);
    assert_eq!(rig.actor("a").mailbox().counts().in_flight, 1);
    let changed = rig.go_back("a", letters(1, "a", false)).await;
    assert_eq!(changed.lost_turns["a"], 2);
    assert_eq!(rig.seen(5).await[3..], ["aa", "aaa"]);
    rig.quiet().await;
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_poison_message_is_a_dead_letter_and_sends_nobody_back() {
    let mut rig = Rig::new().await;
    rig.start("a", letters(1, "a", true), settings(), &["sink"]).await;
    rig.try_out("a", letters(2, "b", true)).await;
    for message in ["poison", "1", "poison", "2", "poison", "3", "poison", "4", "5"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(5).await, ["b", "bb", "bbb", "bbbb", "bbbbb"]);
    rig.quiet().await;
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Passed);
    assert_eq!(rig.reasons(), ["trap"; 4]);
    // With the state of the swap there is one thing to ask, with another there are two.
    let asked: Vec<_> = rig.opinions().into_iter().map(|(_, state, _)| state).collect();
    let two = ["present", "at-swap"];
    assert_eq!(asked, [&["present"][..], &two, &two, &two].concat());
}

#[tokio::test(start_paused = true)]
async fn after_its_trial_a_generation_is_on_its_own() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, "-old"), settings(), &["sink"]).await;
    rig.try_out("a", picky(2, "-new", |text| text == "bad")).await;
    for message in ["1", "2", "3", "4", "5", "bad"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Passed);
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["trap"]);
    assert_eq!(rig.actor("a").meters().trials_passed.get(), 1);
    assert!(rig.opinions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_trial_is_passed_in_time_though_nothing_comes_in() {
    let mut rig = Rig::new().await;
    let rules = TrialRules { turns: 1_000, ..RULES };
    let settings = Settings { trial: Some(rules), ..settings() };
    rig.start("a", marker(1, ""), settings, &["sink"]).await;
    rig.try_out("a", marker(2, "")).await;
    let swapped = Instant::now();
    for n in 0..20 {
        rig.send("a.in", &n.to_string());
    }
    rig.quiet().await;
    assert_eq!(rig.trial("a").outcome, TrialOutcome::Running);
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Passed);
    assert_eq!(swapped.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_swap_during_a_trial_keeps_the_judge_and_the_state_before_both() {
    let mut rig = Rig::new().await;
    rig.start("a", letters(1, "a", false), settings(), &["sink"]).await;
    rig.try_out("a", letters(2, "x", true)).await;
    rig.send("a.in", "1");
    rig.seen(1).await;
    // Nobody but the one in the middle can live with the state that it has left.
    rig.try_out("a", letters(3, "c", false)).await;
    assert_eq!(rig.trial("a").judge.number(), 1);
    assert_eq!((rig.trial("a").generation.number(), rig.trial("a").turns), (3, 0));
    rig.send("a.in", "2");
    let TrialOutcome::Fell(fall) = rig.verdict("a").await.outcome else { panic!("no fall") };
    assert_eq!((fall.restore_state, fall.lost_turns), (true, 1));
    rig.go_back("a", letters(1, "a", false)).await;
    assert_eq!(rig.seen(2).await, ["x", "a"]);
}

#[tokio::test(start_paused = true)]
async fn failing_on_what_a_judge_put_out_counts_against_nobody() {
    let mut rig = Rig::new().await;
    rig.start("b", marker(1, ""), settings(), &["sink"]).await;
    rig.start("a", marker(2, ""), settings(), &["b"]).await;
    let swaps = vec![("a", picky(3, "", |_| true)), ("b", picky(4, "", |_| true))];
    rig.exchange(swaps, Trialing::OnTrial).await;
    rig.send("a.in", "1");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["trap"]);
    assert_eq!((rig.trial("a").failures, rig.trial("b").failures), (1, 0));
    assert_eq!(rig.opinions().len(), 1);
    // The mark is on the message, not on what comes of it.
    rig.send("b.in", "2");
    rig.seen(1).await;
    assert_eq!(rig.trial("b").failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_judge_without_an_engine_counts_against_nobody() {
    let mut rig = Rig::new().await;
    let old = marker(1, "-old");
    let broken = Arc::clone(&old.broken);
    rig.start("a", old, settings(), &["sink"]).await;
    broken.store(true, Ordering::Relaxed);
    rig.try_out("a", picky(2, "", |_| true)).await;
    rig.send("a.in", "1");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["trap"]);
    assert_eq!(rig.trial("a").failures, 0);
    assert_eq!(rig.opinions(), [(false, "present", 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_judge_is_asked_after_the_retries_and_has_an_engine_only_for_its_opinion() {
    let mut rig = Rig::new().await;
    let old = marker(1, "-old");
    let made = Arc::clone(&old.made);
    let settings = Settings { retries: 2, ..settings() };
    rig.start("a", old, settings, &["sink"]).await;
    rig.try_out("a", picky(2, "", |_| true)).await;
    assert_eq!(made.load(Ordering::Relaxed), 1);
    rig.send("a.in", "1");
    assert_eq!(rig.seen(1).await, ["1-old"]);
    assert_eq!(rig.actor("a").meters().turns_trap.get(), 3);
    assert_eq!(made.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_guest_error_that_nobody_hears_counts_unless_it_is_to_be_ignored() {
    for (guest_errors, failures, reasons) in
        [(GuestErrors::Count, 1, &[][..]), (GuestErrors::Ignore, 0, &["guest-error"][..])]
    {
        let mut rig = Rig::new().await;
        let settings = Settings { trial: Some(TrialRules { guest_errors, ..RULES }), ..settings() };
        rig.start("a", marker(1, ""), settings, &["sink"]).await;
        rig.try_out("a", fake(2, |_| Err(FailureKind::Guest("no".into())))).await;
        rig.send("a.in", "1");
        rig.quiet().await;
        assert_eq!(rig.trial("a").failures, failures);
        assert_eq!(rig.reasons(), reasons);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_to_be_tried_is_not_tried() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings { trial: None, ..settings() }, &["sink"]).await;
    rig.try_out("a", picky(2, "", |_| true)).await;
    assert_eq!(rig.actor("a").trial(), None);
    rig.send("a.in", "1");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["trap"]);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_is_ended_lets_the_generation_go_on_by_itself() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), settings(), &["sink"]).await;
    rig.try_out("a", picky(2, "-new", |text| text.starts_with("bad"))).await;
    for message in ["bad1", "bad2", "bad3", "bad4", "5"] {
        rig.send("a.in", message);
    }
    rig.verdict("a").await;
    rig.actor("a").end_trial().await;
    assert_eq!(rig.seen(4).await[3], "5-new");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["trap"]);
}

#[tokio::test(start_paused = true)]
async fn a_removed_actor_works_off_its_mailbox_though_it_was_to_go_back() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), settings(), &["sink"]).await;
    rig.try_out("a", picky(2, "-new", |text| text.starts_with("bad"))).await;
    for message in ["bad1", "bad2", "bad3", "4"] {
        rig.send("a.in", message);
    }
    rig.verdict("a").await;
    let actor = rig.actor("a");
    rig.stop("a", HOUR).await;
    soon(actor.stopped()).await;
    assert_eq!(rig.seen(4).await[3], "4-new");
}

#[tokio::test(start_paused = true)]
async fn a_judge_stays_until_all_that_changed_with_its_actor_has_passed() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), settings(), &["sink"]).await;
    rig.try_out("a", marker(2, "")).await;
    (0..5).for_each(|n| rig.send("a.in", &n.to_string()));
    rig.seen(5).await;
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Passed);
    rig.try_out("a", marker(3, "")).await;
    assert_eq!(rig.actor("a").trial().unwrap().judge, Generation::FIRST);
    // Its trial is over for good when it is said to be.
    (5..10).for_each(|n| rig.send("a.in", &n.to_string()));
    rig.seen(10).await;
    rig.actor("a").end_trial().await;
    rig.try_out("a", marker(4, "")).await;
    assert_eq!(rig.actor("a").trial().unwrap().judge.number(), 3);
}

/// Adds a letter to a state of another form, and bears no other.
fn words(digest: u8, bears: fn(&str) -> bool) -> Fake {
    fake(digest, move |context| {
        let state = std::str::from_utf8(context.state.text()).unwrap();
        if !state.contains("words") || !bears(&text(&context.payload[0].1)) {
            return Err(FailureKind::Trap("no words".into()));
        }
        let state = State::new(state.replace("\"}", "w\"}")).unwrap();
        let shown = std::str::from_utf8(state.text()).unwrap().to_owned();
        Ok(Effects { state: Some(state), ..out(&shown) })
    })
}

/// Bears no state but one of letters.
fn only_letters(digest: u8) -> Fake {
    fake(digest, |context| {
        let state = std::str::from_utf8(context.state.text()).unwrap();
        if state.contains("words") || text(&context.payload[0].1) == "poison" {
            return Err(FailureKind::Trap("no letters".into()));
        }
        let letters = state.trim_start_matches("{\"s\":\"").trim_end_matches(['{', '}', '"']);
        let state = State::new(format!("{{\"s\":\"{letters}a\"}}")).unwrap();
        Ok(Effects { state: Some(state), ..out(&format!("{letters}a")) })
    })
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_migrated_the_state_is_judged_with_the_one_from_before() {
    let mut rig = Rig::new().await;
    rig.start("a", only_letters(1), settings(), &["sink"]).await;
    rig.send("a.in", "1");
    assert_eq!(rig.seen(1).await, ["a"]);
    rig.migrate("a", words(2, |text| text != "bad"), r#"{"words":""}"#).await;
    for message in ["2", "3", "poison", "bad", "4"] {
        rig.send("a.in", message);
    }
    let fall = Fall { why: "trapped: no words".into(), restore_state: true, lost_turns: 3 };
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Fell(fall));
    let before = "before-migration";
    assert_eq!(rig.opinions(), [(true, before, 1)]);
    // The poison was none for it, and what it failed on is still first.
    let seen = [r#"{"words":"w"}"#, r#"{"words":"ww"}"#, r#"{"words":"www"}"#];
    assert_eq!(rig.seen(4).await[1..], seen);
    let changed = rig.go_back("a", only_letters(1)).await;
    assert_eq!(changed.lost_turns["a"], 3);
    assert_eq!(rig.seen(6).await[4..], ["aa", "aaa"]);
    rig.quiet().await;
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_no_generation_can_process_sends_no_migration_back() {
    let mut rig = Rig::new().await;
    rig.start("a", only_letters(1), settings(), &["sink"]).await;
    rig.send("a.in", "1");
    rig.seen(1).await;
    rig.migrate("a", words(2, |text| text != "poison"), r#"{"words":""}"#).await;
    for message in ["poison", "2", "3", "4", "5", "6"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.verdict("a").await.outcome, TrialOutcome::Passed);
    rig.quiet().await;
    assert_eq!(
        (rig.reasons(), rig.opinions()),
        (vec!["trap"], vec![(false, "before-migration", 0)])
    );
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_sets_after_a_migration_is_not_what_the_judge_is_asked_with() {
    let mut rig = Rig::new().await;
    rig.start("a", only_letters(1), settings(), &["sink"]).await;
    rig.send("a.in", "1");
    rig.seen(1).await;
    rig.migrate("a", words(2, |text| text != "bad"), r#"{"words":""}"#).await;
    rig.send("a.in", "2");
    rig.seen(2).await;
    let set = State::new(r#"{"words":"set"}"#).unwrap();
    rig.actor("a").set_state(set, Precondition::default()).await.unwrap();
    rig.send("a.in", "bad");
    let TrialOutcome::Fell(fall) = rig.verdict("a").await.outcome else { panic!("no fall") };
    assert_eq!((fall.restore_state, fall.lost_turns), (true, 1), "as before it was set");
    rig.go_back("a", only_letters(1)).await;
    assert_eq!(rig.seen(3).await[2], "aa");
}

#[tokio::test(start_paused = true)]
async fn of_two_migrations_on_trial_the_turns_since_the_first_are_lost() {
    let mut rig = Rig::new().await;
    rig.start("a", only_letters(1), settings(), &["sink"]).await;
    rig.send("a.in", "1");
    rig.seen(1).await;
    rig.migrate("a", words(2, |_| true), r#"{"words":""}"#).await;
    rig.send("a.in", "2");
    rig.seen(2).await;
    rig.migrate("a", words(3, |text| text != "bad"), r#"{"words":"again"}"#).await;
    rig.send("a.in", "bad");
    let TrialOutcome::Fell(fall) = rig.verdict("a").await.outcome else { panic!("no fall") };
    assert_eq!((fall.restore_state, fall.lost_turns), (true, 1));
    rig.go_back("a", only_letters(1)).await;
    assert_eq!(rig.seen(3).await[2], "aa");
}

#[tokio::test(start_paused = true)]
async fn an_epoch_goes_with_the_state_and_counts_its_turns() {
    let mut rig = Rig::new().await;
    rig.start("a", only_letters(1), settings(), &["sink"]).await;
    rig.send("a.in", "1");
    rig.seen(1).await;
    rig.migrate("a", words(2, |_| true), r#"{"words":""}"#).await;
    rig.send("a.in", "2");
    rig.seen(2).await;
    let held = rig.actor("a").epoch_state();
    assert_eq!((held.epoch.number(), held.turns), (1, 2));
    let remains = rig.system.remains();
    assert_eq!(remains[&"a".parse::<ActorName>().unwrap()].state, Some(held));
}
