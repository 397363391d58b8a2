//! The protocol by which senders wait for room and an actor for messages, under random
//! schedules.
//!
//! A task is polled only when something has woken it, and after each step that takes the
//! mailbox's lock another may come. So whoever is forgotten waits for ever, which is found
//! when nobody is awake any more and somebody is not done; and tasks that wake each other
//! for nothing are found by the number of their steps.
//!
//! `REFLOWD_CASES` runs more schedules, `REFLOWD_SEED` begins at another one.

use std::{
    cell::{Cell, RefCell},
    collections::hash_map::RandomState,
    future::poll_fn,
    hash::{BuildHasher, Hasher},
    pin::Pin,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Wake, Waker},
};

use super::*;
use crate::Message;

/// Schedules of one run.
const CASES: u64 = 3_000;

/// Steps after which tasks do not come to an end. A schedule has some hundred.
const ENDLESS: usize = 20_000;

const SENDERS: u64 = 4;

/// A small generator of random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut n = self.0;
        n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (n ^ (n >> 31)) % bound
    }
}

/// What the tasks of a schedule share.
struct Stage {
    mailbox: Mailbox,
    random: RefCell<Random>,
    accepted: Cell<u64>,
}

impl Stage {
    fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    fn bounds(&self) -> Bounds {
        let trigger = if self.below(2) == 0 { Trigger::Any } else { Trigger::All };
        let messages = usize::try_from(1 + self.below(3)).unwrap();
        Bounds { messages, bytes: 40 + self.below(80), overflow: Overflow::Block, trigger }
    }

    fn envelope(&self) -> Envelope {
        let text = format!("\"{}\"", "x".repeat(usize::try_from(self.below(60)).unwrap()));
        let message = Message::new(crate::Type::String, text).unwrap();
        Envelope::entering("in".parse().unwrap(), message, None)
    }
}

/// Lets others come.
async fn step() {
    let mut first = true;
    poll_fn(|cx| {
        if !std::mem::take(&mut first) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn sender(stage: Rc<Stage>) {
    for _ in 0..5 {
        let mut envelope = stage.envelope();
        loop {
            step().await;
            match stage.mailbox.push(envelope, None, Entry::Api, Instant::now()) {
                Ok(_) => {
                    stage.accepted.set(stage.accepted.get() + 1);
                    break;
                }
                Err(PushError::Full(back, room)) => {
                    let line = InLine::new(&stage.mailbox, back.port.clone(), room);
                    step().await;
                    let mut wait = Box::pin(line.wait());
                    envelope = back;
                    if stage.below(6) > 0 {
                        wait.await;
                    } else if futures_util::poll!(&mut wait).is_pending() {
                        // It gives up, told of room meanwhile or not.
                        step().await;
                        break;
                    }
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

async fn receiver(stage: Rc<Stage>) {
    loop {
        if stage.mailbox.take().is_none() {
            stage.mailbox.ready().await;
            continue;
        }
        step().await;
        match stage.below(5) {
            0 => stage.mailbox.release(),
            _ => stage.mailbox.finish(Outcome::Completed),
        }
    }
}

async fn editor(stage: Rc<Stage>) {
    for _ in 0..stage.below(6) {
        for _ in 0..stage.below(20) {
            step().await;
        }
        stage.mailbox.set_bounds(stage.bounds());
    }
}

struct Task {
    awake: Arc<Awake>,
    /// Nothing, when it is done.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Task {
    fn new(future: impl Future<Output = ()> + 'static) -> Self {
        Self { awake: Arc::new(Awake(true.into())), future: Some(Box::pin(future)) }
    }

    fn is_ready(&self) -> bool {
        self.future.is_some() && self.awake.0.load(Ordering::Relaxed)
    }

    fn poll(&mut self) {
        self.awake.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.awake));
        let Some(future) = &mut self.future else { return };
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
    }
}

struct Awake(AtomicBool);

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs one schedule, and gives the numbers of messages taken and of steps.
fn run(seed: u64) -> Result<(u64, usize), String> {
    let stage = Rc::new(Stage {
        mailbox: Mailbox::new(bounds(1)),
        random: RefCell::new(Random(seed)),
        accepted: Cell::default(),
    });
    stage.mailbox.set_join(vec!["in".parse().unwrap()]);
    let mut tasks =
        vec![Task::new(receiver(Rc::clone(&stage))), Task::new(editor(Rc::clone(&stage)))];
    tasks.extend((0..SENDERS).map(|_| Task::new(sender(Rc::clone(&stage)))));
    for steps in 0..ENDLESS {
        let ready: Vec<usize> = (0..tasks.len()).filter(|at| tasks[*at].is_ready()).collect();
        if ready.is_empty() {
            // The first never ends.
            let left = tasks[1..].iter().filter(|task| task.future.is_some()).count();
            let counts = stage.mailbox.counts();
            if left > 0 || !stage.mailbox.is_empty() {
                return Err(format!("{left} wait for ever: {counts:?}"));
            }
            let all = counts.balanced() && counts.completed == stage.accepted.get();
            return if all { Ok((counts.completed, steps)) } else { Err(format!("{counts:?}")) };
        }
        let at = ready[usize::try_from(stage.below(ready.len() as u64)).unwrap()];
        tasks[at].poll();
    }
    Err(format!("no end after {ENDLESS} steps: {:?}", stage.mailbox.counts()))
}

fn bounds(messages: usize) -> Bounds {
    Bounds { messages, bytes: 60, overflow: Overflow::Block, trigger: Trigger::Any }
}

#[test]
fn nobody_is_forgotten_and_nobody_is_kept_awake() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = given("REFLOWD_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let cases = given("REFLOWD_CASES").unwrap_or(CASES);
    let (mut messages, mut steps) = (0, 0);
    for seed in (0..cases).map(|case| first.wrapping_add(case)) {
        match run(seed) {
            Ok((taken, took)) => (messages, steps) = (messages + taken, steps + took),
            Err(why) => panic!("{why}\nREFLOWD_SEED={seed} REFLOWD_CASES=1 repeats this"),
        }
    }
    println!("REFLOWD_SEED={first}: {cases} schedules, {messages} messages, {steps} steps");
}
