//! The flow that the steps happen to, and what must be true of it in the end.
//!
//! It does what the reloader does with files and messages left away: it swaps what is
//! not banned, puts it on trial, and takes back what the trials say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::{prop_assert, prop_assert_eq, test_runner::TestCaseError};
use reflowd_hot_reload::{
    ActorSpec, Ban, Bans, Former, GenerationKeys, Generations, ModuleRef, RunningActor,
    TrialStanding as Standing, Verdict,
};
use reflowd_runtime::{
    ActorLog, ActorName, Change, Digest, Message, Overflow, PortRef, Program, Ready, Remains,
    SendError, Settings, Start, State, System, TrialOutcome, TrialRules, Trialing, Trigger, Type,
    WireDef,
};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    time::{self, Instant},
};

use crate::{
    step::{Kind, Step},
    totals::{Counted, Totals},
    version::{Outside, Role, Version, identity},
};

/// Senders of the two halves of a join.
const LEFT: u64 = 10;
const RIGHT: u64 = 11;

/// How long a removed actor may take to work off what it has.
const DRAIN: Duration = Duration::from_secs(5);

pub(crate) struct Flow {
    outside: Arc<Outside>,
    system: System,
    /// The names that the actors have now.
    names: BTreeMap<Role, ActorName>,
    running: BTreeMap<ActorName, RunningActor>,
    generations: Generations,
    bans: Bans,
    listens: bool,
    paused: BTreeSet<Role>,
    /// The next number of each sender.
    next: BTreeMap<u64, u64>,
    accepted: BTreeSet<(u64, u64)>,
    /// What became a dead letter, those of earlier processes included.
    dead: Vec<Value>,
    /// Successful turns whose state a rollback has taken back.
    lost_turns: BTreeMap<Role, u64>,
    totals: Totals,
}

impl Flow {
    pub(crate) async fn new() -> Self {
        let mut flow = Self {
            outside: Arc::default(),
            system: System::new(Handle::current()),
            names: BTreeMap::new(),
            running: BTreeMap::new(),
            generations: Generations::keeping(10),
            bans: Bans::default(),
            listens: false,
            paused: BTreeSet::new(),
            next: BTreeMap::new(),
            accepted: BTreeSet::new(),
            dead: Vec::new(),
            lost_turns: BTreeMap::new(),
            totals: Totals::default(),
        };
        for role in Role::SWAPPED.into_iter().chain([Role::Left, Role::Right, Role::Sink]) {
            flow.names.insert(role, role.name().parse().unwrap());
        }
        flow.start_all(BTreeMap::new()).await;
        flow
    }

    /// Starts every actor, with the version that has passed last.
    async fn start_all(&mut self, mut states: BTreeMap<ActorName, State>) {
        let mut change = Change::default();
        for (role, name) in self.names.clone() {
            let spec = self.running.get(&name).map_or_else(|| spec_of(role), |r| r.spec.clone());
            let digest = self.running.get(&name).map(|running| running.digest);
            let digest = digest.unwrap_or_else(|| self.version(role, 0).digest());
            change.start.push(Start {
                name: name.clone(),
                ready: self.ready(role, digest).await,
                settings: spec.settings.clone(),
                state: states.remove(&name),
                was: None,
            });
            self.runs(&name, spec, digest);
        }
        change.wires = Some(self.wires());
        let changed = self.system.apply(change).await;
        for (name, generation) in changed.generations {
            self.running.get_mut(&name).unwrap().generation = generation;
        }
    }

    /// Lets a step happen, and then whatever follows from how the trials stand.
    pub(crate) async fn take(&mut self, step: &Step) {
        self.totals.count(Counted::Steps, 1);
        match step {
            Step::Send { sender, kind, count } => self.send(*sender, *kind, *count),
            Step::SendHalf { left, count } => self.send_half(*left, *count),
            Step::Swap { to, on_trial } => self.swap(to, *on_trial).await,
            Step::RollBack(role) => self.roll_back(*role).await,
            Step::Rename(role) => self.rename(*role).await,
            Step::Settings { role, mailbox, retries } => {
                let name = self.names[role].clone();
                let running = self.running.get_mut(&name).unwrap();
                running.spec.settings.mailbox = *mailbox;
                running.spec.settings.retries = *retries;
                let settings = vec![(name, running.spec.settings.clone())];
                self.apply(Change { settings, ..Change::default() }).await;
            }
            Step::Listener => self.listener().await,
            Step::Pause(role) => {
                self.paused.insert(*role);
                self.system.actor(self.names[role].as_str()).unwrap().pause().await;
            }
            Step::Resume(role) => {
                self.paused.remove(role);
                self.system.actor(self.names[role].as_str()).unwrap().resume().await;
            }
            Step::Retry(role) => {
                self.system.actor(self.names[role].as_str()).unwrap().retry().await;
            }
            Step::Restart { drain } => self.restart(Duration::from_millis(*drain)).await,
            Step::Wait(millis) => time::sleep(Duration::from_millis(*millis)).await,
            Step::Yield(times) => {
                for _ in 0..*times {
                    tokio::task::yield_now().await;
                }
            }
        }
        self.judge_trials().await;
    }

    pub(crate) fn check_books(&self) -> Result<(), TestCaseError> {
        let books = self.system.books();
        prop_assert!(books.deliveries.balanced() && books.wires.balanced(), "{books:#?}");
        Ok(())
    }

    fn send(&mut self, sender: u64, kind: Kind, count: u64) {
        let to = PortRef { actor: self.names[&Role::Front].clone(), port: "in".parse().unwrap() };
        for _ in 0..count {
            self.send_one(&to, sender, kind);
        }
    }

    fn send_half(&mut self, left: bool, count: u64) {
        let (sender, role) = if left { (LEFT, Role::Left) } else { (RIGHT, Role::Right) };
        let to = PortRef { actor: self.names[&role].clone(), port: "in".parse().unwrap() };
        for _ in 0..count {
            self.send_one(&to, sender, Kind::Good);
        }
    }

    fn send_one(&mut self, to: &PortRef, sender: u64, kind: Kind) {
        let next = self.next.entry(sender).or_default();
        let data = json!({ "sender": sender, "seq": *next, "kind": format!("{kind:?}") });
        let message = Message::new(Type::Object, data.to_string()).unwrap();
        match self.system.send(to, message, None) {
            Ok(_) => {
                self.accepted.insert((sender, *next));
                *next += 1;
                self.totals.count(Counted::Messages, 1);
            }
            Err(SendError::Full { .. }) => self.totals.count(Counted::RefusedFull, 1),
            Err(error) => panic!("{error}"),
        }
    }

    async fn swap(&mut self, to: &[(Role, u8)], on_trial: bool) {
        let mut change = Change::default();
        let mut swaps = Vec::new();
        for &(role, number) in to {
            let (name, digest) = (self.names[&role].clone(), self.version(role, number).digest());
            if self.running[&name].digest == digest {
                continue;
            }
            if self.bans.standing(&name, &digest, &self.running[&name].spec.keys).is_some() {
                self.totals.count(Counted::BansHeld, 1);
                continue;
            }
            change.swap.push((name.clone(), self.ready(role, digest).await));
            let before = self.running[&name].clone();
            swaps.push((name, digest, before));
        }
        change.trialing = if on_trial { Trialing::OnTrial } else { Trialing::NoTrial };
        let swapped: BTreeSet<ActorName> = swaps.iter().map(|(name, ..)| name.clone()).collect();
        self.totals.count(Counted::Swaps, swapped.len() as u64);
        self.totals.count(Counted::JointSwaps, u64::from(swapped.len() > 1));
        self.apply(change).await;
        for (name, digest, before) in swaps {
            self.generations.replace(&name, &before);
            self.bans.lift(&name);
            self.runs(&name, before.spec, digest);
        }
        if on_trial {
            self.generations.begin(swapped.clone(), &swapped);
        } else {
            let over = self.generations.leave(&swapped);
            for name in over.difference(&swapped) {
                self.system.actor(name.as_str()).unwrap().end_trial().await;
            }
        }
    }

    async fn roll_back(&mut self, role: Role) {
        let name = self.names[&role].clone();
        let mut back = self.generations.with(&[name.clone()].into());
        back.insert(name.clone());
        if self.generations.last(&name).is_none() {
            return;
        }
        self.totals.count(Counted::RollbacksByHand, 1);
        self.go_back(back, "by hand").await;
    }

    /// Does what follows from how the trials stand.
    async fn judge_trials(&mut self) {
        let system = self.system.clone();
        let standing = |name: &ActorName| match system.actor(name.as_str()) {
            None => Standing::Gone,
            Some(actor) => match actor.trial().map(|trial| trial.outcome) {
                Some(TrialOutcome::Running) => Standing::OnTrial,
                Some(TrialOutcome::Fell(fall)) => Standing::Fell(fall),
                Some(TrialOutcome::Passed) | None => Standing::Passed,
            },
        };
        for verdict in self.generations.weigh(standing) {
            match verdict {
                Verdict::Passed(actors) => {
                    self.totals.count(Counted::TrialsPassed, 1);
                    self.generations.leave(&actors);
                    for name in &actors {
                        self.system.actor(name.as_str()).unwrap().end_trial().await;
                    }
                }
                Verdict::GoBack { actors, fell: _, fall: _ } => {
                    self.go_back(actors, "fell").await;
                }
            }
        }
    }

    /// Puts former generations back, as one change, and bans what they replace.
    async fn go_back(&mut self, actors: BTreeSet<ActorName>, why: &str) {
        let former = |name: &ActorName| Some((name.clone(), self.generations.last(name)?.clone()));
        let back: Vec<(ActorName, Former)> = actors.iter().filter_map(former).collect();
        let mut change = Change { trialing: Trialing::GoingBack, ..Change::default() };
        for (name, former) in &back {
            let ready = self.ready(self.role(name), former.digest).await;
            change.swap.push((name.clone(), ready));
        }
        for (name, turns) in self.apply(change).await {
            self.totals.count(Counted::StatesRestored, 1);
            let former = back.iter().find(|(of, _)| *of == name).unwrap().1.digest;
            let state = self.system.actor(name.as_str()).unwrap().state();
            let breaks = Version::of(self.role(&name), former, &self.outside).breaks_the_state();
            assert!(breaks || is_sound(&state), "{name} has kept a state that was broken");
            *self.lost_turns.entry(self.role(&name)).or_default() += turns;
        }
        self.totals.count(Counted::Rollbacks, back.len() as u64);
        self.generations.leave(&actors);
        for (name, former) in back {
            self.generations.went_back(&name, former.generation);
            let left = self.running[&name].clone();
            if left.digest != former.digest {
                let ban =
                    Ban { digest: left.digest, keys: left.spec.keys.clone(), why: why.into() };
                self.bans.add(&name, ban);
                self.totals.count(Counted::Bans, 1);
            }
            self.runs(&name, left.spec, former.digest);
        }
    }

    async fn rename(&mut self, role: Role) {
        let was = self.names[&role].clone();
        // The names are taken again, so that an actor comes back under one that it had.
        let name = ["a", "b", "c"].map(|end| format!("{}-{end}", role.name()).parse().unwrap());
        let name: ActorName = name.into_iter().find(|name| *name != was).unwrap();
        let RunningActor { spec, digest, .. } = self.running[&was].clone();
        let start = vec![Start {
            name: name.clone(),
            ready: self.ready(role, digest).await,
            settings: spec.settings.clone(),
            state: None,
            was: Some(was.clone()),
        }];
        self.names.insert(role, name.clone());
        self.generations.rename(&was, &name);
        self.bans.rename(&was, &name);
        self.running.remove(&was);
        self.runs(&name, spec, digest);
        let wires = Some(self.wires());
        self.apply(Change { start, wires, ..Change::default() }).await;
        self.totals.count(Counted::Renames, 1);
    }

    async fn listener(&mut self) {
        let name: ActorName = Role::Listener.name().parse().unwrap();
        self.listens = !self.listens;
        let wires = Some(self.wires());
        let mut change = Change { wires, drain: DRAIN, ..Change::default() };
        if self.listens {
            let digest = self.version(Role::Listener, 0).digest();
            change.start.push(Start {
                name,
                ready: self.ready(Role::Listener, digest).await,
                settings: Settings {
                    mailbox: 1,
                    overflow: Overflow::DropOldest,
                    ..Settings::default()
                },
                state: None,
                was: None,
            });
        } else {
            change.stop.push(name);
        }
        self.apply(change).await;
        if self.listens {
            // So that it gets more than it takes.
            self.system.actor(Role::Listener.name()).unwrap().pause().await;
        }
    }

    /// A stop with what it saves, and a start with what it finds.
    async fn restart(&mut self, drain: Duration) {
        self.totals.count(Counted::Restarts, 1);
        let remains = self.stop(drain).await;
        self.listens = false;
        self.system = System::new(Handle::current());
        self.system.hold_back();
        // What is on trial begins with its judge, and is swapped in anew.
        let mut again: Vec<(ActorName, Digest)> = Vec::new();
        let mut group = BTreeSet::new();
        for (name, running) in &mut self.running {
            self.system.follow_on(name.clone(), running.generation);
            if let Some(judge) = self.generations.judge(name) {
                again.push((name.clone(), running.digest));
                group.insert(name.clone());
                running.digest = judge.digest;
            }
        }
        self.generations.leave(&group);
        let states =
            remains.iter().filter_map(|(name, of)| Some((name.clone(), of.state.clone()?)));
        self.start_all(states.collect()).await;
        let put_back = self.system.put_back(remains);
        self.totals.count(Counted::Saved, put_back.messages);
        self.system.open();
        self.system.go().await;
        for role in self.paused.clone() {
            self.system.actor(self.names[&role].as_str()).unwrap().pause().await;
        }
        let mut change = Change { trialing: Trialing::OnTrial, ..Change::default() };
        for (name, digest) in &again {
            change.swap.push((name.clone(), self.ready(self.role(name), *digest).await));
        }
        self.apply(change).await;
        for (name, digest) in again {
            let spec = self.running[&name].spec.clone();
            self.runs(&name, spec, digest);
        }
        self.generations.begin(group.clone(), &group);
    }

    /// Ends the process that runs, and gives what it has saved.
    async fn stop(&mut self, drain: Duration) -> BTreeMap<ActorName, Remains> {
        self.system.close().await;
        self.system.settled(Instant::now() + drain).await;
        self.system.kill().await;
        let mut remains = self.system.remains();
        self.system.saved();
        let books = self.system.books();
        assert!(
            books.balanced() && books.deliveries.queued + books.deliveries.in_flight == 0,
            "{books:#?}"
        );
        self.totals.count(Counted::Dropped, books.deliveries.dropped);
        for actor in self.system.actors() {
            self.totals.count(Counted::Opinions, actor.meters().opinions.get());
        }
        let listener: ActorName = Role::Listener.name().parse().unwrap();
        remains.remove(&listener);
        let letters = self.system.dead_letters().list();
        let letters = letters.iter().filter(|letter| letter.actor != listener);
        let letters = letters.map(|letter| value(&letter.envelope.message));
        let before = self.dead.len();
        self.dead.extend(letters);
        self.totals.count(Counted::DeadLetters, (self.dead.len() - before) as u64);
        remains
    }

    /// Lets everything come to rest, and holds what came out against what went in.
    pub(crate) async fn end(mut self) -> Result<Totals, TestCaseError> {
        for actor in self.system.actors() {
            actor.resume().await;
        }
        let mut looks = 0;
        while self.moves() {
            let sent = |sender| self.next.get(&sender).copied().unwrap_or(0);
            let (left, right) = (sent(LEFT), sent(RIGHT));
            // Each half of a join gets its other half.
            if left != right {
                self.send_half(left < right, left.abs_diff(right));
            }
            for actor in self.system.actors() {
                actor.retry().await;
            }
            time::sleep(Duration::from_millis(500)).await;
            self.judge_trials().await;
            looks += 1;
            prop_assert!(looks < 2_000, "it does not come to rest: {:#?}", self.system.books());
        }
        let remains = self.stop(Duration::ZERO).await;
        let left: Vec<Value> = remains
            .values()
            .flat_map(|of| &of.messages)
            .map(|envelope| value(&envelope.message))
            .collect();
        let out = std::mem::take(&mut *self.outside.out.lock().unwrap());
        let heard = std::mem::take(&mut *self.outside.heard.lock().unwrap());
        let (pairs, out): (Vec<Value>, Vec<Value>) =
            out.into_iter().partition(|message| message.get("join").is_some());
        self.totals.count(Counted::Joins, pairs.len() as u64);
        let retried = self.outside.tried() as u64;
        self.totals.count(Counted::RetriesThatSucceed, retried);

        let halves = |side: &'static str| pairs.iter().map(move |pair| pair[side].clone());
        let (lefts, rights): (Vec<_>, Vec<_>) =
            (halves("left").collect(), halves("right").collect());
        for stream in [&out, &heard, &lefts, &rights] {
            in_order(stream)?;
        }
        let ended = [&out, &lefts, &rights, &self.dead, &left];
        let mut times: BTreeMap<(u64, u64), u32> = BTreeMap::new();
        ended.into_iter().flatten().for_each(|m| *times.entry(identity(m)).or_default() += 1);
        let doubled: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        prop_assert!(doubled.is_empty(), "doubled: {doubled:?}");
        let lost: Vec<_> = self.accepted.iter().filter(|id| !times.contains_key(id)).collect();
        prop_assert!(lost.is_empty(), "lost: {lost:?}");
        prop_assert_eq!(times.len(), self.accepted.len());

        for role in Role::CHAIN {
            let all = ended.into_iter().flatten();
            let turns = all.filter(|message| message.get(role.name()).is_some()).count() as u64;
            self.counted(role, turns, &remains)?;
        }
        self.counted(Role::Join, pairs.len() as u64, &remains)?;
        Ok(self.totals)
    }

    /// Whether anything is still to be done.
    fn moves(&self) -> bool {
        let books = self.system.books();
        let halves = |sender| self.next.get(&sender);
        books.deliveries.in_flight + books.wires.pending + books.deliveries.queued > 0
            || halves(LEFT) != halves(RIGHT)
    }

    /// The state has counted the turns that succeeded, and no others.
    fn counted(
        &self,
        role: Role,
        turns: u64,
        remains: &BTreeMap<ActorName, Remains>,
    ) -> Result<(), TestCaseError> {
        let state = remains[&self.names[&role]].state.clone().unwrap_or_default();
        if !is_sound(&state) {
            return Ok(());
        }
        let state: Value = serde_json::from_slice(state.text()).unwrap();
        let counted = state["turns"].as_u64().unwrap_or(0);
        let lost = self.lost_turns.get(&role).copied().unwrap_or(0);
        prop_assert_eq!(counted + lost, turns, "the state of {:?}", role);
        Ok(())
    }

    /// Makes a change, and tells how many turns each actor has lost by it.
    async fn apply(&mut self, change: Change) -> BTreeMap<ActorName, u64> {
        let changed = self.system.apply(change).await;
        for (name, generation) in changed.generations {
            if let Some(running) = self.running.get_mut(&name) {
                running.generation = generation;
            }
        }
        changed.lost_turns
    }

    /// Remembers what an actor runs.
    fn runs(&mut self, name: &ActorName, spec: ActorSpec, digest: Digest) {
        let generation = self.running.get(name).map(|running| running.generation);
        let generation = generation.unwrap_or(reflowd_runtime::Generation::FIRST);
        let running =
            RunningActor { spec, digest, generation, autostarted: false, draining: false };
        self.running.insert(name.clone(), running);
    }

    fn role(&self, name: &ActorName) -> Role {
        *self.names.iter().find(|(_, of)| *of == name).unwrap().0
    }

    fn version(&self, role: Role, number: u8) -> Version {
        Version::new(role, number, &self.outside)
    }

    async fn ready(&self, role: Role, digest: Digest) -> Ready {
        let program = Version::of(role, digest, &self.outside);
        let engine = program.instantiate().await.unwrap();
        let log = ActorLog::new(role.name().parse().unwrap(), 100);
        let module = role.name().into();
        Ready::Engine { program: Arc::new(program), engine, version: None, log, module }
    }

    fn wires(&self) -> Vec<WireDef> {
        let to_port = |from: Role, to: &ActorName, port: &str| WireDef {
            from: PortRef { actor: self.names[&from].clone(), port: "out".parse().unwrap() },
            to: PortRef { actor: to.clone(), port: port.parse().unwrap() },
            overflow: None,
        };
        let wire = |from, to| to_port(from, to, "in");
        let mut wires = vec![
            wire(Role::Front, &self.names[&Role::Work]),
            wire(Role::Work, &self.names[&Role::Back]),
            wire(Role::Back, &self.names[&Role::Sink]),
            to_port(Role::Left, &self.names[&Role::Join], "left"),
            to_port(Role::Right, &self.names[&Role::Join], "right"),
            wire(Role::Join, &self.names[&Role::Sink]),
        ];
        if self.listens {
            wires.push(wire(Role::Back, &Role::Listener.name().parse().unwrap()));
        }
        wires
    }
}

/// What an actor is asked to be.
fn spec_of(role: Role) -> ActorSpec {
    let rules = TrialRules { turns: 12, time: Duration::from_secs(5), ..TrialRules::default() };
    ActorSpec {
        module: ModuleRef::Stem { stem: role.name().into(), pin: None },
        keys: GenerationKeys::default(),
        settings: Settings {
            timeout: Duration::from_millis(200),
            mailbox: 4,
            trigger: if role == Role::Join { Trigger::All } else { Trigger::Any },
            trial: Some(rules),
            ..Settings::default()
        },
        version: None,
        was: None,
        origin: String::new(),
    }
}

/// Whether versions understand the state.
fn is_sound(state: &State) -> bool {
    let state: Value = serde_json::from_slice(state.text()).unwrap();
    state.get("broken").is_none()
}

fn value(message: &Message) -> Value {
    serde_json::from_slice(message.data()).unwrap()
}

/// The numbers of each sender grow.
fn in_order(messages: &[Value]) -> Result<(), TestCaseError> {
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for message in messages {
        let (sender, seq) = identity(message);
        let before = last.insert(sender, seq);
        prop_assert!(
            before.is_none_or(|before| before < seq),
            "of sender {}, {} comes after {}",
            sender,
            seq,
            before.unwrap_or_default()
        );
    }
    Ok(())
}
