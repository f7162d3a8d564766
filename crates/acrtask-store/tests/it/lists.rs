//! Lists of runs: order, filters and pages.

use acrtask_model::RunState;
use acrtask_store::{RunFilter, StoreError};

use crate::support::{NOW, TestDb, finished_report, new_run, on_both, run_id, run_ids};

on_both!(
    pages_contain_each_run_once,
    filters_select_runs,
    lists_are_limited_to_a_period,
    summaries_do_not_read_specs,
    nul_characters_are_replaced,
);

async fn summaries_do_not_read_specs(db: &TestDb) {
    let mut fork = new_run("fork");
    fork.origin.needs_approval = true;
    fork.spec.variables.branch = "fix".into();
    db.store.enqueue(fork, NOW).await.unwrap();
    db.enqueue("own", NOW).await;
    // A spec that is not JSON makes every reader of it fail.
    assert_eq!(db.execute("UPDATE runs SET spec = 'large'").await, 2);
    assert!(db.store.run(&run_id("fork")).await.is_err());
    let (listed, _) = db.store.run_summaries(filter()).await.unwrap();
    let revisions: Vec<_> = listed
        .iter()
        .map(|run| (run.id.as_str(), run.revision.as_deref()))
        .collect();
    assert_eq!(revisions, [("own", None), ("fork", Some("branch `fix`"))]);
}

fn filter() -> RunFilter {
    RunFilter {
        limit: 100,
        ..RunFilter::default()
    }
}

async fn pages_contain_each_run_once(db: &TestDb) {
    for number in 0..10 {
        // Several runs have the same creation time.
        db.enqueue(&format!("run-{number}"), NOW + number / 3).await;
    }
    db.claim("a", 4, NOW).await;
    for states in [vec![], vec![RunState::Queued, RunState::Leased]] {
        let mut filter = RunFilter {
            states,
            limit: 4,
            ..filter()
        };
        let mut seen = Vec::new();
        let mut pages = 0;
        loop {
            let (rows, next) = db.store.runs(filter.clone()).await.unwrap();
            seen.extend(run_ids(&rows).into_iter().map(str::to_owned));
            pages += 1;
            match next {
                Some(next) => filter.before = Some(next),
                None => break,
            }
        }
        let expected: Vec<_> = (0..10)
            .rev()
            .map(|number| format!("run-{number}"))
            .collect();
        assert_eq!((seen, pages), (expected, 3));
    }
    let error = db
        .store
        .runs(RunFilter {
            before: Some("yesterday".into()),
            ..filter()
        })
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }), "{error:?}");
}

async fn lists_are_limited_to_a_period(db: &TestDb) {
    for (id, at) in [("one", 1), ("two", 2), ("three", 3)] {
        db.enqueue(id, NOW + at).await;
    }
    let listed = async |since: Option<i64>, until: Option<i64>| {
        let filter = RunFilter {
            since: since.map(|at| NOW + at),
            until: until.map(|at| NOW + at),
            states: vec![RunState::Queued],
            ..filter()
        };
        let (rows, _) = db.store.runs(filter).await.unwrap();
        run_ids(&rows).join(" ")
    };
    assert_eq!(listed(None, None).await, "three two one");
    assert_eq!(listed(Some(2), None).await, "three two");
    assert_eq!(listed(None, Some(2)).await, "one");
    assert_eq!(listed(Some(2), Some(3)).await, "two");
}

async fn filters_select_runs(db: &TestDb) {
    for (number, task) in ["web/app", "web/api", "web", "webber", "db"]
        .into_iter()
        .enumerate()
    {
        let mut new = new_run(&format!("run-{number}"));
        new.task_name = Some(task.into());
        db.store.enqueue(new, NOW + number as i64).await.unwrap();
    }
    db.enqueue("none", NOW + 9).await;
    let runs = db.claim("a", 2, NOW).await;
    db.report("a", &runs[0], NOW, finished_report(RunState::Failed, 0))
        .await;
    let list = async |filter: RunFilter| {
        let (rows, next) = db.store.runs(filter).await.unwrap();
        assert_eq!(next, None);
        run_ids(&rows).join(" ")
    };
    assert_eq!(list(filter()).await, "none run-4 run-3 run-2 run-1 run-0");
    let task = |task: &str| RunFilter {
        task: Some(task.into()),
        ..filter()
    };
    assert_eq!(list(task("web")).await, "run-2");
    assert_eq!(list(task("nothing")).await, "");
    let prefix = |prefix: &str| RunFilter {
        task_prefix: Some(prefix.into()),
        ..filter()
    };
    assert_eq!(list(prefix("web/")).await, "run-1 run-0");
    assert_eq!(list(prefix("web")).await, "run-3 run-2 run-1 run-0");
    let states = |states: &[RunState]| RunFilter {
        states: states.to_vec(),
        ..filter()
    };
    assert_eq!(list(states(&[RunState::Failed])).await, "run-0");
    assert_eq!(
        list(states(&[
            RunState::Leased,
            RunState::Failed,
            RunState::Error
        ]))
        .await,
        "run-1 run-0"
    );
    let both = RunFilter {
        states: vec![RunState::Queued],
        ..prefix("web")
    };
    assert_eq!(list(both).await, "run-3 run-2");
}

async fn nul_characters_are_replaced(db: &TestDb) {
    let row = db.enqueue("one", NOW).await;
    let task = RunFilter {
        task: Some("web\0".into()),
        ..filter()
    };
    assert_eq!(db.store.runs(task).await.unwrap().0, []);
    let many = vec!["d\0".to_owned()];
    assert_eq!(db.store.tasks_by_id(many).await.unwrap(), []);
    let canceled = db.store.request_cancel(&row.id, "by \0 jo", NOW).await;
    let reason = canceled.unwrap().cancel_reason;
    assert_eq!(reason.as_deref(), Some("by \u{fffd} jo"));
}
