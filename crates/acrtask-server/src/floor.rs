//! Floor of free disk. Below it the server refuses requests that store something.
//!
//! A database without free disk would lose accepted work. [`guard`] selects the refused requests by
//! their operation. Reads, deletes and operations that reduce the load always work.
//!
//! Left out: object stores and PostgreSQL, which do not report their free space.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};

use crate::{App, api::ApiError};

/// Shortest interval between two warnings in the log, in milliseconds.
const WARN_MS: i64 = 60_000;

/// Path suffixes of the operations that work below the floor. They end or stop work, or store
/// nothing permanent.
const ALLOWED: [&str; 9] = [
    "/cancel",
    "/pause",
    "/disable",
    "/drain",
    "/rollback",
    "/probe",
    "/cascades/plan",
    "/auth/exchange",
    "/quotas",
];

/// Returns `true` if an operation stores something that can wait.
fn stores_data(method: &Method, path: &str) -> bool {
    let changes = [Method::POST, Method::PUT, Method::PATCH].contains(method);
    changes && !ALLOWED.iter().any(|end| path.ends_with(end))
}

/// Adds the floor check in front of the routes of `router`.
pub(crate) fn guard(router: Router, app: Arc<App>) -> Router {
    router.route_layer(middleware::from_fn_with_state(app, refuse_below))
}

async fn refuse_below(
    State(app): State<Arc<App>>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    if !stores_data(request.method(), path.as_str()) {
        return next.run(request).await;
    }
    match require_free_disk(&app) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Checks that something may be stored.
///
/// # Errors
/// Returns 507 if a folder of the server is below the floor.
pub(crate) fn require_free_disk(app: &App) -> Result<(), ApiError> {
    static WARNED_AT: AtomicI64 = AtomicI64::new(i64::MIN);
    let Err(reason) = app.floor.check() else {
        return Ok(());
    };
    let now = app.clock.now_ms();
    let warned_at = WARNED_AT.load(Ordering::Relaxed);
    if now.saturating_sub(warned_at) >= WARN_MS {
        WARNED_AT.store(now, Ordering::Relaxed);
        tracing::warn!(reason, "refusing requests for lack of free disk");
    }
    // The caller may have no token. Only the log names the folder and its free bytes.
    Err(ApiError::disk_full(
        "the server has less free disk than --min-free-disk keeps",
    ))
}

/// Minimum of free disk, and the folders that must have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFloor {
    /// Bytes that must stay free. 0 disables the check.
    pub bytes: u64,
    /// Folders of the database and the blob store.
    pub folders: Vec<PathBuf>,
}

impl DiskFloor {
    /// Checks that each folder has at least `bytes` of free disk.
    ///
    /// # Errors
    /// Returns a message with the first folder below the floor, its free bytes and the floor.
    pub fn check(&self) -> Result<(), String> {
        if self.bytes == 0 {
            return Ok(());
        }
        for folder in &self.folders {
            // Skip file systems that do not report their free space.
            let Ok(found) = nix::sys::statvfs::statvfs(folder) else {
                continue;
            };
            let free = found
                .blocks_available()
                .saturating_mul(found.fragment_size());
            if free < self.bytes {
                return Err(format!(
                    "the server has {free} bytes of free disk in {}, and --min-free-disk keeps {} free",
                    folder.display(),
                    self.bytes
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, api::testing::TestServer};
    use axum::http::StatusCode;

    #[test]
    fn check_names_the_folder_below_the_floor() {
        let folder = tempfile::tempdir().unwrap();
        let floor = |bytes| DiskFloor {
            bytes,
            folders: vec![folder.path().to_owned()],
        };
        assert_eq!(floor(0).check(), Ok(()));
        assert_eq!(floor(1).check(), Ok(()));
        let refused = floor(u64::MAX).check().unwrap_err();
        assert!(refused.contains("--min-free-disk"), "{refused}");
    }

    #[tokio::test]
    async fn only_operations_that_store_nothing_work_below_the_floor() {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::with(Config {
            floor: DiskFloor {
                bytes: u64::MAX,
                folders: vec![folder.path().to_owned()],
            },
            ..Config::default()
        })
        .await;
        let document = serde_json::to_value(crate::api::openapi()).unwrap();
        let mut refused = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                let concrete = path.replace(['{', '}'], "");
                let request = axum::http::Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(concrete)
                    .header("authorization", format!("Bearer {}", server.admin))
                    .body(axum::body::Body::empty())
                    .unwrap();
                let answer = server.send(request).await;
                if answer.status == StatusCode::INSUFFICIENT_STORAGE {
                    let text = answer.text();
                    assert!(text.contains("--min-free-disk"), "{text}");
                    assert!(!text.contains(&*folder.path().to_string_lossy()), "{text}");
                    refused.push(format!("{method} {path}"));
                }
            }
        }
        refused.sort();
        insta::assert_snapshot!(refused.join("\n"));
    }
}
