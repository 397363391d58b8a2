//! Why a module cannot be loaded, step by step.

use std::time::Duration;

use reflowd_runtime::{Digest, panic::Panic};
use thiserror::Error;

use crate::{
    binary::InvalidBinary,
    config_schema::{Costly, InvalidSchema},
    download::DownloadError,
    metadata::InvalidMetadata,
};

/// A module that cannot be loaded.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{module}: {kind}")]
pub struct LoadError {
    /// Its path or name.
    pub module: String,
    /// What its bytes are, where they could be read.
    pub digest: Option<Digest>,
    /// What went wrong.
    pub kind: LoadErrorKind,
}

impl LoadError {
    pub(crate) fn new(module: &str, digest: Option<Digest>, kind: LoadErrorKind) -> Self {
        Self { module: module.into(), digest, kind }
    }

    /// Whether the bytes themselves are wrong, so that trying them again is useless.
    #[must_use]
    pub fn is_intrinsic(&self) -> bool {
        use LoadErrorKind::{Broke, DigestMismatch, Download, NoRoom, Read};
        let elsewhere = matches!(
            self.kind,
            Read(_) | Download(_) | DigestMismatch { .. } | NoRoom(_) | Broke(_)
        );
        !elsewhere && !self.is_timeout()
    }

    /// One word for metrics and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.kind {
            LoadErrorKind::Read(_) => "read",
            LoadErrorKind::Download(_) => "download",
            LoadErrorKind::DigestMismatch { .. } => "digest-mismatch",
            LoadErrorKind::TooLarge { .. } => "too-large",
            LoadErrorKind::InvalidBinary(_) => "invalid-binary",
            LoadErrorKind::MissingExport { .. } => "missing-export",
            LoadErrorKind::WrongExportType { .. } => "wrong-export-type",
            LoadErrorKind::UnknownImport { .. } => "unknown-import",
            LoadErrorKind::WrongImportType { .. } => "wrong-import-type",
            LoadErrorKind::MemoryTooSmall { .. } => "memory-too-small",
            LoadErrorKind::Compile(_) => "compile",
            LoadErrorKind::CompileTimeout(_) | LoadErrorKind::CompileCost(_) => "compile-timeout",
            LoadErrorKind::InitFailed(_) => "init-failed",
            LoadErrorKind::InitTimeout(_) => "init-timeout",
            LoadErrorKind::NoRoom(_) => "no-room",
            LoadErrorKind::AskFailed { .. } => "ask-failed",
            LoadErrorKind::MetadataTimeout(_) => "metadata-timeout",
            LoadErrorKind::InvalidMetadata(_) => "invalid-metadata",
            LoadErrorKind::VersionInvalid(_) => "version-invalid",
            LoadErrorKind::Broke(_) => "broke",
        }
    }

    /// Whether it took too long, which a quieter machine may mend.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        use LoadErrorKind::{CompileCost, CompileTimeout, InitTimeout, MetadataTimeout};
        matches!(
            self.kind,
            CompileCost(_) | CompileTimeout(_) | InitTimeout(_) | MetadataTimeout(_)
        )
    }
}

/// What went wrong with a module.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LoadErrorKind {
    /// The file cannot be read.
    #[error("cannot read the module: {0}")]
    Read(String),
    /// It cannot be downloaded.
    #[error("cannot download the module: {0}")]
    Download(DownloadError),
    /// The server has given out something else.
    #[error(
        "the server's answer has digest {found}, and `sha256` is {expected}; if the new module is meant, write its digest"
    )]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Over the limit.
    #[error(
        "the module has {size} bytes, and `module_size` allows {max}; strip it, or raise `module_size`"
    )]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// Not a module that can run here.
    #[error(transparent)]
    InvalidBinary(#[from] InvalidBinary),
    /// An export of the ABI is not there.
    #[error("the module does not export `{name}`; it exports {exports}")]
    MissingExport {
        /// The export.
        name: String,
        /// What it exports.
        exports: String,
    },
    /// An export of the ABI has another type.
    #[error("the export `{name}` has type {found}, and the plug-in ABI wants () -> i32")]
    WrongExportType {
        /// The export.
        name: String,
        /// Its type.
        found: String,
    },
    /// The host has no such function.
    #[error(
        "the module imports `{name}` from `{module}` as {wants}, which this host does not offer; was it built for another host?"
    )]
    UnknownImport {
        /// The namespace.
        module: String,
        /// The name.
        name: String,
        /// The type that the module wants.
        wants: String,
    },
    /// The host's function has another type.
    #[error(
        "the module imports `{name}` from `{module}` as {wants}, and the host has {has}; correct the declaration"
    )]
    WrongImportType {
        /// The namespace.
        module: String,
        /// The name.
        name: String,
        /// The type that the module wants.
        wants: String,
        /// The type that the host has.
        has: String,
    },
    /// The memory that it declares is over the limit.
    #[error(
        "the module needs {needed} bytes of memory and tables from the start, and `memory` allows {limit}; raise `memory`"
    )]
    MemoryTooSmall {
        /// Bytes that it declares.
        needed: u64,
        /// The limit.
        limit: u64,
    },
    /// The compiler refused it.
    #[error("the module cannot be compiled: {0}")]
    Compile(String),
    /// The compiler took more of the processors than the module's size explains.
    #[error(
        "compiling the module takes more than {0:?} of processor time, which is several times what code of its size needs; build it optimised, or split it"
    )]
    CompileCost(Duration),
    /// The compiler took too long.
    #[error("compiling the module takes more than {0:?}; make it smaller")]
    CompileTimeout(Duration),
    /// It broke before any export was called.
    #[error("the module cannot be initialised: {0}")]
    InitFailed(String),
    /// Its start function or initialisers did not end in time.
    #[error("the module's initialisers do not end within {0:?}; they must not wait or loop there")]
    InitTimeout(Duration),
    /// The system has no room for an instance, whatever the module is.
    #[error("the module cannot be instantiated: {0}")]
    NoRoom(String),
    /// It broke when it was asked about itself.
    #[error("`{export}` {why}")]
    AskFailed {
        /// The export that was called.
        export: &'static str,
        /// How it ended.
        why: String,
    },
    /// It did not answer in time.
    #[error(
        "the module does not answer within {0:?} when it is asked for its metadata; it must not wait or loop there"
    )]
    MetadataTimeout(Duration),
    /// What it says of itself is wrong.
    #[error("wrong metadata: {0}")]
    InvalidMetadata(#[source] InvalidMetadata),
    /// Its version is none.
    #[error("the module's version is {0}; give a semantic version such as \"1.2.3\"")]
    VersionInvalid(String),
    /// The loader broke over it.
    #[error("{0}")]
    Broke(Panic),
}

impl From<InvalidMetadata> for LoadErrorKind {
    fn from(invalid: InvalidMetadata) -> Self {
        match invalid {
            // Which says nothing of the module.
            InvalidMetadata::Schema(InvalidSchema::Costly(Costly::Broke(panic))) => {
                Self::Broke(panic)
            }
            InvalidMetadata::Schema(InvalidSchema::Costly(why @ Costly::NoThread(_))) => {
                Self::NoRoom(why.to_string())
            }
            invalid => Self::InvalidMetadata(invalid),
        }
    }
}

impl From<Panic> for LoadErrorKind {
    fn from(panic: Panic) -> Self {
        Self::Broke(panic)
    }
}
