//! What can happen to a flow.

use proptest::{prelude::*, sample::select};

use crate::version::Role;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// So many messages come from outside.
    Send {
        sender: u64,
        kind: Kind,
        count: u64,
    },
    /// So many messages come for one inport of the join.
    SendHalf {
        left: bool,
        count: u64,
    },
    /// Other versions take over, together.
    Swap {
        to: Vec<(Role, Wanted)>,
        on_trial: bool,
    },
    /// Keys that need a new engine are edited.
    Edit {
        role: Role,
        memory: u64,
    },
    /// An operator wants a version from before, so many further back than the last.
    RollBack {
        role: Role,
        further: usize,
    },
    /// An actor goes on under another name.
    Rename(Role),
    /// Keys that apply in place.
    Settings {
        role: Role,
        mailbox: usize,
        retries: u32,
    },
    /// An actor that listens in comes or goes, with its wire.
    Listener,
    Pause(Role),
    Resume(Role),
    Retry(Role),
    /// The daemon stops, has that many milliseconds to drain, and starts again.
    Restart {
        drain: u64,
    },
    /// States are written, as every few seconds.
    Round,
    /// The daemon is killed and starts again: what was queued is lost, and states are what
    /// was written last.
    Crash,
    /// Milliseconds pass.
    Wait(u64),
    /// Whoever can do something does so, that often.
    Yield(u32),
}

/// A version to swap in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// How it behaves.
    pub(crate) behaviour: u8,
    /// The form of its state, unless the actor's is a later one already: nobody goes back
    /// to an earlier form but by a rollback.
    pub(crate) form: u8,
}

/// What a message does to who works on it, whatever the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Good,
    /// The first attempt traps.
    Once,
    /// Each attempt traps.
    Poison,
    /// Each attempt runs out of time.
    Hangs,
}

impl Step {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let role = || select(Role::SWAPPED.to_vec());
        let chain = || select(Role::CHAIN.to_vec());
        let kind = prop_oneof![
            12 => Just(Kind::Good),
            3 => Just(Kind::Once),
            1 => Just(Kind::Poison),
            1 => Just(Kind::Hangs),
        ];
        let form = || prop_oneof![5 => Just(0_u8), 1 => Just(1), 1 => Just(2)];
        let version = || (0_u8..9, form()).prop_map(|(behaviour, form)| Wanted { behaviour, form });
        let to = prop_oneof![
            3 => (role(), version()).prop_map(|to| vec![to]),
            1 => (version(), version()).prop_map(|(a, b)| vec![(Role::Work, a), (Role::Back, b)]),
        ];
        prop_oneof![
            20 => (0..3_u64, kind, 1..6_u64)
                .prop_map(|(sender, kind, count)| Self::Send { sender, kind, count }),
            6 => (any::<bool>(), 1..4_u64)
                .prop_map(|(left, count)| Self::SendHalf { left, count }),
            10 => (to, prop::bool::weighted(0.9))
                .prop_map(|(to, on_trial)| Self::Swap { to, on_trial }),
            2 => (role(), 1..3_u64).prop_map(|(role, memory)| Self::Edit { role, memory }),
            3 => (role(), 0..3_usize)
                .prop_map(|(role, further)| Self::RollBack { role, further }),
            3 => chain().prop_map(Self::Rename),
            3 => (role(), 1..7_usize, 0..3_u32)
                .prop_map(|(role, mailbox, retries)| Self::Settings { role, mailbox, retries }),
            2 => Just(Self::Listener),
            2 => role().prop_map(Self::Pause),
            5 => role().prop_map(Self::Resume),
            2 => role().prop_map(Self::Retry),
            2 => (0..200_u64).prop_map(|drain| Self::Restart { drain }),
            4 => Just(Self::Round),
            1 => Just(Self::Crash),
            10 => (1..2_000_u64).prop_map(Self::Wait),
            10 => (1..20_u32).prop_map(Self::Yield),
        ]
    }
}
