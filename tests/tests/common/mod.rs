//! Queries of the database for tests of the service.

#![allow(dead_code, reason = "each test program uses a part of this module")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use acrtask_store::Store;
use acrtask_tests::service::TestServer;

/// Returns the URL of the SQLite database of a server.
pub(crate) fn database_url(server: &TestServer) -> String {
    format!("sqlite:{}", server.data_dir().join("acrtask.db").display())
}

/// Creates an empty database on the PostgreSQL of the tests. `None` if `ACRTASK_TEST_SKIP_ENGINE`
/// is set.
pub(crate) async fn create_postgres_database() -> Option<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let Some(url) = std::env::var("ACRTASK_TEST_POSTGRES")
        .ok()
        .filter(|url| !url.is_empty())
    else {
        assert!(
            std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
            "ACRTASK_TEST_POSTGRES is not set: run `cargo xtask test`"
        );
        return None;
    };
    let name = format!(
        "service_{}_{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    Some(
        acrtask_store::testing::create_database(&url, &name)
            .await
            .unwrap(),
    )
}

/// Asserts the conservation law: every trigger led to a recorded outcome. Waits for triggers that
/// are still being processed.
pub(crate) async fn assert_triggers_accounted(url: &str) {
    let store = Store::open(url).await.unwrap();
    let begun = Instant::now();
    loop {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let now = i64::try_from(now.as_millis()).unwrap();
        let left = store.unaccounted_triggers(now, 2_000).await.unwrap();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
