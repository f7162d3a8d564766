//! What tests of the service ask the database itself.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use acrtask_store::Store;
use acrtask_tests::service::Server;

/// The URL of the database of a server on SQLite.
pub(crate) fn database(server: &Server) -> String {
    format!("sqlite:{}", server.data().join("acrtask.db").display())
}

/// An empty database on the tests' PostgreSQL; nothing only where skipping was asked for.
pub(crate) async fn postgres() -> Option<String> {
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

/// The conservation law: each trigger is accounted for. Waits a moment, since what is under way has its deadline.
pub(crate) async fn law_holds(url: &str) {
    let store = Store::open(url).await.unwrap();
    let begun = Instant::now();
    loop {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let now = i64::try_from(now.as_millis()).unwrap();
        let left = store.unaccounted(now, 2_000).await.unwrap();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
