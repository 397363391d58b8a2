use super::*;
use crate::Message;

fn bounds(messages: usize, overflow: Overflow) -> Bounds {
    Bounds { messages, bytes: 1 << 20, overflow, trigger: Trigger::Any }
}

fn joining(messages: usize, ports: &[&str]) -> Mailbox {
    let mailbox =
        Mailbox::new(Bounds { trigger: Trigger::All, ..bounds(messages, Overflow::Block) });
    mailbox.set_join(ports.iter().map(|port| port.parse().unwrap()).collect());
    mailbox
}

fn envelope(port: &str, n: u32) -> Envelope {
    let message = Message::new(crate::Type::Integer, n.to_string()).unwrap();
    Envelope::entering(port.parse().unwrap(), message, None)
}

#[expect(clippy::result_large_err, reason = "the error is the message, handed back")]
fn push(mailbox: &Mailbox, port: &str, n: u32) -> Result<Pushed, PushError> {
    mailbox.push(envelope(port, n), None, Entry::Api, Instant::now())
}

/// What is in hand next, as `port=data`.
fn take(mailbox: &Mailbox) -> Option<Vec<String>> {
    let text = |(port, message): &(PortName, Message)| {
        format!("{port}={}", std::str::from_utf8(message.data()).unwrap())
    };
    mailbox.take().map(|taken| taken.payload.iter().map(text).collect())
}

#[track_caller]
fn balanced(mailbox: &Mailbox) {
    let counts = mailbox.counts();
    assert!(counts.balanced(), "{counts:?}");
}

#[test]
fn what_is_in_hand_stays_until_it_is_finished() {
    let mailbox = Mailbox::new(bounds(8, Overflow::Block));
    push(&mailbox, "in", 1).unwrap();
    push(&mailbox, "in", 2).unwrap();
    assert_eq!(take(&mailbox).unwrap(), ["in=1"]);
    assert_eq!(take(&mailbox).unwrap(), ["in=1"]);
    assert_eq!(mailbox.counts().in_flight, 1);
    balanced(&mailbox);
    mailbox.release();
    assert_eq!(mailbox.counts().in_flight, 0);
    assert_eq!(take(&mailbox).unwrap(), ["in=1"]);
    mailbox.finish(Outcome::Completed);
    assert_eq!(take(&mailbox).unwrap(), ["in=2"]);
    mailbox.finish(Outcome::DeadLettered);
    assert_eq!(take(&mailbox), None);
    let counts = mailbox.counts();
    assert_eq!((counts.completed, counts.dead_lettered, counts.queued), (1, 1, 0));
    balanced(&mailbox);
}

#[test]
fn full_hands_the_message_back() {
    let mailbox = Mailbox::new(bounds(2, Overflow::Block));
    push(&mailbox, "in", 1).unwrap();
    push(&mailbox, "in", 2).unwrap();
    assert!(
        matches!(push(&mailbox, "in", 3), Err(PushError::Full(e, _)) if e.message.data() == "3")
    );
    balanced(&mailbox);
}

#[test]
fn bytes_bound_the_mailbox_but_one_large_message_is_taken_alone() {
    let mailbox = Mailbox::new(Bounds { bytes: 10, ..bounds(8, Overflow::Block) });
    push(&mailbox, "in", 1).unwrap();
    assert!(matches!(push(&mailbox, "in", 2), Err(PushError::Full(..))));
    balanced(&mailbox);
}

#[test]
fn the_oldest_that_is_not_in_hand_is_dropped() {
    let mailbox = Mailbox::new(bounds(2, Overflow::DropOldest));
    push(&mailbox, "in", 1).unwrap();
    take(&mailbox);
    push(&mailbox, "in", 2).unwrap();
    let pushed = push(&mailbox, "in", 3).unwrap();
    assert_eq!(pushed.dropped.unwrap().message.data(), "2");
    assert_eq!(take(&mailbox).unwrap(), ["in=1"]);
    mailbox.finish(Outcome::Completed);
    assert_eq!(take(&mailbox).unwrap(), ["in=3"]);
    assert_eq!(mailbox.counts().dropped, 1);
    balanced(&mailbox);
}

#[test]
fn the_newest_is_dropped_where_it_is_asked_for() {
    let mailbox = Mailbox::new(bounds(1, Overflow::DropNewest));
    push(&mailbox, "in", 1).unwrap();
    assert!(matches!(push(&mailbox, "in", 2), Err(PushError::Dropped(_))));
    // A wire's own way wins over the actor's.
    let full = mailbox.push(envelope("in", 3), Some(Overflow::Block), Entry::Wire, Instant::now());
    assert!(matches!(full, Err(PushError::Full(..))));
    balanced(&mailbox);
}

#[test]
fn a_join_waits_for_every_required_port_and_takes_the_optional_along() {
    let mailbox = joining(8, &["b", "a"]);
    push(&mailbox, "a", 1).unwrap();
    push(&mailbox, "x", 9).unwrap();
    assert_eq!(take(&mailbox), None);
    push(&mailbox, "b", 2).unwrap();
    push(&mailbox, "b", 3).unwrap();
    // The first required port comes first: it gives the correlation.
    assert_eq!(take(&mailbox).unwrap(), ["b=2", "a=1", "x=9"]);
    // An optional message that comes while a join is in hand is not part of it.
    push(&mailbox, "x", 10).unwrap();
    assert_eq!(take(&mailbox).unwrap(), ["b=2", "a=1", "x=9"]);
    mailbox.finish(Outcome::Completed);
    assert_eq!(mailbox.counts().completed, 3);
    assert_eq!(take(&mailbox), None);
    push(&mailbox, "a", 4).unwrap();
    assert_eq!(take(&mailbox).unwrap(), ["b=3", "a=4", "x=10"]);
    balanced(&mailbox);
}

#[test]
fn the_bounds_of_a_join_hold_for_each_port() {
    let mailbox = joining(1, &["a", "b"]);
    push(&mailbox, "a", 1).unwrap();
    assert!(matches!(push(&mailbox, "a", 2), Err(PushError::Full(..))));
    assert_eq!(mailbox.stalled(), Some(("a".parse().unwrap(), "b".parse().unwrap())));
    push(&mailbox, "b", 3).unwrap();
    assert_eq!(take(&mailbox).unwrap(), ["a=1", "b=3"]);
    balanced(&mailbox);
}

#[test]
fn another_trigger_keeps_every_message_in_order() {
    let mailbox = joining(8, &["a", "b"]);
    for (port, n) in [("a", 1), ("a", 2), ("c", 3), ("a", 4)] {
        push(&mailbox, port, n).unwrap();
    }
    mailbox.set_bounds(bounds(8, Overflow::Block));
    for expected in ["a=1", "a=2", "c=3", "a=4"] {
        assert_eq!(take(&mailbox).unwrap(), [expected]);
        mailbox.finish(Outcome::Completed);
    }
    push(&mailbox, "b", 5).unwrap();
    mailbox.set_bounds(Bounds { trigger: Trigger::All, ..bounds(8, Overflow::Block) });
    assert_eq!(take(&mailbox), None);
    push(&mailbox, "a", 6).unwrap();
    assert_eq!(take(&mailbox).unwrap(), ["a=6", "b=5"]);
    balanced(&mailbox);
}

#[test]
fn expelled_messages_are_dead_letters_and_the_one_in_hand_stays() {
    let mailbox = Mailbox::new(bounds(8, Overflow::Block));
    for (port, n) in [("a", 1), ("b", 2), ("a", 3)] {
        push(&mailbox, port, n).unwrap();
    }
    take(&mailbox);
    let gone = mailbox.expel(Some(&"a".parse().unwrap()));
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].message.data(), "3");
    assert_eq!(mailbox.expel(None).len(), 1);
    assert_eq!(mailbox.counts().in_flight, 1);
    balanced(&mailbox);
}

#[test]
fn a_closed_mailbox_hands_messages_back() {
    let mailbox = Mailbox::new(bounds(8, Overflow::Block));
    mailbox.close();
    assert!(matches!(push(&mailbox, "a", 1), Err(PushError::Closed(_))));
    mailbox.reopen();
    push(&mailbox, "a", 1).unwrap();
    balanced(&mailbox);
}

#[tokio::test]
async fn every_sender_that_waits_gets_its_room() {
    let mailbox = Arc::new(Mailbox::new(bounds(1, Overflow::Block)));
    push(&mailbox, "in", 0).unwrap();
    let mut senders = tokio::task::JoinSet::new();
    for n in 1..=20 {
        let mailbox = Arc::clone(&mailbox);
        senders.spawn(async move {
            while let Err(PushError::Full(envelope, room)) = push(&mailbox, "in", n) {
                InLine::new(&mailbox, envelope.port, room).wait().await;
            }
        });
    }
    for _ in 0..=20 {
        while mailbox.take().is_none() {
            mailbox.ready().await;
        }
        mailbox.finish(Outcome::Completed);
        tokio::task::yield_now().await;
    }
    senders.join_all().await;
    assert_eq!(mailbox.counts().completed, 21);
    balanced(&mailbox);
}

#[tokio::test]
async fn senders_that_find_no_room_do_not_keep_each_other_awake() {
    // Room for two messages by their bytes, and none for more.
    let few = 2 * envelope("in", 0).message.encoded_len();
    let mailbox = Mailbox::new(Bounds { bytes: few as u64, ..bounds(8, Overflow::Block) });
    let long = || {
        let text = format!("\"{}\"", "x".repeat(few));
        let message = Message::new(crate::Type::String, text).unwrap();
        Envelope::entering("in".parse().unwrap(), message, None)
    };
    for n in 0..2 {
        push(&mailbox, "in", n).unwrap();
    }
    let tries = std::cell::Cell::new(0);
    let sender = async || {
        let mut envelope = long();
        while let Err(PushError::Full(back, room)) =
            mailbox.push(envelope, None, Entry::Api, Instant::now())
        {
            tries.set(tries.get() + 1);
            InLine::new(&mailbox, back.port.clone(), room).wait().await;
            envelope = back;
        }
    };
    let mut both = Box::pin(futures_util::future::join(sender(), sender()));
    let mut some_time = async || {
        for _ in 0..100 {
            assert!(futures_util::poll!(&mut both).is_pending());
        }
    };
    some_time().await;
    take(&mailbox).unwrap();
    mailbox.finish(Outcome::Completed);
    some_time().await;
    assert!(tries.get() <= 4, "{} tries", tries.get());
}

#[tokio::test(start_paused = true)]
async fn senders_that_wait_while_the_trigger_changes_get_their_room() {
    let mailbox = Arc::new(Mailbox::new(bounds(1, Overflow::Block)));
    push(&mailbox, "in", 0).unwrap();
    let mut senders = tokio::task::JoinSet::new();
    for n in 0..3 {
        let mailbox = Arc::clone(&mailbox);
        senders.spawn(async move {
            for n in [n, n + 10] {
                while let Err(PushError::Full(envelope, room)) = push(&mailbox, "in", n) {
                    InLine::new(&mailbox, envelope.port, room).wait().await;
                }
            }
        });
    }
    tokio::task::yield_now().await;
    mailbox.set_join(vec!["in".parse().unwrap()]);
    mailbox.set_bounds(Bounds { trigger: Trigger::All, ..bounds(1, Overflow::Block) });
    let all = async {
        for _ in 0..7 {
            while mailbox.take().is_none() {
                mailbox.ready().await;
            }
            mailbox.finish(Outcome::Completed);
            // So that those who were told try one after the other.
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), all)
        .await
        .expect("one waits for ever");
    senders.join_all().await;
    balanced(&mailbox);
}

#[test]
fn half_a_join_is_put_back_before_what_came_since() {
    let old = joining(8, &["a", "b"]);
    push(&old, "a", 1).unwrap();
    push(&old, "a", 2).unwrap();
    assert_eq!(take(&old), None);
    assert!(!old.can_take());
    let contents = old.seal();
    old.saved();
    assert_eq!((old.counts().saved, old.counts().queued, old.counts().bytes), (2, 0, 0));
    balanced(&old);

    let new = joining(1, &["a", "b"]);
    push(&new, "a", 3).unwrap();
    new.restore(contents, Instant::now());
    assert_eq!(new.counts().accepted[Entry::Restore as usize], 2);
    for (n, pair) in [["a=1", "b=10"], ["a=2", "b=11"], ["a=3", "b=12"]].into_iter().enumerate() {
        assert_eq!(take(&new), None);
        push(&new, "b", 10 + u32::try_from(n).unwrap()).unwrap();
        assert_eq!(take(&new).unwrap(), pair);
        new.finish(Outcome::Completed);
    }
    balanced(&new);
}

#[test]
fn contents_are_in_the_order_of_their_arrival_with_what_is_in_hand_first() {
    let mailbox = Mailbox::new(bounds(8, Overflow::Block));
    for n in 1..=3 {
        push(&mailbox, "in", n).unwrap();
    }
    take(&mailbox).unwrap();
    let numbers: Vec<_> = mailbox.seal().iter().map(|e| e.message.data().clone()).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
}
