//! The bodies of requests while they arrive.
//!
//! A body that is still arriving belongs to no queue yet and counts against none of their limits,
//! and many callers can be sending one at once. So all of them share an allowance: the first bytes
//! of each are free, so that small bodies always get through, and the rest takes its share until
//! the message is queued.

use std::{error::Error, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use reflowd_runtime::panic::{Boundary, Panic};
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};

use crate::coding::Coding;

/// Bytes of all bodies together, beyond the free ones.
const ALLOWANCE: usize = 128 << 20;

/// Bytes of each body that are free.
const FREE: usize = 64 << 10;

/// The unit in which the allowance is taken and given back.
const GRAIN: usize = 64 << 10;

/// How long a caller may take for a body.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bodies decompressed at once: each decoder needs up to 16 MiB besides its output.
const UNPACKING: usize = 4;

/// The allowance of a daemon. Clones share it.
#[derive(Clone)]
pub(crate) struct Receipts {
    bytes: Arc<Semaphore>,
    unpacking: Arc<Semaphore>,
}

/// One body's share. Dropping it gives it back.
pub(crate) struct Receipt {
    of: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

/// More bytes are arriving than there is room for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("too many large bodies are being received; send it again later")]
pub(crate) struct Crowded;

/// A body was not received.
#[derive(Debug, Error)]
pub(crate) enum ReceiveError {
    /// It is over the caller's limit.
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
    /// It did not come in time.
    #[error("it did not come within {BODY_TIMEOUT:?}")]
    TooSlow,
    /// There was no room for it.
    #[error(transparent)]
    Crowded(#[from] Crowded),
    /// The connection or the body is broken.
    #[error("it is broken")]
    Broken(#[source] Box<dyn Error + Send + Sync>),
    /// The daemon broke over it.
    #[error(transparent)]
    Broke(#[from] Panic),
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl Default for Receipts {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(ALLOWANCE / GRAIN)),
            unpacking: Arc::new(Semaphore::new(UNPACKING)),
        }
    }
}

impl Receipts {
    /// A body of which nothing has arrived yet.
    pub(crate) fn begin(&self) -> Receipt {
        Receipt { of: Arc::clone(&self.bytes), held: None }
    }

    /// All of a body, and its share of the allowance, to be held until it is queued.
    ///
    /// # Errors
    /// It cannot be received.
    pub(crate) async fn read<B>(
        &self,
        body: B,
        limit: usize,
    ) -> Result<(Bytes, Receipt), ReceiveError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let reading = self.read_on(body, limit);
        time::timeout(BODY_TIMEOUT, reading).await.map_err(|_| ReceiveError::TooSlow)?
    }

    /// Reads a body and decompresses it. Both its sizes are within the limit.
    ///
    /// # Errors
    /// The reason why it cannot be received.
    pub(crate) async fn read_packed<B>(
        &self,
        body: B,
        coding: Coding,
        limit: usize,
    ) -> Result<(Bytes, Receipt), ReceiveError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (packed, of_packed) = self.read(body, limit).await?;
        if coding == Coding::Plain {
            return Ok((packed, of_packed));
        }
        // A slow sender must not occupy a decoder, so all of the body is read first.
        let turn = Arc::clone(&self.unpacking).acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        let mut receipt = self.begin();
        let unpacking = Boundary::Unpack.aside(move || {
            let mut all = BytesMut::new();
            coding.unpack(&packed, |piece| {
                let length = all.len() + piece.len();
                if length > limit {
                    return Err(ReceiveError::TooLarge(limit));
                }
                receipt.grow_to(length)?;
                all.extend_from_slice(piece);
                Ok(())
            })?;
            drop((turn, of_packed));
            Ok((all.freeze(), receipt))
        });
        unpacking.await?
    }

    async fn read_on<B>(&self, mut body: B, limit: usize) -> Result<(Bytes, Receipt), ReceiveError>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (mut receipt, mut all) = (self.begin(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ReceiveError::Broken(error.into()))?;
            let Ok(piece) = frame.into_data() else { continue };
            let length = all.len() + piece.len();
            if length > limit {
                return Err(ReceiveError::TooLarge(limit));
            }
            receipt.grow_to(length)?;
            // Copied, even where it is all: a piece shares what was read from the connection with
            // what came before it, and a message that waits would keep that alive.
            all.extend_from_slice(&piece);
        }
        Ok((all.freeze(), receipt))
    }
}

impl Receipt {
    /// Makes room for so many bytes of the body. One that is larger than the whole
    /// allowance is received alone.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Crowded> {
        let wanted = bytes.saturating_sub(FREE).div_ceil(GRAIN).min(ALLOWANCE / GRAIN);
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more =
            u32::try_from(wanted.saturating_sub(held)).expect("an allowance is not so large");
        if more == 0 {
            return Ok(());
        }
        let more = Arc::clone(&self.of).try_acquire_many_owned(more).map_err(|_| Crowded)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }

    /// What has come is in a queue, and the next begins.
    pub(crate) fn release(&mut self) {
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use http_body_util::Full;

    use super::*;

    fn body(bytes: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b' '; bytes]))
    }

    #[tokio::test]
    async fn small_bodies_get_through_whatever_else_comes_in() {
        let receipts = Receipts::default();
        let (_, whole) = receipts.read(body(ALLOWANCE + FREE), usize::MAX).await.unwrap();
        let refused = receipts.read(body(FREE + 1), usize::MAX).await;
        assert!(matches!(refused, Err(ReceiveError::Crowded(_))));
        receipts.read(body(FREE), usize::MAX).await.unwrap();
        drop(whole);
        receipts.read(body(FREE + 1), usize::MAX).await.unwrap();
        assert_eq!(receipts.bytes.available_permits(), ALLOWANCE / GRAIN);
    }

    #[tokio::test]
    async fn a_body_over_the_whole_allowance_is_received_alone() {
        let receipts = Receipts::default();
        let (_, other) = receipts.read(body(FREE + 1), usize::MAX).await.unwrap();
        let huge = || receipts.read(body(2 * ALLOWANCE), usize::MAX);
        assert!(matches!(huge().await, Err(ReceiveError::Crowded(_))));
        drop(other);
        huge().await.unwrap();
    }

    #[tokio::test]
    async fn a_small_body_keeps_nothing_alive_that_was_read_with_it() {
        let read = Bytes::from(vec![b' '; 1 << 20]);
        let body = Full::new(read.slice(..8));
        let (bytes, _receipt) = Receipts::default().read(body, usize::MAX).await.unwrap();
        assert_eq!(bytes.len(), 8);
        assert!(!read.as_ptr_range().contains(&bytes.as_ptr()));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused() {
        let receipts = Receipts::default();
        let refused = receipts.read(body(11), 10).await;
        assert!(matches!(refused, Err(ReceiveError::TooLarge(10))));
    }

    #[tokio::test]
    async fn a_packed_body_has_its_bound_and_its_share_by_what_comes_out() {
        let packed = |length: usize| {
            let mut packed = GzEncoder::new(Vec::new(), Compression::best());
            packed.write_all(&vec![b' '; length]).unwrap();
            Full::new(Bytes::from(packed.finish().unwrap()))
        };
        let receipts = Receipts::default();
        let free = || receipts.bytes.available_permits();
        let read = |length, limit| receipts.read_packed(packed(length), Coding::Gzip, limit);
        let (bytes, receipt) = read(1 << 20, 1 << 20).await.unwrap();
        assert_eq!((bytes.len(), free()), (1 << 20, (ALLOWANCE + FREE - (1 << 20)) / GRAIN));
        drop(receipt);
        let refused = read((1 << 20) + 1, 1 << 20).await;
        assert!(matches!(refused, Err(ReceiveError::TooLarge(n)) if n == 1 << 20));
        let (_, _whole) = receipts.read(body(ALLOWANCE + FREE), usize::MAX).await.unwrap();
        assert!(matches!(read(1 << 20, 1 << 20).await, Err(ReceiveError::Crowded(_))));
        assert!(read(FREE, FREE).await.is_ok());
        let plain = receipts.read_packed(body(8), Coding::Gzip, 8).await;
        assert!(matches!(plain, Err(ReceiveError::Broken(_))));
        assert_eq!(receipts.unpacking.available_permits(), UNPACKING);
    }
}
