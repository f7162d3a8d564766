//! Tests of uploads in blocks, and of documents of the ARM API.

use acrtask_api::quota::QuotaKind;
use acrtask_model::Principal;
use acrtask_store::{ArmDocument, ArmKind, BlockRow, StoreError};
use serde_json::json;

use crate::support::{NOW, TestDb, context_owner, new_run, on_both};

on_both!(
    blocks_become_the_parts_of_a_context,
    changed_blocks_do_not_complete_an_upload,
    uploads_stay_within_limit_and_quota,
    blocks_of_unfinished_uploads_expire,
    documents_are_found_by_name_and_removed_with_their_owner,
);

fn block(name: &str, length: u64) -> BlockRow {
    BlockRow {
        block: name.into(),
        length,
        blob: format!("blob {name} {length}"),
    }
}

fn digest() -> acrtask_model::Digest {
    format!("sha256:{}", "a".repeat(64)).parse().unwrap()
}

async fn blocks_become_the_parts_of_a_context(db: &TestDb) {
    let store = &db.store;
    store
        .create_upload("c1", &context_owner(), None, NOW)
        .await
        .unwrap();
    for row in [block("b", 3), block("a", 4), block("unused", 5)] {
        let replaced = store.add_block("c1", &row, 100, None, NOW).await.unwrap();
        assert_eq!(replaced, None);
    }
    let replaced = store
        .add_block("c1", &block("a", 2), 100, None, NOW)
        .await
        .unwrap();
    assert_eq!(replaced.as_deref(), Some("blob a 4"));
    assert_eq!(store.context("c1").await.unwrap().size, 10);
    let (context, unused) = store
        .complete_blocks("c1", &[block("b", 3), block("a", 2)], &digest(), NOW)
        .await
        .unwrap();
    assert_eq!(unused, ["blob unused 5"]);
    assert_eq!((context.size, context.received), (5, 5));
    assert!(context.complete);
    assert_eq!(context.digest, digest());
    let parts = store.context_parts("c1").await.unwrap();
    let parts: Vec<(u64, &str)> = parts
        .iter()
        .map(|part| (part.offset, part.blob.as_str()))
        .collect();
    assert_eq!(parts, [(0, "blob b 3"), (3, "blob a 2")]);
    let late = store.add_block("c1", &block("c", 1), 100, None, NOW).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
}

async fn changed_blocks_do_not_complete_an_upload(db: &TestDb) {
    let store = &db.store;
    store
        .create_upload("c1", &context_owner(), None, NOW)
        .await
        .unwrap();
    store
        .add_block("c1", &block("a", 2), 100, None, NOW)
        .await
        .unwrap();
    for blocks in [vec![block("a", 3)], vec![block("b", 2)]] {
        let refused = store.complete_blocks("c1", &blocks, &digest(), NOW).await;
        assert!(
            matches!(refused, Err(StoreError::Conflict { .. })),
            "{refused:?}"
        );
    }
}

async fn uploads_stay_within_limit_and_quota(db: &TestDb) {
    let store = &db.store;
    let owner = Principal::Token { id: "t1".into() };
    let subject = "token:t1".parse().unwrap();
    store
        .set_quota(&subject, QuotaKind::UnfinishedContexts, Some(1))
        .await
        .unwrap();
    store
        // An upload counts at least 4 KiB.
        .set_quota(&subject, QuotaKind::ContextBytes, Some(4200))
        .await
        .unwrap();
    let create = async |id: &str| store.create_upload(id, &owner, Some("t1"), NOW).await;
    create("c1").await.unwrap();
    let refused = create("c2").await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    let add = async |name: &str, length: u64, limit: u64| {
        store
            .add_block("c1", &block(name, length), limit, Some("t1"), NOW)
            .await
    };
    let refused = add("a", 60, 5).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid { .. })),
        "{refused:?}"
    );
    add("a", 60, 1000).await.unwrap();
    let refused = add("b", 200, 1000).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    let check = store.check_block("c1", 2, 1000, Some("t1"), NOW).await;
    check.unwrap();
}

async fn blocks_of_unfinished_uploads_expire(db: &TestDb) {
    let store = &db.store;
    store
        .create_upload("c1", &context_owner(), None, NOW)
        .await
        .unwrap();
    store
        .add_block("c1", &block("a", 2), 100, None, NOW)
        .await
        .unwrap();
    let expired = store.expire_uploads(NOW + 1, 10).await.unwrap();
    assert_eq!(
        (expired.contexts, expired.blobs),
        (1, vec!["blob a 2".into()])
    );
    assert_eq!(store.context_blocks("c1").await.unwrap(), []);
}

async fn documents_are_found_by_name_and_removed_with_their_owner(db: &TestDb) {
    let store = &db.store;
    let definition = serde_json::from_value(json!({"name": "app", "cmd": "alpine true"})).unwrap();
    let task = store
        .create_task("t1", &definition, None, NOW)
        .await
        .unwrap();
    let document = |name: &str, generation| ArmDocument {
        name: name.into(),
        task_id: Some(task.id.clone()),
        run_id: None,
        generation,
        body: json!({"generation": generation}),
        created_at: NOW,
    };
    for row in [document("App", 1), document("app", 2)] {
        store
            .put_arm_document(ArmKind::Task, "r", &row)
            .await
            .unwrap();
    }
    let found = store.arm_document(ArmKind::Task, "r", "APP").await.unwrap();
    assert_eq!(found, Some(document("app", 2)));
    let other = store
        .arm_document(ArmKind::TaskRun, "r", "app")
        .await
        .unwrap();
    assert_eq!(other, None);
    assert_eq!(
        store
            .arm_documents(ArmKind::Task, "r", None, 10)
            .await
            .unwrap(),
        [document("app", 2)]
    );
    store.delete_task("app").await.unwrap();
    let found = store.arm_document(ArmKind::Task, "r", "app").await.unwrap();
    assert_eq!(found, None);

    let run = new_run("r1");
    store.enqueue(run, NOW).await.unwrap();
    let flags = ArmDocument {
        name: "r1".into(),
        task_id: None,
        run_id: Some("r1".into()),
        ..document("r1", 0)
    };
    store
        .put_arm_document(ArmKind::Run, "", &flags)
        .await
        .unwrap();
    assert!(
        store
            .delete_arm_document(ArmKind::Run, "", "R1")
            .await
            .unwrap()
    );
    assert!(
        !store
            .delete_arm_document(ArmKind::Run, "", "R1")
            .await
            .unwrap()
    );
}
