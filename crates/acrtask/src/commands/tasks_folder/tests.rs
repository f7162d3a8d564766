//! Tests of the reconciliation between a folder and a database.

use acrtask_api::task::TaskDefinition;
use acrtask_server::{Config, blobs::Blobs, clock::Clock, vault::Vault};
use acrtask_store::Store;

use super::*;

struct TestFolder {
    app: App,
    folder: TasksFolder,
    dir: tempfile::TempDir,
}

async fn test_folder() -> TestFolder {
    let dir = tempfile::tempdir().unwrap();
    let tasks = dir.path().join("tasks");
    std::fs::create_dir(&tasks).unwrap();
    let store = Store::open(&format!("sqlite:{}", dir.path().join("db").display()))
        .await
        .unwrap();
    let app = App::new(
        Config::default(),
        store,
        Blobs::open(&dir.path().join("blobs").display().to_string()).unwrap(),
        Vault::load_or_create(&dir.path().join("key")).unwrap(),
        Clock::fixed(1_000),
    );
    let folder = TasksFolder::open(&tasks, LogFormat::Json, Style::PLAIN).unwrap();
    TestFolder { app, folder, dir }
}

impl TestFolder {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join("tasks").join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join("tasks").join(name)).unwrap();
    }

    async fn reconcile(&mut self) -> ReconcileResult {
        self.folder.reconcile(&self.app).await.unwrap()
    }

    async fn tasks(&self) -> Vec<String> {
        let tasks = stored_tasks(&self.app).await.unwrap();
        tasks
            .into_iter()
            .map(|task| format!("{} {}", task.definition.name, task.definition.description))
            .collect()
    }
}

#[tokio::test]
async fn tasks_match_their_files_after_each_change() {
    let mut test = test_folder().await;
    test.write("a.yaml", "name: one\ncmd: x\n---\nname: two\ncmd: x\n");
    test.write("b.yaml", "name: three\ncmd: x\n");
    let result = test.reconcile().await;
    assert_eq!(result.created, ["one", "two", "three"]);
    assert_eq!(test.reconcile().await, ReconcileResult::default());
    test.write("b.yaml", "name: three\ndescription: new\ncmd: x\n");
    assert_eq!(test.reconcile().await.updated, ["three"]);
    // A task that moves to another file stays the same task.
    test.remove("b.yaml");
    test.write("c.yaml", "name: three\ndescription: new\ncmd: x\n");
    let result = test.reconcile().await;
    assert_eq!(
        (result.updated, result.deleted),
        (vec!["three".into()], Vec::new())
    );
    test.remove("a.yaml");
    let mut deleted = test.reconcile().await.deleted;
    deleted.sort();
    assert_eq!(deleted, ["one", "two"]);
    assert_eq!(test.tasks().await, ["three new"]);
}

#[tokio::test]
async fn invalid_file_leaves_its_tasks_unchanged() {
    let mut test = test_folder().await;
    test.write(
        "a.yaml",
        "name: one\ndescription: good\ncmd: x\n---\nname: two\ncmd: x\n",
    );
    test.reconcile().await;
    test.write("a.yaml", "name: one\ndescription: [\n");
    test.write("b.yaml", "name: new\ncmd: x\n");
    let result = test.reconcile().await;
    assert_eq!(
        (result.created, result.deleted, result.refused),
        (vec!["new".into()], Vec::new(), 1)
    );
    assert_eq!(test.tasks().await, ["new ", "one good", "two "]);
    // A definition that the server rejects counts as an error too.
    test.write(
        "a.yaml",
        "name: one\ndescription: good\ncmd: x\nfile: y\n---\nname: two\ncmd: x\n",
    );
    assert_eq!(test.reconcile().await.refused, 1);
    assert_eq!(test.tasks().await, ["new ", "one good", "two "]);
}

#[tokio::test]
async fn tasks_of_other_sources_stay_unchanged() {
    let mut test = test_folder().await;
    let definition: TaskDefinition = serde_json::from_value(
        serde_json::json!({ "name": "theirs", "cmd": "x", "description": "api" }),
    )
    .unwrap();
    let store = &test.app.store;
    store.create_task("t1", &definition, None, 1).await.unwrap();
    let mut other = definition.clone();
    other.name = "elsewhere".into();
    store
        .create_task("t2", &other, Some("/another/folder/x.yaml"), 1)
        .await
        .unwrap();
    test.write("a.yaml", "name: theirs\ncmd: y\n");
    let result = test.reconcile().await;
    assert_eq!(
        (result.updated.len(), result.deleted.len(), result.refused),
        (0, 0, 1)
    );
    assert_eq!(test.tasks().await, ["elsewhere api", "theirs api"]);
}
