//! Hints between servers on PostgreSQL. SQLite has none.

use std::time::Duration;

use acrtask_store::{Hint, Store};
use tokio::time::timeout;

use crate::support::{TestDb, run_id};

#[tokio::test(flavor = "multi_thread")]
async fn hints_reach_every_server_in_order() {
    let Some(db) = TestDb::postgres().await else {
        return;
    };
    let other = Store::open(&db.url).await.unwrap();
    let mut here = db.store.listen_for_hints().await.unwrap();
    let mut there = other.listen_for_hints().await.unwrap();
    let mut sent = vec![Hint::Enqueued, Hint::Tasks, Hint::Cancel(run_id("one"))];
    // The hints exceed the size of one notification.
    sent.extend((0..1000).map(|number| Hint::Log(run_id(&format!("run-{number}")))));
    db.store.send_hints(&[]).await.unwrap();
    db.store.send_hints(&sent).await.unwrap();
    for hints in [&mut here, &mut there] {
        for hint in &sent {
            let received = timeout(Duration::from_secs(10), hints.next())
                .await
                .unwrap();
            assert_eq!(received, *hint);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_arrive_again_after_reconnection() {
    let Some(db) = TestDb::postgres().await else {
        return;
    };
    let mut hints = db.store.listen_for_hints().await.unwrap();
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    // A hint after the reconnection replaces lost ones.
    let received = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(received, Hint::Enqueued);
    let sender = db.store.clone();
    let sending = tokio::spawn(async move {
        loop {
            let _ = sender.send_hints(&[Hint::Tasks]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let received = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(received, Hint::Tasks);
    sending.abort();
}

/// Any client of the database may send anything on the channel.
#[tokio::test]
async fn invalid_payloads_are_ignored() {
    let Some(db) = TestDb::postgres().await else {
        return;
    };
    let mut hints = db.store.listen_for_hints().await.unwrap();
    for payload in [
        String::new(),
        "null".into(),
        "{}".into(),
        "[".repeat(7_000),
        r#"[{"cancel": "../../x"}, {"cancel": 1}, {"drop": "tables"}, null]"#.into(),
        format!(r#"["{}"]"#, "x".repeat(7_000)),
        r#"[{"log": "'; DROP TABLE runs; --"}]"#.into(),
    ] {
        let payload = payload.replace('\'', "''");
        db.execute(&format!("SELECT pg_notify('acrtask', '{payload}')"))
            .await;
    }
    db.store.send_hints(&[Hint::Tasks]).await.unwrap();
    let received = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(received, Hint::Tasks);
}

#[tokio::test]
async fn sqlite_has_no_hints() {
    let db = TestDb::sqlite().await;
    let mut hints = db.store.listen_for_hints().await.unwrap();
    db.store.send_hints(&[Hint::Enqueued]).await.unwrap();
    assert!(
        timeout(Duration::from_millis(50), hints.next())
            .await
            .is_err()
    );
}
