//! Small projects for tests: folders, repositories behind git's own server, archives, and registry
//! content.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sha2::Digest as _;
use tempfile::TempDir;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

/// Creates a folder with these files: path and content.
pub fn create_folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be created");
    for (path, content) in files {
        write_file(folder.path(), path, content);
    }
    folder
}

/// Writes a file and creates its parent folders.
pub fn write_file(folder: &Path, path: &str, content: &str) {
    let path = folder.join(path);
    let parent = path.parent().expect("a file has a parent folder");
    std::fs::create_dir_all(parent).expect("a folder can be created");
    std::fs::write(path, content).expect("a file can be written");
}

/// Returns a task file with one step `one` that runs `script` in the shell of the base image.
pub fn task_with_one_step(script: &str) -> String {
    let line = format!("$Registry/base/busybox:1.36 sh -c '{script}'");
    format!(
        "version: v1.1.0\nsteps:\n  - id: one\n    cmd: {}\n",
        json!(line)
    )
}

/// Runs `git` in `folder` without user settings and returns its output.
pub fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "A")
            .env(format!("GIT_{role}_EMAIL"), "a@example.com")
            .env(format!("GIT_{role}_DATE"), "2026-01-01T00:00:00Z");
    }
    let output = command
        .current_dir(folder)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .expect("these tests need the program git");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {errors}");
    let text = String::from_utf8(output.stdout).expect("git prints UTF-8 here");
    text.trim().to_owned()
}

/// Commits everything in `folder` and returns the hash of the commit.
pub fn commit_all(folder: &Path, message: &str) -> String {
    git(folder, &["add", "--all"]);
    git(folder, &["commit", "--quiet", "--message", message]);
    git(folder, &["rev-parse", "HEAD"])
}

/// Serves the repositories below `root` with git's own HTTP server: `http://127.0.0.1:PORT/NAME`.
pub async fn serve_git(root: &Path) -> MockServer {
    let server = MockServer::start().await;
    let backend = Backend { root: root.into() };
    Mock::given(any())
        .respond_with(backend)
        .mount(&server)
        .await;
    server
}

struct Backend {
    root: PathBuf,
}

impl Respond for Backend {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let header = |name: &str| {
            let value = request.headers.get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let mut child = Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REQUEST_METHOD", request.method.as_str())
            .env("PATH_INFO", request.url.path())
            .env("QUERY_STRING", request.url.query().unwrap_or_default())
            .env("CONTENT_TYPE", header("content-type"))
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git starts");
        let mut stdin = child.stdin.take().expect("the stream is piped");
        // A write error shows in the response of git.
        let _ = stdin.write_all(&request.body);
        drop(stdin);
        let answer = child
            .wait_with_output()
            .expect("the process is a child")
            .stdout;
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("headers end");
        let mut status = 200;
        let mut headers = Vec::new();
        for line in String::from_utf8_lossy(&answer[..end]).lines() {
            match line.split_once(": ") {
                Some(("Status", code)) => status = code[..3].parse().expect("a status"),
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None => {}
            }
        }
        let body = answer[end + 4..].to_vec();
        headers
            .into_iter()
            .fold(ResponseTemplate::new(status), |all, (name, value)| {
                all.append_header(name.as_str(), value.as_str())
            })
            .set_body_bytes(body)
    }
}

/// Packs the files of `folder` into a gzipped tar.
pub fn tarball(folder: &Path) -> Vec<u8> {
    let tar = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .args(["-c", "-z", "."])
        .output()
        .expect("these tests need the program tar");
    assert!(tar.status.success(), "tar");
    tar.stdout
}

/// Client of a registry that shares no code with the program.
#[derive(Debug, Clone)]
pub struct RegistryClient {
    host: String,
    login: Option<(String, String)>,
    http: reqwest::Client,
}

impl RegistryClient {
    /// Returns a client of the registry at `host`, with a user and a password if the registry
    /// requires them.
    pub fn new(host: &str, login: Option<(&str, &str)>) -> Self {
        // The client needs a TLS provider even for plain HTTP. An error means that one is
        // installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            host: host.into(),
            login: login.map(|(user, password)| (user.into(), password.into())),
            http: reqwest::Client::new(),
        }
    }

    fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }

    /// Fetches the manifest or index of `REPOSITORY:TAG` or `REPOSITORY@DIGEST`, with its digest.
    /// `None` if it does not exist.
    pub async fn fetch_manifest(&self, name: &str) -> Option<(String, Value)> {
        let (repository, reference) = match name.split_once('@') {
            Some(parts) => parts,
            None => name.rsplit_once(':').expect("REPOSITORY:TAG"),
        };
        let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        let url = format!("http://{}/v2/{repository}/manifests/{reference}", self.host);
        let answer = self
            .request(reqwest::Method::GET, &url)
            .header("Accept", accept)
            .send()
            .await
            .unwrap_or_else(|error| panic!("{url}: {error}"));
        match answer.status().as_u16() {
            200 => {}
            404 => return None,
            other => panic!("{url}: status {other}"),
        }
        let digest = answer.headers()["docker-content-digest"]
            .to_str()
            .expect("ASCII")
            .to_owned();
        let text = answer.bytes().await.expect("a manifest");
        Some((digest, serde_json::from_slice(&text).expect("JSON")))
    }

    /// Fetches a blob of a repository and parses it as JSON.
    pub async fn fetch_json(&self, repository: &str, digest: &str) -> Value {
        let text = self.fetch_blob(repository, digest).await;
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Fetches a blob of a repository.
    pub async fn fetch_blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        let url = format!("http://{}/v2/{repository}/blobs/{digest}", self.host);
        let answer = self.request(reqwest::Method::GET, &url).send().await;
        let answer = answer.expect("a blob");
        assert_eq!(answer.status().as_u16(), 200, "{url}");
        answer.bytes().await.expect("its bytes").to_vec()
    }

    /// Stores bytes as a blob unless the repository already has it. Returns digest and size.
    pub async fn put_blob(&self, repository: &str, content: Vec<u8>) -> (String, usize) {
        let digest = format!("sha256:{}", sha256(&content));
        let size = content.len();
        let url = format!("http://{}/v2/{repository}/blobs/{digest}", self.host);
        let there = self.request(reqwest::Method::HEAD, &url).send().await;
        if there.is_ok_and(|answer| answer.status().as_u16() == 200) {
            return (digest, size);
        }
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.host);
        let begun = self.request(reqwest::Method::POST, &url).send().await;
        let begun = begun.expect("an upload begins");
        let place = begun.headers()["location"].to_str().expect("ASCII");
        let place = match place.strip_prefix('/') {
            Some(path) => format!("http://{}/{path}", self.host),
            None => place.to_owned(),
        };
        let join = if place.contains('?') { '&' } else { '?' };
        let stored = self
            .request(
                reqwest::Method::PUT,
                &format!("{place}{join}digest={digest}"),
            )
            .header("Content-Type", "application/octet-stream")
            .body(content)
            .send()
            .await
            .expect("an upload ends");
        assert_eq!(stored.status().as_u16(), 201, "{place}");
        (digest, size)
    }

    /// Stores `folder` as an artifact of one packed layer, as ORAS does.
    pub async fn put_artifact(&self, repository: &str, tag: &str, folder: &Path) {
        let (config, config_size) = self.put_blob(repository, b"{}".to_vec()).await;
        let (layer, size) = self.put_blob(repository, tarball(folder)).await;
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": config_size},
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": size,
                "annotations": {"org.opencontainers.image.title": "files", "io.deis.oras.content.unpack": "true"},
            }],
        });
        self.put_manifest(repository, tag, media, &manifest).await;
    }

    /// Stores a manifest or an index under a tag. Returns the digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media: &str,
        manifest: &Value,
    ) -> String {
        let text = manifest.to_string();
        let digest = format!("sha256:{}", sha256(text.as_bytes()));
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host);
        let stored = self
            .request(reqwest::Method::PUT, &url)
            .header("Content-Type", media)
            .body(text)
            .send()
            .await
            .expect("a manifest is stored");
        assert_eq!(stored.status().as_u16(), 201, "{url}");
        digest
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    let digest = sha2::Sha256::digest(content);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
