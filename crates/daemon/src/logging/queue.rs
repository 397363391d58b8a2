//! The bounded queue between the log and its output, and the thread that writes.
//!
//! A reader of standard error, or the journal, may stop reading, and then a write blocks. Only this
//! file's thread ever blocks: loggers add a line, or drop it if the queue is full. Dropped lines
//! are counted, and reported once there is room.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use reflowd_runtime::panic::Boundary;

/// Bytes of lines that may wait. The line that exceeds it is still added whole.
const ROOM: usize = 1 << 20;

/// Bytes more for the last lines of the process.
const LAST_ROOM: usize = 64 << 10;

/// How long a blocked reader may delay the process, if its pipe does not block by itself.
const PAUSE: Duration = Duration::from_millis(10);

/// Lines that this process has left out.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines of the log dropped since the process started.
pub(crate) fn lost_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Counts lines that were queued and still lost.
pub(super) fn lose(lines: u64) {
    LOST.fetch_add(lines, Ordering::Relaxed);
}

/// The queue. Clones share it.
#[derive(Clone)]
pub(super) struct Queue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Something was written.
    written: Condvar,
}

#[derive(Default)]
struct State {
    /// Whole lines, one after the other.
    lines: Vec<u8>,
    /// Set while lines are written that have left the queue.
    writing: bool,
    /// Dropped lines that have not been reported.
    untold: u64,
    /// Set once the process is ending.
    ending: bool,
}

impl Queue {
    /// Starts the thread that writes to `out`; `tell` makes the line that reports dropped ones.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let (filled, written) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state: Mutex::default(), filled, written });
        let queue = Self(Arc::clone(&shared));
        thread::Builder::new().name("log".into()).spawn(move || write(&shared, out, tell))?;
        Ok(queue)
    }

    /// Adds a line with its end, if there is room.
    pub(super) fn add(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        let room = if state.ending { ROOM + LAST_ROOM } else { ROOM };
        if state.lines.len() < room {
            state.lines.extend_from_slice(line);
            self.0.filled.notify_one();
        } else {
            state.untold += 1;
            lose(1);
        }
    }

    /// Reserves room for the last lines of the process.
    pub(super) fn end(&self) {
        self.0.state.lock().ending = true;
    }

    /// Waits until everything is written, for at most that long.
    pub(super) fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.0.state.lock();
        while state.writing || !state.lines.is_empty() {
            if self.0.written.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

/// Each write of the log's layer is one line.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines for ever. After a panic the lines in hand are lost and the next ones follow.
fn write(shared: &Shared, mut out: impl Write, tell: impl Fn(u64)) {
    Boundary::Log.keep_thread(|| write_on(shared, &mut out, &tell));
}

fn write_on(shared: &Shared, out: &mut impl Write, tell: &impl Fn(u64)) {
    let mut lines = Vec::new();
    loop {
        let untold = {
            let mut state = shared.state.lock();
            state.writing = false;
            shared.written.notify_all();
            while state.lines.is_empty() {
                shared.filled.wait(&mut state);
            }
            mem::swap(&mut lines, &mut state.lines);
            state.writing = true;
            mem::take(&mut state.untold)
        };
        // This adds a line, for which there is room again: it stands where the others are missing.
        if untold > 0 {
            tell(untold);
        }
        write_all(out, &lines);
        Boundary::Log.works();
        lines.clear();
        lines.shrink_to(ROOM);
    }
}

/// Writes lines, unless the reader is gone.
fn write_all(out: &mut impl Write, mut lines: &[u8]) {
    while !lines.is_empty() {
        match out.write(lines) {
            Ok(written @ 1..) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process has made the descriptor nonblocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::park_timeout(PAUSE),
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// As long as anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Somebody who reads a piece when he is asked to, and says what it was.
    struct Reader {
        may: Receiver<()>,
        read: SyncSender<String>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().map_err(io::Error::other)?;
            self.read
                .send(String::from_utf8_lossy(bytes).into_owned())
                .map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue to a reader: with `ask` it reads once, and `read` is what.
    fn rig() -> (Queue, SyncSender<()>, Receiver<String>) {
        let ((ask, may), (read, was_read)) = (sync_channel(16), sync_channel(16));
        let told: Arc<Mutex<Option<Queue>>> = Arc::default();
        let teller = Arc::clone(&told);
        let tell = move |lines| {
            let line = format!("{lines} left out\n");
            teller.lock().as_ref().expect("the queue runs").add(line.as_bytes());
        };
        let queue = Queue::start(Reader { may, read }, tell).unwrap();
        *told.lock() = Some(queue.clone());
        (queue, ask, was_read)
    }

    /// Has the thread wait for the reader with one line, and fills all the room.
    fn fill(queue: &Queue) -> usize {
        queue.add(b"first\n");
        let until = Instant::now() + PATIENCE;
        while !queue.0.state.lock().lines.is_empty() {
            assert!(Instant::now() < until, "nobody takes the first line");
            thread::yield_now();
        }
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<_>>();
        let lines = ROOM / line.len();
        (0..lines).for_each(|_| queue.add(&line));
        lines
    }

    #[test]
    fn what_nobody_reads_is_left_out_counted_and_told_when_there_is_room() {
        let (queue, ask, read) = rig();
        let lines = fill(&queue);
        let before = lost_lines();
        (0..3).for_each(|_| queue.add(b"over\n"));
        assert!(lost_lines() >= before + 3, "other tests may lose some too");
        ask.send(()).unwrap();
        assert_eq!(read.recv_timeout(PATIENCE).unwrap(), "first\n");
        ask.send(()).unwrap();
        assert_eq!(read.recv_timeout(PATIENCE).unwrap().lines().count(), lines);
        ask.send(()).unwrap();
        assert_eq!(read.recv_timeout(PATIENCE).unwrap(), "3 left out\n");
        queue.add(b"next\n");
        ask.send(()).unwrap();
        assert_eq!(read.recv_timeout(PATIENCE).unwrap(), "next\n", "it is told once");
    }

    #[test]
    fn there_is_room_for_the_last_lines_and_they_are_waited_for() {
        let (queue, ask, read) = rig();
        fill(&queue);
        queue.add(b"over\n");
        queue.end();
        queue.add(b"last\n");
        (0..3).for_each(|_| ask.send(()).unwrap());
        queue.flush(PATIENCE);
        let all: String = read.try_iter().collect();
        assert!(all.starts_with("first\n") && all.contains("\nlast\n"), "it is there by now");
        assert!(all.ends_with("\n1 left out\n"));
    }

    #[test]
    fn a_reader_that_never_comes_holds_nobody_up_for_longer_than_that() {
        let (queue, _ask, _read) = rig();
        fill(&queue);
        let began = Instant::now();
        queue.flush(Duration::from_millis(20));
        assert!(began.elapsed() < PATIENCE);
    }

    #[test]
    fn a_write_that_would_wait_is_tried_again_and_one_that_fails_is_not() {
        struct Odd(u32, Vec<u8>);
        impl Write for Odd {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::WouldBlock.into()),
                    2 => Err(io::ErrorKind::Interrupted.into()),
                    3 | 4 => {
                        self.1.push(bytes[0]);
                        Ok(1)
                    }
                    _ => Err(io::ErrorKind::BrokenPipe.into()),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut odd = Odd(0, Vec::new());
        write_all(&mut odd, b"abc");
        assert_eq!((odd.0, odd.1), (5, b"ab".to_vec()));
    }
}
