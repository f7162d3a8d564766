//! HashiCorp Vault.

use std::time::Duration;

use acrtask_model::Secret;
use serde_json::json;
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path},
};

use super::{read, responds};
use crate::{Access, SecretAddress, Settings, VaultError, VaultSettings, Vaults};

/// A mock Vault with the mounts `kv/` (version 2), `old/` (version 1) and others.
struct Vault {
    server: MockServer,
}

impl Vault {
    async fn start() -> Self {
        let vault = Self {
            server: MockServer::start().await,
        };
        for (at, kind, version) in [
            ("kv", "kv", Some("2")),
            ("old", "generic", None),
            ("one", "kv", Some("1")),
            ("cubbyhole", "cubbyhole", None),
            ("aws", "aws", None),
            ("auth", "token", None),
        ] {
            let mount = json!({"data": {"path": format!("{at}/"), "type": kind, "options": version.map(|v| json!({"version": v}))}});
            Mock::given(method("GET"))
                .and(wiremock::matchers::path_regex(format!(
                    "^/v1/sys/internal/ui/mounts/{at}/"
                )))
                .and(header("x-vault-token", "t1"))
                .respond_with(responds(200, mount))
                .mount(&vault.server)
                .await;
        }
        vault
    }

    async fn serve_secret(&self, at: &str, token: &str, response: ResponseTemplate) {
        Mock::given(method("GET"))
            .and(path(format!("/v1/{at}")))
            .and(header("x-vault-token", token))
            .respond_with(response)
            .mount(&self.server)
            .await;
    }

    fn settings(&self) -> VaultSettings {
        VaultSettings {
            address: Some(self.server.uri()),
            token: Some(Secret::new("t1")),
            ..VaultSettings::default()
        }
    }

    fn vaults(settings: VaultSettings) -> Vaults {
        let settings = Settings {
            vault: settings,
            ..Settings::default()
        };
        Vaults::new(settings, Vec::new())
    }

    async fn read(&self, address: &str) -> Result<String, VaultError> {
        let vaults = Self::vaults(self.settings());
        read(&vaults, SecretAddress::vault(address).unwrap()).await
    }
}

fn second_version(data: serde_json::Value) -> ResponseTemplate {
    responds(
        200,
        json!({"data": {"data": data, "metadata": {"version": 3}}}),
    )
}

#[tokio::test]
async fn both_versions_of_the_kv_engine_are_read() {
    let vault = Vault::start().await;
    let data = json!({"password": "hush", "port": 5432, "on": true, "list": []});
    vault
        .serve_secret("kv/data/team/app", "t1", second_version(data.clone()))
        .await;
    vault
        .serve_secret("old/team/app", "t1", responds(200, json!({"data": data})))
        .await;
    vault
        .serve_secret("one/app", "t1", responds(200, json!({"data": data})))
        .await;
    vault
        .serve_secret(
            "kv/data/with%20space",
            "t1",
            second_version(json!({"a b": "two words"})),
        )
        .await;
    for (address, expected) in [
        ("kv/team/app#password", "hush"),
        ("kv/team/app#port", "5432"),
        ("kv/team/app#on", "true"),
        ("old/team/app#password", "hush"),
        ("one/app#password", "hush"),
        ("kv/with space#a b", "two words"),
    ] {
        assert_eq!(vault.read(address).await.unwrap(), expected, "{address}");
    }
    for (address, expected) in [
        ("kv/team/app#pass", "it has `password`, `port`"),
        ("kv/team/app#list", "neither text nor a number"),
        ("kv/data/team/app#password", "without `data/`"),
        ("kv/none#a", "has no secret kv/none"),
    ] {
        let error = vault.read(address).await.unwrap_err();
        assert!(
            error.message.contains(expected) && !error.message.contains("hush"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn only_mounts_of_the_kv_engine_are_read() {
    let vault = Vault::start().await;
    // Each of these would reveal data that no author of a task may see.
    for address in [
        "auth/token/lookup-self#id",
        "aws/creds/deploy#secret_key",
        "cubbyhole/x#y",
    ] {
        let at = address.split('#').next().unwrap();
        vault
            .serve_secret(
                at,
                "t1",
                responds(
                    200,
                    json!({"data": {"id": "hush", "secret_key": "hush", "y": "hush"}}),
                ),
            )
            .await;
        let error = vault.read(address).await.unwrap_err();
        assert!(
            error.message.contains("only secrets of the KV engine"),
            "{error}"
        );
    }
    // The server has no mount for this path.
    let error = vault.read("sys/raw/x#y").await.unwrap_err();
    assert!(
        error.message.contains("where sys/raw/x is mounted"),
        "{error}"
    );
}

#[tokio::test]
async fn error_names_a_deleted_or_denied_secret() {
    let vault = Vault::start().await;
    let deleted =
        json!({"data": {"data": null, "metadata": {"deletion_time": "2026-01-01T00:00:00Z"}}});
    vault
        .serve_secret("kv/data/gone", "t1", responds(404, deleted.clone()))
        .await;
    vault
        .serve_secret("kv/data/null", "t1", responds(200, deleted))
        .await;
    vault
        .serve_secret(
            "kv/data/secret",
            "t1",
            responds(403, json!({"errors": ["permission denied"]})),
        )
        .await;
    vault
        .serve_secret(
            "kv/data/sealed",
            "t1",
            responds(503, json!({"errors": ["Vault is sealed"]})),
        )
        .await;
    for (address, expected, unreachable) in [
        ("kv/gone#a", "has no secret", false),
        ("kv/null#a", "is deleted", false),
        ("kv/secret#a", "permission denied", false),
        ("kv/sealed#a", "503", true),
    ] {
        let error = vault.read(address).await.unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert_eq!(error.unreachable, unreachable, "{error}");
    }
}

#[tokio::test]
async fn approle_login_is_cached_and_replaced_after_expiry() {
    let vault = Vault::start().await;
    let login = |token: &str| {
        responds(
            200,
            json!({"auth": {"client_token": token, "lease_duration": 3600}}),
        )
    };
    let at = "/v1/auth/approle/login";
    Mock::given(method("POST"))
        .and(path(at))
        .and(header("x-vault-namespace", "team"))
        .and(wiremock::matchers::body_json(
            json!({"role_id": "role", "secret_id": "hush-id"}),
        ))
        .respond_with(login("expired"))
        .up_to_n_times(1)
        .mount(&vault.server)
        .await;
    Mock::given(method("POST"))
        .and(path(at))
        .respond_with(login("t1"))
        .mount(&vault.server)
        .await;
    Mock::given(method("GET"))
        .and(header("x-vault-token", "expired"))
        .respond_with(responds(
            403,
            json!({"errors": ["permission denied", "invalid token"]}),
        ))
        .mount(&vault.server)
        .await;
    vault
        .serve_secret("kv/data/app", "t1", second_version(json!({"a": "hush"})))
        .await;
    let vaults = Vault::vaults(VaultSettings {
        token: None,
        namespace: Some("team".into()),
        role_id: Some("role".into()),
        secret_id: Some(Secret::new("hush-id\n")),
        ..vault.settings()
    });
    for _ in 0..3 {
        let address = SecretAddress::vault("kv/app#a").unwrap();
        assert_eq!(read(&vaults, address).await.unwrap(), "hush");
    }
    let logins = async || {
        let requests = vault.server.received_requests().await.unwrap();
        requests.iter().filter(|r| r.url.path() == at).count()
    };
    assert_eq!(logins().await, 2);

    // Many secrets that the token may not read cause only one login.
    for name in 0..20 {
        let denied = responds(403, json!({"errors": ["permission denied"]}));
        vault
            .serve_secret(&format!("kv/data/no{name}"), "t1", denied)
            .await;
    }
    let denied: Vec<SecretAddress> = (0..20)
        .map(|name| SecretAddress::vault(&format!("kv/no{name}#a")).unwrap())
        .collect();
    let found = vaults.read(&denied, &Access::Everything).await;
    assert!(found.iter().all(Result::is_err));
    assert_eq!(logins().await, 3);
}

#[tokio::test]
async fn jwt_login_reads_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwt");
    std::fs::write(&file, "identity-hush\n").unwrap();
    let vault = Vault::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/auth/ci/jwt/login"))
        .and(wiremock::matchers::body_json(
            json!({"jwt": "identity-hush", "role": "builds"}),
        ))
        .respond_with(responds(200, json!({"auth": {"client_token": "t1"}})))
        .mount(&vault.server)
        .await;
    vault
        .serve_secret("kv/data/app", "t1", second_version(json!({"a": "hush"})))
        .await;
    let settings = VaultSettings {
        token: None,
        jwt_role: Some("builds".into()),
        jwt_file: Some(file),
        auth_path: Some("auth/ci/jwt/".into()),
        ..vault.settings()
    };
    let address = || SecretAddress::vault("kv/app#a").unwrap();
    assert_eq!(
        read(&Vault::vaults(settings.clone()), address())
            .await
            .unwrap(),
        "hush"
    );
    let settings = VaultSettings {
        auth_path: None,
        ..settings
    };
    let error = read(&Vault::vaults(settings), address()).await.unwrap_err();
    assert!(
        error.message.contains("auth/jwt") && !error.message.contains("hush"),
        "{error}"
    );
}

#[tokio::test]
async fn token_file_of_vault_login_is_the_fallback() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".vault-token");
    std::fs::write(&file, "t1").unwrap();
    let vault = Vault::start().await;
    vault
        .serve_secret("kv/data/app", "t1", second_version(json!({"a": "hush"})))
        .await;
    let settings = VaultSettings {
        token: None,
        token_file: Some(file),
        ..vault.settings()
    };
    let address = SecretAddress::vault("kv/app#a").unwrap();
    assert_eq!(
        read(&Vault::vaults(settings), address).await.unwrap(),
        "hush"
    );
}

#[tokio::test]
async fn vault_without_a_server_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let vaults = Vault::vaults(VaultSettings {
        address: Some(format!("http://{address}")),
        token: Some(Secret::new("t1")),
        ..VaultSettings::default()
    });
    let reading = read(&vaults, SecretAddress::vault("kv/a#k").unwrap());
    let error = tokio::time::timeout(Duration::from_secs(60), reading)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        error.unreachable && !error.message.contains("t1"),
        "{error}"
    );
}
