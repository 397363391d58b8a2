//! Memory that the host holds on behalf of one actor, and its limit.
//!
//! The engine bounds a guest's own memory. What the host keeps at a guest's request is counted here
//! before it is allocated: blocks, variables, the state and its changes in a turn, outputs, and
//! answers of servers. So no host function needs a limit of its own, and none can forget it.

use reflowd_runtime::HostMemoryMeter;
use thiserror::Error;

/// Bytes that the host holds for one actor, and their limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    limit: u64,
    held: u64,
    /// The most that was held in this call.
    most: u64,
    /// How often this call was refused more.
    refused: u64,
}

/// The host would exceed its limit for the actor.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the host would hold {wanted} bytes for the actor, and `host_memory` allows {limit}; raise it, or keep less"
)]
pub(crate) struct OverHostMemory {
    wanted: u64,
    limit: u64,
}

impl Account {
    /// An account that holds nothing yet.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, held: 0, most: 0, refused: 0 }
    }

    /// Begins a call of the guest under that limit. Of the bytes held before, only `lasting`
    /// remain.
    pub(crate) fn begin(&mut self, limit: u64, lasting: u64) {
        *self = Self { limit, held: lasting, most: lasting, refused: 0 };
    }

    /// Reserves bytes. To be called before they are allocated.
    ///
    /// # Errors
    /// They would exceed the limit; they are not counted.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), OverHostMemory> {
        let wanted = self.held.saturating_add(bytes);
        if wanted > self.limit {
            self.refused += 1;
            return Err(OverHostMemory { wanted, limit: self.limit });
        }
        self.held = wanted;
        self.most = self.most.max(wanted);
        Ok(())
    }

    /// Whether so many bytes more could be held. Asking is no refusal.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.held.saturating_add(bytes) <= self.limit
    }

    /// Tells the actor's meter of the call that has ended.
    pub(crate) fn tell(&self, meter: Option<&HostMemoryMeter>) {
        if let Some(meter) = meter {
            meter.note(self.most, self.refused);
        }
    }

    /// Gives back bytes that are freed.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.held = self.held.saturating_sub(bytes);
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_goes_to_its_limit_and_no_further() {
        let mut account = Account::new(100);
        assert_eq!(account.take(60), Ok(()));
        assert_eq!(account.take(41), Err(OverHostMemory { wanted: 101, limit: 100 }));
        assert_eq!((account.take(40), account.held()), (Ok(()), 100));
        account.give_back(10);
        assert!(account.take(10).is_ok() && account.take(1).is_err());
        assert!(account.take(u64::MAX).is_err() && account.held() == 100);
        account.begin(50, 50);
        assert!(account.take(0).is_ok() && account.take(1).is_err());
    }

    #[test]
    fn a_meter_is_told_of_the_most_that_a_call_held_and_of_what_it_was_refused() {
        let (meter, mut account) = (HostMemoryMeter::default(), Account::new(0));
        let mut call = |taken: u64, refusals: u64| {
            account.begin(100, 10);
            account.take(taken).unwrap();
            account.give_back(taken);
            account.take(0).unwrap();
            assert!(account.has_room(90) && !account.has_room(91));
            (0..refusals).for_each(|_| assert!(account.take(91).is_err()));
            account.tell(Some(&meter));
            (meter.most(), meter.refused())
        };
        assert_eq!(call(0, 0), (10, 0));
        assert_eq!(call(70, 2), (80, 2));
        assert_eq!(call(30, 1), (80, 3));
    }
}
