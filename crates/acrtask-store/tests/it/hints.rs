//! Hints reach other servers on PostgreSQL; with SQLite there are none.

use std::time::Duration;

use acrtask_store::{Hint, Store};
use tokio::time::timeout;

use crate::support::{Fixture, run_id};

#[tokio::test(flavor = "multi_thread")]
async fn hints_reach_every_server_in_order() {
    let Some(fixture) = Fixture::postgres().await else {
        return;
    };
    let other = Store::open(&fixture.url).await.unwrap();
    let mut here = fixture.store.hints().await.unwrap();
    let mut there = other.hints().await.unwrap();
    let mut sent = vec![Hint::Enqueued, Hint::Tasks, Hint::Cancel(run_id("one"))];
    // More than one notification can hold.
    sent.extend((0..1000).map(|number| Hint::Log(run_id(&format!("run-{number}")))));
    fixture.store.hint(&[]).await.unwrap();
    fixture.store.hint(&sent).await.unwrap();
    for hints in [&mut here, &mut there] {
        for hint in &sent {
            let came = timeout(Duration::from_secs(10), hints.next())
                .await
                .unwrap();
            assert_eq!(came, *hint);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_connection_hints_come_again() {
    let Some(fixture) = Fixture::postgres().await else {
        return;
    };
    let mut hints = fixture.store.hints().await.unwrap();
    fixture
        .raw(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    // Whatever was lost, we are told to look.
    let came = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(came, Hint::Enqueued);
    let sender = fixture.store.clone();
    let sending = tokio::spawn(async move {
        loop {
            let _ = sender.hint(&[Hint::Tasks]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let came = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(came, Hint::Tasks);
    sending.abort();
}

/// Whoever may connect to the database may send anything on the channel.
#[tokio::test]
async fn junk_on_the_channel_is_passed_over() {
    let Some(fixture) = Fixture::postgres().await else {
        return;
    };
    let mut hints = fixture.store.hints().await.unwrap();
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
        fixture
            .raw(&format!("SELECT pg_notify('acrtask', '{payload}')"))
            .await;
    }
    fixture.store.hint(&[Hint::Tasks]).await.unwrap();
    let came = timeout(Duration::from_secs(10), hints.next())
        .await
        .unwrap();
    assert_eq!(came, Hint::Tasks);
}

#[tokio::test]
async fn sqlite_has_none() {
    let fixture = Fixture::sqlite().await;
    let mut hints = fixture.store.hints().await.unwrap();
    fixture.store.hint(&[Hint::Enqueued]).await.unwrap();
    assert!(
        timeout(Duration::from_millis(50), hints.next())
            .await
            .is_err()
    );
}
