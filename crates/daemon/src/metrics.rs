//! The daemon's figures in Prometheus' text format, read when they are asked for.
//!
//! Whatever can be seen is read from where it is: nothing is counted here. So
//! the books in the metrics are the books, and they balance in every scrape.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use reflowd_runtime::{
    Actor, ActorState, Counts, Entry, Histogram, Ledger, Loss, Meters, System, WireCounts,
    panic::PartHealth,
};

use crate::{admin::Reload, logging::lost_lines, process};

/// What the text is, for the header.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Stands for all actors that are gone, so that sums over actors do not fall.
/// No actor can have this name.
const GONE: &str = "(gone)";

/// All metrics as they are now.
pub(crate) fn text(system: &System, disk: &dyn Reload) -> String {
    let view = disk.view();
    let ledger = system.ledger();
    let mut page = Page::default();
    deliveries(&mut page, &ledger);
    wires(&mut page, &ledger);
    actors(&mut page, &ledger);
    dead_letters(&mut page, system, &ledger);
    let mut family = page.counter("reflowd_modules_refused_total", "Modules refused by reason");
    for (reason, n) in disk.refusals() {
        family.sample(&[("reason", &reason)], n);
    }
    let total = ledger.total();
    page.gauge("reflowd_books_balanced", "1 while nothing is lost or doubled")
        .sample(&[], u64::from(total.deliveries.balanced() && total.wires.balanced()));
    if let Some(spans) = system.spans() {
        let name = "reflowd_spans_total";
        let mut family = page.counter(name, "Spans of turns and requests by outcome");
        for (fate, n) in spans.counts() {
            family.sample(&[("fate", fate)], n);
        }
    }
    let budget = system.budget();
    page.gauge("reflowd_queued_bytes", "Bytes that all queues hold, counted in grains of 16 KiB")
        .sample(&[], budget.used());
    page.gauge("reflowd_memory_budget_bytes", "Bytes that all queues may hold")
        .sample(&[], budget.limit());
    let in_sync = disk.config_in_force()
        && view.values().all(|actor| actor.in_sync && actor.pending.is_none());
    page.gauge("reflowd_config_in_sync", "1 while what disk asks for is what runs")
        .sample(&[], u64::from(in_sync));
    let health = PartHealth::all();
    let mut family = page.counter("reflowd_panics_total", "Panics caught, by the part that broke");
    for part in &health {
        family.sample(&[("part", part.boundary.name())], part.panics);
    }
    let mut family = page.gauge("reflowd_part_broken", "1 while a part of the daemon is broken");
    for part in &health {
        family.sample(&[("part", part.boundary.name())], u64::from(part.trouble.is_some()));
    }
    page.counter(
        "reflowd_log_lines_lost_total",
        "Lines of the log that were dropped because nothing read them",
    )
    .sample(&[], lost_lines());
    reloads(&mut page, disk);
    page.gauge("reflowd_build_info", "The daemon's version")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    of_process(&mut page);
    page.text
}

/// How the looks at disk have ended, under the names that Prometheus has for its own.
fn reloads(page: &mut Page, disk: &dyn Reload) {
    let Some(passes) = disk.passes() else { return };
    let name = "reflowd_config_last_reload_successful";
    page.gauge(name, "1 if the last look at disk has refused and held back nothing")
        .sample(&[], u64::from(passes.last_success == Some(passes.last)));
    let name = "reflowd_config_last_reload_timestamp_seconds";
    page.gauge(name, "When disk was last looked at").sample(&[], unix_seconds(passes.last));
    if let Some(at) = passes.last_success {
        let name = "reflowd_config_last_reload_success_timestamp_seconds";
        let help = "When disk was last looked at and nothing was refused or held back";
        page.gauge(name, help).sample(&[], unix_seconds(at));
    }
}

/// The process as the system sees it, under the names that all of Prometheus' clients use. What
/// the system does not tell is left out.
fn of_process(page: &mut Page) {
    if let Some(figures) = process::Figures::read() {
        let name = "process_cpu_seconds_total";
        let help = "Total user and system CPU time spent in seconds";
        page.counter(name, help).sample(&[], figures.cpu_seconds);
        page.gauge("process_resident_memory_bytes", "Resident memory size in bytes")
            .sample(&[], figures.resident);
        page.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes")
            .sample(&[], figures.virtual_memory);
        page.gauge("process_threads", "Number of OS threads in the process")
            .sample(&[], figures.threads);
    }
    if let Some(open) = process::open_files() {
        page.gauge("process_open_fds", "Number of open file descriptors").sample(&[], open);
    }
    if let Some(most) = process::max_files() {
        page.gauge("process_max_fds", "Maximum number of open file descriptors").sample(&[], most);
    }
    if let Some(started) = process::started() {
        let name = "process_start_time_seconds";
        page.gauge(name, "Start time of the process since unix epoch in seconds")
            .sample(&[], started);
    }
    if let Some(uptime) = process::uptime() {
        page.gauge("reflowd_uptime_seconds", "How long the process has run")
            .sample(&[], uptime.as_secs_f64());
    }
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn dead_letters(page: &mut Page, system: &System, ledger: &Ledger) {
    let live: BTreeSet<&str> = ledger.actors.iter().map(|(a, _)| a.name().as_str()).collect();
    let totals = system.dead_letters().totals();
    let mut letters: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (actor, reason, n) in &totals {
        let actor = live.get(actor.as_str()).copied().unwrap_or(GONE);
        *letters.entry((actor, reason)).or_default() += n;
    }
    let mut family = page.counter("reflowd_dead_letters_total", "Dead letters by reason");
    for ((actor, reason), n) in letters {
        family.sample(&[("actor", actor), ("reason", reason)], n);
    }
    let lost = system.dead_letters().lost();
    let name = "reflowd_dead_letters_lost_total";
    let mut family = page.counter(name, "Dead letters that were lost");
    for loss in Loss::ALL {
        family.sample(&[("reason", loss.name())], lost.of(loss).letters);
    }
    let stock = system.dead_letters().stock();
    let mut family = page.gauge("reflowd_dead_letters_kept", "Dead letters that can be replayed");
    family.sample(&[("in", "memory")], stock.in_memory);
    family.sample(&[("in", "disk")], stock.on_disk);
    page.gauge("reflowd_dead_letters_bytes", "Bytes of dead letters on disk")
        .sample(&[], stock.bytes);
}

/// `accepted = completed + dead_lettered + dropped + in_flight + queued + saved`.
fn deliveries(page: &mut Page, ledger: &Ledger) {
    let of_actors = ledger.actors.iter().map(|(actor, counts)| (actor.name().as_str(), *counts));
    let all: Vec<(&str, Counts)> = of_actors.chain([(GONE, ledger.gone.deliveries)]).collect();

    let name = "reflowd_messages_accepted_total";
    let mut family = page.counter(name, "Deliveries that mailboxes took, by the way they came");
    for (actor, counts) in &all {
        for (entry, n) in Entry::ALL.into_iter().zip(counts.accepted) {
            family.sample(&[("actor", actor), ("by", entry.name())], n);
        }
    }
    let each = |family: &mut Family<'_>, labels: &[(&str, &str)], value: fn(&Counts) -> u64| {
        for (actor, counts) in &all {
            let labels: Vec<_> = [("actor", *actor)].iter().chain(labels).copied().collect();
            family.sample(&labels, value(counts));
        }
    };
    let name = "reflowd_messages_completed_total";
    each(&mut page.counter(name, "Deliveries whose turn succeeded"), &[], |c| c.completed);
    let name = "reflowd_messages_dead_lettered_total";
    each(&mut page.counter(name, "Deliveries that became dead letters"), &[], |c| c.dead_lettered);
    let name = "reflowd_messages_dropped_total";
    let labels = [("reason", "overflow")];
    each(&mut page.counter(name, "Deliveries that newer ones pushed out"), &labels, |c| c.dropped);
    let name = "reflowd_messages_saved_total";
    each(&mut page.counter(name, "Deliveries that a stop saved"), &[], |c| c.saved);
    let name = "reflowd_messages_in_flight";
    each(&mut page.gauge(name, "Deliveries in hand or in retry"), &[], |c| c.in_flight);
    let name = "reflowd_messages_queued";
    each(&mut page.gauge(name, "Deliveries that wait"), &[], |c| c.queued);
    let name = "reflowd_mailbox_messages";
    let help = "Messages in a mailbox, in hand or waiting";
    each(&mut page.gauge(name, help), &[], |c| c.in_flight + c.queued);
    let name = "reflowd_mailbox_bytes";
    each(&mut page.gauge(name, "Bytes of messages in a mailbox"), &[], |c| c.bytes);
}

/// `emitted = accepted + refused + saved + in outboxes`.
fn wires(page: &mut Page, ledger: &Ledger) {
    let of_wires = ledger
        .wires
        .iter()
        .map(|(wire, counts)| (wire.from().to_string(), wire.to().to_string(), *counts));
    let gone = (GONE.to_owned(), GONE.to_owned(), ledger.gone.wires);
    let all: Vec<(String, String, WireCounts)> = of_wires.chain([gone]).collect();
    let each = |family: &mut Family<'_>, reason: Option<&str>, value: fn(&WireCounts) -> u64| {
        for (from, to, counts) in &all {
            let mut labels = vec![("from", from.as_str()), ("to", to.as_str())];
            labels.extend(reason.map(|reason| ("reason", reason)));
            family.sample(&labels, value(counts));
        }
    };
    let name = "reflowd_wire_emitted_total";
    each(&mut page.counter(name, "Messages that turns put on a wire"), None, |c| c.emitted);
    let name = "reflowd_wire_messages_total";
    each(&mut page.counter(name, "Messages that a wire delivered"), None, |c| c.accepted);
    let mut family =
        page.counter("reflowd_wire_refused_total", "Messages the far end did not take");
    each(&mut family, Some("overflow"), |c| c.refused_overflow);
    each(&mut family, Some("max-hops"), |c| c.refused_hops);
    each(&mut family, Some("no-target"), |c| c.refused_gone);
    let name = "reflowd_wire_saved_total";
    each(&mut page.counter(name, "Messages on a wire that a stop saved"), None, |c| c.saved);
    let name = "reflowd_wire_outbox_messages";
    each(&mut page.gauge(name, "Messages that wait on a wire"), None, |c| c.pending);
}

fn actors(page: &mut Page, ledger: &Ledger) {
    let all: Vec<&Actor> = ledger.actors.iter().map(|(actor, _)| &**actor).collect();
    let metered = all.iter().map(|actor| (actor.name().as_str(), actor.meters()));
    let metered: Vec<(&str, &Meters)> = metered.chain([(GONE, &ledger.gone_meters)]).collect();
    counts(page, &metered);
    stances(page, &all);
    durations(page, &metered);
}

/// What the actors have done so far.
fn counts(page: &mut Page, metered: &[(&str, &Meters)]) {
    let mut family = page.counter("reflowd_turns_total", "Turns by how they ended");
    for (name, meters) in metered {
        for (outcome, counter) in [
            ("ok", &meters.turns_ok),
            ("trap", &meters.turns_trap),
            ("timeout", &meters.turns_timeout),
            ("turn-error", &meters.turns_error),
            ("guest-error", &meters.turns_guest_error),
            ("unavailable", &meters.turns_unavailable),
            ("refused", &meters.turns_refused),
        ] {
            family.sample(&[("actor", name), ("outcome", outcome)], counter.get());
        }
    }
    let each = |family: &mut Family<'_>, labels: &[(&str, &str)], value: fn(&Meters) -> u64| {
        for (name, meters) in metered {
            let labels: Vec<_> = [("actor", *name)].iter().chain(labels).copied().collect();
            family.sample(&labels, value(meters));
        }
    };
    let name = "reflowd_messages_unrouted_total";
    let help = "Messages that left by a port without a wire";
    each(&mut page.counter(name, help), &[], |meters| meters.unrouted.get());
    let name = "reflowd_unreadable_total";
    let help = "Lines of a source that are not valid messages";
    each(&mut page.counter(name, help), &[], |meters| meters.unreadable.get());
    let mut family = page.counter("reflowd_swaps_total", "Swaps of an actor's engine");
    let forward = |meters: &Meters| meters.swaps.get().saturating_sub(meters.rollbacks.get());
    each(&mut family, &[("outcome", "swapped")], forward);
    each(&mut family, &[("outcome", "rolled-back")], |meters| meters.rollbacks.get());
    let name = "reflowd_restarts_total";
    let help = "Engines replaced by others of the same generation";
    each(&mut page.counter(name, help), &[], |meters| meters.restarts.get());
    let name = "reflowd_trials_passed_total";
    let help = "Generations that passed their trial";
    each(&mut page.counter(name, help), &[], |meters| meters.trials_passed.get());
    let name = "reflowd_opinions_total";
    let help = "Messages that the judge of a generation on trial was asked about";
    each(&mut page.counter(name, help), &[], |meters| meters.opinions.get());
    let name = "reflowd_rollbacks_total";
    let help = "Swaps that put a former generation back";
    each(&mut page.counter(name, help), &[], |meters| meters.rollbacks.get());
    let name = "reflowd_tap_skipped_total";
    let help = "Messages that did not fit a tap whose reader was slow";
    each(&mut page.counter(name, help), &[], |meters| meters.tap_skipped.get());
    let name = "reflowd_host_memory_refused_total";
    let help = "Times that `host_memory` left no room for what a turn asked for";
    each(&mut page.counter(name, help), &[], |meters| meters.host_memory.refused());
    let name = "reflowd_blocked_seconds_total";
    let mut family = page.counter(name, "Time that an actor waited for full mailboxes");
    for (name, meters) in metered {
        let seconds = Duration::from_millis(meters.blocked_millis.get());
        family.sample(&[("actor", name)], seconds.as_secs_f64());
    }
}

/// The present state of the actors.
fn stances(page: &mut Page, all: &[&Actor]) {
    let mut family = page.gauge("reflowd_generation", "The generation that an actor runs");
    for actor in all {
        let generation = actor.status().generation.number();
        family.sample(&[("actor", actor.name().as_str())], generation);
    }
    let help = "Memory that an engine held after its last turn";
    let mut family = page.gauge("reflowd_engine_memory_bytes", help);
    for actor in all {
        family.sample(&[("actor", actor.name().as_str())], actor.memory_bytes());
    }
    let help = "The most that counted against an actor's `host_memory` in one turn";
    let mut family = page.gauge("reflowd_host_memory_bytes", help);
    for actor in all {
        let most = actor.meters().host_memory.most();
        family.sample(&[("actor", actor.name().as_str())], most);
    }
    let runs = |actor: &&&Actor| {
        !actor.is_source()
            && !matches!(actor.status().state, ActorState::Failed | ActorState::Stopped)
    };
    let live = all.iter().filter(runs).count();
    page.gauge("reflowd_engines_live", "Actors that have an engine").sample(&[], live);
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    for actor in all {
        *states.entry(actor.status().state.name()).or_default() += 1;
    }
    let mut family = page.gauge("reflowd_actors", "Actors by state");
    for (state, n) in states {
        family.sample(&[("state", state)], n);
    }
}

fn durations(page: &mut Page, metered: &[(&str, &Meters)]) {
    type Read = fn(&Meters) -> &Histogram;
    let histograms: [(&str, &str, Read); 3] = [
        ("reflowd_turn_seconds", "Wall clock of a turn", |meters| &meters.turn_seconds),
        ("reflowd_mailbox_wait_seconds", "Time from a message's arrival to its turn", |meters| {
            &meters.wait_seconds
        }),
        ("reflowd_swap_pause_seconds", "Pause that a swap put on waiting messages", |meters| {
            &meters.swap_pause_seconds
        }),
    ];
    for (name, help, read) in histograms {
        let mut family = page.family(name, help, "histogram");
        for (name, meters) in metered {
            family.histogram(name, read(meters));
        }
    }
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: String,
}

/// One metric, whose samples follow its head.
struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Page {
    fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, help, "counter")
    }

    fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, help, "gauge")
    }

    fn family<'a>(&'a mut self, name: &'a str, help: &str, kind: &str) -> Family<'a> {
        let text = &mut self.text;
        put(text, format_args!("# HELP {name} {help}.\n# TYPE {name} {kind}\n"));
        Family { text, name }
    }
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.line("", labels, value);
    }

    fn histogram(&mut self, actor: &str, histogram: &Histogram) {
        let mut sum = 0;
        for (bound, n) in histogram.buckets() {
            sum += n;
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".into() };
            self.line("_bucket", &[("actor", actor), ("le", &bound)], sum);
        }
        self.line("_sum", &[("actor", actor)], histogram.sum());
        // Not counted anew: a turn that ends meanwhile would make it exceed the buckets.
        self.line("_count", &[("actor", actor)], sum);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        put(self.text, format_args!("{}{suffix}", self.name));
        for (at, (label, text)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            put(self.text, format_args!("{before}{label}=\"{}\"", escaped(text)));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        put(self.text, format_args!("{after} {value}\n"));
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("writing to a string cannot fail");
}

/// A label's value with what the format gives a meaning escaped.
fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return text.into();
    }
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_forge_a_sample() {
        let mut page = Page::default();
        page.gauge("x", "X").sample(&[("a", "b\"} 1\ny{c=\"\\")], 2);
        let expected = "# HELP x X.\n# TYPE x gauge\nx{a=\"b\\\"} 1\\ny{c=\\\"\\\\\"} 2\n";
        assert_eq!(page.text, expected);
    }
}
