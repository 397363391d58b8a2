//! The functions that a guest may import, on a linker.
//!
//! Each takes the guest's numbers as they come, asks the blocks for the bytes
//! behind them, and the host for what they mean. A number that is no block ends
//! the guest's turn, and none of them panics or waits for ever, whatever it is
//! given. `config_get`, `var_get`, `var_set`, `http_request` and the log functions
//! own the blocks that they are given, and free them; the others do not.

use std::time::Instant;

use reflowd_runtime::panic::Boundary;
use tracing::Level;
use wasmtime::{Caller, Error, Linker, Result, Trap};

use super::{
    blocks::Blocks,
    guest::{Desk, Guest},
};
use crate::{
    account::Account,
    host::{self, Host},
    signature::{ENV, USER},
    turn::Side,
};

/// Puts every function of the ABI on `linker`.
///
/// # Errors
/// A name is there already.
pub(super) fn link(linker: &mut Linker<Guest>) -> Result<()> {
    link_memory(linker)?;
    link_ends(linker)?;
    link_host(linker)?;
    link_turn(linker)
}

/// Blocks and their bytes.
fn link_memory(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(ENV, "alloc", |mut caller: Caller<'_, Guest>, bytes: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        blocks.alloc(bytes, &mut host.account).map_err(Error::from)
    })?;
    linker.func_wrap(ENV, "free", |mut caller: Caller<'_, Guest>, handle: u64| {
        caller.data_mut().blocks.free(handle);
    })?;
    for name in ["length", "length_unsafe"] {
        linker.func_wrap(ENV, name, |caller: Caller<'_, Guest>, handle: u64| {
            caller.data().blocks.length(handle)
        })?;
    }
    linker.func_wrap(ENV, "load_u8", |caller: Caller<'_, Guest>, at: u64| {
        u32::from(caller.data().blocks.load_u8(at))
    })?;
    linker.func_wrap(ENV, "load_u64", |caller: Caller<'_, Guest>, at: u64| {
        caller.data().blocks.load_u64(at)
    })?;
    linker.func_wrap(ENV, "store_u8", |mut caller: Caller<'_, Guest>, at: u64, value: u32| {
        let [low, ..] = value.to_le_bytes();
        caller.data_mut().blocks.store_u8(at, low);
    })?;
    linker.func_wrap(ENV, "store_u64", |mut caller: Caller<'_, Guest>, at: u64, value: u64| {
        caller.data_mut().blocks.store_u64(at, value);
    })?;
    linker.func_wrap(ENV, "reset", |mut caller: Caller<'_, Guest>| {
        let Guest { host, blocks, .. } = caller.data_mut();
        blocks.clear(&mut host.account);
    })?;
    linker
        .func_wrap(ENV, "memory_bytes", |caller: Caller<'_, Guest>| caller.data().blocks.size())?;
    Ok(())
}

/// Input, output and error.
fn link_ends(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(ENV, "input_set", |mut caller: Caller<'_, Guest>, at: u64, length: u64| {
        caller.data_mut().blocks.set_input(at, length);
    })?;
    linker.func_wrap(ENV, "input_length", |caller: Caller<'_, Guest>| {
        caller.data().blocks.input_length()
    })?;
    linker.func_wrap(ENV, "input_offset", |caller: Caller<'_, Guest>| {
        caller.data().blocks.input_offset()
    })?;
    linker.func_wrap(ENV, "input_load_u8", |caller: Caller<'_, Guest>, at: u64| {
        u32::from(caller.data().blocks.input_load_u8(at))
    })?;
    linker.func_wrap(ENV, "input_load_u64", |caller: Caller<'_, Guest>, at: u64| {
        caller.data().blocks.input_load_u64(at)
    })?;
    linker.func_wrap(
        ENV,
        "output_set",
        |mut caller: Caller<'_, Guest>, at: u64, length: u64| {
            caller.data_mut().blocks.set_output(at, length);
        },
    )?;
    linker.func_wrap(ENV, "output_length", |caller: Caller<'_, Guest>| {
        caller.data().blocks.output_length()
    })?;
    linker.func_wrap(ENV, "output_offset", |caller: Caller<'_, Guest>| {
        caller.data().blocks.output_offset()
    })?;
    linker.func_wrap(ENV, "error_set", |mut caller: Caller<'_, Guest>, handle: u64| {
        caller.data_mut().blocks.set_error(handle);
    })?;
    linker.func_wrap(ENV, "error_get", |caller: Caller<'_, Guest>| {
        caller.data().blocks.error_offset()
    })?;
    Ok(())
}

/// What the host offers to every plug-in.
fn link_host(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(ENV, "config_get", |mut caller: Caller<'_, Guest>, key: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        let Host { around, account, .. } = host;
        let value = around.config(blocks.get(key)?);
        blocks.free(key);
        Ok::<_, Error>(blocks.put(value.unwrap_or_default().as_bytes(), account)?)
    })?;
    linker.func_wrap(ENV, "var_get", |mut caller: Caller<'_, Guest>, key: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        let value = host.var(blocks.get(key)?);
        blocks.free(key);
        Ok::<_, Error>(blocks.put(&value.unwrap_or_default(), &mut host.account)?)
    })?;
    linker.func_wrap(ENV, "var_set", |mut caller: Caller<'_, Guest>, key: u64, value: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        let new = if value == 0 { None } else { Some(blocks.get(value)?) };
        host.set_var(blocks.get(key)?, new)?;
        blocks.free(key);
        blocks.free(value);
        Ok::<_, Error>(())
    })?;
    let logs = [
        ("log_trace", Level::TRACE),
        ("log_debug", Level::DEBUG),
        ("log_info", Level::INFO),
        ("log_warn", Level::WARN),
        ("log_error", Level::ERROR),
    ];
    for (name, level) in logs {
        linker.func_wrap(ENV, name, move |mut caller: Caller<'_, Guest>, text: u64| {
            let Guest { host, blocks, .. } = caller.data_mut();
            host.log(level, blocks.get(text)?);
            blocks.free(text);
            Ok::<_, Error>(())
        })?;
    }
    linker.func_wrap(ENV, "get_log_level", |_: Caller<'_, Guest>| host::log_level())?;
    linker.func_wrap_async(ENV, "http_request", |caller, (request, body): (u64, u64)| {
        Box::new(http_request(caller, request, body))
    })?;
    linker.func_wrap(ENV, "http_status_code", |caller: Caller<'_, Guest>| {
        u32::from(caller.data().host.http_status)
    })?;
    linker.func_wrap(ENV, "http_headers", |mut caller: Caller<'_, Guest>| {
        let Guest { host, blocks, .. } = caller.data_mut();
        Ok::<_, Error>(blocks.put(&host.http_headers, &mut host.account)?)
    })?;
    Ok(())
}

/// What exists within a turn only.
fn link_turn(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap_async(
        USER,
        "__send_output",
        |mut caller: Caller<'_, Guest>, (outputs,): (u64,)| {
            Box::new(async move {
                let size = caller.data().blocks.length(outputs);
                let send = move |desk: Borrowed<'_>| -> Result<()> {
                    desk.side.send_output(desk.blocks.get(outputs)?, desk.account);
                    Ok(())
                };
                in_turn(&mut caller, size, send).await
            })
        },
    )?;
    linker.func_wrap_async(
        USER,
        "__get_state",
        |mut caller: Caller<'_, Guest>, (key,): (u64,)| {
            Box::new(async move {
                let size = caller.data().host.side.as_ref().map_or(0, Side::reading_state);
                let get = move |desk: Borrowed<'_>| -> Result<_> {
                    Ok(desk.side.get_state(desk.blocks.get(key)?, desk.account))
                };
                let value = in_turn(&mut caller, size, get).await?;
                let size = value.len() as u64;
                let put = move |desk: Borrowed<'_>| -> Result<_> {
                    Ok(desk.blocks.put(&value, desk.account)?)
                };
                in_turn(&mut caller, size, put).await
            })
        },
    )?;
    linker.func_wrap_async(
        USER,
        "__set_state",
        |mut caller: Caller<'_, Guest>, (key, value): (u64, u64)| {
            Box::new(async move {
                let reading = caller.data().host.side.as_ref().map_or(0, Side::reading_state);
                let size = caller.data().blocks.length(value) + reading;
                let set = move |desk: Borrowed<'_>| -> Result<()> {
                    let Borrowed { side, blocks, account } = desk;
                    side.set_state(blocks.get(key)?, blocks.get(value)?, account);
                    Ok(())
                };
                in_turn(&mut caller, size, set).await
            })
        },
    )?;
    Ok(())
}

/// Bytes that the host goes through at once, in less time than the clock needs to tick.
/// What is longer is gone through aside.
pub(super) const AT_ONCE: u64 = 128 << 10;

/// The turn's things, where its work is done.
struct Borrowed<'d> {
    side: &'d mut Side,
    blocks: &'d mut Blocks,
    account: &'d mut Account,
}

/// Does work for the turn that goes through about so many bytes: at once, or aside where
/// others would have to wait for it. Its time is the turn's.
async fn in_turn<T: Send + 'static>(
    caller: &mut Caller<'_, Guest>,
    bytes: u64,
    work: impl FnOnce(Borrowed<'_>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let guest = caller.data_mut();
    if bytes <= AT_ONCE {
        let Host { side, account, .. } = &mut guest.host;
        let side = side.as_mut().ok_or_else(|| Error::msg(host::NO_TURN))?;
        return work(Borrowed { side, blocks: &mut guest.blocks, account });
    }
    let mut desk = guest.lend().ok_or_else(|| Error::msg(host::NO_TURN))?;
    let aside = guest.place.clone();
    let work = aside.aside(move || {
        let Desk { side, blocks, account } = &mut desk;
        let done = work(Borrowed { side, blocks, account });
        (desk, done)
    });
    let (desk, done) = work.await;
    let guest = caller.data_mut();
    guest.take_back(desk);
    if Instant::now() >= guest.deadline() {
        return Err(Trap::Interrupt.into());
    }
    done
}

/// Asks on another thread; the guest's place at the gate is free meanwhile.
async fn http_request(mut caller: Caller<'_, Guest>, request: u64, body: u64) -> Result<u64> {
    let guest = caller.data_mut();
    let room = guest.host.make_room_for_answer(guest.blocks.get(request)?);
    guest.blocks.get(body)?;
    let answer = match room {
        Ok(()) => {
            let (around, deadline) = (guest.host.around.clone(), guest.deadline());
            let (place, trace) = (guest.place.clone(), guest.host.trace());
            let blocks = std::mem::replace(&mut guest.blocks, Blocks::new());
            let asking = Boundary::GuestHttp.aside(move || {
                let answer = match (blocks.get(request), blocks.get(body)) {
                    (Ok(written), Ok(content)) => {
                        around.http(written, content, trace.as_ref(), deadline)
                    }
                    _ => unreachable!("both were there before"),
                };
                (blocks, answer)
            });
            let (blocks, answer) = place.outside(asking).await?;
            caller.data_mut().blocks = blocks;
            answer
        }
        Err(refused) => Err(refused),
    };
    let guest = caller.data_mut();
    guest.blocks.free(request);
    guest.blocks.free(body);
    let answer = guest.host.answered(answer);
    Ok(guest.blocks.put(&answer, &mut guest.host.account)?)
}
