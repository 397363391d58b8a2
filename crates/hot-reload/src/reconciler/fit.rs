//! Whether a change fits: its wires the ports, and the ports what is queued.
//!
//! Pure: it is told what modules say of themselves and what waits where.

use std::collections::BTreeSet;

use reflowd_runtime::{ActorName, Digest, ERROR_PORT, Metadata, Port, PortName, PortRef, Type};

use super::job::ChangeRefused;
use crate::{ActorSpec, ChangePlan, Holds, Running, WaitSpec, WireSpec};

/// What a change is held against.
pub(super) struct Fit<'a> {
    pub(super) change: &'a ChangePlan,
    /// What runs before it.
    pub(super) running: &'a Running,
    /// What an actor's module says of itself, where it can be had.
    pub(super) metadata: &'a dyn Fn(&ActorSpec, &Digest) -> Option<Metadata>,
    /// The ports that actors wait for without a wire.
    pub(super) waits: &'a [WaitSpec],
    /// What waits for an actor, by inport.
    pub(super) queued: &'a dyn Fn(&ActorName) -> Vec<(PortName, usize)>,
}

impl Fit<'_> {
    /// # Errors
    /// Something does not fit, and what.
    pub(super) fn check(&self) -> Result<(), ChangeRefused> {
        self.check_wires()?;
        self.check_waits()?;
        self.check_queued()
    }

    /// Whether the ports are there that somebody waits for, where this change is about either.
    fn check_waits(&self) -> Result<(), ChangeRefused> {
        let fresh = self.fresh();
        for WaitSpec { actor, port, origin } in self.waits {
            if !fresh.contains(actor) && !fresh.contains(&port.actor) {
                continue;
            }
            // Of one that does not run nothing is known; it is looked at when it starts.
            let Some(metadata) = self.metadata_after(&port.actor) else { continue };
            if port.port.as_str() != ERROR_PORT && metadata.outport(port.port.as_str()).is_none() {
                let why = missing(port, "outport", &metadata.outports);
                let why = format!("{origin}: `{actor}` waits for {port}: {why}");
                return Err(ChangeRefused { why, holds: Holds::Lasts });
            }
        }
        Ok(())
    }

    /// The actors that get a generation by this change.
    fn fresh(&self) -> BTreeSet<&ActorName> {
        let ChangePlan { start, swap, .. } = self.change;
        start.iter().map(|s| &s.actor).chain(swap.iter().map(|s| &s.actor)).collect()
    }

    /// Whether the ports of the new generations fit the wires. Wires between
    /// actors that stay as they are fit already.
    pub(super) fn check_wires(&self) -> Result<(), ChangeRefused> {
        let (connect, fresh) = (&self.change.connect, self.fresh());
        for wire in self.running.wires_after(self.change) {
            let is_new = connect.iter().any(|new| new.from == wire.from && new.to == wire.to);
            if is_new || fresh.contains(&wire.from.actor) || fresh.contains(&wire.to.actor) {
                self.check_wire(&wire).map_err(|why| ChangeRefused {
                    why: format!("{}: {} -> {}: {why}", wire.origin, wire.from, wire.to),
                    holds: Holds::Lasts,
                })?;
            }
        }
        Ok(())
    }

    fn check_wire(&self, wire: &WireSpec) -> Result<(), String> {
        let metadata = |port: &PortRef| {
            self.metadata_after(&port.actor)
                .ok_or_else(|| format!("the actor `{}` does not run", port.actor))
        };
        let (from, to) = (metadata(&wire.from)?, metadata(&wire.to)?);
        let inport = to
            .inport(wire.to.port.as_str())
            .ok_or_else(|| missing(&wire.to, "inport", &to.inports))?;
        let outport = match from.outport(wire.from.port.as_str()) {
            Some(port) => port.port_type,
            None if wire.from.port.as_str() == ERROR_PORT => Type::Error,
            None => return Err(missing(&wire.from, "outport", &from.outports)),
        };
        if outport.can_fit(inport.port_type) {
            Ok(())
        } else {
            Err(format!("a {outport} can never be a {}", inport.port_type))
        }
    }

    /// Whether messages wait for a port that the new generation lacks. Those for a
    /// port whose wire goes with the change are not waited for.
    fn check_queued(&self) -> Result<(), ChangeRefused> {
        for (actor, heir) in self.mailboxes() {
            let Some(metadata) = self.metadata_after(heir) else { continue };
            for (port, count) in (self.queued)(actor) {
                let mut cut = self.change.cut.iter().map(|wire| &wire.to);
                let is_cut = cut.any(|to| to.actor == *actor && to.port == port);
                if metadata.inport(port.as_str()).is_none() && !is_cut {
                    let why = format!(
                        "`{heir}`: {count} messages wait for the inport `{port}` of `{actor}`, which the new module lacks; it is tried again when they are gone"
                    );
                    return Err(ChangeRefused { why, holds: Holds::Passes });
                }
            }
        }
        Ok(())
    }

    /// The actors whose mailbox goes to another generation, with the name that
    /// the generation has: a swap, another name, or the end of a drain.
    fn mailboxes(&self) -> impl Iterator<Item = (&ActorName, &ActorName)> {
        let swaps = self.change.swap.iter().map(|swap| (&swap.actor, &swap.actor));
        let starts = self.change.start.iter().flat_map(|start| {
            let own = start.draining.then_some(&start.actor);
            [own, start.was.as_ref()].into_iter().flatten().map(|actor| (actor, &start.actor))
        });
        swaps.chain(starts)
    }

    /// What an actor's module says of itself once the change is done.
    fn metadata_after(&self, actor: &ActorName) -> Option<Metadata> {
        let starts = self.change.start.iter().map(|s| (&s.actor, &s.digest, &s.spec));
        let swaps = self.change.swap.iter().map(|s| (&s.actor, &s.digest, &s.spec));
        let fresh = starts.chain(swaps).find(|(name, ..)| *name == actor);
        let (digest, spec) = match fresh {
            Some((_, digest, spec)) => (digest, spec),
            None => self.running.actors.get(actor).map(|a| (&a.digest, &a.spec))?,
        };
        (self.metadata)(spec, digest)
    }
}

/// An actor has no such port, and which it has.
fn missing(port: &PortRef, kind: &str, ports: &[Port]) -> String {
    let has: Vec<_> = ports.iter().map(|port| format!("`{}`", port.name)).collect();
    let has = if has.is_empty() { "none".into() } else { has.join(", ") };
    format!("`{}` has no {kind} `{}`; it has {has}", port.actor, port.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GenerationKeys, ModuleRef, RunningActor, Starting, Swapping};
    use reflowd_runtime::{Generation, Settings};

    const OLD: Digest = Digest::new([1; 32]);
    const NEW: Digest = Digest::new([2; 32]);

    fn spec() -> ActorSpec {
        ActorSpec {
            module: ModuleRef::Stem { stem: "module".into(), pin: None },
            keys: GenerationKeys::default(),
            settings: Settings::default(),
            version: None,
            was: None,
            origin: "flow:1".into(),
        }
    }

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().unwrap()
    }

    fn start(actor: &str, was: Option<&str>, draining: bool) -> ChangePlan {
        let start = Starting {
            actor: name(actor),
            spec: spec(),
            digest: NEW,
            autostarted: false,
            was: was.map(name),
            draining,
        };
        ChangePlan { start: vec![start], ..ChangePlan::default() }
    }

    fn swap(actor: &str) -> ChangePlan {
        let swap = Swapping { actor: name(actor), spec: spec(), digest: NEW, autostarted: false };
        ChangePlan { swap: vec![swap], ..ChangePlan::default() }
    }

    fn cutting(mut change: ChangePlan, to: &str) -> ChangePlan {
        let wire =
            WireSpec { from: name("x.out"), to: name(to), overflow: None, origin: "flow:2".into() };
        change.cut.push(wire);
        change
    }

    /// The old module has the inport `in`, the new one `other`; a message waits for `a.in`.
    fn check(change: &ChangePlan) -> Result<(), String> {
        let actor = RunningActor {
            spec: spec(),
            digest: OLD,
            generation: Generation::FIRST,
            autostarted: false,
            draining: false,
        };
        let running = Running { actors: [(name("a"), actor)].into(), wires: Vec::new() };
        let metadata = |_: &ActorSpec, digest: &Digest| {
            let inport = Port {
                name: name(if *digest == NEW { "other" } else { "in" }),
                description: String::new(),
                port_type: Type::Any,
                required: false,
            };
            Some(Metadata {
                component: "module".into(),
                description: String::new(),
                inports: vec![inport],
                outports: Vec::new(),
                config_schema: None,
                version: None,
            })
        };
        let queued = |actor: &ActorName| {
            if actor.as_str() == "a" { vec![(name("in"), 1)] } else { Vec::new() }
        };
        let waits = &[];
        let fit = Fit { change, running: &running, metadata: &metadata, waits, queued: &queued };
        fit.check().map_err(|refused| refused.why)
    }

    #[test]
    fn a_mailbox_goes_to_no_generation_that_lacks_a_port_of_it() {
        for (how, change) in [
            ("swap", swap("a")),
            ("another name", start("b", Some("a"), false)),
            ("the end of a drain", start("a", None, true)),
            ("another wire is cut", cutting(swap("a"), "a.other")),
        ] {
            let why = check(&change).expect_err(how);
            assert!(why.contains("wait for the inport `in` of `a`"), "{how}: {why}");
        }
    }

    #[test]
    fn what_nobody_waits_for_stops_no_change() {
        for (how, change) in [
            ("nothing waits for it", swap("b")),
            ("an actor of its own", start("b", None, false)),
            ("its wire is cut", cutting(swap("a"), "a.in")),
            ("renamed, and its wire is cut", cutting(start("b", Some("a"), false), "a.in")),
        ] {
            assert_eq!(check(&change), Ok(()), "{how}");
        }
    }
}
