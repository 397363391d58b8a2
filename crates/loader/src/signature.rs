//! Types of functions, as WebAssembly writes them, and the table of what the host offers.
//!
//! One table says which functions a guest may import and with which type. Loading
//! checks imports against it before any code runs, so that a module built for
//! another host is refused with the import's name instead of an engine's riddle.

use std::fmt;

use serde::{Serialize, Serializer};
use wasmparser::{FuncType, ValType};

/// The namespace of the plug-in ABI.
pub(crate) const ENV: &str = "extism:host/env";
/// The namespace of what the host adds to it.
pub(crate) const USER: &str = "extism:host/user";
/// The namespace of WASI preview 1.
pub(crate) const WASI: &str = "wasi_snapshot_preview1";

/// The type of a function: `(i64, i32) -> i64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    params: Vec<ValType>,
    results: Vec<ValType>,
}

impl Signature {
    /// The type that every export of the ABI has: `() -> i32`.
    #[must_use]
    pub fn turn() -> Self {
        Self { params: Vec::new(), results: vec![ValType::I32] }
    }

    /// What is passed.
    pub(crate) fn params(&self) -> &[ValType] {
        &self.params
    }

    /// Whether there is nothing to pass and nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.params.is_empty() && self.results.is_empty()
    }

    /// Reads the notation of [`HOST_FUNCTIONS`].
    fn parse(notation: &str) -> Self {
        let list = |text: &str| {
            text.bytes().map(|b| if b == b'l' { ValType::I64 } else { ValType::I32 }).collect()
        };
        let (params, results) =
            notation.split_once(':').expect("every entry of the table has a colon");
        Self { params: list(params), results: list(results) }
    }
}

impl From<&FuncType> for Signature {
    fn from(ty: &FuncType) -> Self {
        Self { params: ty.params().to_vec(), results: ty.results().to_vec() }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |types: &[ValType]| {
            types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        write!(f, "({}) -> ", list(&self.params))?;
        match self.results.as_slice() {
            [one] => write!(f, "{one}"),
            many => write!(f, "({})", list(many)),
        }
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Everything that a guest may import: namespace, name and type.
pub fn host_functions() -> impl Iterator<Item = (&'static str, &'static str, String)> {
    HOST_FUNCTIONS.iter().flat_map(|(namespace, functions)| {
        functions
            .iter()
            .map(|(name, notation)| (*namespace, *name, Signature::parse(notation).to_string()))
    })
}

/// The type that the host's function of that name has, if there is one.
pub(crate) fn host_function(namespace: &str, name: &str) -> Option<Signature> {
    HOST_FUNCTIONS
        .iter()
        .filter(|(ns, _)| *ns == namespace)
        .flat_map(|(_, functions)| functions.iter())
        .find(|(n, _)| *n == name)
        .map(|(_, notation)| Signature::parse(notation))
}

/// Functions by namespace. `i` is i32 and `l` is i64; results follow the colon.
const HOST_FUNCTIONS: &[(&str, &[(&str, &str)])] = &[
    (USER, &[("__send_output", "l:"), ("__get_state", "l:l"), ("__set_state", "ll:")]),
    (
        ENV,
        &[
            ("alloc", "l:l"),
            ("free", "l:"),
            ("length", "l:l"),
            ("length_unsafe", "l:l"),
            ("load_u8", "l:i"),
            ("load_u64", "l:l"),
            ("store_u8", "li:"),
            ("store_u64", "ll:"),
            ("input_set", "ll:"),
            ("input_length", ":l"),
            ("input_offset", ":l"),
            ("input_load_u8", "l:i"),
            ("input_load_u64", "l:l"),
            ("output_set", "ll:"),
            ("output_length", ":l"),
            ("output_offset", ":l"),
            ("error_set", "l:"),
            ("error_get", ":l"),
            ("reset", ":"),
            ("memory_bytes", ":l"),
            ("config_get", "l:l"),
            ("var_get", "l:l"),
            ("var_set", "ll:"),
            ("http_request", "ll:l"),
            ("http_status_code", ":i"),
            ("http_headers", ":l"),
            ("log_trace", "l:"),
            ("log_debug", "l:"),
            ("log_info", "l:"),
            ("log_warn", "l:"),
            ("log_error", "l:"),
            ("get_log_level", ":i"),
        ],
    ),
    (
        WASI,
        &[
            ("args_get", "ii:i"),
            ("args_sizes_get", "ii:i"),
            ("clock_res_get", "ii:i"),
            ("clock_time_get", "ili:i"),
            ("environ_get", "ii:i"),
            ("environ_sizes_get", "ii:i"),
            ("fd_advise", "illi:i"),
            ("fd_allocate", "ill:i"),
            ("fd_close", "i:i"),
            ("fd_datasync", "i:i"),
            ("fd_fdstat_get", "ii:i"),
            ("fd_fdstat_set_flags", "ii:i"),
            ("fd_fdstat_set_rights", "ill:i"),
            ("fd_filestat_get", "ii:i"),
            ("fd_filestat_set_size", "il:i"),
            ("fd_filestat_set_times", "illi:i"),
            ("fd_pread", "iiili:i"),
            ("fd_prestat_dir_name", "iii:i"),
            ("fd_prestat_get", "ii:i"),
            ("fd_pwrite", "iiili:i"),
            ("fd_read", "iiii:i"),
            ("fd_readdir", "iiili:i"),
            ("fd_renumber", "ii:i"),
            ("fd_seek", "ilii:i"),
            ("fd_sync", "i:i"),
            ("fd_tell", "ii:i"),
            ("fd_write", "iiii:i"),
            ("path_create_directory", "iii:i"),
            ("path_filestat_get", "iiiii:i"),
            ("path_filestat_set_times", "iiiilli:i"),
            ("path_link", "iiiiiii:i"),
            ("path_open", "iiiiillii:i"),
            ("path_readlink", "iiiiii:i"),
            ("path_remove_directory", "iii:i"),
            ("path_rename", "iiiiii:i"),
            ("path_symlink", "iiiii:i"),
            ("path_unlink_file", "iii:i"),
            ("poll_oneoff", "iiii:i"),
            ("proc_exit", "i:"),
            ("proc_raise", "i:i"),
            ("random_get", "ii:i"),
            ("sched_yield", ":i"),
            ("sock_accept", "iii:i"),
            ("sock_recv", "iiiiii:i"),
            ("sock_send", "iiiii:i"),
            ("sock_shutdown", "ii:i"),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(namespace: &str, name: &str, expected: Option<&str>) {
        let found = host_function(namespace, name).map(|s| s.to_string());
        assert_eq!(found.as_deref(), expected, "{namespace} {name}");
    }

    #[test]
    fn the_table_is_read_as_types() {
        check(USER, "__send_output", Some("(i64) -> ()"));
        check(USER, "__get_state", Some("(i64) -> i64"));
        check(ENV, "store_u8", Some("(i64, i32) -> ()"));
        check(ENV, "input_length", Some("() -> i64"));
        check(WASI, "fd_seek", Some("(i32, i64, i32, i32) -> i32"));
        check(ENV, "__send_output", None);
        check("env", "abort", None);
    }
}
