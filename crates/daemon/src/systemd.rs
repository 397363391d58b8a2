//! Tells the service manager how the daemon is.
//!
//! The manager says where it listens in `$NOTIFY_SOCKET`. Without it, and
//! whenever it does not listen, the daemon runs all the same: nothing here fails.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tracing::debug;

/// How long a service manager that does not read may hold up the daemon.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the service manager listens, if it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier {
    socket: Option<OsString>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// A notifier for the socket that the environment names, if it does.
    pub(crate) fn from_env() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        Self { watchdog, ..Self::to(std::env::var_os("NOTIFY_SOCKET")) }
    }

    /// A notifier for a socket: a path, or `@` and an abstract name.
    pub(crate) fn to(socket: Option<OsString>) -> Self {
        Self { socket: socket.filter(|socket| !socket.is_empty()), watchdog: None }
    }

    /// How often the service manager wants to hear that the daemon is alive, if it does.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.socket.is_some())
    }

    /// The daemon is alive.
    pub(crate) fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// The daemon starts or reloads, and says more or is done `within` that time.
    pub(crate) fn working(&self, status: &str, within: Duration) {
        let micros = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        self.send(&[
            NotifyState::Status(&one_line(status)),
            NotifyState::ExtendTimeoutUsec(micros),
        ]);
    }

    /// The daemon serves.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// The daemon reads its configuration again; [`ready`](Self::ready) ends it.
    pub(crate) fn reloading(&self) {
        // Without the time, systemd 253 and later take the reload for hung.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => debug!(%error, "no monotonic clock to tell the service manager of"),
        }
    }

    /// The daemon stops, and takes up to `within` for it.
    pub(crate) fn stopping(&self, within: Duration) {
        let micros = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// One line for `systemctl status`, such as `14 actors, 2 failed, config in sync`.
    pub(crate) fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let mut datagram = String::new();
        for state in states {
            writeln!(datagram, "{state}").expect("a string takes everything");
        }
        if let Err(error) = send_to(socket, datagram.as_bytes()) {
            debug!(%error, ?socket, "the service manager was not told");
        }
    }
}

/// A status must not be able to say anything but itself.
fn one_line(status: &str) -> String {
    status.replace(char::is_control, " ")
}

fn send_to(socket: &OsStr, datagram: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(PATIENCE))?;
    sender.send_to_addr(datagram, &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A service manager that only listens.
    struct Manager {
        socket: UnixDatagram,
        _folder: tempfile::TempDir,
    }

    impl Manager {
        fn start() -> (Self, Notifier) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            (Self { socket, _folder: folder }, Notifier::to(Some(path.into())))
        }

        fn heard(&self) -> String {
            let mut datagram = [0; 1024];
            let length = self.socket.recv(&mut datagram).unwrap();
            String::from_utf8(datagram[..length].to_vec()).unwrap()
        }
    }

    #[test]
    fn the_service_manager_hears_each_step() {
        let (manager, notifier) = Manager::start();
        notifier.ready("14 actors");
        assert_eq!(manager.heard(), "READY=1\nSTATUS=14 actors\n");
        notifier.status("13 actors, 1 failed");
        assert_eq!(manager.heard(), "STATUS=13 actors, 1 failed\n");
        notifier.stopping(Duration::from_secs(10));
        assert_eq!(manager.heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000\n");
    }

    #[test]
    fn a_reload_carries_the_time() {
        let (manager, notifier) = Manager::start();
        notifier.reloading();
        let heard = manager.heard();
        let time = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(time.trim_end().parse::<u64>().unwrap() > 0, "{heard}");
    }

    #[test]
    fn a_status_cannot_say_anything_else() {
        let (manager, notifier) = Manager::start();
        notifier.status("fine\nSTOPPING=1");
        assert_eq!(manager.heard(), "STATUS=fine STOPPING=1\n");
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("reflowd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::to(Some(format!("@{name}").into())).status("x");
        let mut datagram = [0; 64];
        let length = socket.recv(&mut datagram).unwrap();
        assert_eq!(&datagram[..length], b"STATUS=x\n");
    }

    #[test]
    fn nobody_needs_to_listen() {
        Notifier::to(None).ready("x");
        Notifier::to(Some("".into())).ready("x");
        Notifier::to(Some(Path::new("/nonexistent/notify").into())).ready("x");
    }
}
