//! What disk asks for: a look at it on demand, and the modules found there.

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, Uri},
};
use reflowd_hot_reload::{ReloadError, ReloadOptions, Report};
use reflowd_runtime::Precondition;
use serde::Deserialize;

use super::{Admin, ModuleView, Problem, flag, intake::wait_of, query, version};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Options {
    #[serde(deserialize_with = "flag")]
    dry_run: bool,
    #[serde(deserialize_with = "flag")]
    force: bool,
    #[serde(deserialize_with = "flag")]
    allow_removal: bool,
    timeout: Option<String>,
}

/// `POST /v1/reload`: answered when it is done, whatever came of it.
pub(super) async fn reload(
    State(admin): State<Admin>,
    Extension(precondition): Extension<Precondition>,
    uri: Uri,
) -> Result<Json<Report>, Problem> {
    let Options { dry_run, force, allow_removal, timeout } = query(&uri)?;
    let timeout = timeout.as_deref().map(wait_of).transpose()?;
    let options = ReloadOptions { dry_run, force, allow_removal, timeout };
    // A pass is not left half done because whoever asked for it hangs up.
    let reloader = admin.reloader;
    let pass = admin.tasks.spawn(async move { reloader.reload(options, precondition).await });
    match pass.await.expect("whoever asks for a pass does not break, and nobody aborts it") {
        Ok(report) => Ok(Json(report)),
        Err(ReloadError::Changed) => Err(version::changed()),
        Err(error @ ReloadError::Broke) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Err(Problem::new(status, "broke", "not reloaded", error.to_string()))
        }
        Err(error @ ReloadError::Stopping) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(Problem::new(status, "stopping", "not reloaded", error.to_string()))
        }
    }
}

/// `GET /v1/modules`.
pub(super) async fn modules(State(admin): State<Admin>) -> Json<Vec<ModuleView>> {
    Json(admin.reloader.modules())
}
