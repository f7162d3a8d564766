//! Uploaded files: neither the digest nor the id of an upload gives access to another token.

use acrtask_tests::{TestEnvironment, service::TestServer};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sha2::Digest as _;

/// Client of the API with its own token.
struct Caller {
    http: Client,
    base: String,
    token: String,
}

impl Caller {
    fn new(server: &TestServer, name: &str, scopes: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut args = vec!["token", "create", name, "-o", "json"];
        args.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
        let token = server.run_json(&args);
        Self {
            http: Client::new(),
            base: format!("{}/api/v1", server.url),
            token: token["secret"].as_str().unwrap().to_owned(),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let response = request.bearer_auth(&self.token).json(&body).send().await;
        let response = response.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap_or_default())
    }

    async fn upload(&self, id: &str, data: &[u8]) -> StatusCode {
        let request = self.http.patch(format!("{}/contexts/{id}", self.base));
        let request = request.bearer_auth(&self.token).header("Upload-Offset", 0);
        let sent = request.body(data.to_vec()).send().await;
        sent.unwrap().status()
    }
}

#[tokio::test]
async fn uploaded_files_are_not_accessible_to_other_tokens() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--no-runner"]);
    let owner = Caller::new(&server, "owner", &["run"]);
    let thief = Caller::new(&server, "thief", &["read", "run", "write"]);
    let data = b"files of the owner";
    let digest = sha2::Sha256::digest(data);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let upload = json!({"size": data.len(), "digest": format!("sha256:{digest}")});
    let (status, begun) = owner.send(Method::POST, "/contexts", upload.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{begun}");
    let id = begun["id"].as_str().unwrap();
    assert_eq!(thief.upload(id, data).await, StatusCode::NOT_FOUND);
    assert_eq!(owner.upload(id, data).await, StatusCode::OK);

    let (status, other) = thief.send(Method::POST, "/contexts", upload.clone()).await;
    assert_eq!(
        status,
        StatusCode::CREATED,
        "the digest gave access to the files: {other}"
    );
    assert_eq!(other["complete"], false, "{other}");
    assert_ne!(other["id"], begun["id"]);
    let path = format!("/contexts/{id}");
    let (status, seen) = thief.send(Method::GET, &path, Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{seen}");
    let run = json!({"spec": {"context": {"type": "upload", "id": id}, "source": {"type": "cmd", "line": "a ls"}}});
    let (status, made) = thief.send(Method::POST, "/runs", run.clone()).await;
    assert_eq!(
        status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "the id gave access to the files: {made}"
    );

    let (status, again) = owner.send(Method::POST, "/contexts", upload).await;
    assert_eq!(
        (status, &again["id"]),
        (StatusCode::OK, &begun["id"]),
        "{again}"
    );
    let (status, made) = owner.send(Method::POST, "/runs", run).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
}
