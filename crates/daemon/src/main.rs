//! The binary `reflowd`.

#[allow(dead_code, unused_imports, reason = "the commands that use it are not there yet")]
mod config;

fn main() {}
