//! What can be told about a module.

use reflowd_runtime::{Digest, Metadata};
use serde::Serialize;

use crate::binary::{Binary, Export, Import, Memory};

/// What can be told about a module. Absent is what the failed step would have told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inspection {
    /// Its path or name.
    pub module: String,
    /// The SHA-256 of its bytes.
    pub digest: Option<Digest>,
    /// Its bytes.
    pub size: Option<u64>,
    /// The name that it gives itself, its ports and so on.
    pub metadata: Option<Metadata>,
    /// Its semantic version.
    pub version: Option<String>,
    /// What it exports.
    pub exports: Vec<Export>,
    /// What it imports.
    pub imports: Vec<Import>,
    /// Its linear memory, in bytes.
    pub memory: Option<Memory>,
    /// Whether it imports WASI.
    pub wasi: bool,
    /// Whether it has a start function.
    pub start: bool,
    /// Why it cannot be loaded.
    pub problem: Option<String>,
}

impl Inspection {
    pub(crate) fn show(&mut self, binary: &Binary) {
        self.exports.clone_from(&binary.exports);
        self.imports.clone_from(&binary.imports);
        self.memory = binary.memory;
        self.wasi = binary.needs_wasi();
        self.start = binary.start;
    }
}
