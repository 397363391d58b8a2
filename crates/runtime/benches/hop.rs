//! What the runtime adds to a turn: two actors and a sink whose engines cost
//! nothing, fed from a full mailbox.
//!
//! One iteration is one message through all three, which is three turns and two
//! wires. Only the way is measured: the first actor is paused while its mailbox
//! is filled, and the clock runs from its release to the sink's last turn. The
//! clock is the processor's and counts all threads, so that whatever else the
//! machine does is not in the figures.

mod rig;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reflowd_runtime::{Span, SpanSink, TraceFlags};
use tokio::runtime::{Builder, Runtime};

use rig::Chain;

/// Turns that one message leads to.
const TURNS: u64 = 3;

/// Takes the spans of a share of all traces, of which it throws each away: what is
/// measured is what a turn pays.
struct Share {
    percent: u128,
    taken: AtomicU64,
}

impl SpanSink for Share {
    fn samples(&self, trace: u128, _: Option<TraceFlags>) -> bool {
        trace % 100 < self.percent
    }

    fn take(&self, span: Span) {
        drop(span);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }
}

fn bench(criterion: &mut Criterion, name: &str, runtime: &Runtime, percent: Option<u128>) {
    let mut group = criterion.benchmark_group("hop");
    group.throughput(Throughput::Elements(TURNS));
    let share = percent.map(|percent| Share { percent, taken: AtomicU64::new(0) });
    let spans = share.map(|share| Arc::new(share) as Arc<dyn SpanSink>);
    let chain = runtime.block_on(Chain::new(spans));
    group.bench_function(name, |b| {
        b.iter_custom(|messages| runtime.block_on(chain.measure(messages)));
    });
    group.finish();
    let books = chain.system.books();
    assert!(books.balanced(), "{books:?}");
    runtime.block_on(chain.system.kill());
}

fn hops(criterion: &mut Criterion) {
    let one = Builder::new_current_thread().enable_all().build().expect("a runtime");
    bench(criterion, "one-thread", &one, None);
    bench(criterion, "one-thread, 1 % of traces collected", &one, Some(1));
    bench(criterion, "one-thread, all traces collected", &one, Some(100));
    let two = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    bench(criterion, "two-workers", &two.expect("a runtime"), None);
}

criterion_group!(benches, hops);
criterion_main!(benches);
