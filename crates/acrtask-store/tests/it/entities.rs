//! Contexts, tasks, secrets, credentials, tokens, federations and runners.

use std::collections::BTreeMap;

use acrtask_api::admin::{Federation, Scope};
use acrtask_api::task::TaskDefinition;
use acrtask_model::{Principal, ScopeChain};
use acrtask_store::{NewRunner, RunnerHello, RunnerTokenRow, StoreError, TaskFilter, TokenRow};

use crate::support::{NOW, TestDb, context_owner, on_both};

on_both!(
    contexts_grow_part_by_part,
    complete_context_is_reused,
    context_can_restart,
    tasks_change_and_keep_their_ids,
    tasks_are_listed_by_name,
    secrets_have_scopes,
    credentials_have_scopes,
    tokens_are_returned_until_revoked,
    federations_are_replaced_by_name,
    registration_token_is_used_once,
    runner_properties_are_stored,
);

macro_rules! refused {
    ($result:expr, $kind:ident) => {{
        let error = $result.unwrap_err();
        assert!(matches!(error, StoreError::$kind { .. }), "{error:?}");
    }};
}

fn digest_of(digit: char) -> acrtask_model::Digest {
    format!("sha256:{}", digit.to_string().repeat(64))
        .parse()
        .unwrap()
}

async fn contexts_grow_part_by_part(db: &TestDb) {
    let store = &db.store;
    let row = store
        .create_context("c", 10, &digest_of('a'), &context_owner(), NOW)
        .await
        .unwrap();
    assert_eq!((row.received, row.complete, row.size), (0, false, 10));
    refused!(
        store
            .create_context("c", 10, &digest_of('b'), &context_owner(), NOW)
            .await,
        Conflict
    );
    store.add_part("c", 0, 4, "p0", NOW).await.unwrap();
    refused!(store.add_part("c", 0, 4, "p0", NOW).await, Conflict);
    refused!(store.add_part("c", 5, 4, "p5", NOW).await, Conflict);
    refused!(store.add_part("c", 4, 7, "p4", NOW).await, Invalid);
    refused!(store.add_part("c", 4, u64::MAX, "p4", NOW).await, Invalid);
    refused!(store.complete_context("c", NOW).await, Conflict);
    let row = store.add_part("c", 4, 6, "p4", NOW).await.unwrap();
    assert_eq!((row.received, row.complete), (10, false));
    let row = store.complete_context("c", NOW).await.unwrap();
    assert!(row.complete);
    assert_eq!(row, store.context("c").await.unwrap());
    let parts = store.context_parts("c").await.unwrap();
    let parts: Vec<_> = parts
        .iter()
        .map(|part| (part.offset, part.length, part.blob.as_str()))
        .collect();
    assert_eq!(parts, [(0, 4, "p0"), (4, 6, "p4")]);
    refused!(store.add_part("c", 10, 0, "p10", NOW).await, Conflict);
    refused!(store.reset_context("c").await, Conflict);
    refused!(store.context("d").await, NotFound);
    refused!(store.add_part("d", 0, 1, "p", NOW).await, NotFound);
    // Of two concurrent uploads of the same part, one succeeds.
    store
        .create_context("e", 8, &digest_of('e'), &context_owner(), NOW)
        .await
        .unwrap();
    let (one, two) = tokio::join!(
        store.add_part("e", 0, 8, "x", NOW),
        store.add_part("e", 0, 8, "y", NOW)
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1);
}

async fn complete_context_is_reused(db: &TestDb) {
    let store = &db.store;
    store
        .create_context("c", 3, &digest_of('a'), &context_owner(), NOW)
        .await
        .unwrap();
    // The first upload is incomplete, so another one starts.
    let other = store
        .create_context("d", 3, &digest_of('a'), &context_owner(), NOW)
        .await
        .unwrap();
    assert_eq!(other.id, "d");
    store.add_part("c", 0, 3, "p", NOW).await.unwrap();
    store.complete_context("c", NOW).await.unwrap();
    let same = store
        .create_context("e", 3, &digest_of('a'), &context_owner(), NOW + 5)
        .await
        .unwrap();
    assert_eq!((same.id.as_str(), same.complete), ("c", true));
    // The digest does not give access to another principal.
    let other = Principal::Token { id: "t2".into() };
    let theirs = store
        .create_context("g", 3, &digest_of('a'), &other, NOW + 5)
        .await;
    assert_eq!(theirs.unwrap().id, "g");
    refused!(store.context("e").await, NotFound);
    // A context that was just used does not expire.
    assert_eq!(store.remove_expired(NOW + 3, 10).await.unwrap().contexts, 1);
    assert!(store.context("c").await.is_ok());
    let larger = store
        .create_context("f", 4, &digest_of('a'), &context_owner(), NOW)
        .await
        .unwrap();
    assert_eq!(larger.id, "f");
}

async fn context_can_restart(db: &TestDb) {
    let store = &db.store;
    store
        .create_context("c", 5, &digest_of('a'), &context_owner(), NOW)
        .await
        .unwrap();
    store.add_part("c", 0, 2, "p0", NOW).await.unwrap();
    store.add_part("c", 2, 3, "p2", NOW).await.unwrap();
    assert_eq!(store.reset_context("c").await.unwrap(), ["p0", "p2"]);
    let row = store.add_part("c", 0, 5, "p0", NOW).await.unwrap();
    let parts = store.context_parts("c").await.unwrap();
    assert_eq!((row.received, parts.len()), (5, 1));
}

fn task_definition(name: &str) -> TaskDefinition {
    serde_json::from_value(serde_json::json!({
        "name": name, "file": "acr-task.yaml", "values": {"z": 1, "a": [true, null]},
    }))
    .unwrap()
}

async fn tasks_change_and_keep_their_ids(db: &TestDb) {
    let store = &db.store;
    let made = store
        .create_task("t1", &task_definition("web"), Some("web.yaml"), NOW)
        .await
        .unwrap();
    assert_eq!((made.id.as_str(), made.generation), ("t1", 1));
    assert_eq!(made.definition, task_definition("web"));
    assert_eq!(made, store.task("web").await.unwrap());
    refused!(
        store
            .create_task("t2", &task_definition("web"), None, NOW)
            .await,
        Conflict
    );
    store
        .create_task("t2", &task_definition("db"), None, NOW)
        .await
        .unwrap();
    let mut changed = task_definition("web");
    changed.enabled = false;
    let row = store
        .update_task("web", &changed, None, Some(1), NOW + 1)
        .await
        .unwrap();
    assert_eq!(
        (row.generation, row.source.as_deref()),
        (2, Some("web.yaml"))
    );
    assert_eq!(row.created_at.as_millisecond(), NOW);
    assert_eq!(row.updated_at.as_millisecond(), NOW + 1);
    assert!(!row.definition.enabled);
    refused!(
        store.update_task("web", &changed, None, Some(1), NOW).await,
        Conflict
    );
    refused!(
        store.update_task("none", &changed, None, None, NOW).await,
        NotFound
    );
    refused!(
        store
            .update_task("web", &task_definition("db"), None, None, NOW)
            .await,
        Conflict
    );
    let row = store
        .update_task("web", &task_definition("site"), Some(None), None, NOW)
        .await
        .unwrap();
    assert_eq!(
        (row.id.as_str(), row.generation, row.source),
        ("t1", 3, None)
    );
    refused!(store.task("web").await, NotFound);
    store.put_secret("t1", "s", b"x", None, NOW).await.unwrap();
    store.put_secret("", "s", b"y", None, NOW).await.unwrap();
    store
        .put_credential("t1", "h", ("u", b"x"), None, NOW)
        .await
        .unwrap();
    store.delete_task("site").await.unwrap();
    refused!(store.delete_task("site").await, NotFound);
    let of_task = ScopeChain::of_task("t1", "site");
    let left = store.secret(&of_task, "s").await.unwrap();
    assert_eq!(left, Some((String::new(), b"y".to_vec())));
    assert_eq!(store.credentials(None).await.unwrap(), []);
}

async fn tasks_are_listed_by_name(db: &TestDb) {
    let store = &db.store;
    for (number, name) in ["web/app", "Web", "web", "web-2", "db", "web/api"]
        .into_iter()
        .enumerate()
    {
        store
            .create_task(&format!("t{number}"), &task_definition(name), None, NOW)
            .await
            .unwrap();
    }
    let list = async |filter: TaskFilter| {
        let tasks = store.tasks(filter).await.unwrap();
        let names: Vec<_> = tasks
            .iter()
            .map(|task| task.definition.name.as_str())
            .collect();
        names.join(" ")
    };
    let all = || TaskFilter {
        limit: 10,
        ..TaskFilter::default()
    };
    // The order is by bytes, regardless of the locale of the database.
    assert_eq!(list(all()).await, "Web db web web-2 web/api web/app");
    let some = |prefix: Option<&str>, pattern: Option<&str>| TaskFilter {
        prefix: prefix.map(Into::into),
        pattern: pattern.map(Into::into),
        ..all()
    };
    assert_eq!(list(some(Some("web/"), None)).await, "web/api web/app");
    assert_eq!(list(some(None, Some("web/*"))).await, "web/api web/app");
    assert_eq!(list(some(None, Some("web"))).await, "web");
    assert_eq!(
        list(some(None, Some("*"))).await,
        "Web db web web-2 web/api web/app"
    );
    assert_eq!(list(some(Some("web/ap"), Some("web/app"))).await, "web/app");
    assert_eq!(list(some(Some("db"), Some("web*"))).await, "");
    let page = TaskFilter {
        after: Some("web".into()),
        limit: 2,
        ..TaskFilter::default()
    };
    assert_eq!(list(page).await, "web-2 web/api");
}

async fn secrets_have_scopes(db: &TestDb) {
    let store = &db.store;
    store
        .put_secret("", "b", &[0, 159], None, NOW)
        .await
        .unwrap();
    store
        .put_secret("t1", "b", b"own", None, NOW)
        .await
        .unwrap();
    store.put_secret("t1", "a", b"", None, NOW).await.unwrap();
    store
        .put_secret("", "b", &[7], None, NOW + 1)
        .await
        .unwrap();
    for (scope, value) in [("te/*", b"short"), ("te/a*", b"longs"), ("tea*", b"other")] {
        store
            .put_secret(scope, "p", value, None, NOW)
            .await
            .unwrap();
    }
    let read = async |id: &str, task: &str, name: &str| {
        let chain = ScopeChain::of_task(id, task);
        let found = store.secret(&chain, name).await.unwrap();
        found.map(|(scope, value)| (scope, String::from_utf8_lossy(&value).into_owned()))
    };
    let found = |scope: &str, value: &str| Some((scope.to_owned(), value.to_owned()));
    assert_eq!(read("t1", "te/app", "b").await, found("t1", "own"));
    assert_eq!(read("t1", "te/app", "a").await, found("t1", ""));
    assert_eq!(read("t2", "te/app", "b").await, found("", "\u{7}"));
    assert_eq!(read("t2", "te/app", "p").await, found("te/a*", "longs"));
    assert_eq!(read("t2", "te/b", "p").await, found("te/*", "short"));
    for outside in ["te", "t", "xte/a", "TE/a"] {
        assert_eq!(read("t2", outside, "p").await, None, "{outside}");
    }
    let shared = ScopeChain::shared();
    assert_eq!(store.secret(&shared, "p").await.unwrap(), None);
    for scope in ["te/*", "te/a*", "tea*"] {
        assert_eq!(store.secrets(Some(scope)).await.unwrap().len(), 1);
        store.delete_secret(scope, "p").await.unwrap();
    }
    let all = store.secrets(None).await.unwrap();
    let all: Vec<_> = all
        .iter()
        .map(|row| (row.scope.as_str(), row.name.as_str(), row.updated_at))
        .collect();
    assert_eq!(
        all,
        [("", "b", NOW + 1), ("t1", "a", NOW), ("t1", "b", NOW)]
    );
    assert_eq!(store.secrets(Some("t1")).await.unwrap().len(), 2);
    store.delete_secret("t1", "b").await.unwrap();
    refused!(store.delete_secret("t1", "b").await, NotFound);
    assert!(store.secret(&shared, "b").await.unwrap().is_some());
}

async fn credentials_have_scopes(db: &TestDb) {
    let store = &db.store;
    store
        .put_credential("", "r.io", ("ann", b"1"), None, NOW)
        .await
        .unwrap();
    store
        .put_credential("t1", "r.io", ("bob", b"2"), None, NOW)
        .await
        .unwrap();
    store
        .put_credential("t2", "q.io", ("eve", b"3"), None, NOW)
        .await
        .unwrap();
    store
        .put_credential("", "r.io", ("ann2", b"4"), None, NOW + 1)
        .await
        .unwrap();
    let login = ("team", &b"5"[..]);
    store
        .put_credential("te/*", "r.io", login, None, NOW)
        .await
        .unwrap();
    store
        .put_credential("te/*", "s.io", login, None, NOW)
        .await
        .unwrap();
    let users = async |chain: ScopeChain| {
        let rows = store.credentials_for(&chain).await.unwrap();
        let users = rows
            .iter()
            .map(|row| format!("{} {}", row.host, row.username));
        users.collect::<Vec<_>>().join(", ")
    };
    let of = |id, name| users(ScopeChain::of_task(id, name));
    assert_eq!(of("t1", "te/a").await, "r.io bob, s.io team");
    assert_eq!(of("t3", "te/a").await, "r.io team, s.io team");
    assert_eq!(of("t3", "tea").await, "r.io ann2");
    assert_eq!(users(ScopeChain::shared()).await, "r.io ann2");
    assert_eq!(store.credentials(None).await.unwrap().len(), 5);
    assert_eq!(store.credentials(Some("te/*")).await.unwrap().len(), 2);
    store.delete_credential("t2", "q.io").await.unwrap();
    refused!(store.delete_credential("t2", "q.io").await, NotFound);
    assert_eq!(store.credentials(Some("t2")).await.unwrap(), []);
}

async fn tokens_are_returned_until_revoked(db: &TestDb) {
    let store = &db.store;
    assert_eq!(store.count_tokens().await.unwrap(), 0);
    let token = TokenRow {
        id: "k1".into(),
        name: "ci".into(),
        hash: vec![1, 2, 3],
        scopes: vec![Scope::Read, Scope::Run],
        tasks: Some("web/*".into()),
        created_at: NOW,
        expires_at: Some(NOW + 9),
        last_used_at: None,
        subject: Some("repo:a/b".into()),
        issuer: Some("https://issuer".into()),
        pools: vec!["gpu".into()],
    };
    store.create_token(&token).await.unwrap();
    assert_eq!(store.token_by_id("k1").await.unwrap(), Some(token.clone()));
    assert_eq!(store.token_by_id("k2").await.unwrap(), None);
    store.touch_token("k1", NOW + 5).await.unwrap();
    store.touch_token("k1", NOW + 4).await.unwrap();
    let used = store.tokens().await.unwrap().remove(0);
    assert_eq!(used.last_used_at, Some(NOW + 5));
    store.revoke_token("k1").await.unwrap();
    refused!(store.revoke_token("k1").await, NotFound);
    assert_eq!(store.token_by_id("k1").await.unwrap(), None);
    assert_eq!(store.tokens().await.unwrap(), []);
    // A server whose tokens are all revoked is not a new server.
    assert_eq!(store.count_tokens().await.unwrap(), 1);
}

async fn federations_are_replaced_by_name(db: &TestDb) {
    let store = &db.store;
    let mut federation = Federation {
        name: "github".into(),
        issuer: "https://issuer".into(),
        audience: "acrtask".into(),
        subject: "repo:org/*".into(),
        scopes: vec![Scope::Run],
        tasks: None,
        pools: Vec::new(),
        ttl_secs: 900,
    };
    store.put_federation(&federation, NOW).await.unwrap();
    federation.ttl_secs = 60;
    store.put_federation(&federation, NOW).await.unwrap();
    assert_eq!(store.federations().await.unwrap(), [federation]);
    store.delete_federation("github").await.unwrap();
    refused!(store.delete_federation("github").await, NotFound);
}

fn registration_token(id: &str, expires_at: i64) -> RunnerTokenRow {
    RunnerTokenRow {
        id: id.into(),
        hash: vec![9],
        pool: Some("big".into()),
        labels: BTreeMap::from([("zone".into(), "x".into())]),
        max_slots: Some(4),
        tasks: Some("team/*".into()),
        created_at: NOW,
        expires_at,
    }
}

fn new_runner(id: &str, name: &str) -> NewRunner {
    NewRunner {
        id: id.into(),
        name: name.into(),
        key_hash: vec![4, 5],
    }
}

async fn registration_token_is_used_once(db: &TestDb) {
    let store = &db.store;
    for id in ["k1", "k2", "k3"] {
        store
            .create_runner_token(&registration_token(id, NOW + 10))
            .await
            .unwrap();
    }
    assert_eq!(
        store.runner_token("k1").await.unwrap(),
        Some(registration_token("k1", NOW + 10))
    );
    let row = store
        .register_runner("k1", &new_runner("r1", "first"), NOW)
        .await
        .unwrap();
    assert_eq!(
        (row.pool.as_str(), row.token_pool.as_deref()),
        ("big", Some("big"))
    );
    assert_eq!(row.labels["zone"], "x");
    assert_eq!((row.registered_at, row.last_seen_at), (NOW, None));
    assert_eq!(store.runner_token("k1").await.unwrap(), None);
    refused!(
        store
            .register_runner("k1", &new_runner("r2", "second"), NOW)
            .await,
        NotFound
    );
    refused!(
        store
            .register_runner("k2", &new_runner("r2", "second"), NOW + 10)
            .await,
        NotFound
    );
    refused!(
        store
            .register_runner("none", &new_runner("r2", "second"), NOW)
            .await,
        NotFound
    );
    // The name is taken, which does not use up the token.
    refused!(
        store
            .register_runner("k2", &new_runner("r2", "first"), NOW)
            .await,
        Conflict
    );
    store.remove_runner("r1", NOW).await.unwrap();
    refused!(store.remove_runner("r1", NOW).await, NotFound);
    store
        .register_runner("k2", &new_runner("r2", "first"), NOW)
        .await
        .unwrap();
    assert_eq!(
        store.runner_by_name("first").await.unwrap().unwrap().id,
        "r2"
    );
    let removed = store.runner_by_id("r1").await.unwrap().unwrap();
    assert_eq!(removed.removed_at, Some(NOW));
    assert_eq!(store.runners().await.unwrap().len(), 1);
    // Two concurrent registrations use the same token.
    let (first, second) = (new_runner("r3", "third"), new_runner("r4", "fourth"));
    let (one, two) = tokio::join!(
        store.register_runner("k3", &first, NOW),
        store.register_runner("k3", &second, NOW)
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1);
}

async fn runner_properties_are_stored(db: &TestDb) {
    let store = &db.store;
    db.register_runner("r1", "first").await;
    db.register_runner("r2", "second").await;
    let hello = RunnerHello {
        pool: "default".into(),
        labels: BTreeMap::from([("disk".into(), "fast".into())]),
        platforms: vec!["linux/amd64".into(), "linux/arm64".into()],
        slots: 4,
        features: BTreeMap::from([("engine".into(), "docker".into())]),
        version: "0.1.0".into(),
        free_disk: 1 << 40,
    };
    store
        .runner_hello("r1", &hello, "server-1", NOW)
        .await
        .unwrap();
    let row = store.runner_by_id("r1").await.unwrap().unwrap();
    assert_eq!(
        (
            row.slots,
            row.free_disk,
            row.server_id.as_deref(),
            row.last_seen_at
        ),
        (4, 1 << 40, Some("server-1"), Some(NOW))
    );
    assert_eq!(
        (row.labels, row.platforms, row.features),
        (
            hello.labels.clone(),
            hello.platforms.clone(),
            hello.features.clone()
        )
    );
    let seen = [
        ("r2".to_owned(), 5),
        ("r1".to_owned(), 6),
        ("r9".to_owned(), 7),
    ];
    store
        .runners_seen(&seen, "server-1", NOW + 3)
        .await
        .unwrap();
    store.runners_seen(&[], "server-1", NOW + 4).await.unwrap();
    // Only the server that the runner is connected to records its disconnection.
    store.runner_left("r1", "server-2").await.unwrap();
    let server = async || store.runner_by_id("r1").await.unwrap().unwrap().server_id;
    assert_eq!(server().await.as_deref(), Some("server-1"));
    store.runner_left("r1", "server-1").await.unwrap();
    assert_eq!(server().await, None);
    store
        .runners_seen(&seen, "server-1", NOW + 3)
        .await
        .unwrap();
    let runners = store.runners().await.unwrap();
    let seen: Vec<_> = runners
        .iter()
        .map(|row| (row.free_disk, row.last_seen_at))
        .collect();
    assert_eq!(seen, [(6, Some(NOW + 3)), (5, Some(NOW + 3))]);
    store.set_draining("r1", true).await.unwrap();
    assert!(
        store
            .runner_by_name("first")
            .await
            .unwrap()
            .unwrap()
            .draining
    );
    refused!(store.set_draining("r9", true).await, NotFound);
    store.remove_runner("r1", NOW).await.unwrap();
    refused!(
        store.runner_hello("r1", &hello, "server-1", NOW).await,
        NotFound
    );
    assert_eq!(store.runner_by_name("first").await.unwrap(), None);
}
