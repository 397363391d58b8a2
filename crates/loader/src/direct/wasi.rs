//! WASI preview 1, for guests that have nothing of a system but a clock and a voice.
//!
//! There are three streams and no file, no socket, no argument and no environment.
//! What is written to stdout and stderr becomes lines for the host; stdin has
//! ended. Everything that a guest passes is taken for hostile: addresses are held
//! against its memory as it is now, counts against bounds before anything is made
//! of them, and whatever may take long looks at the deadline and lets others
//! compute meanwhile. An address outside of the memory, or one that is not aligned
//! as the standard asks, ends the guest; all other nonsense gets an error number.

use std::{
    mem,
    ops::Range,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use thiserror::Error;
use wasmtime::{Caller, Error, Extern, FuncType, Linker, Result, Trap, Val, ValType};

use crate::signature::{WASI, host_function};

/// The longest line, in bytes. The rest of it is left out, and a mark says so.
const LINE: usize = 8 << 10;

/// Bytes that one call writes; the guest is told how many it were and goes on by
/// itself. In a thousandth of a second no more than some thousand lines are made of it.
const WRITE: usize = 64 << 10;

/// Buffers of one call that are looked at, as on other systems.
const BUFFERS: usize = 1024;

/// Subscriptions of one `poll_oneoff`. There are three streams and two clocks.
const SUBSCRIPTIONS: u32 = 1024;

/// Random bytes that are made in one go: about a tick's worth of work.
const RANDOM: usize = 256 << 10;

/// What a store's data does for the functions of this file.
pub(crate) trait WasiHost: Send + 'static {
    /// The streams and clocks of this guest.
    fn wasi(&mut self) -> &mut Wasi;

    /// A whole line that the guest wrote to stdout or stderr.
    fn line(&mut self, stream: Stream, text: &[u8]);

    /// When the call that goes on must have ended.
    fn deadline(&self) -> Instant;

    /// Something to await while the guest waits and does not compute.
    fn waiting(&mut self, until: Instant) -> BoxFuture<'static, ()>;
}

/// Where a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The guest has called `proc_exit`. With 0, what it was called for is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("exited with code {0}")]
pub(crate) struct Exit(pub(crate) u32);

/// Why a guest is ended that calls WASI.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum WasiError {
    #[error("it gave WASI {length} bytes at {at}, which are not all in its memory")]
    OutOfBounds { at: u32, length: u64 },
    #[error("it gave WASI the address {at}, which is no multiple of {align}")]
    Misaligned { at: u32, align: u32 },
    #[error("it calls WASI and has no memory; export it as `memory`")]
    NoMemory,
    #[error("it raised signal {0}")]
    Raised(u32),
}

/// The streams of one guest, and the time that its clock counts from.
pub(crate) struct Wasi {
    origin: Instant,
    closed: [bool; 3],
    /// Lines without an end, of stdout and of stderr.
    partial: [Vec<u8>; 2],
}

impl Wasi {
    /// Three open streams, and a clock that begins now.
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), closed: [false; 3], partial: [Vec::new(), Vec::new()] }
    }

    /// Gives the host what was written without an end of line. For the end of a turn.
    pub(crate) fn flush(guest: &mut impl WasiHost) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !guest.wasi().partial(stream).is_empty() {
                put(guest, stream, b"\n");
            }
        }
    }

    fn partial(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.partial[0],
            Stream::Stderr => &mut self.partial[1],
        }
    }

    fn descriptor(&self, fd: u32) -> Result<Descriptor, Errno> {
        let descriptor = match fd {
            0 => Descriptor::Stdin,
            1 => Descriptor::Out(Stream::Stdout),
            2 => Descriptor::Out(Stream::Stderr),
            _ => return Err(Errno::Badf),
        };
        let closed = self.closed.get(fd as usize).copied().unwrap_or(true);
        if closed { Err(Errno::Badf) } else { Ok(descriptor) }
    }
}

/// An open descriptor.
#[derive(Clone, Copy)]
enum Descriptor {
    Stdin,
    Out(Stream),
}

/// Error numbers of the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errno {
    Badf = 8,
    Inval = 28,
    Io = 29,
    Notdir = 54,
    Notsock = 57,
    Notsup = 58,
    Overflow = 61,
    Spipe = 70,
}

/// Why a function does not succeed.
#[derive(Debug)]
enum Refusal {
    /// The guest is told.
    Told(Errno),
    /// The guest ends.
    Ended(Error),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Told(errno)
    }
}

impl From<WasiError> for Refusal {
    fn from(error: WasiError) -> Self {
        Self::Ended(error.into())
    }
}

fn answer(result: Result<(), Refusal>) -> Result<u32> {
    match result {
        Ok(()) => Ok(0),
        Err(Refusal::Told(errno)) => Ok(errno as u32),
        Err(Refusal::Ended(error)) => Err(error),
    }
}

/// Functions that serve files, directories and sockets only: where the descriptor
/// stands among the arguments, and what those hear that pass one of the streams.
/// Any other descriptor is a bad one.
const WITHOUT_FILES: &[(&str, usize, Errno)] = &[
    ("fd_advise", 0, Errno::Badf),
    ("fd_allocate", 0, Errno::Badf),
    ("fd_fdstat_set_flags", 0, Errno::Badf),
    ("fd_fdstat_set_rights", 0, Errno::Notsup),
    ("fd_filestat_set_size", 0, Errno::Badf),
    ("fd_filestat_set_times", 0, Errno::Badf),
    ("fd_pread", 0, Errno::Spipe),
    ("fd_prestat_dir_name", 0, Errno::Notdir),
    ("fd_prestat_get", 0, Errno::Badf),
    ("fd_pwrite", 0, Errno::Spipe),
    ("fd_readdir", 0, Errno::Notdir),
    ("fd_renumber", 0, Errno::Notsup),
    ("fd_seek", 0, Errno::Spipe),
    ("fd_tell", 0, Errno::Spipe),
    ("path_create_directory", 0, Errno::Notdir),
    ("path_filestat_get", 0, Errno::Notdir),
    ("path_filestat_set_times", 0, Errno::Notdir),
    ("path_link", 0, Errno::Notdir),
    ("path_open", 0, Errno::Notdir),
    ("path_readlink", 0, Errno::Notdir),
    ("path_remove_directory", 0, Errno::Notdir),
    ("path_rename", 0, Errno::Notdir),
    ("path_symlink", 2, Errno::Notdir),
    ("path_unlink_file", 0, Errno::Notdir),
    ("sock_accept", 0, Errno::Notsock),
    ("sock_recv", 0, Errno::Notsock),
    ("sock_send", 0, Errno::Notsock),
    ("sock_shutdown", 0, Errno::Notsock),
];

/// Puts every function of WASI preview 1 on `linker`.
///
/// # Errors
/// A name is there already.
pub(crate) fn link<T: WasiHost>(linker: &mut Linker<T>) -> Result<()> {
    link_absent(linker)?;
    link_streams(linker)?;
    link_time(linker)?;
    link_process(linker)
}

fn link_absent<T: WasiHost>(linker: &mut Linker<T>) -> Result<()> {
    for &(name, at, errno) in WITHOUT_FILES {
        let signature = host_function(WASI, name).expect("the host's table has all of WASI");
        let params = signature.params().iter().map(|ty| match ty {
            wasmparser::ValType::I64 => ValType::I64,
            _ => ValType::I32,
        });
        let ty = FuncType::new(linker.engine(), params, [ValType::I32]);
        linker.func_new(WASI, name, ty, move |mut caller, args, results| {
            let fd = args.get(at).and_then(Val::i32).unwrap_or(-1).cast_unsigned();
            let known = caller.data_mut().wasi().descriptor(fd);
            let errno = known.map_or_else(|errno| errno, |_| errno);
            if let Some(result) = results.first_mut() {
                *result = Val::I32(errno as i32);
            }
            Ok(())
        })?;
    }
    for name in ["args_get", "environ_get"] {
        // Nothing is written, so nothing is looked at.
        linker.func_wrap(WASI, name, |_list: u32, _text: u32| 0_u32)?;
    }
    for name in ["args_sizes_get", "environ_sizes_get"] {
        linker.func_wrap(WASI, name, |mut caller: Caller<'_, T>, count: u32, bytes: u32| {
            let (mut view, _) = view(&mut caller)?;
            view.put(count, 4, &0_u32.to_le_bytes())?;
            view.put(bytes, 4, &0_u32.to_le_bytes())?;
            Ok::<_, Error>(0_u32)
        })?;
    }
    Ok(())
}

fn link_streams<T: WasiHost>(linker: &mut Linker<T>) -> Result<()> {
    linker.func_wrap(WASI, "fd_close", |mut caller: Caller<'_, T>, fd: u32| {
        let wasi = caller.data_mut().wasi();
        answer(wasi.descriptor(fd).map_err(Refusal::from).map(|_| wasi.closed[fd as usize] = true))
    })?;
    for name in ["fd_sync", "fd_datasync"] {
        linker.func_wrap(WASI, name, |mut caller: Caller<'_, T>, fd: u32| {
            answer(caller.data_mut().wasi().descriptor(fd).map(drop).map_err(Refusal::from))
        })?;
    }
    linker.func_wrap(WASI, "fd_fdstat_get", |mut caller: Caller<'_, T>, fd: u32, at: u32| {
        answer(fdstat(&mut caller, fd, at))
    })?;
    linker.func_wrap(WASI, "fd_filestat_get", |mut caller: Caller<'_, T>, fd: u32, at: u32| {
        answer(filestat(&mut caller, fd, at))
    })?;
    linker.func_wrap(
        WASI,
        "fd_read",
        |mut caller: Caller<'_, T>, fd: u32, _list: u32, _count: u32, read: u32| {
            answer(read_end(&mut caller, fd, read))
        },
    )?;
    linker.func_wrap(
        WASI,
        "fd_write",
        |mut caller: Caller<'_, T>, fd: u32, list: u32, count: u32, written: u32| {
            answer(write(&mut caller, fd, list, count, written))
        },
    )?;
    Ok(())
}

fn link_time<T: WasiHost>(linker: &mut Linker<T>) -> Result<()> {
    linker.func_wrap(WASI, "clock_res_get", |mut caller: Caller<'_, T>, id: u32, at: u32| {
        answer(clock(id).map_err(Refusal::from).and_then(|_| {
            view(&mut caller)?.0.put(at, 8, &1_u64.to_le_bytes()).map_err(Refusal::from)
        }))
    })?;
    linker.func_wrap(
        WASI,
        "clock_time_get",
        |mut caller: Caller<'_, T>, id: u32, _precision: u64, at: u32| {
            answer(clock_time(&mut caller, id, at))
        },
    )?;
    linker.func_wrap_async(
        WASI,
        "poll_oneoff",
        |mut caller: Caller<'_, T>, (list, events, count, ready): (u32, u32, u32, u32)| {
            Box::new(async move { answer(poll(&mut caller, list, events, count, ready).await) })
        },
    )?;
    linker.func_wrap_async(WASI, "sched_yield", |mut caller: Caller<'_, T>, (): ()| {
        let others = caller.data_mut().waiting(Instant::now());
        Box::new(async move {
            others.await;
            0_u32
        })
    })?;
    Ok(())
}

fn link_process<T: WasiHost>(linker: &mut Linker<T>) -> Result<()> {
    linker.func_wrap(WASI, "proc_exit", |code: u32| Err::<(), _>(Error::from(Exit(code))))?;
    linker.func_wrap(WASI, "proc_raise", |signal: u32| {
        Err::<u32, _>(Error::from(WasiError::Raised(signal)))
    })?;
    linker.func_wrap_async(
        WASI,
        "random_get",
        |mut caller: Caller<'_, T>, (at, length): (u32, u32)| {
            Box::new(async move { answer(random(&mut caller, at, length).await) })
        },
    )?;
    Ok(())
}

/// `filetype::character_device`.
const CHARACTER_DEVICE: u8 = 2;
/// `rights::fd_read`, `fd_write` and `poll_fd_readwrite`.
const MAY_READ: u64 = 1 << 1;
const MAY_WRITE: u64 = 1 << 6;
const MAY_POLL: u64 = 1 << 27;

fn fdstat<T: WasiHost>(caller: &mut Caller<'_, T>, fd: u32, at: u32) -> Result<(), Refusal> {
    let rights = match caller.data_mut().wasi().descriptor(fd)? {
        Descriptor::Stdin => MAY_READ | MAY_POLL,
        Descriptor::Out(_) => MAY_WRITE | MAY_POLL,
    };
    let mut stat = [0; 24];
    stat[0] = CHARACTER_DEVICE;
    stat[8..16].copy_from_slice(&rights.to_le_bytes());
    Ok(view(caller)?.0.put(at, 8, &stat)?)
}

fn filestat<T: WasiHost>(caller: &mut Caller<'_, T>, fd: u32, at: u32) -> Result<(), Refusal> {
    caller.data_mut().wasi().descriptor(fd)?;
    let mut stat = [0; 64];
    stat[16] = CHARACTER_DEVICE;
    Ok(view(caller)?.0.put(at, 8, &stat)?)
}

fn read_end<T: WasiHost>(caller: &mut Caller<'_, T>, fd: u32, read: u32) -> Result<(), Refusal> {
    match caller.data_mut().wasi().descriptor(fd)? {
        Descriptor::Stdin => Ok(view(caller)?.0.put(read, 4, &0_u32.to_le_bytes())?),
        Descriptor::Out(_) => Err(Errno::Badf.into()),
    }
}

fn write<T: WasiHost>(
    caller: &mut Caller<'_, T>,
    fd: u32,
    list: u32,
    count: u32,
    written: u32,
) -> Result<(), Refusal> {
    let Descriptor::Out(stream) = caller.data_mut().wasi().descriptor(fd)? else {
        return Err(Errno::Badf.into());
    };
    let (mut view, guest) = view(caller)?;
    let (buffers, length) = view.buffers(list, count, WRITE)?;
    // Last of what may fail, so that a line is not there twice after a retry.
    view.put(written, 4, &length.to_le_bytes())?;
    for buffer in buffers {
        put(guest, stream, &view.0[buffer]);
    }
    Ok(())
}

/// Splits what is written into lines for the host.
fn put(guest: &mut impl WasiHost, stream: Stream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (part, rest, ends) = match bytes.iter().position(|b| *b == b'\n') {
            Some(end) => (&bytes[..end], &bytes[end + 1..], true),
            None => (bytes, &[][..], false),
        };
        bytes = rest;
        let partial = guest.wasi().partial(stream);
        if ends && partial.is_empty() && part.len() <= LINE {
            guest.line(stream, part);
            continue;
        }
        // One byte more than is shown tells that there was more.
        let room = (LINE + 1).saturating_sub(partial.len());
        partial.extend_from_slice(&part[..part.len().min(room)]);
        if ends {
            let mut line = mem::take(partial);
            if line.len() > LINE {
                line.truncate(LINE);
                line.extend_from_slice("…".as_bytes());
            }
            guest.line(stream, &line);
            line.clear();
            *guest.wasi().partial(stream) = line;
        }
    }
}

/// A clock that a guest may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Realtime,
    Monotonic,
}

fn clock(id: u32) -> Result<Clock, Errno> {
    match id {
        0 => Ok(Clock::Realtime),
        1 => Ok(Clock::Monotonic),
        // The times that a process and a thread have computed.
        2 | 3 => Err(Errno::Badf),
        _ => Err(Errno::Inval),
    }
}

fn clock_time<T: WasiHost>(caller: &mut Caller<'_, T>, id: u32, at: u32) -> Result<(), Refusal> {
    let time = match clock(id)? {
        Clock::Monotonic => caller.data_mut().wasi().origin.elapsed(),
        Clock::Realtime => {
            SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Errno::Overflow)?
        }
    };
    let nanos = u64::try_from(time.as_nanos()).map_err(|_| Errno::Overflow)?;
    Ok(view(caller)?.0.put(at, 8, &nanos.to_le_bytes())?)
}

async fn random<T: WasiHost>(
    caller: &mut Caller<'_, T>,
    at: u32,
    length: u32,
) -> Result<(), Refusal> {
    let mut left = view(caller)?.0.range(at, length.into(), 1)?;
    loop {
        let chunk = left.start..left.end.min(left.start.saturating_add(RANDOM));
        left.start = chunk.end;
        // Nothing else runs in the store meanwhile, and memories do not shrink.
        getrandom::fill(&mut view(caller)?.0.0[chunk]).map_err(|_| Errno::Io)?;
        if left.is_empty() {
            return Ok(());
        }
        in_time(caller.data_mut())?;
        caller.data_mut().waiting(Instant::now()).await;
    }
}

/// Ends a guest whose deadline has passed.
fn in_time(guest: &impl WasiHost) -> Result<(), Refusal> {
    if Instant::now() < guest.deadline() {
        Ok(())
    } else {
        Err(Refusal::Ended(Trap::Interrupt.into()))
    }
}

/// Bytes of a subscription, and of an event.
const SUBSCRIPTION: usize = 48;
const EVENT: usize = 32;

/// What a guest waits for, and what it calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subscription {
    userdata: [u8; 8],
    wants: Wants,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    /// A time; none comes that is too far away to be told.
    Time(Option<Instant>),
    /// The end of stdin, which is there.
    Read,
    /// Room in an output, which is there.
    Write,
}

impl Wants {
    fn is_ready(self, now: Instant) -> bool {
        match self {
            Self::Time(until) => until.is_some_and(|until| until <= now),
            Self::Read | Self::Write => true,
        }
    }
}

/// What the guest's times are relative to.
struct Now {
    instant: Instant,
    realtime: SystemTime,
    origin: Instant,
}

impl Subscription {
    fn read(bytes: &[u8; SUBSCRIPTION], wasi: &Wasi, now: &Now) -> Result<Self, Errno> {
        let field =
            |at: usize| <[u8; 8]>::try_from(&bytes[at..at + 8]).expect("8 bytes of a subscription");
        let [fd_or_clock, _] = halves(field(16));
        let wants = match bytes[8] {
            0 => {
                let timeout = Duration::from_nanos(u64::from_le_bytes(field(24)));
                let clock = clock(fd_or_clock).map_err(|_| Errno::Inval)?;
                let until = match (u16::from_le_bytes([bytes[40], bytes[41]]), clock) {
                    (0, _) => now.instant.checked_add(timeout),
                    (1, Clock::Monotonic) => now.origin.checked_add(timeout),
                    (1, Clock::Realtime) => {
                        let past = now.realtime.duration_since(UNIX_EPOCH).unwrap_or_default();
                        now.instant.checked_add(timeout.saturating_sub(past))
                    }
                    _ => return Err(Errno::Inval),
                };
                Wants::Time(until)
            }
            1 => match wasi.descriptor(fd_or_clock)? {
                Descriptor::Stdin => Wants::Read,
                Descriptor::Out(_) => return Err(Errno::Badf),
            },
            2 => match wasi.descriptor(fd_or_clock)? {
                Descriptor::Stdin => return Err(Errno::Badf),
                Descriptor::Out(_) => Wants::Write,
            },
            _ => return Err(Errno::Inval),
        };
        Ok(Self { userdata: field(0), wants })
    }

    fn event(&self) -> [u8; EVENT] {
        let (kind, bytes, hangup) = match self.wants {
            Wants::Time(_) => (0, 0, 0),
            Wants::Read => (1, 0, 1),
            Wants::Write => (2, WRITE as u64, 0),
        };
        let mut event = [0; EVENT];
        event[..8].copy_from_slice(&self.userdata);
        event[10] = kind;
        event[16..24].copy_from_slice(&bytes.to_le_bytes());
        event[24] = hangup;
        event
    }
}

fn halves(bytes: [u8; 8]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bytes;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

async fn poll<T: WasiHost>(
    caller: &mut Caller<'_, T>,
    list: u32,
    events: u32,
    count: u32,
    ready: u32,
) -> Result<(), Refusal> {
    if count == 0 || count > SUBSCRIPTIONS {
        return Err(Errno::Inval.into());
    }
    let subscriptions = {
        let (view, guest) = view(caller)?;
        view.range(events, u64::from(count) * EVENT as u64, 8)?;
        view.range(ready, 4, 4)?;
        let list = view.range(list, u64::from(count) * SUBSCRIPTION as u64, 8)?;
        let wasi = guest.wasi();
        let now = Now { instant: Instant::now(), realtime: SystemTime::now(), origin: wasi.origin };
        let (list, _) = view.0[list].as_chunks::<SUBSCRIPTION>();
        list.iter()
            .map(|bytes| Subscription::read(bytes, wasi, &now))
            .collect::<Result<Vec<_>, Errno>>()?
    };
    let earliest = subscriptions
        .iter()
        .filter_map(|s| if let Wants::Time(until) = s.wants { until } else { None })
        .min();
    let now = loop {
        let now = Instant::now();
        if subscriptions.iter().any(|s| s.wants.is_ready(now)) {
            break now;
        }
        let guest = caller.data_mut();
        let deadline = guest.deadline();
        guest.waiting(earliest.map_or(deadline, |earliest| earliest.min(deadline))).await;
        // The deadline may have moved meanwhile; then there is more to wait for.
        in_time(caller.data_mut())?;
    };
    let (mut view, _) = view(caller)?;
    let happened: Vec<u8> = subscriptions
        .iter()
        .filter(|s| s.wants.is_ready(now))
        .flat_map(Subscription::event)
        .collect();
    view.put(events, 8, &happened)?;
    let number = u32::try_from(happened.len() / EVENT).map_err(|_| Errno::Overflow)?;
    Ok(view.put(ready, 4, &number.to_le_bytes())?)
}

/// A guest's memory as it is now.
struct View<'m>(&'m mut [u8]);

fn view<'c, T>(caller: &'c mut Caller<'_, T>) -> Result<(View<'c>, &'c mut T), WasiError> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => {
            let (bytes, guest) = memory.data_and_store_mut(caller);
            Ok((View(bytes), guest))
        }
        _ => Err(WasiError::NoMemory),
    }
}

impl View<'_> {
    fn range(&self, at: u32, length: u64, align: u32) -> Result<Range<usize>, WasiError> {
        if !at.is_multiple_of(align) {
            return Err(WasiError::Misaligned { at, align });
        }
        // Neither is near the end of 64 bits: `length` is a count of 32 bits times a size.
        let (start, end) = (usize::try_from(at), usize::try_from(u64::from(at) + length));
        match (start, end) {
            (Ok(start), Ok(end)) if end <= self.0.len() => Ok(start..end),
            _ => Err(WasiError::OutOfBounds { at, length }),
        }
    }

    fn put(&mut self, at: u32, align: u32, bytes: &[u8]) -> Result<(), WasiError> {
        let range = self.range(at, bytes.len() as u64, align)?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }

    /// The first `room` bytes of a list of buffers, and how many they are.
    fn buffers(
        &self,
        list: u32,
        count: u32,
        room: usize,
    ) -> Result<(Vec<Range<usize>>, u32), WasiError> {
        let list = self.range(list, u64::from(count) * 8, 4)?;
        let (list, _) = self.0[list].as_chunks::<8>();
        let mut left = room;
        let mut buffers = Vec::new();
        for entry in list.iter().take(BUFFERS) {
            let [at, length] = halves(*entry);
            let mut buffer = self.range(at, length.into(), 1)?;
            buffer.end = buffer.end.min(buffer.start + left);
            left -= buffer.len();
            buffers.push(buffer);
            if left == 0 {
                break;
            }
        }
        let length = u32::try_from(room - left).expect("the room is less than 4 GiB");
        Ok((buffers, length))
    }
}

#[cfg(test)]
mod tests;
