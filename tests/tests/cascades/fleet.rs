//! Fleet of images: a git server with a folder for each image, a server with a task for each, and
//! base images.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, TestEnvironment,
    base_images::{BaseImages, read_base_note},
    git_server::{HttpGit, Repositories},
    new_run_id,
    project::{RegistryClient, create_folder},
    service::TestServer,
};
use serde_json::{Value, json};

/// Longest time that a cascade may take in a test.
const LIMIT: Duration = Duration::from_secs(90);

/// Task of a fleet, which builds an image from a folder.
pub(crate) struct Member {
    name: String,
    files: Vec<(String, String)>,
    /// Additional keys of the task definition.
    more: Value,
}

/// Returns a member with this Dockerfile. A label makes its image unique.
pub(crate) fn new_member(name: &str, dockerfile: &str) -> Member {
    let dockerfile = format!("{dockerfile}LABEL member={name}\n");
    Member {
        name: name.into(),
        files: vec![("Dockerfile".into(), dockerfile)],
        more: json!({}),
    }
}

impl Member {
    /// Makes the task react to every base that its build uses.
    pub(crate) fn with_all_bases(mut self) -> Self {
        self.more["triggers"] = json!({"baseImage": {"type": "All"}});
        self
    }

    /// Gives the member a task file in place of a single image.
    pub(crate) fn with_steps(mut self, steps: &str) -> Self {
        let text = format!("version: v1.1.0\nsteps:\n{steps}");
        self.files.push(("acr-task.yaml".into(), text));
        self.more["file"] = "acr-task.yaml".into();
        self
    }
}

/// Fleet with its server.
pub(crate) struct TestFleet {
    pub(crate) environment: TestEnvironment,
    pub(crate) server: TestServer,
    pub(crate) registry: RegistryClient,
    repositories: Repositories,
    git: HttpGit,
    id: String,
    bases: BaseImages,
}

impl TestFleet {
    /// Starts a fleet whose server polls bases every second.
    pub(crate) async fn start(environment: &TestEnvironment) -> Self {
        Self::start_with(environment, &["--base-interval", "1s", "--slots", "3"]).await
    }

    /// Starts a fleet whose server has these flags.
    pub(crate) async fn start_with(environment: &TestEnvironment, flags: &[&str]) -> Self {
        let repositories = Repositories::default();
        repositories.create("fleet");
        let git = HttpGit::start(&repositories.root(), None);
        let server = TestServer::start(
            environment,
            &[&["--allow-private-addresses"], flags].concat(),
        );
        let fleet = Self {
            environment: environment.clone(),
            server,
            registry: RegistryClient::new(&environment.registry, None),
            repositories,
            git,
            id: new_run_id(),
            bases: BaseImages::load(environment).await,
        };
        fleet.apply_settings(&json!({}));
        fleet
    }

    /// Returns the repository of an image of this fleet.
    pub(crate) fn repository(&self, name: &str) -> String {
        format!("cascades/{}/{name}", self.id)
    }

    /// Returns the name of an image of this fleet.
    pub(crate) fn image_name(&self, name: &str) -> String {
        self.image_name_at(&self.environment.registry, name)
    }

    /// Returns the name of an image of this fleet in the registry `host`.
    pub(crate) fn image_name_at(&self, host: &str, name: &str) -> String {
        format!("{host}/{}:1", self.repository(name))
    }

    /// Pushes the base `name` with this note. Returns its digest.
    pub(crate) async fn push(&self, name: &str, note: &str) -> String {
        self.push_to(&self.registry, name, note).await
    }

    /// Pushes the base `name` to another registry. Returns its digest.
    pub(crate) async fn push_to(&self, to: &RegistryClient, name: &str, note: &str) -> String {
        self.bases.push(to, &self.repository(name), "1", note).await
    }

    /// Pushes the base `name` for several architectures, each with its note. Returns the digest of
    /// the index.
    pub(crate) async fn push_index(&self, name: &str, notes: &[(&str, &str)]) -> String {
        let repository = self.repository(name);
        self.bases
            .push_index(&self.registry, &repository, "1", notes)
            .await
    }

    /// Returns a Dockerfile whose build from a new `base` takes this number of seconds, even with a
    /// warm cache.
    pub(crate) fn slow_dockerfile(&self, base: &str, seconds: u32) -> String {
        let base = self.image_name(base);
        format!("FROM {base}\nRUN : {base}; sleep {seconds}\n")
    }

    /// Applies settings that suit the time limits of tests, and the settings in `more`.
    pub(crate) fn apply_settings(&self, more: &Value) {
        let mut settings =
            json!({"settleSecs": 1, "parallel": 4, "retries": 0, "retryDelaySecs": 1});
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let files = create_folder(&[("settings.yaml", &settings.to_string())]);
        let args = ["cascade", "settings", "set", "-f", "settings.yaml"];
        let outcome = self.server.start_client(files.path(), &args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    }

    /// Commits the files of these members and creates their tasks.
    pub(crate) fn create_tasks(&self, members: &[Member]) {
        let mut files = Vec::new();
        let mut definitions = String::new();
        for member in members {
            let name = &member.name;
            for (path, content) in &member.files {
                files.push((format!("{name}/{path}"), content.clone()));
            }
            let mut definition = json!({
                "name": name,
                "context": format!("{}#main:{name}", self.git.url("fleet")),
                "registry": self.environment.registry,
                "cache": false,
            });
            if member.more.get("file").is_none() {
                definition["build"] = json!({"images": [self.image_name(name)]});
            }
            for (key, value) in member.more.as_object().unwrap() {
                definition[key] = value.clone();
            }
            writeln!(definitions, "---\n{definition}").unwrap();
        }
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, content)| (path.as_str(), content.as_str()))
            .collect();
        self.repositories.commit("fleet", &files);
        let definitions = create_folder(&[("tasks.yaml", &definitions)]);
        let args = ["task", "apply", "-f", "tasks.yaml"];
        let outcome = self.server.start_client(definitions.path(), &args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    }

    /// Commits another Dockerfile for a member.
    pub(crate) fn rewrite(&self, name: &str, dockerfile: &str) {
        let path = format!("{name}/Dockerfile");
        self.repositories.commit("fleet", &[(&path, dockerfile)]);
    }

    /// Runs tasks in parallel and waits until they have succeeded.
    pub(crate) fn run_tasks(&self, names: &[&str]) {
        let started: Vec<String> = names
            .iter()
            .map(|name| {
                let outcome = self.server.run_ok(&["task", "run", name, "--no-wait"]);
                outcome.stdout.trim().to_owned()
            })
            .collect();
        for id in started {
            let run = self.server.wait_for_run(&id, |run| {
                let state = run["state"].as_str().unwrap();
                !["queued", "leased", "running"].contains(&state)
            });
            assert_eq!(run["state"], "succeeded", "{run:#}\n{}", self.log(&id));
        }
    }

    /// Returns the log of a run.
    pub(crate) fn log(&self, run: &str) -> String {
        self.run_client(&["runs", "logs", run]).stdout
    }

    /// Runs a client command that may fail.
    pub(crate) fn run_client(&self, args: &[&str]) -> Outcome {
        self.server
            .start_client(&self.server.data_dir(), args)
            .wait()
    }

    /// Lists all cascades, newest first.
    pub(crate) fn list_cascades(&self) -> Vec<Value> {
        let list = self.server.run_json(&["cascade", "list", "-o", "json"]);
        list["items"].as_array().unwrap().clone()
    }

    /// Returns a cascade with its nodes.
    pub(crate) fn show_cascade(&self, id: u64) -> Value {
        let id = id.to_string();
        self.server
            .run_json(&["cascade", "show", "--no-follow", &id, "-o", "json"])
    }

    /// Waits until a cascade meets `condition`. The cascade need not exist yet.
    pub(crate) fn wait_for_cascade(&self, id: u64, condition: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let exists = self
                .list_cascades()
                .iter()
                .any(|cascade| cascade["id"] == id);
            let found = exists.then(|| self.show_cascade(id));
            if let Some(found) = found.as_ref().filter(|found| condition(found)) {
                return found.clone();
            }
            assert!(
                begun.elapsed() < LIMIT,
                "cascade {id} has the state {found:#?}\n{}",
                self.run_client(&["base", "list"]).stdout
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a cascade is finished.
    pub(crate) fn wait_finished(&self, id: u64) -> Value {
        self.wait_for_cascade(id, |cascade| cascade["phase"] == "finished")
    }

    /// Waits until the newest cascade is finished and has built `task`. A retry may use the same
    /// cascade or create a new one.
    pub(crate) fn wait_built(&self, task: &str) -> Value {
        let begun = Instant::now();
        loop {
            let newest = self.list_cascades()[0]["id"].as_u64().unwrap();
            let cascade = self.show_cascade(newest);
            let built = find_node(&cascade, task).is_some_and(|node| node["state"] == "succeeded");
            if built && cascade["phase"] == "finished" {
                return cascade;
            }
            assert!(begun.elapsed() < LIMIT, "{cascade:#}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a task of a cascade has the state `state`.
    pub(crate) fn wait_task(&self, id: u64, task: &str, state: &str) -> Value {
        self.wait_for_cascade(id, |cascade| {
            let node = find_node(cascade, task);
            node.is_some_and(|node| node["state"] == state)
        })
    }

    /// Lists the names of the images that have an outdated base.
    pub(crate) fn stale_images(&self) -> Vec<String> {
        self.server.run_ok(&["base", "check"]);
        let list = self
            .server
            .run_json(&["images", "list", "--stale", "-o", "json"]);
        let name = |image: &Value| image["name"].as_str().unwrap().to_owned();
        list["items"].as_array().unwrap().iter().map(name).collect()
    }

    /// Asserts that every image is fresh and stays fresh after exactly this number of cascades.
    pub(crate) fn assert_fresh_after(&self, cascades: usize) {
        assert_eq!(self.stale_images(), Vec::<String>::new());
        thread::sleep(Duration::from_millis(2_500));
        let all = self.list_cascades();
        assert_eq!(all.len(), cascades, "{all:#?}");
        for cascade in &all {
            assert_eq!(cascade["phase"], "finished", "{cascade:#}");
        }
        assert_eq!(self.stale_images(), Vec::<String>::new());
    }

    /// Lists the runs of a task with their specs, newest first.
    pub(crate) fn list_runs(&self, task: &str) -> Vec<Value> {
        let list = self.server.run_json(&[
            "runs", "list", "--task", task, "--limit", "200", "-o", "json",
        ]);
        let ids = list["items"].as_array().unwrap().iter();
        ids.map(|run| self.server.fetch_run(run["id"].as_str().unwrap()))
            .collect()
    }

    /// Returns the recorded bases of an image: name and digest.
    pub(crate) fn built_from(&self, image: &str) -> BTreeMap<String, String> {
        let shown = self
            .server
            .run_json(&["images", "show", image, "-o", "json"]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        shown["bases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|base| {
                assert_eq!(base["evidence"], "provenance", "{shown:#}");
                (text(&base["name"]), text(&base["digest"]))
            })
            .collect()
    }

    /// Returns the note of the lowest base of a fleet image, as the registry stores it.
    pub(crate) async fn base_note(&self, name: &str) -> String {
        read_base_note(&self.registry, &format!("{}:1", self.repository(name))).await
    }

    /// Returns the digest that the registry stores for the tag of a member.
    pub(crate) async fn fetch_digest(&self, name: &str) -> Option<String> {
        self.environment
            .fetch_digest(&self.repository(name), "1")
            .await
    }
}

/// Returns the node of a task in a cascade.
pub(crate) fn find_node<'c>(cascade: &'c Value, task: &str) -> Option<&'c Value> {
    let mut nodes = cascade["nodes"].as_array().unwrap().iter();
    nodes.find(|node| node["task"] == task)
}

/// Returns the state of each task in a cascade.
pub(crate) fn node_states(cascade: &Value) -> BTreeMap<&str, &str> {
    let nodes = cascade["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| {
            (
                node["task"].as_str().unwrap(),
                node["state"].as_str().unwrap(),
            )
        })
        .collect()
}
