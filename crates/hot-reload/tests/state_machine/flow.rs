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
    ActorSpec, Ban, Bans, Former, GenerationKeys, Generations, LeftBehind, ModuleRef, PutAside,
    PutAsideState, RunningActor, TrialStanding as Standing, Verdict,
};
use reflowd_runtime::{
    ActorLog, ActorName, Change, Digest, EpochState, LeftState, Message, MigrateError, Overflow,
    PortRef, Program, Ready, Remains, SendError, Settings, Start, State, System, TrialOutcome,
    TrialRules, Trialing, Trigger, Type, Wire, WireDef, WireEnds,
};
use serde_json::{Value, json};
use tokio::{
    runtime::Handle,
    time::{self, Instant},
};

use crate::{
    step::{Kind, Step, Wanted},
    totals::{Counted, Totals},
    version::{Outside, Role, Version, form_of, identity, is_sound, turns_in},
};

/// Senders of the two halves of a join.
const LEFT: u64 = 10;
const RIGHT: u64 = 11;

/// How long a removed actor may take to work off what it has.
const DRAIN: Duration = Duration::from_secs(5);

/// What an actor is to run.
struct Target {
    name: ActorName,
    digest: Digest,
    spec: ActorSpec,
}

/// How a process ends.
enum Ending {
    /// It has so long to drain, and saves what is left.
    Stop(Duration),
    /// It is killed.
    Crash,
}

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
    /// What was queued when a process was killed.
    crashed: Vec<Value>,
    /// How many pairs of halves there were among that.
    crashed_pairs: u64,
    /// The states on disk.
    disk: BTreeMap<ActorName, EpochState>,
    /// Successful turns whose state a rollback or a crash has taken back.
    lost_turns: BTreeMap<Role, u64>,
    /// Processes before this one.
    restarts: u64,
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
            crashed: Vec::new(),
            crashed_pairs: 0,
            disk: BTreeMap::new(),
            lost_turns: BTreeMap::new(),
            restarts: 0,
            totals: Totals::default(),
        };
        for role in Role::SWAPPED.into_iter().chain([Role::Left, Role::Right, Role::Sink]) {
            flow.names.insert(role, role.name().parse().unwrap());
        }
        flow.start_all(BTreeMap::new()).await;
        flow
    }

    /// Starts every actor, with the version that has passed last.
    async fn start_all(&mut self, mut states: BTreeMap<ActorName, EpochState>) {
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
        self.wire_up(&mut change);
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
            Step::Edit { role, memory } => self.edit(*role, *memory).await,
            Step::RollBack { role, further } => self.roll_back(*role, *further).await,
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
            Step::Restart { drain } => {
                self.restart(Ending::Stop(Duration::from_millis(*drain))).await;
            }
            Step::Round => self.round(),
            Step::Crash => self.restart(Ending::Crash).await,
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

    async fn swap(&mut self, to: &[(Role, Wanted)], on_trial: bool) {
        let mut targets = Vec::new();
        for &(role, Wanted { behaviour, form }) in to {
            let name = self.names[&role].clone();
            let running = self.running[&name].clone();
            let form = form.max(Version::of(role, running.digest, &self.outside).form());
            let digest = Version::behaving(role, behaviour, form, &self.outside).digest();
            if running.digest != digest {
                targets.push(Target { name, digest, spec: running.spec });
            }
        }
        self.exchange(targets, on_trial).await;
    }

    async fn edit(&mut self, role: Role, memory: u64) {
        let name = self.names[&role].clone();
        let RunningActor { mut spec, digest, .. } = self.running[&name].clone();
        if spec.keys.memory != memory {
            spec.keys.memory = memory;
            self.totals.count(Counted::Edits, 1);
            self.exchange(vec![Target { name, digest, spec }], true).await;
        }
    }

    /// Swaps in what is not banned, all of it or, where a state cannot be migrated, nothing.
    async fn exchange(&mut self, mut targets: Vec<Target>, on_trial: bool) {
        let asked = targets.len() as u64;
        let bans = &self.bans;
        targets.retain(|to| bans.standing(&to.name, &to.digest, &to.spec.keys).is_none());
        self.totals.count(Counted::BansHeld, asked - targets.len() as u64);
        let mut change = Change::default();
        for Target { name, digest, .. } in &targets {
            change.swap.push((name.clone(), self.ready(self.role(name), *digest).await));
        }
        change.trialing = if on_trial { Trialing::OnTrial } else { Trialing::NoTrial };
        let halted = self.system.halt(targets.iter().map(|to| &to.name)).await;
        let Ok(aside) = self.migrate(&targets, &mut change).await else {
            self.system.go_on(halted).await;
            return self.totals.count(Counted::MigrationsRefused, 1);
        };
        self.totals.count(Counted::Migrations, aside.len() as u64);
        let swapped: BTreeSet<ActorName> = targets.iter().map(|to| to.name.clone()).collect();
        self.totals.count(Counted::Swaps, swapped.len() as u64);
        self.totals.count(Counted::JointSwaps, u64::from(swapped.len() > 1));
        let before: Vec<_> = targets.iter().map(|to| self.running[&to.name].clone()).collect();
        self.apply(change).await;
        self.system.go_on(halted).await;
        for (Target { name, digest, spec }, before) in targets.into_iter().zip(before) {
            self.generations.replace(&name, &before);
            self.bans.lift(&name);
            self.runs(&name, spec, digest);
        }
        for (name, aside) in aside {
            self.generations.migrated(&name, aside);
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

    /// Has the versions that can make their own states of those of actors that are halted.
    async fn migrate(
        &mut self,
        targets: &[Target],
        change: &mut Change,
    ) -> Result<BTreeMap<ActorName, PutAside>, MigrateError> {
        let mut aside = BTreeMap::new();
        for Target { name, digest, .. } in targets {
            let program = Version::of(self.role(name), *digest, &self.outside);
            let before = self.system.actor(name.as_str()).unwrap().epoch_state();
            if !program.migrates_state() || self.running[name].digest == *digest {
                continue;
            }
            let mut next = before.state.clone();
            if next != State::default() {
                let (state, digest) = (next, self.running[name].digest);
                let left = LeftState { state, digest, version: None, limit: u64::MAX };
                next = program.migrate_state(left).await?;
                if next == before.state {
                    continue;
                }
            }
            change.states.insert(name.clone(), before.followed_by(next, before.turns));
            let state = PutAsideState::InMemory(before.state);
            aside.insert(name.clone(), PutAside { state, since: 0, turns: before.turns });
        }
        // Nothing of it counts before all of it is there.
        self.disk.extend(change.states.clone());
        Ok(aside)
    }

    async fn roll_back(&mut self, role: Role, further: usize) {
        let name = self.names[&role].clone();
        let former = self.generations.former(&name);
        let Some(target) = former.iter().rev().take(further + 1).last().cloned() else { return };
        let mut back = self.last_of(&self.generations.with(&[name.clone()].into()));
        back.insert(name, target);
        self.totals.count(Counted::RollbacksByHand, 1);
        self.go_back(back, "by hand").await;
    }

    /// The last generations of these that have passed.
    fn last_of(&self, actors: &BTreeSet<ActorName>) -> BTreeMap<ActorName, Former> {
        let last = |name: &ActorName| Some((name.clone(), self.generations.last(name)?.clone()));
        actors.iter().filter_map(last).collect()
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
                    self.go_back(self.last_of(&actors), "fell").await;
                }
            }
        }
    }

    /// Puts former generations back, as one change, and bans what they replace.
    async fn go_back(&mut self, back: BTreeMap<ActorName, Former>, why: &str) {
        let mut change = Change { trialing: Trialing::GoingBack, ..Change::default() };
        for (name, former) in &back {
            let ready = self.ready(self.role(name), former.digest).await;
            change.swap.push((name.clone(), ready));
        }
        let halted = self.system.halt(back.keys()).await;
        for (name, former) in &back {
            let Some((state, turns)) = self.given_back(name, former) else { continue };
            let before = self.system.actor(name.as_str()).unwrap().epoch_state();
            let next = before.followed_by(state, turns);
            let lost = turns_in(&before.state) - turns_in(&next.state);
            *self.lost_turns.entry(self.role(name)).or_default() += lost;
            change.states.insert(name.clone(), next);
        }
        let given = change.states.clone();
        self.disk.extend(given.clone());
        let before: BTreeMap<_, _> =
            back.keys().map(|name| (name.clone(), self.state_of(name))).collect();
        let told = self.apply(change).await;
        self.system.go_on(halted).await;
        for (name, next) in &given {
            self.totals.count(Counted::StatesRestored, 1);
            let lost = turns_in(&before[name]) - turns_in(&next.state);
            let told = told.get(name).copied().unwrap_or(0);
            // Of what an earlier process has done, nobody has counted the turns.
            assert!(told <= lost && (told == lost || self.restarts > 0), "{name}: {told} {lost}");
            let breaks =
                Version::of(self.role(name), back[name].digest, &self.outside).breaks_the_state();
            assert!(breaks || is_sound(&next.state), "{name} has kept a state that was broken");
        }
        self.totals.count(Counted::Rollbacks, back.len() as u64);
        self.generations.leave(&back.keys().cloned().collect());
        for (name, former) in back {
            let version = Version::of(self.role(&name), former.digest, &self.outside);
            let state = given.get(&name).map_or(&before[&name], |next| &next.state);
            assert!(
                form_of(state).is_none_or(|form| form == version.form()),
                "{name} goes back to a version that does not understand {state:?}"
            );
            self.generations.went_back(&name, former.generation);
            let left = self.running[&name].clone();
            self.bans.allow(&name, &former.digest, &former.spec.keys);
            if (left.digest, &left.spec.keys) != (former.digest, &former.spec.keys) {
                let ban =
                    Ban { digest: left.digest, keys: left.spec.keys.clone(), why: why.into() };
                self.bans.add(&name, ban);
                self.totals.count(Counted::Bans, 1);
            }
            let settings = left.spec.settings;
            self.runs(&name, ActorSpec { settings, ..former.spec }, former.digest);
        }
    }

    /// What an actor needs to go back to a former generation, if not its present state; and
    /// the turns of this process that are in that.
    fn given_back(&mut self, name: &ActorName, to: &Former) -> Option<(State, u64)> {
        let actor = self.system.actor(name.as_str()).unwrap();
        let fallback = actor.fallback().zip(actor.trial());
        let fallback = fallback.filter(|(_, trial)| trial.judge == to.generation);
        if let Some((EpochState { state, turns, .. }, _)) = fallback {
            return Some((state, turns));
        }
        let aside = self.generations.since(name, to.generation).find_map(|former| {
            let LeftBehind::Migrated(aside) = &former.left else { return None };
            let PutAsideState::InMemory(state) = &aside.state else { return None };
            Some((state.clone(), aside.turns))
        });
        self.totals.count(Counted::MigrationsTakenBack, u64::from(aside.is_some()));
        aside
    }

    fn state_of(&self, name: &ActorName) -> State {
        self.system.actor(name.as_str()).unwrap().state()
    }

    /// States are written.
    fn round(&mut self) {
        for actor in self.system.actors() {
            self.disk.insert(actor.name().clone(), actor.epoch_state());
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
        let mut change = Change { start, ..Change::default() };
        self.wire_up(&mut change);
        self.apply(change).await;
        self.disk.remove(&was);
        let state = self.system.actor(name.as_str()).unwrap().epoch_state();
        self.disk.insert(name, state);
        self.totals.count(Counted::Renames, 1);
    }

    async fn listener(&mut self) {
        let name: ActorName = Role::Listener.name().parse().unwrap();
        self.listens = !self.listens;
        let mut change = Change { drain: DRAIN, ..Change::default() };
        self.wire_up(&mut change);
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

    /// The end of a process, and a start with what it has left.
    async fn restart(&mut self, ending: Ending) {
        let remains = match ending {
            Ending::Stop(drain) => {
                self.totals.count(Counted::Restarts, 1);
                let remains = self.stop(drain).await;
                let states =
                    remains.iter().filter_map(|(name, of)| Some((name, of.state.clone()?)));
                self.disk.extend(states.map(|(name, state)| (name.clone(), state)));
                remains
            }
            Ending::Crash => {
                self.totals.count(Counted::Crashes, 1);
                let remains = self.stop(Duration::ZERO).await;
                self.lose(remains);
                BTreeMap::new()
            }
        };
        self.restarts += 1;
        self.listens = false;
        self.system = System::new(Handle::current());
        self.system.hold_back();
        let found = |held: &EpochState| EpochState::found(held.state.clone(), held.epoch);
        let mut states: BTreeMap<ActorName, EpochState> =
            self.disk.iter().map(|(name, held)| (name.clone(), found(held))).collect();
        for name in self.names.values() {
            self.generations.recollect(name.clone(), recalled(self.generations.former(name)));
        }
        // What is on trial begins with its judge, and is swapped in anew. What has migrated
        // its state goes on with its own.
        let mut change = Change { trialing: Trialing::OnTrial, ..Change::default() };
        let (mut again, mut unfolded) = (Vec::new(), Vec::new());
        let mut aside = BTreeMap::new();
        for (name, running) in &mut self.running {
            self.system.follow_on(name.clone(), running.generation);
            let Some(judge) = self.generations.judge(name) else { continue };
            let Former { generation, digest, spec, left } = judge.clone();
            let spec = ActorSpec { settings: running.spec.settings.clone(), ..spec };
            unfolded.push((name.clone(), generation));
            again.push(Target {
                name: name.clone(),
                digest: std::mem::replace(&mut running.digest, digest),
                spec: std::mem::replace(&mut running.spec, spec),
            });
            if let LeftBehind::Migrated(PutAside {
                state: PutAsideState::InMemory(state), ..
            }) = left
            {
                let present = states.remove(name).unwrap_or_default();
                let before = present.followed_by(state, 0);
                let next = before.followed_by(present.state, 0);
                self.disk.insert(name.clone(), next.clone());
                change.states.insert(name.clone(), next);
                let state = PutAsideState::InMemory(before.state.clone());
                aside.insert(name.clone(), PutAside { state, since: 0, turns: 0 });
                states.insert(name.clone(), before);
                self.totals.count(Counted::MigrationsResumed, 1);
            }
        }
        let group: BTreeSet<ActorName> = again.iter().map(|to| to.name.clone()).collect();
        self.generations.leave(&group);
        for (name, generation) in unfolded {
            self.generations.unfold(&name, generation);
        }
        self.start_all(states).await;
        for Target { name, digest, .. } in &again {
            change.swap.push((name.clone(), self.ready(self.role(name), *digest).await));
        }
        for Target { name, .. } in &again {
            self.generations.replace(name, &self.running[name]);
        }
        self.apply(change).await;
        for Target { name, digest, spec } in again {
            self.runs(&name, spec, digest);
        }
        for (name, aside) in aside {
            self.generations.migrated(&name, aside);
        }
        self.generations.begin(group.clone(), &group);
        let put_back = self.system.put_back(remains);
        self.totals.count(Counted::Saved, put_back.messages);
        self.system.open();
        self.system.go().await;
        for role in self.paused.clone() {
            self.system.actor(self.names[&role].as_str()).unwrap().pause().await;
        }
    }

    /// A process was killed that would have left that.
    fn lose(&mut self, remains: BTreeMap<ActorName, Remains>) {
        let states: Vec<_> = remains
            .iter()
            .map(|(name, of)| (name.clone(), of.state.clone().unwrap_or_default().state))
            .collect();
        for (name, state) in states {
            let on_disk = self.disk.get(&name).map_or(0, |held| turns_in(&held.state));
            *self.lost_turns.entry(self.role(&name)).or_default() += turns_in(&state) - on_disk;
        }
        let before = self.crashed.len();
        for envelope in remains.values().flat_map(|of| &of.messages) {
            let message = value(&envelope.message);
            if message.get("join").is_some() {
                self.crashed_pairs += 1;
                self.crashed.extend(["left", "right"].map(|side| message[side].clone()));
            } else {
                self.crashed.push(message);
            }
        }
        self.totals.count(Counted::LostInCrashes, (self.crashed.len() - before) as u64);
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
            let (left, right) = (self.halves(LEFT), self.halves(RIGHT));
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
        let ended = [&out, &lefts, &rights, &self.dead, &left, &self.crashed];
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
        self.counted(Role::Join, pairs.len() as u64 + self.crashed_pairs, &remains)?;
        Ok(self.totals)
    }

    /// Whether anything is still to be done.
    fn moves(&self) -> bool {
        let books = self.system.books();
        books.deliveries.in_flight + books.wires.pending + books.deliveries.queued > 0
            || self.halves(LEFT) != self.halves(RIGHT)
    }

    /// How many halves of a join there are of a sender that no crash has taken.
    fn halves(&self, sender: u64) -> u64 {
        let lost = self.crashed.iter().filter(|message| identity(message).0 == sender).count();
        self.next.get(&sender).copied().unwrap_or(0) - lost as u64
    }

    /// The state has counted the turns that succeeded, and no others.
    fn counted(
        &self,
        role: Role,
        turns: u64,
        remains: &BTreeMap<ActorName, Remains>,
    ) -> Result<(), TestCaseError> {
        let state = remains[&self.names[&role]].state.clone().unwrap_or_default().state;
        if !is_sound(&state) {
            return Ok(());
        }
        let counted = turns_in(&state);
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

    /// Has a change make the wires what they are to be.
    fn wire_up(&self, change: &mut Change) {
        change.connect = self.wires();
        let stays = |wire: &Arc<Wire>| {
            let mut wanted = change.connect.iter();
            wanted.any(|def| def.from == *wire.from() && def.to == *wire.to())
        };
        let cut = self.system.wires().into_iter().filter(|wire| !stays(wire));
        let ends = |wire: Arc<Wire>| WireEnds { from: wire.from().clone(), to: wire.to().clone() };
        change.cut = cut.map(ends).collect();
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

/// Former generations as another process knows them, which has taken no turn yet.
fn recalled(former: &[Former]) -> Vec<Former> {
    let mut former = former.to_vec();
    for of in &mut former {
        if let LeftBehind::Migrated(aside) = &mut of.left {
            aside.turns = 0;
        }
    }
    former
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
