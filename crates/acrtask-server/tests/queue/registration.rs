//! Registration of runners: registration tokens, runner keys, and the grant of a runner.

use std::time::Duration;

use acrtask_proto::runner::{Attempt, FetchContextRequest, RegisterRequest};
use acrtask_server::{
    Config,
    runners::{RunnerGrant, new_runner_token},
};
use tonic::{Code, Request};

use crate::{
    support::{
        FakeRunner, connect_client, create_token, create_token_with_grant, enqueue, new_run,
        on_both, to_labels, wait_until,
    },
    test_db::TestDb,
};

on_both!(
    registration_token_works_once,
    wrong_runner_key_is_refused,
    runner_gets_pool_and_labels_of_its_token,
    refused_registration_does_not_use_up_its_token,
    runner_that_exceeds_its_grant_is_refused,
    runner_gets_only_runs_of_its_tasks,
    removed_runner_is_disconnected,
    every_call_requires_a_key,
);

async fn registration_token_works_once(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let token = create_token(&server, None, &[]).await;
    let mut wrong = token.clone();
    wrong.push('x');
    let refused = FakeRunner::register_with_token(&server, "one", &wrong).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    for name in ["", "a b", "a/b", &"n".repeat(64)] {
        let refused = FakeRunner::register_with_token(&server, name, &token).await;
        assert_eq!(
            refused.unwrap_err().code(),
            Code::InvalidArgument,
            "{name:?}"
        );
    }
    FakeRunner::register_with_token(&server, "one", &token)
        .await
        .unwrap();
    let again = FakeRunner::register_with_token(&server, "two", &token).await;
    assert_eq!(again.unwrap_err().code(), Code::PermissionDenied);
    // A registration with a name that is in use does not use up its token.
    let second = create_token(&server, None, &[]).await;
    let taken = FakeRunner::register_with_token(&server, "one", &second).await;
    assert_eq!(taken.unwrap_err().code(), Code::AlreadyExists);
    FakeRunner::register_with_token(&server, "two", &second)
        .await
        .unwrap();
    let ended = new_runner_token(server.app(), RunnerGrant::default(), Duration::ZERO).await;
    let ended = ended.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let refused = FakeRunner::register_with_token(&server, "three", ended.expose()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

async fn wrong_runner_key_is_refused(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let one = FakeRunner::register(&server, "one").await;
    let two = FakeRunner::register(&server, "two").await;
    let secret = one.key.rsplit_once('_').unwrap().1;
    for key in [
        String::new(),
        "acrk_".into(),
        format!("acrk_nobody_{secret}"),
        format!("acrk_{}_{secret}", two.id),
        one.key.to_uppercase(),
    ] {
        let wrong = FakeRunner {
            key: key.clone(),
            ..one.clone()
        };
        let refused = wrong.open_stream(&server).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{key}");
    }
    let stream = one.connect(&server).await;
    assert_eq!(stream.welcome.runner_id, one.id);
    assert_eq!(stream.welcome.name, "one");
    assert_eq!(
        (stream.welcome.heartbeat_ms, stream.welcome.lease_ms),
        (10_000, 30_000)
    );
}

async fn runner_gets_pool_and_labels_of_its_token(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let token = create_token(&server, Some("gpu"), &[("zone", "a")]).await;
    let mut runner = FakeRunner::register_with_token(&server, "one", &token)
        .await
        .unwrap();
    runner.hello.pool = "gpu".into();
    let _stream = runner.connect(&server).await;
    let runner = server.app().hub.runner(&runner.id).unwrap();
    assert_eq!(runner.profile.pool, "gpu");
    let labels: Vec<(&str, &str)> = runner
        .profile
        .labels
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(labels, [("zone", "a")]);
    let row = server
        .app()
        .store
        .runner_by_name("one")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.pool.as_str(), row.slots), ("gpu", 1));
    assert_eq!(row.labels, runner.profile.labels);
}

async fn refused_registration_does_not_use_up_its_token(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let grant = RunnerGrant {
        pool: Some("gpu".to_owned()),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        max_slots: Some(2),
        tasks: None,
    };
    let token = create_token_with_grant(&server, grant).await;
    let good = RegisterRequest {
        token,
        name: "one".into(),
        pool: "gpu".into(),
        labels: to_labels(&[("zone", "a")]),
        slots: 2,
    };
    for (named, wrong) in [
        (
            "pool `gpu`",
            RegisterRequest {
                pool: "prod".into(),
                ..good.clone()
            },
        ),
        (
            "label zone=b",
            RegisterRequest {
                labels: to_labels(&[("zone", "b")]),
                ..good.clone()
            },
        ),
        (
            "at most 2 slots",
            RegisterRequest {
                slots: 3,
                ..good.clone()
            },
        ),
        (
            "a runner's name",
            RegisterRequest {
                name: "a b".into(),
                ..good.clone()
            },
        ),
    ] {
        let refused = connect_client(&server).await.register(wrong).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(named), "{refused}");
    }
    let mut client = connect_client(&server).await;
    client.register(good.clone()).await.unwrap();
    let used = client.register(good).await.unwrap_err();
    assert_eq!(used.code(), Code::PermissionDenied);
}

async fn runner_that_exceeds_its_grant_is_refused(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let grant = RunnerGrant {
        pool: None,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        max_slots: Some(2),
        tasks: None,
    };
    let token = create_token_with_grant(&server, grant).await;
    let honest = FakeRunner::register_with_token(&server, "one", &token)
        .await
        .unwrap();
    type Change = fn(&mut FakeRunner);
    let changes: [(&str, Change); 6] = [
        ("pool `default`", |runner| runner.hello.pool = "prod".into()),
        ("label zone=b", |runner| {
            runner.hello.labels = to_labels(&[("zone", "b")])
        }),
        ("label gpu=yes", |runner| {
            runner.hello.labels = to_labels(&[("zone", "a"), ("gpu", "yes")]);
        }),
        ("label Zone=a", |runner| {
            runner.hello.labels = to_labels(&[("Zone", "a")])
        }),
        ("at most 2 slots", |runner| runner.hello.slots = 3),
        ("at most 2 slots", |runner| {
            runner.hello.slots = u32::MAX - 1
        }),
    ];
    // Tries all changes on the first connection, and again after a valid connection.
    for round in 0..2 {
        for (named, change) in changes {
            let mut runner = honest.clone();
            change(&mut runner);
            let mut stream = runner.open_stream(&server).await.unwrap();
            stream.send_hello(&runner).await;
            let status = stream.receive_end().await;
            let message = status.message();
            let is_limit = message.contains("4096 slots");
            assert!(
                message.contains(named) || is_limit,
                "round {round}: {message}"
            );
            assert!(server.app().hub.is_empty(), "{message}");
            let row = server.app().store.runner_by_name("one").await.unwrap();
            let row = row.unwrap();
            assert_eq!((row.pool.as_str(), row.slots), ("default", round * 2));
            assert_eq!(row.labels, granted_labels());
        }
        let good = honest.clone().with_slots(2);
        let stream = good.connect(&server).await;
        drop(stream);
        wait_until("the runner is disconnected", || async {
            server.app().hub.is_empty().then_some(())
        })
        .await;
    }
}

fn granted_labels() -> std::collections::BTreeMap<String, String> {
    [("zone".to_owned(), "a".to_owned())].into()
}

/// Puts runs of other tasks at the head of the queue, more than the server claims at once.
async fn runner_gets_only_runs_of_its_tasks(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let app = server.app();
    let run = |id: String, task: Option<&str>| {
        let mut run = new_run(&id);
        run.task_name = task.map(str::to_owned);
        run.affinity_key = task.unwrap_or_default().to_owned();
        run
    };
    let mut others = Vec::new();
    for number in 0..300 {
        let task = [None, Some("prod/app"), Some("team"), Some("other/team/app")][number % 4];
        others.push(run(format!("rother{number}"), task));
    }
    let now = app.clock.now_ms();
    app.store.enqueue_many(others, now).await.unwrap();
    for (id, task) in [("rmine1", "team/app"), ("rmine2", "team/web")] {
        enqueue(app, run(id.into(), Some(task))).await;
    }
    let grant = |tasks: &str| RunnerGrant {
        tasks: Some(tasks.to_owned()),
        ..RunnerGrant::default()
    };
    let mut leases = Vec::new();
    for (name, tasks, wanted) in [("one", "team/app", "rmine1"), ("all", "team/*", "rmine2")] {
        let token = create_token_with_grant(&server, grant(tasks)).await;
        let runner = FakeRunner::register_with_token(&server, name, &token).await;
        let runner = runner.unwrap().with_slots(50);
        let mut stream = runner.connect(&server).await;
        let attempt = stream.receive_lease().await.of.unwrap();
        assert_eq!(attempt.run, wanted);
        leases.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let filter = acrtask_store::RunFilter {
        states: vec![acrtask_model::RunState::Leased],
        limit: 400,
        ..Default::default()
    };
    let (leased, _) = app.store.runs(filter).await.unwrap();
    let mut leased: Vec<&str> = leased.iter().map(|run| run.id.as_str()).collect();
    leased.sort_unstable();
    assert_eq!(leased, ["rmine1", "rmine2"]);
}

async fn removed_runner_is_disconnected(db: TestDb) {
    let server = db
        .start_server(Config {
            heartbeat: Duration::from_millis(100),
            ..Config::default()
        })
        .await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    // Simulates a removal on another server: only the database contains it.
    app.store
        .remove_runner(&runner.id, app.clock.now_ms())
        .await
        .unwrap();
    let status = stream.receive_end().await;
    assert_eq!(status.message(), "the runner was removed");
    wait_until("the runner is disconnected", || async {
        app.hub.is_empty().then_some(())
    })
    .await;
    let refused = runner.open_stream(&server).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    FakeRunner::register(&server, "one").await;
}

async fn every_call_requires_a_key(db: TestDb) {
    let server = db.start_server(Config::default()).await;
    let mut client = connect_client(&server).await;
    let register = client.register(RegisterRequest::default()).await;
    assert_eq!(register.unwrap_err().code(), Code::PermissionDenied);
    let connect = client.connect(tokio_stream::empty()).await;
    assert_eq!(connect.unwrap_err().code(), Code::Unauthenticated);
    let fetch = client.fetch_context(FetchContextRequest::default()).await;
    assert_eq!(fetch.unwrap_err().code(), Code::Unauthenticated);

    // A valid key gives no access to a run of another runner.
    let holder = FakeRunner::register(&server, "holder").await;
    let mut stream = holder.connect(&server).await;
    enqueue(server.app(), new_run("rone")).await;
    let attempt = stream.receive_lease().await.of.unwrap();
    let other = FakeRunner::register(&server, "other").await;
    for (runner, attempt, code) in [
        (&other, attempt.clone(), Code::PermissionDenied),
        (
            &holder,
            Attempt {
                attempt: 2,
                ..attempt.clone()
            },
            Code::PermissionDenied,
        ),
        (&holder, Attempt::default(), Code::PermissionDenied),
        (&holder, attempt, Code::NotFound),
    ] {
        let mut request = Request::new(FetchContextRequest {
            of: Some(attempt),
            offset: 0,
        });
        let bearer = format!("Bearer {}", runner.key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let refused = client.fetch_context(request).await.err().unwrap();
        assert_eq!(refused.code(), code);
    }
}
