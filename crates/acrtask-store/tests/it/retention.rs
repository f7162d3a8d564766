//! Retention: old rows are removed, and used ones stay.

use acrtask_model::RunState;

use crate::support::{
    NOW, TestDb, context_owner, finished_report, log_chunk, new_run, on_both, run_id,
};

on_both!(
    old_runs_are_removed_completely,
    contexts_stay_while_runs_use_them
);

async fn old_runs_are_removed_completely(db: &TestDb) {
    let store = &db.store;
    for (id, at) in [("old", 0), ("older", -5), ("new", 100)] {
        let run = db.start_run(id, NOW + at).await;
        db.report_all(
            "a",
            &run,
            NOW + at,
            vec![
                log_chunk(0, 3),
                log_chunk(3, 4),
                finished_report(RunState::Succeeded, 7),
            ],
        )
        .await;
    }
    let waiting = db.start_run("waiting", NOW - 100).await;
    db.report("a", &waiting, NOW, log_chunk(0, 1)).await;
    assert_eq!(store.remove_expired(NOW - 50, 10).await.unwrap().runs, 0);
    let first = store.remove_expired(NOW + 50, 1).await.unwrap();
    assert_eq!(
        (first.runs, first.blobs),
        (1, vec!["logs/x/0".into(), "logs/x/3".into()])
    );
    assert!(store.run(&run_id("older")).await.is_err());
    assert_eq!(store.remove_expired(NOW + 50, 10).await.unwrap().runs, 1);
    assert_eq!(
        store.remove_expired(NOW + 50, 10).await.unwrap(),
        Default::default()
    );
    assert_eq!(store.attempts(&run_id("old")).await.unwrap(), []);
    assert_eq!(store.log_chunks(&run_id("old"), 1, 0, 9).await.unwrap(), []);
    assert_eq!(db.run_state("new").await, RunState::Succeeded);
    assert_eq!(db.run_state("waiting").await, RunState::Running);
    // Their triggers were removed with them, so the audit finds nothing.
    assert_eq!(store.unaccounted_triggers(NOW + 200, 0).await.unwrap(), []);
}

async fn contexts_stay_while_runs_use_them(db: &TestDb) {
    let store = &db.store;
    for (id, digit) in [
        ("used", 'a'),
        ("unused", 'b'),
        ("partial", 'c'),
        ("fresh", 'd'),
    ] {
        let digest = format!("sha256:{}", digit.to_string().repeat(64))
            .parse()
            .unwrap();
        let at = if id == "fresh" { NOW + 100 } else { NOW };
        store
            .create_context(id, 3, &digest, &context_owner(), at)
            .await
            .unwrap();
        store
            .add_part(id, 0, 2, &format!("contexts/{id}"), at)
            .await
            .unwrap();
        if id != "partial" {
            store
                .add_part(id, 2, 1, &format!("contexts/{id}/2"), at)
                .await
                .unwrap();
            store.complete_context(id, at).await.unwrap();
        }
    }
    let mut new = new_run("one");
    new.context_id = Some("used".into());
    store.enqueue(new, NOW).await.unwrap();
    let gone = store.remove_expired(NOW + 50, 10).await.unwrap();
    assert_eq!(gone.contexts, 2);
    let mut blobs = gone.blobs;
    blobs.sort();
    assert_eq!(
        blobs,
        ["contexts/partial", "contexts/unused", "contexts/unused/2"]
    );
    for (id, there) in [
        ("used", true),
        ("fresh", true),
        ("unused", false),
        ("partial", false),
    ] {
        assert_eq!(store.context(id).await.is_ok(), there, "{id}");
    }
    // The context is removed with its last run.
    store
        .request_cancel(&run_id("one"), "x", NOW)
        .await
        .unwrap();
    let gone = store.remove_expired(NOW + 50, 10).await.unwrap();
    assert_eq!((gone.runs, gone.contexts), (1, 1));
}
