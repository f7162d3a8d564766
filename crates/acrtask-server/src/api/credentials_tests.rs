//! Tests of `credentials.rs`.

use serde_json::json;

use super::*;
use crate::api::testing::TestServer;

const KEY: &str = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n";

#[tokio::test]
async fn ssh_key_is_stored_with_its_host_keys() {
    let server = TestServer::start().await;
    let body =
        json!({"username": "git", "password": KEY, "knownHosts": "\n# h:22\nh ssh-ed25519 AAAA\n"});
    let response = server.put("/credentials/h", body).await;
    assert!(!response.text().contains("hunter2") && !response.text().contains("AAAA"));
    response.json::<Credential>(StatusCode::OK);
    let rows = server.app.store.credentials(None).await.unwrap();
    let kept = server
        .app
        .vault
        .open(&run_factory::credential_aad("", "h"), &rows[0].password)
        .unwrap();
    assert_eq!(kept.expose(), format!("{KEY}# h:22\nh ssh-ed25519 AAAA\n"));
}

#[tokio::test]
async fn login_is_set_listed_and_removed() {
    let server = TestServer::start().await;
    let body = json!({"username": "ci", "password": "hunter2"});
    for host in ["Reg.Example.com:5000", "index.docker.io"] {
        let response = server
            .put(&format!("/credentials/{host}"), body.clone())
            .await;
        assert!(!response.text().contains("hunter2"));
        response.json::<Credential>(StatusCode::OK);
    }
    let listed = server.get("/credentials").await;
    assert!(!listed.text().contains("hunter2"));
    let logins: Vec<Credential> = listed.json(StatusCode::OK);
    let hosts: Vec<&str> = logins.iter().map(|login| login.host.as_str()).collect();
    assert_eq!(hosts, ["docker.io", "reg.example.com:5000"]);
    let rows = server.app.store.credentials(None).await.unwrap();
    assert!(
        rows.iter()
            .all(|row| !row.password.windows(7).any(|window| window == b"hunter2"))
    );
    let response = server.delete("/credentials/REG.example.com:5000").await;
    assert_eq!(response.status, StatusCode::NO_CONTENT);
    server
        .delete("/credentials/reg.example.com:5000")
        .await
        .problem(StatusCode::NOT_FOUND);
    for (host, wrong) in [
        ("https:%2F%2Fx", body.clone()),
        ("x", json!({"username": "", "password": "p"})),
        ("x", json!({"username": "u", "password": ""})),
        ("x", json!({"username": "u"})),
        (
            "x",
            json!({"username": "u", "password": "p", "knownHosts": "h ssh-ed25519 AAAA"}),
        ),
        (
            "x",
            json!({"username": "u", "password": KEY, "knownHosts": "AAAA"}),
        ),
        (
            "x",
            json!({"username": "u", "password": KEY, "knownHosts": " "}),
        ),
    ] {
        server
            .put(&format!("/credentials/{host}"), wrong)
            .await
            .refused(host);
    }
}
