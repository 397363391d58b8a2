//! Says on a terminal what is waited for, once it takes longer than a second.

use std::{
    io::{self, IsTerminal as _, Write},
    pin::pin,
    time::Duration,
};

use tokio::time::{self, Instant};

/// How long something may take before anything is said, and between two words about it.
const WORTH_A_WORD: Duration = Duration::from_secs(1);

/// Waits for `work`, and says so to whoever sits at a terminal.
pub(super) async fn watched<T>(what: &str, work: impl Future<Output = T>) -> T {
    let stderr = io::stderr();
    let terminal = stderr.is_terminal();
    told(terminal.then_some(stderr), what, work).await
}

async fn told<T>(out: Option<impl Write>, what: &str, work: impl Future<Output = T>) -> T {
    let Some(mut out) = out else { return work.await };
    let mut work = pin!(work);
    let began = Instant::now();
    let mut ticks = time::interval_at(began + WORTH_A_WORD, WORTH_A_WORD);
    // With nobody there to read it, there is nothing else to do about it.
    let mut say = |text: &str| _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let mut said = false;
    loop {
        tokio::select! {
            biased;
            done = &mut work => {
                if said {
                    say("\r\x1b[K");
                }
                return done;
            }
            _ = ticks.tick() => {
                say(&format!("\r{what} … {}s\x1b[K", began.elapsed().as_secs()));
                said = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(seconds: f32) -> String {
        let mut out = Vec::new();
        told(Some(&mut out), "compiling", time::sleep(Duration::from_secs_f32(seconds))).await;
        String::from_utf8(out).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_said_and_taken_back() {
        assert_eq!(said(0.9).await, "");
        assert_eq!(said(2.5).await, "\rcompiling … 1s\x1b[K\rcompiling … 2s\x1b[K\r\x1b[K");
    }
}
