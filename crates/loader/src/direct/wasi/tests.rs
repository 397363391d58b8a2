//! Guests that call each function, with what it expects and with what it does not.

use std::fmt::Write as _;

use futures_util::FutureExt;
use wasmtime::{Engine, Instance, Module, Store};

use super::*;
use crate::signature::host_functions;

/// Longer than anything here takes on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host that notes what it is asked.
struct Noted {
    wasi: Wasi,
    lines: Vec<(Stream, String)>,
    deadline: Instant,
    waits: Vec<Instant>,
}

impl WasiHost for Noted {
    fn wasi(&mut self) -> &mut Wasi {
        &mut self.wasi
    }

    fn line(&mut self, stream: Stream, text: &[u8]) {
        self.lines.push((stream, String::from_utf8_lossy(text).into_owned()));
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn waiting(&mut self, until: Instant) -> BoxFuture<'static, ()> {
        self.waits.push(until);
        tokio::time::sleep_until(until.into()).boxed()
    }
}

/// A guest of one page of memory that passes its arguments on to every function.
struct Rig {
    store: Store<Noted>,
    instance: Instance,
}

fn names() -> impl Iterator<Item = &'static str> {
    host_functions().filter(|(namespace, ..)| *namespace == WASI).map(|(_, name, _)| name)
}

/// A module that imports each function with the type that the host's table says.
fn wat(memory: &str) -> String {
    let (mut imports, mut exports) = (String::new(), String::new());
    for name in names() {
        let signature = host_function(WASI, name).expect("the name is from the table");
        let mut params = String::new();
        let mut args = String::new();
        for (index, ty) in signature.params().iter().enumerate() {
            write!(params, " {ty}").expect("a string has room");
            write!(args, " local.get {index}").expect("a string has room");
        }
        let result = if name == "proc_exit" { "" } else { "(result i32)" };
        writeln!(imports, r#"(import "{WASI}" "{name}" (func ${name} (param{params}) {result}))"#)
            .expect("a string has room");
        writeln!(
            exports,
            r#"(func (export "{name}") (param{params}) {result}{args} call ${name})"#
        )
        .expect("a string has room");
    }
    format!("(module {imports} {memory} {exports})")
}

impl Rig {
    async fn new() -> Self {
        Self::with(r#"(memory (export "memory") 1 4)"#).await
    }

    async fn with(memory: &str) -> Self {
        let engine = Engine::default();
        let bytes = wat::parse_str(wat(memory)).expect("the text is WebAssembly");
        let module = Module::new(&engine, bytes).expect("the module is valid");
        let mut linker = Linker::new(&engine);
        link(&mut linker).expect("each function has a name of its own");
        let noted = Noted {
            wasi: Wasi::new(),
            lines: Vec::new(),
            deadline: Instant::now() + PATIENCE,
            waits: Vec::new(),
        };
        let mut store = Store::new(&engine, noted);
        let instance = linker
            .instantiate_async(&mut store, &module)
            .await
            .expect("every import is there, with its type");
        Self { store, instance }
    }

    /// Calls a function. Arguments are made as wide as it takes them.
    async fn call(&mut self, name: &str, args: &[u64]) -> Result<i32, Error> {
        let function = self.instance.get_func(&mut self.store, name).expect("it is exported");
        let ty = function.ty(&self.store);
        assert_eq!(ty.params().len(), args.len(), "{name}");
        let args: Vec<Val> = ty
            .params()
            .zip(args)
            .map(|(ty, arg)| match ty {
                ValType::I64 => Val::I64(arg.cast_signed()),
                _ => Val::I32(low(*arg).cast_signed()),
            })
            .collect();
        let mut results = vec![Val::I32(0); ty.results().len()];
        function.call_async(&mut self.store, &args, &mut results).await?;
        Ok(results.first().and_then(Val::i32).unwrap_or(0))
    }

    /// Calls a function that answers.
    async fn answer(&mut self, name: &str, args: &[u64]) -> i32 {
        self.call(name, args).await.unwrap_or_else(|error| panic!("{name} {args:?}: {error}"))
    }

    /// Calls a function that ends the guest.
    async fn end(&mut self, name: &str, args: &[u64]) -> Error {
        match self.call(name, args).await {
            Ok(errno) => panic!("{name} {args:?} answered {errno}"),
            Err(error) => error,
        }
    }

    fn memory(&mut self) -> &mut [u8] {
        let memory = self.instance.get_memory(&mut self.store, "memory");
        memory.expect("it is exported").data_mut(&mut self.store)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.memory()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&mut self, at: usize) -> u32 {
        u32::from_le_bytes(self.memory()[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&mut self, at: usize) -> u64 {
        u64::from_le_bytes(self.memory()[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Writes text to a descriptor in one buffer; how much of it was taken.
    async fn print(&mut self, fd: u64, text: &[u8]) -> u32 {
        self.put(1024, text);
        self.buffers(0, &[(1024, u32::try_from(text.len()).expect("it is short"))]);
        assert_eq!(self.answer("fd_write", &[fd, 0, 1, 512]).await, 0);
        self.u32(512)
    }

    fn buffers(&mut self, at: usize, buffers: &[(u32, u32)]) {
        for (index, (start, length)) in buffers.iter().enumerate() {
            self.put(at + 8 * index, &start.to_le_bytes());
            self.put(at + 8 * index + 4, &length.to_le_bytes());
        }
    }

    fn lines(&mut self) -> Vec<(Stream, String)> {
        mem::take(&mut self.store.data_mut().lines)
    }

    /// Puts a subscription to a clock into the list at 0.
    fn clock(&mut self, index: usize, id: u32, timeout: u64, flags: u16) {
        let mut bytes = [0; SUBSCRIPTION];
        bytes[0] = u8::try_from(index).expect("there are few") + 1;
        bytes[16..20].copy_from_slice(&id.to_le_bytes());
        bytes[24..32].copy_from_slice(&timeout.to_le_bytes());
        bytes[40..42].copy_from_slice(&flags.to_le_bytes());
        self.put(index * SUBSCRIPTION, &bytes);
    }

    /// Puts a subscription to a stream into the list at 0.
    fn stream(&mut self, index: usize, tag: u8, fd: u32) {
        let mut bytes = [0; SUBSCRIPTION];
        bytes[0] = u8::try_from(index).expect("there are few") + 1;
        bytes[8] = tag;
        bytes[16..20].copy_from_slice(&fd.to_le_bytes());
        self.put(index * SUBSCRIPTION, &bytes);
    }

    /// Polls `count` subscriptions at 0; the events' userdata and kind.
    async fn poll(&mut self, count: u64) -> Vec<(u64, u8)> {
        assert_eq!(self.answer("poll_oneoff", &[0, 4096, count, 512]).await, 0);
        let ready = self.u32(512) as usize;
        let event = |index| 4096 + EVENT * index;
        (0..ready).map(|index| (self.u64(event(index)), self.memory()[event(index) + 10])).collect()
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("the upper half is gone")
}

fn line(stream: Stream, text: &str) -> (Stream, String) {
    (stream, text.into())
}

#[tokio::test]
async fn every_function_of_the_table_is_there_with_its_type() {
    let mut rig = Rig::new().await;
    assert!(names().count() > 40);
    for name in names() {
        assert!(rig.instance.get_func(&mut rig.store, name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn there_are_no_arguments_and_no_environment() {
    let mut rig = Rig::new().await;
    for (sizes, list) in [("args_sizes_get", "args_get"), ("environ_sizes_get", "environ_get")] {
        rig.put(0, &[0xff; 8]);
        assert_eq!(rig.answer(sizes, &[0, 4]).await, 0);
        assert_eq!(rig.u64(0), 0, "{sizes}");
        assert_eq!(rig.answer(list, &[0, 0]).await, 0);
    }
}

#[tokio::test]
async fn what_is_written_becomes_lines() {
    use Stream::{Stderr, Stdout};
    let mut rig = Rig::new().await;
    assert_eq!(rig.print(1, b"one\ntwo\nthr").await, 11);
    assert_eq!(rig.lines(), [line(Stdout, "one"), line(Stdout, "two")]);
    assert_eq!(rig.print(2, b"apart\n").await, 6);
    assert_eq!(rig.lines(), [line(Stderr, "apart")]);
    assert_eq!(rig.print(1, b"ee\n\nrest").await, 8);
    assert_eq!(rig.lines(), [line(Stdout, "three"), line(Stdout, "")]);
    Wasi::flush(rig.store.data_mut());
    assert_eq!(rig.lines(), [line(Stdout, "rest")]);
    Wasi::flush(rig.store.data_mut());
    assert_eq!(rig.lines(), []);
}

#[tokio::test]
async fn buffers_are_written_in_order() {
    let mut rig = Rig::new().await;
    rig.put(1024, b"world\nhello ");
    rig.buffers(0, &[(1030, 6), (0, 0), (1024, 6)]);
    assert_eq!(rig.answer("fd_write", &[1, 0, 3, 512]).await, 0);
    assert_eq!(rig.u32(512), 12);
    assert_eq!(rig.lines(), [line(Stream::Stdout, "hello world")]);
}

#[tokio::test]
async fn one_call_takes_so_many_buffers_and_says_how_much_was_in_them() {
    for (buffers, taken) in
        [(1, 1), (BUFFERS - 1, 1023), (BUFFERS, 1024), (BUFFERS + 1, 1024), (3000, 1024)]
    {
        let mut rig = Rig::new().await;
        rig.memory()[32_768..].fill(b'x');
        rig.buffers(0, &vec![(40_000, 1); buffers]);
        // Those beyond the bound are not looked at: this one is outside of the memory.
        if buffers > BUFFERS {
            rig.buffers((buffers - 1) * 8, &[(65_536, 1)]);
        }
        assert_eq!(rig.answer("fd_write", &[1, 0, buffers as u64, 32_000]).await, 0);
        assert_eq!(rig.u32(32_000), taken, "{buffers}");
        let partial = rig.store.data_mut().wasi.partial(Stream::Stdout).len();
        assert_eq!(partial, taken as usize, "{buffers}");
    }
}

#[tokio::test]
async fn a_line_that_is_too_long_is_cut_and_says_so() {
    let mut rig = Rig::new().await;
    for _ in 0..5 {
        rig.print(1, &[b'x'; LINE / 2]).await;
    }
    assert_eq!(rig.lines(), []);
    assert_eq!(rig.store.data_mut().wasi.partial(Stream::Stdout).len(), LINE + 1);
    rig.print(1, b"\nnext\n").await;
    let cut = format!("{}…", "x".repeat(LINE));
    assert_eq!(rig.lines(), [line(Stream::Stdout, &cut), line(Stream::Stdout, "next")]);
}

#[tokio::test]
async fn one_call_writes_so_much_and_says_how_much() {
    let mut rig = Rig::new().await;
    // Each buffer is all of the memory, so that together they are many times as much.
    rig.buffers(0, &[(0, 65_536); 1000]);
    assert_eq!(rig.answer("fd_write", &[1, 0, 1000, 8000]).await, 0);
    assert_eq!(rig.u32(8000) as usize, WRITE);
    // Empty buffers are looked at up to a bound, and the list may fill the memory.
    rig.memory().fill(0);
    assert_eq!(rig.answer("fd_write", &[1, 0, 8192, 0]).await, 0);
    assert_eq!(rig.u32(0), 0);
}

#[tokio::test]
async fn streams_are_devices_that_can_be_closed() {
    let mut rig = Rig::new().await;
    for (fd, rights) in [(0, MAY_READ), (1, MAY_WRITE), (2, MAY_WRITE)] {
        assert_eq!(rig.answer("fd_fdstat_get", &[fd, 0]).await, 0);
        assert_eq!((rig.memory()[0], rig.u64(8)), (CHARACTER_DEVICE, rights | MAY_POLL));
        assert_eq!(rig.answer("fd_filestat_get", &[fd, 64]).await, 0);
        assert_eq!(rig.memory()[64 + 16], CHARACTER_DEVICE);
        assert_eq!(rig.answer("fd_sync", &[fd]).await, 0);
        assert_eq!(rig.answer("fd_datasync", &[fd]).await, 0);
        assert_eq!(rig.answer("fd_close", &[fd]).await, 0);
        assert_eq!(rig.answer("fd_fdstat_get", &[fd, 0]).await, Errno::Badf as i32);
        assert_eq!(rig.answer("fd_close", &[fd]).await, Errno::Badf as i32);
    }
    assert_eq!(rig.answer("fd_write", &[1, 0, 0, 0]).await, Errno::Badf as i32);
}

#[tokio::test]
async fn stdin_has_ended() {
    let mut rig = Rig::new().await;
    rig.buffers(0, &[(1024, 100)]);
    rig.put(512, &[0xff; 4]);
    assert_eq!(rig.answer("fd_read", &[0, 0, 1, 512]).await, 0);
    assert_eq!(rig.u32(512), 0);
    assert_eq!(rig.answer("fd_read", &[1, 0, 1, 512]).await, Errno::Badf as i32);
    assert_eq!(rig.answer("fd_write", &[0, 0, 1, 512]).await, Errno::Badf as i32);
}

#[tokio::test]
async fn there_are_no_files_and_no_sockets() {
    let mut rig = Rig::new().await;
    for (name, at, of_streams) in WITHOUT_FILES {
        let count = host_function(WASI, name).expect("it is in the table").params().len();
        for (fd, errno) in [(0, *of_streams), (2, *of_streams), (3, Errno::Badf)] {
            let mut args = vec![0; count];
            args[*at] = fd;
            assert_eq!(rig.answer(name, &args).await, errno as i32, "{name} {fd}");
        }
    }
    for name in ["fd_close", "fd_sync", "fd_datasync"] {
        assert_eq!(rig.answer(name, &[u64::from(u32::MAX)]).await, Errno::Badf as i32, "{name}");
    }
}

#[tokio::test]
async fn clocks_tell_the_time() {
    let mut rig = Rig::new().await;
    let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos();
    assert_eq!(rig.answer("clock_time_get", &[0, 0, 0]).await, 0);
    assert!(u128::from(rig.u64(0)) >= before);
    let mut last = 0;
    for _ in 0..3 {
        assert_eq!(rig.answer("clock_time_get", &[1, u64::MAX, 0]).await, 0);
        let now = rig.u64(0);
        assert!(now >= last && Duration::from_nanos(now) < PATIENCE);
        last = now;
    }
    for (id, errno) in [(2, Errno::Badf), (3, Errno::Badf), (4, Errno::Inval)] {
        assert_eq!(rig.answer("clock_time_get", &[id, 0, 0]).await, errno as i32);
        assert_eq!(rig.answer("clock_res_get", &[id, 0]).await, errno as i32);
    }
    assert_eq!(rig.answer("clock_res_get", &[1, 0]).await, 0);
    assert_eq!(rig.u64(0), 1);
}

#[tokio::test]
async fn random_bytes_fill_exactly_what_was_asked() {
    let mut rig = Rig::with(r#"(memory (export "memory") 16)"#).await;
    assert_eq!(rig.answer("random_get", &[0, 0]).await, 0);
    assert!(rig.memory().iter().all(|b| *b == 0));
    let length = 3 * RANDOM + 100;
    assert_eq!(rig.answer("random_get", &[1, length as u64]).await, 0);
    assert_eq!(rig.memory()[0], 0);
    assert!(rig.memory()[length + 1..].iter().all(|b| *b == 0));
    let chunks = rig.memory()[1..=length].chunks(64).filter(|c| c.iter().all(|b| *b == 0)).count();
    assert_eq!(chunks, 0);
    assert_eq!(rig.store.data().waits.len(), 3, "others compute between two chunks");
}

#[tokio::test]
async fn a_long_wish_for_random_bytes_ends_at_the_deadline() {
    let mut rig = Rig::with(r#"(memory (export "memory") 16)"#).await;
    rig.store.data_mut().deadline = Instant::now();
    let error = rig.end("random_get", &[0, 16 << 16]).await;
    assert_eq!(error.downcast_ref(), Some(&Trap::Interrupt));
}

#[tokio::test]
async fn a_guest_that_exits_says_with_what() {
    let mut rig = Rig::new().await;
    for code in [0, 1, 126, u32::MAX] {
        let error = rig.end("proc_exit", &[code.into()]).await;
        assert_eq!(error.downcast_ref(), Some(&Exit(code)));
        assert_eq!(error.root_cause().to_string(), format!("exited with code {code}"));
    }
    let error = rig.end("proc_raise", &[6]).await;
    assert_eq!(error.downcast_ref(), Some(&WasiError::Raised(6)));
}

#[tokio::test]
async fn sched_yield_lets_others_compute() {
    let mut rig = Rig::new().await;
    assert_eq!(rig.answer("sched_yield", &[]).await, 0);
    assert_eq!(rig.store.data().waits.len(), 1);
}

#[tokio::test]
async fn streams_are_ready_at_once() {
    let mut rig = Rig::new().await;
    rig.stream(0, 2, 1);
    rig.stream(1, 1, 0);
    rig.clock(2, 1, u64::MAX, 0);
    assert_eq!(rig.poll(3).await, [(1, 2), (2, 1)]);
    assert_eq!(rig.memory()[4096 + EVENT + 24], 1, "stdin has hung up");
    assert_eq!(rig.store.data().waits, []);
}

#[tokio::test]
async fn a_sleep_ends_at_the_earliest_time() {
    let mut rig = Rig::new().await;
    let nap = Duration::from_millis(30);
    rig.clock(0, 1, 3_600_000_000_000, 0);
    rig.clock(1, 0, 30_000_000, 0);
    let begun = Instant::now();
    assert_eq!(rig.poll(2).await, [(2, 0)]);
    assert!(begun.elapsed() >= nap);
    let waits = &rig.store.data().waits;
    assert!(!waits.is_empty(), "a guest that sleeps must not hold its place");
    assert!(waits.iter().all(|until| *until >= begun + nap && *until < begun + PATIENCE));
}

#[tokio::test]
async fn times_of_both_clocks_can_be_waited_for() {
    let mut rig = Rig::new().await;
    for id in [0, 1] {
        assert_eq!(rig.answer("clock_time_get", &[id, 0, 0]).await, 0);
        let now = rig.u64(0);
        let id = low(id);
        rig.clock(0, id, now + 20_000_000, 1);
        rig.clock(1, id, now + 3_600_000_000_000, 1);
        let begun = Instant::now();
        assert_eq!(rig.poll(2).await, [(1, 0)]);
        assert!(begun.elapsed() >= Duration::from_millis(5));
        rig.clock(0, id, 0, 1);
        let waits = rig.store.data().waits.len();
        assert_eq!(rig.poll(1).await, [(1, 0)], "a time that is past");
        assert_eq!(rig.store.data().waits.len(), waits);
    }
}

#[tokio::test]
async fn a_sleep_past_the_deadline_is_a_time_out() {
    let mut rig = Rig::new().await;
    for timeout in [3_600_000_000_000, u64::MAX] {
        let deadline = Instant::now() + Duration::from_millis(30);
        rig.store.data_mut().deadline = deadline;
        rig.clock(0, 1, timeout, 0);
        let error = rig.end("poll_oneoff", &[0, 4096, 1, 512]).await;
        assert_eq!(error.downcast_ref(), Some(&Trap::Interrupt));
        assert!(Instant::now() >= deadline && Instant::now() < deadline + PATIENCE / 2);
    }
}

#[tokio::test]
async fn odd_subscriptions_are_refused() {
    let mut rig = Rig::new().await;
    let inval = Errno::Inval as i32;
    for count in [0, u64::from(SUBSCRIPTIONS) + 1, u64::from(u32::MAX)] {
        assert_eq!(rig.answer("poll_oneoff", &[0, 0, count, 0]).await, inval, "{count}");
    }
    for (id, flags) in [(2, 0), (9, 0), (1, 2)] {
        rig.clock(0, id, 0, flags);
        assert_eq!(rig.answer("poll_oneoff", &[0, 4096, 1, 512]).await, inval, "{id} {flags}");
    }
    let badf = Errno::Badf as i32;
    for (tag, fd, errno) in [(1, 1, badf), (2, 0, badf), (2, 3, badf), (3, 1, inval)] {
        rig.stream(0, tag, fd);
        assert_eq!(rig.answer("poll_oneoff", &[0, 4096, 1, 512]).await, errno, "{tag} {fd}");
    }
}

#[tokio::test]
async fn addresses_outside_of_the_memory_end_the_guest() {
    const END: u64 = 65_536;
    const MAX: u64 = u32::MAX as u64;
    const FAR: u64 = MAX - 7;
    let cases: &[(&str, &[u64])] = &[
        ("args_sizes_get", &[END, 0]),
        ("args_sizes_get", &[0, END]),
        ("environ_sizes_get", &[MAX - 3, 0]),
        ("clock_time_get", &[1, 0, END]),
        ("clock_time_get", &[0, 0, FAR]),
        ("clock_res_get", &[0, END]),
        ("fd_fdstat_get", &[1, END - 16]),
        ("fd_filestat_get", &[1, END - 56]),
        ("fd_read", &[0, 0, 0, END]),
        ("fd_write", &[1, END, 1, 0]),
        ("fd_write", &[1, 0, 1, END]),
        ("fd_write", &[1, 0, 8193, 0]),
        ("fd_write", &[1, 0, MAX, 0]),
        ("fd_write", &[1, MAX - 3, MAX, 0]),
        ("random_get", &[0, END + 1]),
        ("random_get", &[END, 1]),
        ("random_get", &[1, MAX]),
        ("random_get", &[MAX, MAX]),
        ("poll_oneoff", &[END - 40, 0, 1, 512]),
        ("poll_oneoff", &[0, END - 24, 1, 512]),
        ("poll_oneoff", &[0, 4096, 1, END]),
        ("poll_oneoff", &[FAR, FAR, 1024, FAR]),
    ];
    let mut rig = Rig::new().await;
    for (name, args) in cases {
        let error = rig.end(name, args).await;
        let outside = matches!(error.downcast_ref(), Some(WasiError::OutOfBounds { .. }));
        assert!(outside, "{name} {args:?}: {error}");
    }
    for buffer in [(65_536, 1), (65_535, 2), (1, u32::MAX), (u32::MAX, u32::MAX)] {
        rig.buffers(0, &[(2048, 1), buffer]);
        rig.end("fd_write", &[1, 0, 2, 512]).await;
    }
    assert_eq!(rig.lines(), [], "nothing is written of a list that is partly bad");
    let error = rig.end("clock_res_get", &[1, 4]).await;
    assert_eq!(error.downcast_ref(), Some(&WasiError::Misaligned { at: 4, align: 8 }));
    // What just fits.
    assert_eq!(rig.answer("random_get", &[0, END]).await, 0);
    assert_eq!(rig.answer("random_get", &[END, 0]).await, 0);
    assert_eq!(rig.answer("clock_time_get", &[1, 0, END - 8]).await, 0);
}

#[tokio::test]
async fn a_memory_that_has_grown_counts_as_it_is_now() {
    let mut rig = Rig::new().await;
    rig.end("random_get", &[65_536, 8]).await;
    let memory = rig.instance.get_memory(&mut rig.store, "memory").expect("it is exported");
    memory.grow(&mut rig.store, 1).expect("it may grow");
    assert_eq!(rig.answer("random_get", &[65_536, 8]).await, 0);
}

#[tokio::test]
async fn a_guest_without_a_memory_ends_when_one_is_needed() {
    for memory in ["(memory 1)", r#"(global (export "memory") i32 i32.const 0)"#, ""] {
        let mut rig = Rig::with(memory).await;
        for (name, args) in [
            ("args_sizes_get", &[0, 0][..]),
            ("fd_write", &[1, 0, 1, 0]),
            ("random_get", &[0, 1]),
            ("poll_oneoff", &[0, 0, 1, 0]),
        ] {
            let error = rig.end(name, args).await;
            assert_eq!(error.downcast_ref(), Some(&WasiError::NoMemory), "{name} {memory}");
        }
        assert_eq!(rig.answer("fd_prestat_get", &[3, 0]).await, Errno::Badf as i32);
    }
}

/// A sequence that looks random and is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// An argument: mostly something that a bound is near to.
    fn argument(&mut self) -> u64 {
        let near = [0, 1, 2, 3, 8, 48, 512, 1024, 65_528, 65_536, 1 << 31, u64::from(u32::MAX)];
        let roll = self.roll();
        match roll % 4 {
            0 => roll >> 8,
            1 => ((roll >> 8) % 65_536) & !7,
            _ => near[usize::try_from((roll >> 8) % near.len() as u64).expect("it is small")],
        }
    }
}

#[tokio::test]
async fn no_arguments_make_a_function_panic_or_take_long() {
    let mut dice = Dice(0x5eed_da7a);
    let mut rig = Rig::new().await;
    for _ in 0..200 {
        for name in names() {
            let params = host_function(WASI, name).expect("it is in the table").params().len();
            let args: Vec<u64> = (0..params).map(|_| dice.argument()).collect();
            let (at, noise) = (dice.argument() % 65_000, dice.roll());
            rig.put(usize::try_from(at).expect("it is small"), &noise.to_le_bytes());
            let begun = Instant::now();
            rig.store.data_mut().deadline = begun + Duration::from_millis(2);
            // Whether it answers or ends the guest, it comes back.
            let came_back = rig.call(name, &args).await;
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(10), "{name} {args:?}: {took:?}, {came_back:?}");
            rig.lines();
            rig.store.data_mut().waits.clear();
            rig.store.data_mut().wasi.closed = [false; 3];
        }
    }
}
