//! Modules that are on their way from a URL.
//!
//! A pass never waits for a server. It says which modules it wants and is told
//! of each whether it is here; what is not is fetched beside it, and the end of
//! that is a reason for another pass. A module that has gone live is in the data
//! folder, and nobody is asked for it again.
//!
//! That a download has failed says something of the network or the server and
//! nothing of the module, so it is tried again, for as long as it is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use reflowd_loader::{Loader, ModuleUrl};
use reflowd_runtime::{
    Digest,
    panic::{Boundary, blocking},
};
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::telling::chain;
use crate::{Kept, Sight, Trouble};

/// Pauses before a download is tried again; the last repeats.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// Downloads at a time. Each takes a thread and the memory of a module.
const MAX_AT_ONCE: usize = 8;

/// Of them from one server, so that a slow one leaves places to the others.
const MAX_OF_ONE: usize = 2;

/// How long whoever asks for a pass waits for a download: as long as one from a
/// server nearby takes.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Downloads {
    loader: Loader,
    kept: Arc<Kept>,
    wanted: BTreeMap<Digest, Download>,
    tasks: JoinSet<Option<Ended>>,
    places: Arc<Semaphore>,
    /// The places at each server that was asked.
    servers: BTreeMap<String, Arc<Semaphore>>,
}

/// How an attempt has ended.
struct Ended {
    digest: Digest,
    url: ModuleUrl,
    downloaded: Result<Bytes, String>,
}

/// One module, and how it stands.
struct Download {
    /// Where it may be had.
    urls: Vec<ModuleUrl>,
    state: State,
    /// Attempts that have failed since the last that was asked for.
    failures: usize,
    /// Why the last one has failed, which stays so while the next one runs.
    why: Option<String>,
}

enum State {
    Here(Bytes),
    OnItsWay {
        url: ModuleUrl,
        since: Instant,
        /// Ends it while it waits for a place.
        given_up: CancellationToken,
    },
    /// It is tried again then.
    Failed(Instant),
}

/// Whether a pass may start downloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetching {
    /// What is not here is fetched.
    Allowed,
    /// What is not here stays away: this is a dry run.
    Forbidden,
}

impl Downloads {
    pub(super) fn new(loader: Loader, kept: Arc<Kept>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_AT_ONCE));
        Self {
            loader,
            kept,
            wanted: BTreeMap::new(),
            tasks: JoinSet::new(),
            places,
            servers: BTreeMap::new(),
        }
    }

    /// What can be said of the wanted modules now. Starts to fetch what is not here.
    pub(super) async fn want(
        &mut self,
        wanted: &BTreeMap<Digest, Vec<ModuleUrl>>,
        fetching: Fetching,
    ) -> BTreeMap<Digest, Sight<Digest>> {
        while let Some(ended) = self.tasks.try_join_next() {
            self.take(ended);
        }
        let mut sights = BTreeMap::new();
        for (digest, urls) in wanted {
            self.give_up_others(digest, urls);
            if self.is_due(digest) && !self.find_kept(digest, urls).await {
                match fetching {
                    Fetching::Allowed => self.fetch(*digest, urls),
                    Fetching::Forbidden => {}
                }
            }
            sights.insert(*digest, self.sight(digest));
        }
        sights
    }

    /// The bytes of a module that is here.
    pub(super) fn bytes(&self, digest: &Digest) -> Option<Bytes> {
        match &self.wanted.get(digest)?.state {
            State::Here(bytes) => Some(bytes.clone()),
            State::OnItsWay { .. } | State::Failed(_) => None,
        }
    }

    /// Lets go of what is not wanted any more, downloads that are under way included.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<Digest>) {
        self.wanted.retain(|digest, download| {
            let keep = wanted.contains(digest);
            if let (false, State::OnItsWay { given_up, .. }) = (keep, &download.state) {
                given_up.cancel();
            }
            keep
        });
    }

    /// Somebody has looked after what was wrong: what has failed is tried at once.
    pub(super) fn try_again(&mut self) {
        for download in self.wanted.values_mut() {
            if matches!(download.state, State::Failed(_)) {
                download.state = State::Failed(Instant::now());
                download.failures = 0;
            }
        }
    }

    /// Returns when a download has ended, well or not. Cancel at will.
    pub(super) async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => self.take(ended),
            None => pending().await,
        }
    }

    /// Until when it is worth waiting for what is under way.
    pub(super) fn soon(&self, now: Instant) -> Option<Instant> {
        let since = self.wanted.values().filter_map(|download| match download.state {
            State::OnItsWay { since, .. } => Some(since + PATIENCE),
            State::Here(_) | State::Failed(_) => None,
        });
        since.max().filter(|until| *until > now)
    }

    /// When the next one that has failed is tried again.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let tries = self.wanted.values().filter_map(|download| match download.state {
            State::Failed(again) => Some(again),
            State::Here(_) | State::OnItsWay { .. } => None,
        });
        tries.min()
    }

    /// What is known of other URLs than these says nothing of these.
    fn give_up_others(&mut self, digest: &Digest, urls: &Vec<ModuleUrl>) {
        let Some(download) = self.wanted.get_mut(digest) else { return };
        if download.urls == *urls {
            return;
        }
        download.urls.clone_from(urls);
        match &download.state {
            State::Here(_) => return,
            State::OnItsWay { url, .. } if urls.contains(url) => return,
            State::OnItsWay { given_up, .. } => given_up.cancel(),
            State::Failed(_) => {}
        }
        self.wanted.remove(digest);
    }

    fn is_due(&self, digest: &Digest) -> bool {
        match self.wanted.get(digest).map(|download| &download.state) {
            None => true,
            Some(State::Failed(again)) => *again <= Instant::now(),
            Some(State::Here(_) | State::OnItsWay { .. }) => false,
        }
    }

    /// Whether the data folder has it.
    async fn find_kept(&mut self, digest: &Digest, urls: &[ModuleUrl]) -> bool {
        let (kept, wanted) = (Arc::clone(&self.kept), *digest);
        // Its bytes are held against its digest there.
        let Ok(bytes) = blocking(move || kept.read(&wanted)).await else { return false };
        let (urls, state) = (urls.to_vec(), State::Here(bytes));
        self.wanted.insert(*digest, Download { urls, state, failures: 0, why: None });
        true
    }

    fn fetch(&mut self, digest: Digest, urls: &[ModuleUrl]) {
        let before = self.wanted.remove(&digest);
        let (failures, why) = before.map_or((0, None), |before| (before.failures, before.why));
        // Where several are known, they take turns.
        let Some(url) = urls.get(failures % urls.len().max(1)).cloned() else { return };
        let (loader, places) = (self.loader.clone(), Arc::clone(&self.places));
        let (from, given_up) = (url.clone(), CancellationToken::new());
        let gone = given_up.clone();
        self.servers.retain(|_, places| Arc::strong_count(places) > 1);
        let own = self.servers.entry(url.server());
        let own = Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(MAX_OF_ONE))));
        self.tasks.spawn(async move {
            let place = async { (own.acquire_owned().await, places.acquire_owned().await) };
            let place = tokio::select! {
                place = place => place,
                () = gone.cancelled() => return None,
            };
            // One that is given up goes on in its thread until it ends, and so it keeps its place.
            let attempt = Boundary::Download.hold(loader.download(&url, Some(&digest))).await;
            drop(place);
            let downloaded = match attempt {
                Ok(downloaded) => downloaded.map_err(|error| chain(&error)),
                // An error of this program: it is tried again like any other.
                Err(panic) => Err(panic.to_string()),
            };
            Some(Ended { digest, url, downloaded })
        });
        let state = State::OnItsWay { url: from, since: Instant::now(), given_up };
        self.wanted.insert(digest, Download { urls: urls.to_vec(), state, failures, why });
    }

    /// Takes in how an attempt has ended.
    fn take(&mut self, ended: Result<Option<Ended>, JoinError>) {
        // One that was given up has nothing to say.
        let Ok(Some(Ended { digest, url, downloaded })) = ended else { return };
        let Some(download) = self.wanted.get_mut(&digest) else { return };
        match (&download.state, downloaded) {
            (State::Here(_), _) => {}
            (_, Ok(bytes)) => {
                info!(%url, digest = %digest.short(), bytes = bytes.len(), "module downloaded");
                download.state = State::Here(bytes);
                (download.failures, download.why) = (0, None);
            }
            (State::OnItsWay { url: asked, .. }, Err(_)) if *asked != url => {}
            (_, Err(why)) => {
                download.state = State::Failed(Instant::now() + pause_after(download.failures));
                download.failures += 1;
                download.why = Some(why);
            }
        }
    }

    fn sight(&self, digest: &Digest) -> Sight<Digest> {
        match self.wanted.get(digest) {
            Some(Download { state: State::Here(_), .. }) => Sight::Present(*digest),
            Some(Download { why: Some(why), .. }) => {
                Sight::Unknown(Trouble::NotDownloaded(why.clone()))
            }
            Some(_) | None => Sight::Unsettled,
        }
    }
}

fn pause_after(failures: usize) -> Duration {
    PAUSES[failures.min(PAUSES.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_never_end() {
        let seconds: Vec<_> = (0..7).map(|n| pause_after(n).as_secs()).collect();
        assert_eq!(seconds, [1, 5, 15, 60, 300, 300, 300]);
    }
}
