//! A fleet of images: a git server with a folder for each, a control plane with a task for each, and base images.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

use acrtask_tests::{
    Outcome, World,
    base_images::{BaseImages, note_of},
    git_server::{HttpGit, Repositories},
    new_run_id,
    project::{RegistryClient, folder},
    service::Server,
};
use serde_json::{Value, json};

/// The longest that a cascade of a test may take.
const LIMIT: Duration = Duration::from_secs(90);

/// A task of a fleet: an image that is built from a folder.
pub(crate) struct Member {
    name: String,
    files: Vec<(String, String)>,
    /// Keys of its definition beside the usual ones.
    more: Value,
}

/// One whose Dockerfile this is. Its image is like no other one.
pub(crate) fn member(name: &str, dockerfile: &str) -> Member {
    let dockerfile = format!("{dockerfile}LABEL member={name}\n");
    Member {
        name: name.into(),
        files: vec![("Dockerfile".into(), dockerfile)],
        more: json!({}),
    }
}

impl Member {
    /// Every image that its build uses counts.
    pub(crate) fn all(mut self) -> Self {
        self.more["triggers"] = json!({"baseImage": {"type": "All"}});
        self
    }

    /// It has a task file, in place of one image.
    pub(crate) fn steps(mut self, steps: &str) -> Self {
        let text = format!("version: v1.1.0\nsteps:\n{steps}");
        self.files.push(("acr-task.yaml".into(), text));
        self.more["file"] = "acr-task.yaml".into();
        self
    }
}

/// A fleet and its control plane.
pub(crate) struct Fleet {
    pub(crate) world: World,
    pub(crate) server: Server,
    pub(crate) registry: RegistryClient,
    repositories: Repositories,
    git: HttpGit,
    id: String,
    bases: BaseImages,
}

impl Fleet {
    /// A control plane that looks at bases each second.
    pub(crate) async fn start(world: &World) -> Self {
        Self::with(world, &["--base-interval", "1s", "--slots", "3"]).await
    }

    /// One with these flags.
    pub(crate) async fn with(world: &World, flags: &[&str]) -> Self {
        let repositories = Repositories::default();
        repositories.create("fleet");
        let git = HttpGit::start(&repositories.root(), None);
        let server = Server::start(world, &[&["--allow-private-addresses"], flags].concat());
        let fleet = Self {
            world: world.clone(),
            server,
            registry: RegistryClient::new(&world.registry, None),
            repositories,
            git,
            id: new_run_id(),
            bases: BaseImages::of(world).await,
        };
        fleet.settings(&json!({}));
        fleet
    }

    /// The repository of an image of this fleet.
    pub(crate) fn repository(&self, name: &str) -> String {
        format!("cascades/{}/{name}", self.id)
    }

    /// The name of an image of this fleet.
    pub(crate) fn image(&self, name: &str) -> String {
        self.image_at(&self.world.registry, name)
    }

    /// The same behind another address.
    pub(crate) fn image_at(&self, host: &str, name: &str) -> String {
        format!("{host}/{}:1", self.repository(name))
    }

    /// Pushes the base `name` with this note; its digest.
    pub(crate) async fn push(&self, name: &str, note: &str) -> String {
        self.push_to(&self.registry, name, note).await
    }

    /// The same to another registry.
    pub(crate) async fn push_to(&self, to: &RegistryClient, name: &str, note: &str) -> String {
        self.bases.put(to, &self.repository(name), "1", note).await
    }

    /// Pushes the base `name` for several processors, each with its note; the digest of the index.
    pub(crate) async fn push_index(&self, name: &str, notes: &[(&str, &str)]) -> String {
        let repository = self.repository(name);
        self.bases
            .put_index(&self.registry, &repository, "1", notes)
            .await
    }

    /// A Dockerfile whose build on a new `base` takes so long, also where another run of the test has filled the cache.
    pub(crate) fn slow(&self, base: &str, seconds: u32) -> String {
        let base = self.image(base);
        format!("FROM {base}\nRUN : {base}; sleep {seconds}\n")
    }

    /// Settings for a test's patience, and these.
    pub(crate) fn settings(&self, more: &Value) {
        let mut settings =
            json!({"settleSecs": 1, "parallel": 4, "retries": 0, "retryDelaySecs": 1});
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let files = folder(&[("settings.yaml", &settings.to_string())]);
        let args = ["cascade", "settings", "set", "-f", "settings.yaml"];
        let outcome = self.server.client(files.path(), &args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    }

    /// Commits the files of these and makes their tasks.
    pub(crate) fn tasks(&self, members: &[Member]) {
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
                "registry": self.world.registry,
                "cache": false,
            });
            if member.more.get("file").is_none() {
                definition["build"] = json!({"images": [self.image(name)]});
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
        let definitions = folder(&[("tasks.yaml", &definitions)]);
        let args = ["task", "apply", "-f", "tasks.yaml"];
        let outcome = self.server.client(definitions.path(), &args).wait();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all());
    }

    /// Another Dockerfile for a member.
    pub(crate) fn rewrite(&self, name: &str, dockerfile: &str) {
        let path = format!("{name}/Dockerfile");
        self.repositories.commit("fleet", &[(&path, dockerfile)]);
    }

    /// Runs tasks side by side, and waits until they have succeeded.
    pub(crate) fn build(&self, names: &[&str]) {
        let started: Vec<String> = names
            .iter()
            .map(|name| {
                let outcome = self.server.ok(&["task", "run", name, "--no-wait"]);
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

    /// The log of a run.
    pub(crate) fn log(&self, run: &str) -> String {
        self.command(&["runs", "logs", run]).stdout
    }

    /// A client's command, however it ends.
    pub(crate) fn command(&self, args: &[&str]) -> Outcome {
        self.server.client(&self.server.data(), args).wait()
    }

    /// All cascades, the newest first.
    pub(crate) fn cascades(&self) -> Vec<Value> {
        let list = self.server.json(&["cascade", "list", "-o", "json"]);
        list["items"].as_array().unwrap().clone()
    }

    /// A cascade with its tasks.
    pub(crate) fn cascade(&self, id: u64) -> Value {
        let id = id.to_string();
        self.server
            .json(&["cascade", "show", "--no-follow", &id, "-o", "json"])
    }

    /// Waits until `what` holds of a cascade; none with this number is as one of which it does not.
    pub(crate) fn wait(&self, id: u64, what: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let known = self.cascades().iter().any(|cascade| cascade["id"] == id);
            let found = known.then(|| self.cascade(id));
            if let Some(found) = found.as_ref().filter(|found| what(found)) {
                return found.clone();
            }
            assert!(
                begun.elapsed() < LIMIT,
                "cascade {id} stands at {found:#?}\n{}",
                self.command(&["base", "list"]).stdout
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a cascade is over.
    pub(crate) fn wait_over(&self, id: u64) -> Value {
        self.wait(id, |cascade| cascade["phase"] == "over")
    }

    /// Waits until the newest cascade is over and has built `task`: a cascade that is tried again may be the same one,
    /// or what is left of it comes in another.
    pub(crate) fn wait_built(&self, task: &str) -> Value {
        let begun = Instant::now();
        loop {
            let newest = self.cascades()[0]["id"].as_u64().unwrap();
            let cascade = self.cascade(newest);
            let built = node(&cascade, task).is_some_and(|node| node["state"] == "succeeded");
            if built && cascade["phase"] == "over" {
                return cascade;
            }
            assert!(begun.elapsed() < LIMIT, "{cascade:#}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a task of a cascade stands at `state`.
    pub(crate) fn wait_task(&self, id: u64, task: &str, state: &str) -> Value {
        self.wait(id, |cascade| {
            let node = node(cascade, task);
            node.is_some_and(|node| node["state"] == state)
        })
    }

    /// Images that stand on an old digest, by name.
    pub(crate) fn stale(&self) -> Vec<String> {
        self.server.ok(&["base", "check"]);
        let list = self
            .server
            .json(&["images", "list", "--stale", "-o", "json"]);
        let name = |image: &Value| image["name"].as_str().unwrap().to_owned();
        list["items"].as_array().unwrap().iter().map(name).collect()
    }

    /// Everything is fresh, and stays so: exactly so many cascades were needed.
    pub(crate) fn rests_after(&self, cascades: usize) {
        assert_eq!(self.stale(), Vec::<String>::new());
        thread::sleep(Duration::from_millis(2_500));
        let all = self.cascades();
        assert_eq!(all.len(), cascades, "{all:#?}");
        for cascade in &all {
            assert_eq!(cascade["phase"], "over", "{cascade:#}");
        }
        assert_eq!(self.stale(), Vec::<String>::new());
    }

    /// Runs of a task with their specs, the newest first.
    pub(crate) fn runs(&self, task: &str) -> Vec<Value> {
        let list = self.server.json(&[
            "runs", "list", "--task", task, "--limit", "200", "-o", "json",
        ]);
        let ids = list["items"].as_array().unwrap().iter();
        ids.map(|run| self.server.run_of(run["id"].as_str().unwrap()))
            .collect()
    }

    /// The digests that an image was recorded to be built from, by base.
    pub(crate) fn built_from(&self, image: &str) -> BTreeMap<String, String> {
        let shown = self.server.json(&["images", "show", image, "-o", "json"]);
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

    /// The note of the base that an image of the fleet stands on, as the registry has it.
    pub(crate) async fn note(&self, name: &str) -> String {
        note_of(&self.registry, &format!("{}:1", self.repository(name))).await
    }

    /// What the registry has under a member's tag.
    pub(crate) async fn digest(&self, name: &str) -> Option<String> {
        self.world.digest(&self.repository(name), "1").await
    }
}

/// A task of a cascade.
pub(crate) fn node<'c>(cascade: &'c Value, task: &str) -> Option<&'c Value> {
    let mut nodes = cascade["nodes"].as_array().unwrap().iter();
    nodes.find(|node| node["task"] == task)
}

/// Where the tasks of a cascade stand.
pub(crate) fn states(cascade: &Value) -> BTreeMap<&str, &str> {
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
