//! Private repository with a task, the server that runs it, and its forge.

use acrtask_tests::{
    Outcome, TestEnvironment,
    forge::{Forge, deliver},
    git_server::{HttpGit, Repositories, git},
    new_run_id, project,
    service::TestServer,
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const TOKEN: &str = "hunter2-of-the-repository";
pub(crate) const FORGE_TOKEN: &str = "hunter2-of-the-forge";
pub(crate) const SECRET: &str = "hunter2-of-the-webhook";
pub(crate) const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Private repository with a task that builds an image and pushes it with the commit as the tag.
pub(crate) struct WebhookFixture {
    pub(crate) environment: TestEnvironment,
    pub(crate) repositories: Repositories,
    pub(crate) git: HttpGit,
    pub(crate) forge: Forge,
    pub(crate) server: TestServer,
    pub(crate) files: TempDir,
    pub(crate) image: String,
}

pub(crate) fn task_file(image: &str, more: &str) -> String {
    format!(
        "version: v1.1.0\nsteps:\n{more}  - id: build\n    build: -t $Registry/{image}:{{{{.Run.Commit}}}} --build-arg BASE=$Registry/base/busybox:1.36 .\n  - id: push\n    push: ['$Registry/{image}:{{{{.Run.Commit}}}}']\n"
    )
}

impl WebhookFixture {
    pub(crate) fn new(environment: &TestEnvironment) -> Self {
        Self::with_flags(environment, &[])
    }

    /// Creates the fixture on this database.
    pub(crate) fn with_database(environment: &TestEnvironment, database: &str) -> Self {
        Self::with_flags(environment, &["--database", database])
    }

    fn with_flags(environment: &TestEnvironment, flags: &[&str]) -> Self {
        let image = format!("webhooks/{}", new_run_id());
        let repositories = Repositories::default();
        repositories.create("app");
        repositories.commit(
            "app",
            &[
                ("acr-task.yaml", &task_file(&image, "")),
                (
                    "Dockerfile",
                    "ARG BASE\nFROM ${BASE}\nCOPY src/file /file\n",
                ),
                ("src/file", "first\n"),
                ("docs/index.md", "first\n"),
            ],
        );
        let git = HttpGit::start(&repositories.root(), Some(("ci", TOKEN)));
        let own = [
            "--allow-private-addresses",
            "--public-url",
            "https://ci.example.com",
        ];
        let server = TestServer::start(environment, &[&own, flags].concat());
        let fixture = Self {
            environment: environment.clone(),
            repositories,
            git,
            forge: Forge::start(),
            server,
            files: project::create_folder(&[
                ("secret", SECRET),
                ("token", TOKEN),
                ("forge-token", FORGE_TOKEN),
            ]),
            image,
        };
        let url = fixture.git.url("app");
        fixture.run_ok(&["secret", "set", "FORGE_TOKEN", "--from-file", "forge-token"]);
        fixture.run_ok(&[
            "webhook",
            "create",
            "app",
            "--provider",
            "github",
            "--secret-file",
            "secret",
            "--repository",
            &url,
            "--status-api",
            &fixture.forge.url(),
            "--status-token",
            "FORGE_TOKEN",
        ]);
        fixture
    }

    /// Creates a task of the repository with the login that it needs.
    pub(crate) fn create_task(&self, name: &str, flags: &[&str]) {
        let context = format!("{}#main", self.git.url("app"));
        let mut args = vec![
            "task",
            "create",
            name,
            "--context",
            &context,
            "--registry",
            &self.environment.registry,
            "--commit-trigger-enabled",
            "true",
        ];
        args.extend(flags);
        self.run_ok(&args);
        self.run_ok(&[
            "credential",
            "set",
            &self.git.address(),
            "--username",
            "ci",
            "--task",
            name,
            "--from-file",
            "token",
        ]);
    }

    pub(crate) fn run_client(&self, args: &[&str]) -> Outcome {
        self.server.start_client(self.files.path(), args).wait()
    }

    pub(crate) fn run_ok(&self, args: &[&str]) -> Outcome {
        let outcome = self.run_client(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.transcript());
        outcome
    }

    pub(crate) fn hook_url(&self) -> String {
        format!("{}/hooks/app", self.server.url)
    }

    pub(crate) fn deliver(&self, event: &str, id: &str, body: &Value) -> (u16, Value) {
        deliver(&self.hook_url(), SECRET, event, id, body).unwrap()
    }

    /// Returns a push event of `after` that changed these files.
    pub(crate) fn push_event(&self, before: &str, after: &str, files: &[&str]) -> Value {
        let commit = json!({ "id": after, "message": "change", "added": [], "modified": files, "removed": [] });
        json!({
            "ref": "refs/heads/main", "before": before, "after": after, "forced": false,
            "commits": [commit], "head_commit": commit, "repository": self.repository_event("org/app")
        })
    }

    pub(crate) fn repository_event(&self, name: &str) -> Value {
        json!({ "full_name": name, "clone_url": self.git.url("app"), "default_branch": "main" })
    }

    /// Returns a pull request event whose commits are in the repository `from`.
    pub(crate) fn pull_request_event(
        &self,
        action: &str,
        number: u64,
        from: &str,
        commit: &str,
    ) -> Value {
        let clone_url = if from == "org/app" {
            self.git.url("app")
        } else {
            "https://git.example.com/fork/app.git".into()
        };
        json!({
            "action": action, "number": number,
            "pull_request": {
                "title": "a change", "merged": false,
                "head": { "ref": "change", "sha": commit, "repo": { "full_name": from, "clone_url": clone_url } },
                "base": { "ref": "main", "sha": self.resolve_reference("main"), "repo": self.repository_event("org/app") }
            },
            "repository": self.repository_event("org/app")
        })
    }

    pub(crate) fn resolve_reference(&self, reference: &str) -> String {
        git(
            &self.repositories.bare_path("app"),
            &["rev-parse", reference],
        )
    }

    /// Pushes a commit that only a pull request references.
    pub(crate) fn commit_pull_request(&self, number: u64, files: &[(&str, &str)]) -> String {
        let work = self.repositories.work_path("app");
        git(&work, &["checkout", "--quiet", "-B", "change", "main"]);
        for (path, content) in files {
            std::fs::write(work.join(path), content).unwrap();
        }
        git(
            &work,
            &["commit", "--quiet", "--all", "--message", "theirs"],
        );
        let commit = git(&work, &["rev-parse", "HEAD"]);
        let to = format!("HEAD:refs/pull/{number}/head");
        git(&work, &["push", "--quiet", "origin", &to]);
        git(&work, &["checkout", "--quiet", "main"]);
        commit
    }

    pub(crate) fn list_runs(&self, task: &str) -> Vec<Value> {
        let page = self
            .server
            .run_json(&["runs", "list", "--task", task, "-o", "json"]);
        page["items"].as_array().cloned().unwrap()
    }

    pub(crate) fn show_delivery(&self, id: &Value) -> Value {
        let id = id.as_str().unwrap();
        self.server
            .run_json(&["webhook", "deliveries", id, "-o", "json"])
    }

    pub(crate) fn wait_finished(&self, id: &str, state: &str) -> Value {
        let run = self.server.wait_for_run(id, |run| {
            let state = run["state"].as_str().unwrap();
            !["queued", "leased", "running"].contains(&state)
        });
        assert_eq!(
            run["state"],
            state,
            "{run:#}\n{}",
            self.run_client(&["runs", "logs", id]).transcript()
        );
        run
    }
}

pub(crate) fn only_run(receipt: &Value) -> String {
    let runs = receipt["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1, "{receipt:#}");
    runs[0].as_str().unwrap().to_owned()
}
