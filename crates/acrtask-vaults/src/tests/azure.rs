//! Azure Key Vault, and settings of both kinds of vaults.

use acrtask_model::Secret;
use serde_json::json;
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{body_string_contains, header, method, path, query_param},
};

use super::{read, responds};
use crate::{
    Access, AzureSettings, KeyVaultHosts, MAX_SECRETS, MAX_VALUE, SecretAddress, Settings,
    VaultError, VaultSettings, Vaults,
};

/// A mock of a token issuer and a key vault, at one address.
struct Azure {
    server: MockServer,
    vaults: Vaults,
}

const TOKEN_PATH: &str = "/contoso.example/oauth2/v2.0/token";

impl Azure {
    async fn start() -> Self {
        Self::start_with(|settings| settings.client_secret = Some(Secret::new("client-hush"))).await
    }

    async fn start_with(change: impl FnOnce(&mut AzureSettings)) -> Self {
        let server = MockServer::start().await;
        let mut azure = AzureSettings {
            tenant_id: Some("contoso.example".into()),
            client_id: Some("00000000-0000-0000-0000-00000000c11e".into()),
            authority: Some(server.uri()),
            ..AzureSettings::default()
        };
        change(&mut azure);
        let host = server.address().to_string();
        let settings = Settings {
            azure,
            key_vault_hosts: KeyVaultHosts::new([host]).unwrap(),
            ..Settings::default()
        };
        Self {
            vaults: Vaults::new(settings, Vec::new()),
            server,
        }
    }

    async fn issue_tokens(&self, token: &str, expires_in: u64) {
        let reply =
            json!({"token_type": "Bearer", "expires_in": expires_in, "access_token": token});
        Mock::given(method("POST"))
            .and(path(TOKEN_PATH))
            .respond_with(responds(200, reply))
            .mount(&self.server)
            .await;
    }

    /// Responds to a secret's path with each of the responses once, and then always with the last
    /// one.
    async fn serve_secret(&self, at: &str, responses: impl IntoIterator<Item = ResponseTemplate>) {
        let responses: Vec<_> = responses.into_iter().collect();
        let (last, first) = responses.split_last().unwrap();
        for response in first {
            Mock::given(method("GET"))
                .and(path(at))
                .and(query_param("api-version", "7.4"))
                .respond_with(response.clone())
                .up_to_n_times(1)
                .mount(&self.server)
                .await;
        }
        Mock::given(method("GET"))
            .and(path(at))
            .and(query_param("api-version", "7.4"))
            .respond_with(last.clone())
            .mount(&self.server)
            .await;
    }

    fn address(&self, path: &str) -> SecretAddress {
        self.address_as(path, None)
    }

    fn address_as(&self, path: &str, client_id: Option<&str>) -> SecretAddress {
        let url = format!("{}{path}", self.server.uri());
        SecretAddress::key_vault(&url, client_id, self.vaults.hosts()).unwrap()
    }

    async fn read(&self, path: &str) -> Result<String, VaultError> {
        read(&self.vaults, self.address(path)).await
    }

    async fn requests_to(&self, path: &str) -> Vec<Request> {
        let all = self.server.received_requests().await.unwrap();
        all.into_iter().filter(|r| r.url.path() == path).collect()
    }
}

fn value(text: &str) -> ResponseTemplate {
    let body =
        json!({"value": text, "id": "https://x/secrets/a/1", "attributes": {"enabled": true}});
    responds(200, body)
}

fn refusal(status: u16, code: &str, message: &str) -> ResponseTemplate {
    responds(status, json!({"error": {"code": code, "message": message}}))
}

#[tokio::test]
async fn key_vault_is_read_with_a_client_secret() {
    let azure = Azure::start().await;
    Mock::given(method("POST"))
        .and(path(TOKEN_PATH))
        .and(header("content-type", "application/x-www-form-urlencoded"))
        .and(body_string_contains("grant_type=client_credentials"))
        .and(body_string_contains("client_secret=client-hush"))
        .and(body_string_contains(
            "scope=https%3A%2F%2Fvault.azure.net%2F.default",
        ))
        .respond_with(responds(
            200,
            json!({"access_token": "t1", "expires_in": 3599}),
        ))
        .expect(1)
        .mount(&azure.server)
        .await;
    Mock::given(path("/secrets/pass"))
        .and(header("authorization", "Bearer t1"))
        .and(query_param("api-version", "7.4"))
        .respond_with(value("hush"))
        .mount(&azure.server)
        .await;
    azure
        .serve_secret("/secrets/pass/0123abcd", [value("older")])
        .await;
    assert_eq!(azure.read("/secrets/pass").await.unwrap(), "hush");
    // The token is cached.
    assert_eq!(azure.read("/secrets/pass/0123abcd").await.unwrap(), "older");
}

#[tokio::test]
async fn key_vault_is_read_with_a_federated_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "identity-hush\n").unwrap();
    let azure = Azure::start_with(|settings| settings.token_file = Some(file.clone())).await;
    azure.issue_tokens("t1", 0).await;
    azure.serve_secret("/secrets/a", [value("hush")]).await;
    assert_eq!(azure.read("/secrets/a").await.unwrap(), "hush");
    // The file is read for each token, because another process renews it.
    std::fs::write(&file, "identity-2").unwrap();
    azure.read("/secrets/a").await.unwrap();
    let requests = azure.requests_to(TOKEN_PATH).await;
    let bodies: Vec<_> = requests
        .iter()
        .map(|r| String::from_utf8_lossy(&r.body))
        .collect();
    assert!(
        bodies[0].contains("client_assertion=identity-hush&")
            || bodies[0].ends_with("client_assertion=identity-hush"),
        "{bodies:?}"
    );
    assert!(
        bodies[0].contains("jwt-bearer") && bodies[1].contains("identity-2"),
        "{bodies:?}"
    );
    std::fs::write(&file, "").unwrap();
    let error = azure.read("/secrets/a").await.unwrap_err();
    assert!(
        error.message.contains("AZURE_FEDERATED_TOKEN_FILE"),
        "{error}"
    );
}

#[tokio::test]
async fn refused_token_is_replaced_once() {
    let azure = Azure::start().await;
    azure.issue_tokens("t1", 3600).await;
    azure
        .serve_secret("/secrets/a", [ResponseTemplate::new(401), value("hush")])
        .await;
    assert_eq!(azure.read("/secrets/a").await.unwrap(), "hush");
    assert_eq!(azure.requests_to(TOKEN_PATH).await.len(), 2);

    let azure = Azure::start().await;
    azure.issue_tokens("t1", 3600).await;
    azure
        .serve_secret(
            "/secrets/a",
            [refusal(401, "Unauthorized", "AKV10032: Invalid issuer.")],
        )
        .await;
    let error = azure.read("/secrets/a").await.unwrap_err();
    assert!(
        error.message.contains("AKV10032") && !error.unreachable,
        "{error}"
    );
    assert_eq!(azure.requests_to("/secrets/a").await.len(), 2);
}

#[tokio::test]
async fn refusals_of_a_key_vault_name_a_remedy() {
    for (status, code, expected) in [
        (403, "Forbidden", "Key Vault Secrets User"),
        (
            404,
            "SecretNotFound",
            "does not exist in this vault and version",
        ),
        (400, "BadParameter", "responds to"),
    ] {
        let azure = Azure::start().await;
        azure.issue_tokens("t1", 3600).await;
        azure
            .serve_secret("/secrets/a", [refusal(status, code, "A message.\nmore")])
            .await;
        let error = azure.read("/secrets/a").await.unwrap_err();
        assert!(
            error.message.contains(expected) && error.message.contains(code),
            "{error}"
        );
        assert!(
            !error.message.contains("more") && !error.unreachable,
            "{error}"
        );
        assert_eq!(azure.requests_to("/secrets/a").await.len(), 1);
    }
}

#[tokio::test]
async fn request_to_a_busy_key_vault_is_retried() {
    let azure = Azure::start().await;
    azure.issue_tokens("t1", 3600).await;
    let busy = ResponseTemplate::new(429).insert_header("retry-after", "0");
    azure
        .serve_secret(
            "/secrets/a",
            [busy, ResponseTemplate::new(500), value("hush")],
        )
        .await;
    assert_eq!(azure.read("/secrets/a").await.unwrap(), "hush");

    azure
        .serve_secret("/secrets/b", [ResponseTemplate::new(503)])
        .await;
    let error = azure.read("/secrets/b").await.unwrap_err();
    assert!(
        error.unreachable && error.message.contains("503"),
        "{error}"
    );
    assert_eq!(azure.requests_to("/secrets/b").await.len(), 4);

    // A long `Retry-After` ends the attempts.
    let busy = ResponseTemplate::new(429).insert_header("retry-after", "600");
    azure.serve_secret("/secrets/c", [busy]).await;
    let error = azure.read("/secrets/c").await.unwrap_err();
    assert!(
        error.unreachable && error.message.contains("429"),
        "{error}"
    );
    assert_eq!(azure.requests_to("/secrets/c").await.len(), 1);
}

#[tokio::test]
async fn error_quotes_the_issuer_without_the_secret() {
    let azure = Azure::start().await;
    let body = json!({"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret.\r\nTrace ID: 1"});
    Mock::given(path(TOKEN_PATH))
        .respond_with(responds(401, body))
        .mount(&azure.server)
        .await;
    let error = azure.read("/secrets/a").await.unwrap_err();
    assert!(error.message.contains("AADSTS7000215"), "{error}");
    assert!(
        !error.message.contains("Trace") && !error.message.contains("client-hush"),
        "{error}"
    );
}

#[tokio::test]
async fn redirects_receive_no_token() {
    let other = MockServer::start().await;
    let azure = Azure::start().await;
    azure.issue_tokens("t1", 3600).await;
    let to_other = || {
        let location = format!("{}/secrets/a", other.uri());
        ResponseTemplate::new(302).insert_header("location", location.as_str())
    };
    azure.serve_secret("/secrets/a", [to_other()]).await;
    let error = azure.read("/secrets/a").await.unwrap_err();
    assert!(
        error.message.contains("redirects") && !error.unreachable,
        "{error}"
    );

    let azure = Azure::start().await;
    Mock::given(path(TOKEN_PATH))
        .respond_with(to_other())
        .mount(&azure.server)
        .await;
    let error = azure.read("/secrets/a").await.unwrap_err();
    assert!(error.message.contains("redirects"), "{error}");
    assert!(other.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn responses_of_a_key_vault_are_limited_and_never_quoted() {
    let azure = Azure::start().await;
    azure.issue_tokens("t1", 3600).await;
    azure
        .serve_secret("/secrets/long", [value(&"x".repeat(MAX_VALUE + 1))])
        .await;
    azure
        .serve_secret("/secrets/huge", [value(&"x".repeat(1 << 20))])
        .await;
    azure.serve_secret("/secrets/empty", [value("")]).await;
    azure.serve_secret("/secrets/short", [value("abc")]).await;
    azure
        .serve_secret(
            "/secrets/odd",
            [ResponseTemplate::new(200).set_body_string("{\"hush\": 1}")],
        )
        .await;
    for (path, expected) in [
        ("/secrets/long", "may have 65536"),
        ("/secrets/huge", "512 KiB"),
        ("/secrets/empty", "is empty"),
        ("/secrets/short", "cannot be masked"),
        ("/secrets/odd", "cannot be read"),
    ] {
        let error = azure.read(path).await.unwrap_err();
        assert!(error.message.contains(expected), "{error}");
        assert!(
            !error.message.contains("hush") && error.message.len() < 300,
            "{error}"
        );
    }
    let many = vec![azure.address("/secrets/a"); MAX_SECRETS + 1];
    let found = azure.vaults.read(&many, &Access::Everything).await;
    assert!(found.len() == many.len() && found.iter().all(Result::is_err));
}

#[tokio::test]
async fn error_names_missing_settings() {
    let vaults = Vaults::new(Settings::from_env(|_| None), Vec::new());
    let address = |url| SecretAddress::key_vault(url, None, vaults.hosts()).unwrap();
    let error = read(&vaults, address("https://t.vault.azure.net/secrets/a"))
        .await
        .unwrap_err();
    for name in [
        "AZURE_TENANT_ID",
        "AZURE_CLIENT_ID",
        "AZURE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
    ] {
        assert!(error.message.contains(name), "{error}");
    }
    let vault = || SecretAddress::vault("kv/a#k").unwrap();
    let error = read(&vaults, vault()).await.unwrap_err();
    assert!(error.message.contains("VAULT_ADDR"), "{error}");
    let with_address =
        |name: &str| (name == "VAULT_ADDR").then(|| "https://vault.example.com".to_owned());
    let vaults = Vaults::new(Settings::from_env(with_address), Vec::new());
    let error = read(&vaults, vault()).await.unwrap_err();
    assert!(
        error.message.contains("VAULT_TOKEN") && error.message.contains("VAULT_ROLE_ID"),
        "{error}"
    );
}

#[tokio::test]
async fn settings_that_would_leak_a_token_are_refused() {
    for authority in [
        "http://login.example.com",
        "ftp://x",
        "https://a:b@login.example.com",
        "https://",
    ] {
        let azure = Azure::start_with(|settings| {
            settings.client_secret = Some(Secret::new("client-hush"));
            settings.authority = Some(authority.into());
        })
        .await;
        let error = azure.read("/secrets/a").await.unwrap_err();
        assert!(error.message.contains("AZURE_AUTHORITY_HOST"), "{error}");
    }
    for tenant in ["a/b", "..", "a?b", "a@b"] {
        let azure = Azure::start_with(|settings| {
            settings.client_secret = Some(Secret::new("client-hush"));
            settings.tenant_id = Some(tenant.into());
        })
        .await;
        let error = azure.read("/secrets/a").await.unwrap_err();
        assert!(error.message.contains("AZURE_TENANT_ID"), "{error}");
    }
    let settings = Settings {
        vault: VaultSettings {
            address: Some("http://vault.example.com:8200".into()),
            token: Some(Secret::new("hush")),
            ..VaultSettings::default()
        },
        ..Settings::default()
    };
    let error = read(
        &Vaults::new(settings, Vec::new()),
        SecretAddress::vault("kv/a#k").unwrap(),
    )
    .await
    .unwrap_err();
    assert!(
        error.message.contains("VAULT_ADDR") && error.message.contains("clear"),
        "{error}"
    );
}

#[tokio::test]
async fn identity_other_than_the_operators_is_refused() {
    let azure = Azure::start().await;
    azure.issue_tokens("t1", 3600).await;
    azure.serve_secret("/secrets/a", [value("hush")]).await;
    let own = azure.address_as("/secrets/a", Some("00000000-0000-0000-0000-00000000C11E"));
    assert_eq!(read(&azure.vaults, own).await.unwrap(), "hush");
    let other = azure.address_as("/secrets/a", Some("11111111-0000-0000-0000-000000000000"));
    let error = read(&azure.vaults, other).await.unwrap_err();
    assert!(error.message.contains("clientID: 11111111"), "{error}");
}

#[tokio::test]
async fn task_without_a_rule_causes_no_request() {
    let azure = Azure::start().await;
    let access = Access::Task("team/app".into());
    let found = azure
        .vaults
        .read(&[azure.address("/secrets/a")], &access)
        .await;
    let error = found[0].as_ref().unwrap_err();
    assert!(error.message.contains("--allow-vault"), "{error}");
    assert!(azure.server.received_requests().await.unwrap().is_empty());
}
