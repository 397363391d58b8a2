//! The way from a source to a module, step by step.
//!
//! Every step has its own error, and nothing later runs when one fails. The steps
//! fill an [`Inspection`] as they go, so that a refused module can be shown.

use std::{
    collections::HashMap,
    io::Read,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    thread::available_parallelism,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use reflowd_runtime::{Digest, Module as _, excerpt, panic::Boundary};
use semver::Version;
use sha2::Digest as _;
use tokio::sync::Semaphore;

use crate::{
    binary::{Binary, Import, ItemType},
    code::{Code, Ended, EngineKind, Revived, Uncompiled, Unstarted},
    code_cache::{CodeCache, CodeCacheError},
    download::{self, DownloadRules},
    host::Surroundings,
    inspection::Inspection,
    load_error::{LoadError, LoadErrorKind},
    loaded::{self, LoadedModule},
    metadata::{self, unwrap_base64},
    signature::{Signature, host_function},
    url::ModuleUrl,
};

/// Compilers that run at a time, each of which may hold gigabytes: one for each core, and as
/// many again, so that a few modules that take long hold up nobody.
static COMPILING: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = available_parallelism().map_or(1, NonZero::get);
    Semaphore::new(2 * cores.min(MAX_COMPILING_CORES))
});

/// On a machine with more cores, memory is what there is too little of.
const MAX_COMPILING_CORES: usize = 16;

/// Where a module comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file. It is read once.
    File(PathBuf),
    /// Bytes in memory.
    Bytes {
        /// What messages call them.
        name: String,
        /// The module.
        bytes: Bytes,
    },
    /// A download. Nothing looks at what comes before it has this digest.
    Url {
        /// From where.
        url: ModuleUrl,
        /// The SHA-256 of the module.
        sha256: Digest,
    },
}

/// What a module may take while it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a module.
    pub module_size: u64,
    /// Bytes of linear memory, while it is asked about itself.
    pub memory: u64,
    /// Time for each question that it is asked.
    pub metadata_timeout: Duration,
    /// Time for compiling.
    pub compile_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            module_size: 32 << 20,
            memory: 100 << 20,
            metadata_timeout: Duration::from_secs(5),
            compile_timeout: Duration::from_secs(120),
        }
    }
}

/// Loads modules, and keeps what it has loaded by digest. Clones share what is kept.
#[derive(Clone)]
pub struct Loader {
    limits: Limits,
    engine: EngineKind,
    cache: Option<Arc<CodeCache>>,
    downloads: Arc<DownloadRules>,
    loaded: Arc<Mutex<Loaded>>,
}

/// What has been loaded, and in which order last.
#[derive(Default)]
struct Loaded {
    modules: HashMap<Digest, (u64, Arc<LoadedModule>)>,
    loads: u64,
}

impl Loader {
    /// A loader that has loaded nothing.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            engine: EngineKind::default(),
            cache: None,
            downloads: Arc::default(),
            loaded: Arc::default(),
        }
    }

    /// The same, for another engine. What has been loaded is not taken over.
    #[must_use]
    pub fn with_engine(self, engine: EngineKind) -> Self {
        Self { engine, loaded: Arc::default(), ..self }
    }

    /// The same, and compiled code is kept in `folder`, so that a module is compiled
    /// once and not at each start. Only the `direct` engine can keep it.
    ///
    /// # Errors
    /// The folder cannot be used, or others could put their code there.
    pub fn with_code_cache(self, folder: impl Into<PathBuf>) -> Result<Self, CodeCacheError> {
        Ok(Self { cache: Some(Arc::new(CodeCache::open(folder)?)), ..self })
    }

    /// The same, and downloads are held to these rules.
    #[must_use]
    pub fn with_downloads(self, rules: DownloadRules) -> Self {
        Self { downloads: Arc::new(rules), ..self }
    }

    /// The same, with nothing loaded.
    fn empty(&self) -> Self {
        self.clone().with_engine(self.engine)
    }

    /// Loads a module, or finds it among those loaded.
    ///
    /// # Errors
    /// The step that failed, with the module's path or name and what to do.
    pub async fn load(&self, source: Source) -> Result<Arc<LoadedModule>, LoadError> {
        let name = source.name();
        let bytes = self.read(source).await.map_err(|kind| LoadError::new(&name, None, kind))?;
        self.load_bytes(&name, bytes).await
    }

    /// Loads a module from bytes; `name` is what messages call it.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub async fn load_bytes(
        &self,
        name: &str,
        bytes: Bytes,
    ) -> Result<Arc<LoadedModule>, LoadError> {
        self.run(bytes, &mut Inspection::default())
            .await
            .map_err(|(digest, kind)| LoadError::new(name, digest, kind))
    }

    /// Says whether a module could be loaded, and keeps nothing.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub async fn validate(&self, source: Source) -> Result<(), LoadError> {
        self.empty().load(source).await.map(|_| ())
    }

    /// The module that calls itself that, if it is loaded. Of several, the one that was
    /// loaded last.
    #[must_use]
    pub fn get(&self, component: &str) -> Option<Arc<LoadedModule>> {
        let loaded = self.loaded.lock();
        let named = loaded.modules.values().filter(|(_, m)| m.metadata().component == component);
        named.max_by_key(|(load, _)| *load).map(|(_, module)| module.clone())
    }

    /// The module of that digest, if it is loaded.
    #[must_use]
    pub fn by_digest(&self, digest: &Digest) -> Option<Arc<LoadedModule>> {
        self.loaded.lock().modules.get(digest).map(|(_, module)| module.clone())
    }

    /// Lets go of a module. Actors that run it go on.
    pub fn forget(&self, digest: &Digest) {
        self.loaded.lock().modules.remove(digest);
    }

    /// The bytes behind a URL, which are the ones with that digest where one is given.
    ///
    /// # Errors
    /// They could not be had, or are others.
    pub async fn download(
        &self,
        url: &ModuleUrl,
        sha256: Option<&Digest>,
    ) -> Result<Bytes, LoadError> {
        let bytes = self.fetch(url.clone(), sha256).await;
        bytes.map_err(|kind| LoadError::new(&url.to_string(), None, kind))
    }

    /// All that can be told about a module, whether it can be loaded or not.
    pub async fn inspect(&self, source: Source) -> Inspection {
        let mut inspection = Inspection { module: source.name(), ..Inspection::default() };
        let result = match self.read(source).await {
            Ok(bytes) => self.empty().run(bytes, &mut inspection).await.map(|_| ()),
            Err(kind) => {
                if let LoadErrorKind::TooLarge { size, .. } = kind {
                    inspection.size = Some(size);
                }
                Err((None, kind))
            }
        };
        inspection.problem = result.err().map(|(_, kind)| kind.to_string());
        inspection
    }

    async fn read(&self, source: Source) -> Result<Bytes, LoadErrorKind> {
        let max = self.limits.module_size;
        match source {
            Source::Bytes { bytes, .. } => Ok(bytes),
            Source::File(path) => Boundary::Load.aside(move || read_file(&path, max)).await?,
            Source::Url { url, sha256 } => {
                if let Some(module) = self.by_digest(&sha256) {
                    return Ok(module.bytes().clone());
                }
                self.fetch(url, Some(&sha256)).await
            }
        }
    }

    async fn fetch(&self, url: ModuleUrl, sha256: Option<&Digest>) -> Result<Bytes, LoadErrorKind> {
        let (rules, max) = (Arc::clone(&self.downloads), self.limits.module_size);
        let downloaded = Boundary::Load.aside(move || {
            let bytes = download::download(&url, max, &rules)?;
            let digest = digest_of(&bytes);
            Ok((bytes, digest))
        });
        let downloaded = downloaded.await?;
        let (bytes, found) = downloaded.map_err(LoadErrorKind::Download)?;
        match sha256 {
            Some(expected) if *expected != found => {
                Err(LoadErrorKind::DigestMismatch { expected: *expected, found })
            }
            _ => Ok(bytes),
        }
    }

    /// All steps after reading.
    async fn run(
        &self,
        bytes: Bytes,
        inspection: &mut Inspection,
    ) -> Result<Arc<LoadedModule>, (Option<Digest>, LoadErrorKind)> {
        let (size, max) = (bytes.len() as u64, self.limits.module_size);
        inspection.size = Some(size);
        if size > max {
            return Err((None, LoadErrorKind::TooLarge { size, max }));
        }
        let digest = digest_of(&bytes);
        inspection.digest = Some(digest);
        let known = self.by_digest(&digest);
        let module = match known {
            Some(module) => module,
            None => {
                let steps = self.steps(digest, bytes, inspection).await;
                steps.map_err(|error| (Some(digest), error))?
            }
        };
        let mut loaded = self.loaded.lock();
        loaded.loads += 1;
        let load = loaded.loads;
        loaded.modules.insert(digest, (load, module.clone()));
        Ok(module)
    }

    async fn steps(
        &self,
        digest: Digest,
        bytes: Bytes,
        inspection: &mut Inspection,
    ) -> Result<Arc<LoadedModule>, LoadErrorKind> {
        let (engine, read, cache) = (self.engine, bytes.clone(), self.cache.clone());
        let reading = Boundary::Load.aside(move || {
            let revived = cache.and_then(|cache| Revived::find(engine, &cache, &digest));
            // What has been compiled was checked before, by the same rules.
            let known = if revived.is_some() { Binary::read_valid } else { Binary::read };
            (revived, known(&read))
        });
        let (revived, (binary, valid)) = reading.await?;
        inspection.show(&binary);
        valid?;
        check_exports(&binary)?;
        check_imports(&binary)?;
        check_memory(&binary, self.limits.memory)?;

        let limits = self.limits;
        let code = match revived {
            Some(revived) => Code::revived(&revived, &binary).map_err(LoadErrorKind::Compile)?,
            None => match self.compile_first(digest, bytes.clone(), binary.clone()).await? {
                Compiled::Code(code) => code,
                Compiled::Loaded(module) => return Ok(module),
            },
        };

        let asked = binary.clone();
        let asking = Boundary::Load.aside(move || {
            let said = ask(&code, &asked, limits);
            let understood = said.and_then(|said| {
                let metadata = metadata::read(&said.metadata)?;
                Ok((metadata, said.version))
            });
            (code, understood)
        });
        // Each question has its own deadline; this one is for what no deadline reaches.
        let patience = limits.metadata_timeout * 4;
        let (code, understood) = match tokio::time::timeout(patience, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => return Err(panic.into()),
            Err(_) => return Err(LoadErrorKind::MetadataTimeout(patience)),
        };
        let (metadata, version) = understood?;
        inspection.metadata = Some(metadata.clone());
        let version = match version {
            Some(answer) => Some(version_of(&answer)?),
            None => metadata.version.clone(),
        };
        inspection.version.clone_from(&version);
        if let Some(version) = &version {
            check_version(version)?;
        }
        let loaded = loaded::Loaded { digest, bytes, binary, metadata, version, limits, engine };
        Ok(Arc::new(LoadedModule::new(loaded, code)))
    }

    /// Compiles a module that has not been loaded yet.
    async fn compile_first(
        &self,
        digest: Digest,
        bytes: Bytes,
        binary: Binary,
    ) -> Result<Compiled, LoadErrorKind> {
        let (limits, engine, cache) = (self.limits, self.engine, self.cache.clone());
        let permit = COMPILING.acquire().await.expect("the semaphore is never closed");
        // Another task may have loaded the same bytes while this one waited.
        if let Some(module) = self.by_digest(&digest) {
            return Ok(Compiled::Loaded(module));
        }
        let compiling = Boundary::Load.aside(move || {
            // Whoever waits may give up; the next compilation still has to wait.
            let _permit = permit;
            let keep = cache.as_deref().map(|cache| (cache, &digest));
            Code::compile_first(engine, &bytes, &binary, limits.memory, keep)
        });
        match tokio::time::timeout(limits.compile_timeout, compiling).await {
            Ok(Ok(Ok(code))) => Ok(Compiled::Code(code)),
            Ok(Ok(Err(Uncompiled::Refused(why)))) => Err(LoadErrorKind::Compile(why)),
            Ok(Ok(Err(Uncompiled::Costly(time)))) => Err(LoadErrorKind::CompileCost(time)),
            Ok(Err(panic)) => Err(panic.into()),
            Err(_) => Err(LoadErrorKind::CompileTimeout(limits.compile_timeout)),
        }
    }
}

/// What waiting for one's turn to compile has led to.
enum Compiled {
    Code(Code),
    /// Another has loaded the same bytes meanwhile.
    Loaded(Arc<LoadedModule>),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes { name, .. } => name.clone(),
            Self::Url { url, .. } => url.to_string(),
        }
    }
}

/// Compiles a module for an actor.
///
/// # Errors
/// What the compiler said, or that it took too long.
pub(crate) async fn compile(
    engine: EngineKind,
    bytes: Bytes,
    binary: Binary,
    memory: u64,
    timeout: Duration,
) -> Result<Code, String> {
    let permit = COMPILING.acquire().await.expect("the semaphore is never closed");
    let compiling = Boundary::Prepare.aside(move || {
        let _permit = permit;
        Code::compile(engine, &bytes, &binary, memory)
    });
    match tokio::time::timeout(timeout, compiling).await {
        Ok(Ok(code)) => code.map_err(|uncompiled| uncompiled.to_string()),
        Ok(Err(panic)) => Err(panic.to_string()),
        Err(_) => Err(format!("compiling it takes more than {timeout:?}")),
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(sha2::Sha256::digest(bytes).into())
}

fn read_file(path: &Path, max: u64) -> Result<Bytes, LoadErrorKind> {
    let failed = |source: std::io::Error| LoadErrorKind::Read(source.to_string());
    // Opening a FIFO would wait for a writer.
    let is_file = std::fs::metadata(path).map_err(failed)?.is_file();
    if !is_file {
        return Err(LoadErrorKind::Read("it is no regular file".into()));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > max {
        return Err(LoadErrorKind::TooLarge { size, max });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // One byte more than allowed tells a file that has grown since.
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes.into())
}

fn check_exports(binary: &Binary) -> Result<(), LoadErrorKind> {
    const ABI: [&str; 4] = ["get_metadata", "get_version", "validate_config", "migrate_state"];
    for name in ABI {
        match binary.export(name) {
            None if name == "get_metadata" => {
                let exports = binary.exported_functions();
                return Err(LoadErrorKind::MissingExport { name: name.into(), exports });
            }
            Some(ty) if *ty != ItemType::Function(Signature::turn()) => {
                let found = ty.to_string();
                return Err(LoadErrorKind::WrongExportType { name: name.into(), found });
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_imports(binary: &Binary) -> Result<(), LoadErrorKind> {
    for Import { module, name, ty } in &binary.imports {
        let (module, name, wants) = (module.clone(), name.clone(), ty.to_string());
        match host_function(&module, &name) {
            None => return Err(LoadErrorKind::UnknownImport { module, name, wants }),
            Some(has) if *ty != ItemType::Function(has.clone()) => {
                let has = has.to_string();
                return Err(LoadErrorKind::WrongImportType { module, name, wants, has });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_memory(binary: &Binary, limit: u64) -> Result<(), LoadErrorKind> {
    let needed = binary.needed_memory();
    if needed > limit { Err(LoadErrorKind::MemoryTooSmall { needed, limit }) } else { Ok(()) }
}

/// What a module answered when it was asked about itself.
struct Said {
    metadata: Bytes,
    version: Option<Bytes>,
}

fn ask(code: &Code, binary: &Binary, limits: Limits) -> Result<Said, LoadErrorKind> {
    let timeout = limits.metadata_timeout;
    let around = Arc::new(Surroundings::none());
    let instance = code.instantiate(&around, limits.memory, timeout);
    let mut instance = instance.map_err(|unstarted| match unstarted {
        Unstarted::Broke(why) => LoadErrorKind::InitFailed(why),
        Unstarted::Late => LoadErrorKind::InitTimeout(timeout),
        Unstarted::NoRoom(why) => LoadErrorKind::NoRoom(why),
    })?;
    let mut answer = |export: &'static str| {
        let failed = |why: String| LoadErrorKind::AskFailed { export, why };
        match instance.ask(export, &[], timeout) {
            Ended::Answer(bytes) => Ok(bytes),
            Ended::Guest(error) => Err(failed(format!("returned an error: {error}"))),
            Ended::Bad(why) => Err(failed(format!("gave {why}"))),
            Ended::Trap(why) => Err(failed(format!("trapped: {why}"))),
            Ended::Timeout => Err(LoadErrorKind::MetadataTimeout(timeout)),
        }
    };
    let metadata = answer("get_metadata")?;
    let version = if binary.has_turn("get_version") { Some(answer("get_version")?) } else { None };
    Ok(Said { metadata, version })
}

fn version_of(answer: &[u8]) -> Result<String, LoadErrorKind> {
    // As much again as a version could take in JSON, in base64 or not.
    if answer.len() > 4 * MAX_VERSION {
        return Err(LoadErrorKind::VersionInvalid(excerpt(answer)));
    }
    serde_json::from_slice(answer)
        .or_else(|_| serde_json::from_slice(&unwrap_base64(answer)))
        .map_err(|_| LoadErrorKind::VersionInvalid(excerpt(answer)))
}

/// The longest version, in bytes: it is shown wherever the module is.
const MAX_VERSION: usize = 256;

fn check_version(version: &str) -> Result<(), LoadErrorKind> {
    match Version::parse(version) {
        Ok(_) if version.len() <= MAX_VERSION => Ok(()),
        _ => Err(LoadErrorKind::VersionInvalid(excerpt(version.as_bytes()))),
    }
}
