//! How many requests a second.
//!
//! Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

/// Lets so many through a second, and a second's worth at once.
pub(super) struct Bucket {
    rate: f64,
    /// What there is at the moment that was last asked about.
    tokens: f64,
    asked: Option<Instant>,
}

impl Bucket {
    /// A full bucket of `rate` a second, which must be above zero.
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, tokens: rate.max(1.0), asked: None }
    }

    /// Takes one, or tells how long it takes until there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let since = self.asked.map_or(Duration::ZERO, |asked| now.duration_since(asked));
        self.asked = Some(now);
        self.tokens = (self.tokens + since.as_secs_f64() * self.rate).min(self.rate.max(1.0));
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rate: f64, asked: &[u64], taken: &[bool]) {
        let zero = Instant::now();
        let mut bucket = Bucket::new(rate);
        let take = |at: &u64| bucket.take(zero + Duration::from_millis(*at)).is_ok();
        assert_eq!(asked.iter().map(take).collect::<Vec<_>>(), taken);
    }

    #[test]
    fn a_second_lets_no_more_through_than_its_rate() {
        check(2.0, &[0, 0, 0, 499, 500, 500], &[true, true, false, false, true, false]);
        check(2.0, &[0, 10_000, 10_000, 10_000], &[true, true, true, false]);
        check(0.5, &[0, 0, 1_999, 2_000], &[true, false, false, true]);
    }

    #[test]
    fn it_tells_when_to_come_again() {
        let (zero, mut bucket) = (Instant::now(), Bucket::new(0.5));
        bucket.take(zero).unwrap();
        assert_eq!(bucket.take(zero), Err(Duration::from_secs(2)));
    }
}
