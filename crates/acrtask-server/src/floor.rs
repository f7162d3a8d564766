//! Floor of free disk: below it the server accepts nothing more to store.
//!
//! A database without room for its own writes would lose accepted work. [`guard`] refuses requests that store something,
//! by their operation. Reads, deletes and operations that reduce the load always work. Left out: object stores and
//! PostgreSQL, whose room only they know.

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

/// Least time between two warnings in the log, in milliseconds.
const WARN_MS: i64 = 60_000;

/// Ends of the paths of operations that work below the floor: they end or stop work, or store nothing that stays.
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
fn stores(method: &Method, path: &str) -> bool {
    let changes = [Method::POST, Method::PUT, Method::PATCH].contains(method);
    changes && !ALLOWED.iter().any(|end| path.ends_with(end))
}

/// Puts the floor in front of the routes of `router`.
pub(crate) fn guard(router: Router, app: Arc<App>) -> Router {
    router.route_layer(middleware::from_fn_with_state(app, refuse_below))
}

async fn refuse_below(
    State(app): State<Arc<App>>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    static WARNED_AT: AtomicI64 = AtomicI64::new(i64::MIN);
    if !stores(request.method(), path.as_str()) {
        return next.run(request).await;
    }
    let Err(reason) = app.floor.check() else {
        return next.run(request).await;
    };
    let now = app.clock.now_ms();
    let warned_at = WARNED_AT.load(Ordering::Relaxed);
    if now.saturating_sub(warned_at) >= WARN_MS {
        WARNED_AT.store(now, Ordering::Relaxed);
        tracing::warn!(reason, "refusing requests for lack of free disk");
    }
    // The caller may have no token: the log has the folder and its free bytes.
    ApiError::no_room("the server has less free disk than --min-free-disk keeps").into_response()
}

/// Least free disk, and the folders that it is checked in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFloor {
    /// Bytes that stay free. 0 if there is no floor.
    pub bytes: u64,
    /// Folders of the database and of the blobs.
    pub folders: Vec<PathBuf>,
}

impl DiskFloor {
    /// Checks that each folder has as much free disk as the floor.
    ///
    /// # Errors
    /// Names the first folder that has less, its free bytes and the floor.
    pub fn check(&self) -> Result<(), String> {
        if self.bytes == 0 {
            return Ok(());
        }
        for folder in &self.folders {
            // A file system that does not say how much is free has no floor.
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
    use crate::{Config, api::testing::Server};
    use axum::http::StatusCode;

    #[test]
    fn disk_below_the_floor_is_named() {
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
    async fn below_the_floor_only_what_stores_nothing_works() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::with(Config {
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
