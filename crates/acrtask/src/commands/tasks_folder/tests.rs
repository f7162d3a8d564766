//! A folder, a database, and what the one does to the other.

use acrtask_api::task::TaskDefinition;
use acrtask_server::{Config, blobs::Blobs, clock::Clock, vault::Vault};
use acrtask_store::Store;

use super::*;

struct World {
    app: App,
    folder: TasksFolder,
    place: tempfile::TempDir,
}

async fn world() -> World {
    let place = tempfile::tempdir().unwrap();
    let tasks = place.path().join("tasks");
    std::fs::create_dir(&tasks).unwrap();
    let store = Store::open(&format!("sqlite:{}", place.path().join("db").display()))
        .await
        .unwrap();
    let app = App::new(
        Config::default(),
        store,
        Blobs::open(&place.path().join("blobs").display().to_string()).unwrap(),
        Vault::load_or_create(&place.path().join("key")).unwrap(),
        Clock::fixed(1_000),
    );
    let folder = TasksFolder::open(&tasks, LogFormat::Json, Style::PLAIN).unwrap();
    World { app, folder, place }
}

impl World {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.place.path().join("tasks").join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.place.path().join("tasks").join(name)).unwrap();
    }

    async fn round(&mut self) -> Round {
        self.folder.reconcile(&self.app).await.unwrap()
    }

    async fn tasks(&self) -> Vec<String> {
        let tasks = stored(&self.app).await.unwrap();
        tasks
            .into_iter()
            .map(|task| format!("{} {}", task.definition.name, task.definition.description))
            .collect()
    }
}

#[tokio::test]
async fn tasks_follow_their_files() {
    let mut world = world().await;
    world.write("a.yaml", "name: one\ncmd: x\n---\nname: two\ncmd: x\n");
    world.write("b.yaml", "name: three\ncmd: x\n");
    let round = world.round().await;
    assert_eq!(round.created, ["one", "two", "three"]);
    assert_eq!(world.round().await, Round::default());
    world.write("b.yaml", "name: three\ndescription: new\ncmd: x\n");
    assert_eq!(world.round().await.updated, ["three"]);
    // Moved to another file: the same task.
    world.remove("b.yaml");
    world.write("c.yaml", "name: three\ndescription: new\ncmd: x\n");
    let round = world.round().await;
    assert_eq!(
        (round.updated, round.deleted),
        (vec!["three".into()], Vec::new())
    );
    world.remove("a.yaml");
    let mut deleted = world.round().await.deleted;
    deleted.sort();
    assert_eq!(deleted, ["one", "two"]);
    assert_eq!(world.tasks().await, ["three new"]);
}

#[tokio::test]
async fn a_mistake_leaves_what_worked() {
    let mut world = world().await;
    world.write(
        "a.yaml",
        "name: one\ndescription: good\ncmd: x\n---\nname: two\ncmd: x\n",
    );
    world.round().await;
    world.write("a.yaml", "name: one\ndescription: [\n");
    world.write("b.yaml", "name: new\ncmd: x\n");
    let round = world.round().await;
    assert_eq!(
        (round.created, round.deleted, round.refused),
        (vec!["new".into()], Vec::new(), 1)
    );
    assert_eq!(world.tasks().await, ["new ", "one good", "two "]);
    // What the server refuses is a mistake too.
    world.write(
        "a.yaml",
        "name: one\ndescription: good\ncmd: x\nfile: y\n---\nname: two\ncmd: x\n",
    );
    assert_eq!(world.round().await.refused, 1);
    assert_eq!(world.tasks().await, ["new ", "one good", "two "]);
}

#[tokio::test]
async fn tasks_of_others_are_left_alone() {
    let mut world = world().await;
    let definition: TaskDefinition = serde_json::from_value(
        serde_json::json!({ "name": "theirs", "cmd": "x", "description": "api" }),
    )
    .unwrap();
    let store = &world.app.store;
    store.create_task("t1", &definition, None, 1).await.unwrap();
    let mut other = definition.clone();
    other.name = "elsewhere".into();
    store
        .create_task("t2", &other, Some("/another/folder/x.yaml"), 1)
        .await
        .unwrap();
    world.write("a.yaml", "name: theirs\ncmd: y\n");
    let round = world.round().await;
    assert_eq!(
        (round.updated.len(), round.deleted.len(), round.refused),
        (0, 0, 1)
    );
    assert_eq!(world.tasks().await, ["elsewhere api", "theirs api"]);
}
