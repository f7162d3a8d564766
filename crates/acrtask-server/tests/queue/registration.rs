//! Who may speak: registration tokens, keys, and what a registration says of a runner.

use std::time::Duration;

use acrtask_proto::runner::{Attempt, FetchContextRequest, RegisterRequest};
use acrtask_server::{
    Config,
    runners::{RunnerGrant, new_runner_token},
};
use tonic::{Code, Request};

use crate::{
    place::Place,
    support::{FakeRunner, client, enqueue, eventually, granted, labels, new_run, on_both, token},
};

on_both!(
    a_registration_token_works_once,
    a_key_is_checked,
    a_runner_is_what_its_token_says,
    a_wrong_pool_label_or_slot_costs_no_token,
    a_runner_that_says_more_than_its_token_is_refused,
    a_runner_gets_runs_of_its_tasks_alone,
    a_removed_runner_is_sent_away,
    every_call_wants_a_key,
);

async fn a_registration_token_works_once(place: Place) {
    let server = place.server(Config::default()).await;
    let token = token(&server, None, &[]).await;
    let mut wrong = token.clone();
    wrong.push('x');
    let refused = FakeRunner::register_with(&server, "one", &wrong).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    for name in ["", "a b", "a/b", &"n".repeat(64)] {
        let refused = FakeRunner::register_with(&server, name, &token).await;
        assert_eq!(
            refused.unwrap_err().code(),
            Code::InvalidArgument,
            "{name:?}"
        );
    }
    FakeRunner::register_with(&server, "one", &token)
        .await
        .unwrap();
    let again = FakeRunner::register_with(&server, "two", &token).await;
    assert_eq!(again.unwrap_err().code(), Code::PermissionDenied);
    // A name that is taken uses no token up.
    let second = crate::support::token(&server, None, &[]).await;
    let taken = FakeRunner::register_with(&server, "one", &second).await;
    assert_eq!(taken.unwrap_err().code(), Code::AlreadyExists);
    FakeRunner::register_with(&server, "two", &second)
        .await
        .unwrap();
    let ended = new_runner_token(server.app(), RunnerGrant::default(), Duration::ZERO).await;
    let ended = ended.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let refused = FakeRunner::register_with(&server, "three", ended.expose()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}

async fn a_key_is_checked(place: Place) {
    let server = place.server(Config::default()).await;
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
        let refused = wrong.dial(&server).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{key}");
    }
    let line = one.connect(&server).await;
    assert_eq!(line.welcome.runner_id, one.id);
    assert_eq!(line.welcome.name, "one");
    assert_eq!(
        (line.welcome.heartbeat_ms, line.welcome.lease_ms),
        (10_000, 30_000)
    );
}

async fn a_runner_is_what_its_token_says(place: Place) {
    let server = place.server(Config::default()).await;
    let token = token(&server, Some("gpu"), &[("zone", "a")]).await;
    let mut runner = FakeRunner::register_with(&server, "one", &token)
        .await
        .unwrap();
    runner.hello.pool = "gpu".into();
    let _line = runner.connect(&server).await;
    let known = server.app().hub.runner(&runner.id).unwrap();
    assert_eq!(known.profile.pool, "gpu");
    let labels: Vec<(&str, &str)> = known
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
    assert_eq!(row.labels, known.profile.labels);
}

async fn a_wrong_pool_label_or_slot_costs_no_token(place: Place) {
    let server = place.server(Config::default()).await;
    let grant = RunnerGrant {
        pool: Some("gpu".to_owned()),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        max_slots: Some(2),
        tasks: None,
    };
    let token = granted(&server, grant).await;
    let good = RegisterRequest {
        token,
        name: "one".into(),
        pool: "gpu".into(),
        labels: labels(&[("zone", "a")]),
        slots: 2,
    };
    for (names, wrong) in [
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
                labels: labels(&[("zone", "b")]),
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
        let refused = client(&server).await.register(wrong).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(names), "{refused}");
    }
    let mut plane = client(&server).await;
    plane.register(good.clone()).await.unwrap();
    let used = plane.register(good).await.unwrap_err();
    assert_eq!(used.code(), Code::PermissionDenied);
}

async fn a_runner_that_says_more_than_its_token_is_refused(place: Place) {
    let server = place.server(Config::default()).await;
    let grant = RunnerGrant {
        pool: None,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        max_slots: Some(2),
        tasks: None,
    };
    let token = granted(&server, grant).await;
    let honest = FakeRunner::register_with(&server, "one", &token)
        .await
        .unwrap();
    type Lie = fn(&mut FakeRunner);
    let lies: [(&str, Lie); 6] = [
        ("pool `default`", |runner| runner.hello.pool = "prod".into()),
        ("label zone=b", |runner| {
            runner.hello.labels = labels(&[("zone", "b")])
        }),
        ("label gpu=yes", |runner| {
            runner.hello.labels = labels(&[("zone", "a"), ("gpu", "yes")]);
        }),
        ("label Zone=a", |runner| {
            runner.hello.labels = labels(&[("Zone", "a")])
        }),
        ("at most 2 slots", |runner| runner.hello.slots = 3),
        ("at most 2 slots", |runner| {
            runner.hello.slots = u32::MAX - 1
        }),
    ];
    // At the first connection, and at each one after a good one.
    for round in 0..2 {
        for (names, lie) in lies {
            let mut runner = honest.clone();
            lie(&mut runner);
            let mut line = runner.dial(&server).await.unwrap();
            line.hello(&runner).await;
            let status = line.end().await;
            let message = status.message();
            let is_limit = message.contains("4096 slots");
            assert!(
                message.contains(names) || is_limit,
                "round {round}: {message}"
            );
            assert!(server.app().hub.is_empty(), "{message}");
            let row = server.app().store.runner_by_name("one").await.unwrap();
            let row = row.unwrap();
            assert_eq!((row.pool.as_str(), row.slots), ("default", round * 2));
            assert_eq!(row.labels, honest_labels());
        }
        let good = honest.clone().slots(2);
        let line = good.connect(&server).await;
        drop(line);
        eventually("it is gone", || async {
            server.app().hub.is_empty().then_some(())
        })
        .await;
    }
}

fn honest_labels() -> std::collections::BTreeMap<String, String> {
    [("zone".to_owned(), "a".to_owned())].into()
}

/// Others are at the head of the queue, more than are claimed at once.
async fn a_runner_gets_runs_of_its_tasks_alone(place: Place) {
    let server = place.server(Config::default()).await;
    let app = server.app();
    let run = |id: String, task: Option<&str>| {
        let mut run = new_run(&id);
        run.task_name = task.map(str::to_owned);
        run.warm_key = task.unwrap_or_default().to_owned();
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
        let token = granted(&server, grant(tasks)).await;
        let runner = FakeRunner::register_with(&server, name, &token).await;
        let runner = runner.unwrap().slots(50);
        let mut line = runner.connect(&server).await;
        let of = line.lease().await.of.unwrap();
        assert_eq!(of.run, wanted);
        leases.push(line);
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

async fn a_removed_runner_is_sent_away(place: Place) {
    let server = place
        .server(Config {
            heartbeat: Duration::from_millis(100),
            ..Config::default()
        })
        .await;
    let app = server.app();
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    // As another server does it: only the database knows.
    app.store
        .remove_runner(&runner.id, app.clock.now_ms())
        .await
        .unwrap();
    let status = line.end().await;
    assert_eq!(status.message(), "the runner was removed");
    eventually("it is gone", || async { app.hub.is_empty().then_some(()) }).await;
    let refused = runner.dial(&server).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    FakeRunner::register(&server, "one").await;
}

async fn every_call_wants_a_key(place: Place) {
    let server = place.server(Config::default()).await;
    let mut client = client(&server).await;
    let register = client.register(RegisterRequest::default()).await;
    assert_eq!(register.unwrap_err().code(), Code::PermissionDenied);
    let connect = client.connect(tokio_stream::empty()).await;
    assert_eq!(connect.unwrap_err().code(), Code::Unauthenticated);
    let fetch = client.fetch_context(FetchContextRequest::default()).await;
    assert_eq!(fetch.unwrap_err().code(), Code::Unauthenticated);

    // With a key, but about a run of another runner.
    let holder = FakeRunner::register(&server, "holder").await;
    let mut line = holder.connect(&server).await;
    enqueue(server.app(), new_run("rone")).await;
    let of = line.lease().await.of.unwrap();
    let other = FakeRunner::register(&server, "other").await;
    for (by, of, code) in [
        (&other, of.clone(), Code::PermissionDenied),
        (
            &holder,
            Attempt {
                attempt: 2,
                ..of.clone()
            },
            Code::PermissionDenied,
        ),
        (&holder, Attempt::default(), Code::PermissionDenied),
        (&holder, of, Code::NotFound),
    ] {
        let mut request = Request::new(FetchContextRequest {
            of: Some(of),
            offset: 0,
        });
        let bearer = format!("Bearer {}", by.key).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let refused = client.fetch_context(request).await.err().unwrap();
        assert_eq!(refused.code(), code);
    }
}
