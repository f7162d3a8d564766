//! Sessions, and counts of runs for the overview.

use acrtask_api::admin::Scope;
use acrtask_store::{RunCounts, SessionRow, TokenRow};

use crate::support::{NOW, TestDb, new_run, on_both};

on_both!(
    sessions_end_with_their_token_and_their_time,
    counts_are_limited_to_tasks,
);

fn token(id: &str) -> TokenRow {
    TokenRow {
        id: id.into(),
        name: id.into(),
        hash: vec![1],
        scopes: vec![Scope::Read],
        tasks: None,
        created_at: NOW,
        expires_at: None,
        last_used_at: None,
        subject: None,
        issuer: None,
        pools: Vec::new(),
    }
}

fn session(byte: u8, token: &str, expires_at: i64) -> SessionRow {
    SessionRow {
        hash: vec![byte; 32],
        token_id: token.into(),
        created_at: NOW,
        last_used_at: NOW,
        expires_at,
    }
}

async fn sessions_end_with_their_token_and_their_time(db: &TestDb) {
    let store = &db.store;
    for id in ["kept", "revoked"] {
        store.create_token(&token(id)).await.unwrap();
    }
    let kept = session(1, "kept", NOW + 100);
    let all = [
        kept.clone(),
        session(2, "kept", NOW + 10),
        session(3, "revoked", NOW + 100),
        session(4, "kept", NOW + 100),
    ];
    for session in &all {
        store.create_session(session).await.unwrap();
    }
    assert!(
        store
            .create_session(&session(5, "unknown", NOW))
            .await
            .is_err()
    );
    assert_eq!(store.session(&kept.hash).await.unwrap(), Some(kept.clone()));
    assert_eq!(store.session(&[9; 32]).await.unwrap(), None);

    store.touch_session(&kept.hash, NOW + 5).await.unwrap();
    store.touch_session(&kept.hash, NOW + 3).await.unwrap();
    let touched = store.session(&kept.hash).await.unwrap().unwrap();
    assert_eq!(touched.last_used_at, NOW + 5);

    store.revoke_token("revoked").await.unwrap();
    store.delete_session(&all[3].hash).await.unwrap();
    store.delete_session(&all[3].hash).await.unwrap();
    assert_eq!(store.remove_ended_sessions(NOW + 10, NOW).await.unwrap(), 2);
    for (session, remains) in std::iter::zip(&all, [true, false, false, false]) {
        let found = store.session(&session.hash).await.unwrap();
        assert_eq!(found.is_some(), remains, "{session:?}");
    }
    assert_eq!(
        store
            .remove_ended_sessions(NOW + 10, NOW + 6)
            .await
            .unwrap(),
        1
    );
}

async fn counts_are_limited_to_tasks(db: &TestDb) {
    for (id, task, at) in [
        ("a", Some("team/app"), NOW),
        ("b", Some("team/web"), NOW),
        ("c", Some("other"), NOW),
        ("d", None, NOW),
    ] {
        let mut run = new_run(id);
        run.task_name = task.map(str::to_owned);
        db.store.enqueue(run, at).await.unwrap();
    }
    db.claim("n", 1, NOW).await;
    db.execute("UPDATE runs SET state = 'failed', finished_at = created_at WHERE id = 'b'")
        .await;
    let counts = |queued, running, failed| RunCounts {
        queued,
        running,
        failed,
    };
    for (task, prefix, since, expected) in [
        (None, None, NOW, counts(2, 1, 1)),
        (None, None, NOW + 1, counts(2, 1, 0)),
        (Some("other"), None, NOW, counts(1, 0, 0)),
        (None, Some("team/"), NOW, counts(0, 1, 1)),
        (Some("none"), None, NOW, counts(0, 0, 0)),
    ] {
        let found = db.store.run_counts(task, prefix, since).await.unwrap();
        assert_eq!(found, expected, "{task:?} {prefix:?} {since}");
    }
}
