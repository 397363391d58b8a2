//! What a tap that nobody reads costs the actor that it is on, in one run: rounds with the tap
//! and without take turns, and the figure is the median of their ratios.
//!
//! The engines cost nothing, so this is the worst that there is: with a guest, the same few
//! nanoseconds stand beside a turn that is many times as long.

#![expect(clippy::print_stdout, reason = "figures are what a benchmark is run for")]

mod rig;

use reflowd_runtime::TapFilter;
use tokio::runtime::Builder;

use rig::Chain;

/// Messages of one round: enough to fill the tap many times over.
const MESSAGES: u64 = 100_000;

/// Pairs of rounds.
const ROUNDS: usize = 21;

/// The share of the throughput that a tap must leave.
const GOAL: f64 = 0.9;

fn main() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut shares = runtime.block_on(async {
        let chain = Chain::new(None).await;
        let actor = chain.system.actor("b").expect("it was started");
        chain.measure(MESSAGES).await;
        let mut shares = Vec::new();
        for round in 0..ROUNDS {
            let mut times = [0.0; 2];
            // Each round begins with the other.
            for way in [round % 2, 1 - round % 2] {
                let tap = (way == 1).then(|| actor.tap(TapFilter::default()).expect("the first"));
                times[way] = chain.measure(MESSAGES).await.as_secs_f64();
                drop(tap);
            }
            let [without, with] = times;
            shares.push(without / with);
        }
        let (skipped, seen) = (actor.meters().tap_skipped.get(), 1024 * ROUNDS as u64);
        assert_eq!(skipped + seen, 2 * MESSAGES * ROUNDS as u64, "each message is kept or counted");
        let books = chain.system.books();
        assert!(books.balanced(), "{books:?}");
        chain.system.kill().await;
        shares
    });
    shares.sort_by(f64::total_cmp);
    let share = shares[ROUNDS / 2];
    println!("with a tap that nobody reads: {shares:.3?} of the throughput without");
    let verdict = if share >= GOAL { "reached" } else { "missed" };
    println!(
        "goal | a tap that nobody reads: share of the throughput | {share:.2} | at least {GOAL:.2} | {verdict}"
    );
}
