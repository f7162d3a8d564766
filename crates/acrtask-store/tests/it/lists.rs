//! Lists of runs: order, filters, pages.

use acrtask_model::RunState;
use acrtask_store::{RunFilter, StoreError};

use crate::support::{Fixture, NOW, finished, ids, new_run, on_both, run_id};

on_both!(
    pages_hold_each_run_once,
    filters_choose,
    lists_have_a_period,
    lists_read_no_specs,
    what_postgres_cannot_hold_is_taken,
);

async fn lists_read_no_specs(fixture: &Fixture) {
    let mut fork = new_run("fork");
    fork.origin.needs_approval = true;
    fork.spec.facts.branch = "fix".into();
    fixture.store.enqueue(fork, NOW).await.unwrap();
    fixture.queued("own", NOW).await;
    // A spec that is not JSON fails whatever reads it.
    assert_eq!(fixture.raw("UPDATE runs SET spec = 'large'").await, 2);
    assert!(fixture.store.run(&run_id("fork")).await.is_err());
    let (listed, _) = fixture.store.run_summaries(filter()).await.unwrap();
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

async fn pages_hold_each_run_once(fixture: &Fixture) {
    for number in 0..10 {
        // Several of the same moment.
        fixture
            .queued(&format!("run-{number}"), NOW + number / 3)
            .await;
    }
    fixture.claim("a", 4, NOW).await;
    for states in [vec![], vec![RunState::Queued, RunState::Leased]] {
        let mut filter = RunFilter {
            states,
            limit: 4,
            ..filter()
        };
        let mut seen = Vec::new();
        let mut pages = 0;
        loop {
            let (rows, next) = fixture.store.runs(filter.clone()).await.unwrap();
            seen.extend(ids(&rows).into_iter().map(str::to_owned));
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
    let error = fixture
        .store
        .runs(RunFilter {
            before: Some("yesterday".into()),
            ..filter()
        })
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }), "{error:?}");
}

async fn lists_have_a_period(fixture: &Fixture) {
    for (id, at) in [("one", 1), ("two", 2), ("three", 3)] {
        fixture.queued(id, NOW + at).await;
    }
    let listed = async |since: Option<i64>, until: Option<i64>| {
        let filter = RunFilter {
            since: since.map(|at| NOW + at),
            until: until.map(|at| NOW + at),
            states: vec![RunState::Queued],
            ..filter()
        };
        let (rows, _) = fixture.store.runs(filter).await.unwrap();
        ids(&rows).join(" ")
    };
    assert_eq!(listed(None, None).await, "three two one");
    assert_eq!(listed(Some(2), None).await, "three two");
    assert_eq!(listed(None, Some(2)).await, "one");
    assert_eq!(listed(Some(2), Some(3)).await, "two");
}

async fn filters_choose(fixture: &Fixture) {
    for (number, task) in ["web/app", "web/api", "web", "webber", "db"]
        .into_iter()
        .enumerate()
    {
        let mut new = new_run(&format!("run-{number}"));
        new.task_name = Some(task.into());
        fixture
            .store
            .enqueue(new, NOW + number as i64)
            .await
            .unwrap();
    }
    fixture.queued("none", NOW + 9).await;
    let runs = fixture.claim("a", 2, NOW).await;
    fixture
        .say("a", &runs[0], NOW, finished(RunState::Failed, 0))
        .await;
    let list = async |filter: RunFilter| {
        let (rows, next) = fixture.store.runs(filter).await.unwrap();
        assert_eq!(next, None);
        ids(&rows).join(" ")
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

async fn what_postgres_cannot_hold_is_taken(fixture: &Fixture) {
    let row = fixture.queued("one", NOW).await;
    let task = RunFilter {
        task: Some("web\0".into()),
        ..filter()
    };
    assert_eq!(fixture.store.runs(task).await.unwrap().0, []);
    let many = vec!["d\0".to_owned()];
    assert_eq!(fixture.store.tasks_by_id(many).await.unwrap(), []);
    let canceled = fixture.store.request_cancel(&row.id, "by \0 jo", NOW).await;
    let reason = canceled.unwrap().cancel_reason;
    assert_eq!(reason.as_deref(), Some("by \u{fffd} jo"));
}
