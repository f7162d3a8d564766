//! Uploaded files: neither their digest nor their id gives them to another token.

use acrtask_tests::{World, service::Server};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sha2::Digest as _;

/// A caller of the API with a token of its own.
struct Caller {
    http: Client,
    base: String,
    token: String,
}

impl Caller {
    fn new(server: &Server, name: &str, scopes: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut args = vec!["token", "create", name, "-o", "json"];
        args.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
        let token = server.json(&args);
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
async fn uploaded_files_are_out_of_reach_for_other_tokens() {
    let Some(world) = World::find() else { return };
    let server = Server::start(&world, &["--no-runner"]);
    let owner = Caller::new(&server, "owner", &["run"]);
    let thief = Caller::new(&server, "thief", &["read", "run", "write"]);
    let data = b"files of the owner";
    let digest = sha2::Sha256::digest(data);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let asked = json!({"size": data.len(), "digest": format!("sha256:{digest}")});
    let (status, begun) = owner.send(Method::POST, "/contexts", asked.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{begun}");
    let id = begun["id"].as_str().unwrap();
    assert_eq!(thief.upload(id, data).await, StatusCode::NOT_FOUND);
    assert_eq!(owner.upload(id, data).await, StatusCode::OK);

    let (status, other) = thief.send(Method::POST, "/contexts", asked.clone()).await;
    assert_eq!(
        status,
        StatusCode::CREATED,
        "the digest gave the files away: {other}"
    );
    assert_eq!(other["complete"], false, "{other}");
    assert_ne!(other["id"], begun["id"]);
    let path = format!("/contexts/{id}");
    let (status, seen) = thief.send(Method::GET, &path, Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{seen}");
    let run = json!({"spec": {"context": {"from": "upload", "id": id}, "work": {"do": "cmd", "line": "a ls"}}});
    let (status, made) = thief.send(Method::POST, "/runs", run.clone()).await;
    assert_eq!(
        status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "the id gave the files away: {made}"
    );

    let (status, again) = owner.send(Method::POST, "/contexts", asked).await;
    assert_eq!(
        (status, &again["id"]),
        (StatusCode::OK, &begun["id"]),
        "{again}"
    );
    let (status, made) = owner.send(Method::POST, "/runs", run).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
}
