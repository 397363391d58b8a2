//! The functions that a guest may import, on a linker.
//!
//! Each takes the guest's numbers as they come, asks the blocks for the bytes
//! behind them, and the host for what they mean. A number that is no block ends
//! the guest's turn, and none of them panics or waits for ever, whatever it is
//! given. `config_get`, `var_get`, `var_set`, `http_request` and the log functions
//! own the blocks that they are given, and free them; the others do not.

use tracing::Level;
use wasmtime::{Caller, Error, Linker, Result};

use super::guest::Guest;
use crate::{
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
        caller.data_mut().blocks.alloc(bytes).map_err(Error::from)
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
        caller.data_mut().blocks.clear();
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
        let value = host.config(blocks.get(key)?);
        blocks.free(key);
        Ok::<_, Error>(blocks.put(value.unwrap_or_default().as_bytes())?)
    })?;
    linker.func_wrap(ENV, "var_get", |mut caller: Caller<'_, Guest>, key: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        let value = host.var(blocks.get(key)?);
        blocks.free(key);
        Ok::<_, Error>(blocks.put(&value.unwrap_or_default())?)
    })?;
    linker.func_wrap(ENV, "var_set", |mut caller: Caller<'_, Guest>, key: u64, value: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        let new = if value == 0 { None } else { Some(blocks.get(value)?) };
        if !host.set_var(blocks.get(key)?, new) {
            return Err(Error::msg(host::TOO_MANY_VARS));
        }
        blocks.free(key);
        blocks.free(value);
        Ok(())
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
        Ok::<_, Error>(blocks.put(&host.http_headers)?)
    })?;
    Ok(())
}

/// What exists within a turn only.
fn link_turn(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(USER, "__send_output", |mut caller: Caller<'_, Guest>, outputs: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        side(host)?.send_output(blocks.get(outputs)?);
        Ok::<_, Error>(())
    })?;
    linker.func_wrap(USER, "__get_state", |mut caller: Caller<'_, Guest>, key: u64| {
        let Guest { host, blocks, .. } = caller.data_mut();
        let value = side(host)?.get_state(blocks.get(key)?);
        Ok::<_, Error>(blocks.put(&value)?)
    })?;
    linker.func_wrap(
        USER,
        "__set_state",
        |mut caller: Caller<'_, Guest>, key: u64, value: u64| {
            let Guest { host, blocks, .. } = caller.data_mut();
            side(host)?.set_state(blocks.get(key)?, blocks.get(value)?);
            Ok::<_, Error>(())
        },
    )?;
    Ok(())
}

fn side(host: &mut Host) -> Result<&mut Side> {
    host.side.as_mut().ok_or_else(|| Error::msg(host::NO_TURN))
}

/// Asks on another thread; the guest's place at the gate is free meanwhile.
async fn http_request(mut caller: Caller<'_, Guest>, request: u64, body: u64) -> Result<u64> {
    let guest = caller.data_mut();
    let (written, content) =
        (guest.blocks.get(request)?.to_vec(), guest.blocks.get(body)?.to_vec());
    guest.blocks.free(request);
    guest.blocks.free(body);
    let (around, deadline) = (guest.host.around.clone(), guest.deadline());
    let (place, trace) = (guest.place.clone(), guest.host.trace());
    let asking = tokio::task::spawn_blocking(move || {
        around.http(&written, &content, trace.as_ref(), deadline)
    });
    let answer = place.outside(asking).await?;
    let guest = caller.data_mut();
    let answer = guest.host.answered(answer);
    Ok(guest.blocks.put(&answer)?)
}
