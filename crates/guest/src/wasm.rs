//! The exports of a module, and the host functions that they call.

use std::{panic, sync::Once};

use extism_pdk::{Memory, host_fn};

use crate::{Actor, Level, Outcome, actor, host::Host};

#[host_fn("extism:host/user")]
extern "ExtismHost" {
    fn __send_output(outputs: String);
    fn __get_state(key: String) -> String;
    fn __set_state(key: String, value: String);
}

/// The daemon.
struct Daemon;

#[expect(unsafe_code, reason = "host functions are foreign ones")]
impl Host for Daemon {
    fn send(&mut self, outputs: String) {
        // It has no way to fail: a mistake shows when the turn ends.
        _ = unsafe { __send_output(outputs) };
    }

    fn state(&mut self, key: &str) -> String {
        unsafe { __get_state(key.into()) }.unwrap_or_else(|_| "null".into())
    }

    fn set_state(&mut self, key: &str, value: String) {
        _ = unsafe { __set_state(key.into(), value) };
    }

    fn log(&mut self, level: Level, text: &str) {
        use extism_pdk::extism::{log_debug, log_error, log_info, log_trace, log_warn};
        let Ok(memory) = Memory::from_bytes(text) else { return };
        let at = memory.offset();
        unsafe {
            match level {
                Level::Trace => log_trace(at),
                Level::Debug => log_debug(at),
                Level::Info => log_info(at),
                Level::Warn => log_warn(at),
                Level::Error => log_error(at),
            }
        }
    }
}

/// Hands an answer to the host, or an error.
#[expect(unsafe_code, reason = "the host's functions are foreign ones")]
fn end(answer: Outcome<String>) -> i32 {
    let (text, code) = match &answer {
        Ok(text) => (text.clone(), 0),
        Err(error) => (error.to_string(), 1),
    };
    let Ok(memory) = Memory::from_bytes(text) else { return 1 };
    unsafe {
        match code {
            0 => extism_pdk::extism::output_set(memory.offset(), memory.len() as u64),
            _ => extism_pdk::extism::error_set(memory.offset()),
        }
    }
    code
}

/// Has the text and the place of a panic become the reason why the call fails. A module has
/// no standard error, so they would be lost.
#[expect(unsafe_code, reason = "the host's functions are foreign ones")]
fn tell_of_panics() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        panic::set_hook(Box::new(|panic| {
            let place = panic.location().map_or_else(|| "?".into(), ToString::to_string);
            let why = panic.payload_as_str().unwrap_or("no reason given");
            if let Ok(memory) = Memory::from_bytes(format!("panicked at {place}: {why}")) {
                unsafe { extism_pdk::extism::error_set(memory.offset()) };
            }
        }));
    });
}

/// Serves `get_metadata`.
pub fn get_metadata<A: Actor>(name: &str) -> i32 {
    tell_of_panics();
    end(Ok(actor::metadata::<A>(name)))
}

/// Serves `process`.
pub fn process<A: Actor>() -> i32 {
    tell_of_panics();
    end(actor::process::<A>(&extism_pdk::input_bytes(), &mut Daemon))
}

/// Serves `validate_config`.
pub fn validate_config<A: Actor>() -> i32 {
    tell_of_panics();
    end(actor::accepts::<A>(&extism_pdk::input_bytes()))
}

/// Serves `migrate_state`.
pub fn migrate_state<A: Actor>() -> i32 {
    tell_of_panics();
    end(actor::migrate::<A>(&extism_pdk::input_bytes()))
}
