//! Azure Key Vault: a token of Microsoft Entra ID, and one `GET` of a secret.
//!
//! Source: Key Vault REST API 7.4, "Get Secret"; Microsoft identity platform, "OAuth 2.0 client
//! credentials flow".

use std::{sync::atomic::AtomicBool, time::Duration};

use acrtask_model::Secret;
use acrtask_registry::net::is_loopback;
use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;

use crate::{
    AzureSettings, KeyVaultSecret, VaultError,
    http::{Clients, Reply, quote, send},
    settings::read_token,
    tokens::{Issued, Tokens},
};

const API_VERSION: &str = "7.4";
const AUTHORITY: &str = "https://login.microsoftonline.com/";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Reads secrets of Key Vaults.
#[derive(Debug)]
pub(crate) struct Azure {
    settings: AzureSettings,
    tokens: Tokens,
}

/// The identity, with all data to request a token.
struct Identity<'s> {
    endpoint: Url,
    client_id: &'s str,
    proof: Proof<'s>,
}

enum Proof<'s> {
    Secret(&'s Secret),
    File(&'s std::path::Path),
}

#[derive(Deserialize)]
struct TokenReply {
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

#[derive(Deserialize)]
struct TokenError {
    error: String,
    #[serde(default)]
    error_description: String,
}

#[derive(Deserialize)]
struct SecretReply {
    value: String,
}

#[derive(Deserialize)]
struct KeyVaultError {
    error: ErrorBody,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Azure {
    pub(crate) fn new(settings: AzureSettings) -> Self {
        Self {
            settings,
            tokens: Tokens::default(),
        }
    }

    /// Reads a secret. Replaces a token that the vault does not accept, once.
    pub(crate) async fn read(
        &self,
        clients: &Clients,
        secret: &KeyVaultSecret,
    ) -> Result<Secret, VaultError> {
        let token = self.get_token(clients, secret, None).await?;
        let reply = request_secret(clients, secret, &token).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return parse_value(secret, &reply);
        }
        let token = self.get_token(clients, secret, Some(&token)).await?;
        parse_value(secret, &request_secret(clients, secret, &token).await?)
    }

    async fn get_token(
        &self,
        clients: &Clients,
        secret: &KeyVaultSecret,
        refused: Option<&Secret>,
    ) -> Result<Secret, VaultError> {
        let identity = self.identity(secret.client_id.as_deref())?;
        let key = format!("{} {}", identity.client_id, secret.audience);
        let issue = request_token(clients, &identity, secret.audience);
        // Only an expired token is refused with 401, so each secret may renew it.
        let renewed = AtomicBool::new(false);
        self.tokens.get(&key, refused, &renewed, issue).await
    }

    /// Returns the identity, or an error with its missing parts.
    fn identity(&self, client_id: Option<&str>) -> Result<Identity<'_>, VaultError> {
        let settings = &self.settings;
        let proof = match (&settings.client_secret, &settings.token_file) {
            (Some(secret), _) => Some(Proof::Secret(secret)),
            (None, Some(path)) => Some(Proof::File(path)),
            (None, None) => None,
        };
        match (&settings.tenant_id, &settings.client_id, proof) {
            (Some(tenant), Some(own), Some(proof)) => {
                if let Some(requested) =
                    client_id.filter(|requested| !requested.eq_ignore_ascii_case(own))
                {
                    return Err(VaultError::new(format!(
                        "the identity is {own} (AZURE_CLIENT_ID), and the file names `clientID: {}`; remove `clientID` \
                         or configure that identity",
                        quote(requested)
                    )));
                }
                Ok(Identity {
                    endpoint: self.endpoint(tenant)?,
                    client_id: own,
                    proof,
                })
            }
            (tenant, own, proof) => {
                let missing = [
                    (tenant.is_none(), "AZURE_TENANT_ID"),
                    (own.is_none(), "AZURE_CLIENT_ID"),
                    (
                        proof.is_none(),
                        "AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE",
                    ),
                ];
                Err(missing_settings("Azure Key Vault", &missing))
            }
        }
    }

    fn endpoint(&self, tenant: &str) -> Result<Url, VaultError> {
        let tenant = tenant.trim();
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        if !tenant.chars().all(is_good) || tenant.chars().all(|c| c == '.') {
            return Err(VaultError::new(
                "AZURE_TENANT_ID is not the id or the domain of a directory",
            ));
        }
        let authority = self.settings.authority.as_deref().unwrap_or(AUTHORITY);
        let authority = if authority.contains("://") {
            authority.trim().to_owned()
        } else {
            format!("https://{}", authority.trim())
        };
        parse_base_url(&authority, "AZURE_AUTHORITY_HOST")?
            .join(&format!("{tenant}/oauth2/v2.0/token"))
            .map_err(|error| VaultError::new(format!("AZURE_AUTHORITY_HOST is not a URL: {error}")))
    }
}

/// Returns an error with the names of the missing variables.
pub(crate) fn missing_settings(service: &str, variables: &[(bool, &str)]) -> VaultError {
    let missing: Vec<&str> = variables
        .iter()
        .filter(|(is_missing, _)| *is_missing)
        .map(|(_, name)| *name)
        .collect();
    VaultError::new(format!(
        "{service} needs an identity, and the environment of acrtask has no {}",
        missing.join(", no ")
    ))
}

/// Parses the address of a service of the operator. It must use TLS or be on this machine.
pub(crate) fn parse_base_url(address: &str, variable: &str) -> Result<Url, VaultError> {
    let refuse =
        |why: &str| VaultError::new(format!("{variable} {why}; write https://HOST[:PORT]"));
    let mut url = Url::parse(address.trim()).map_err(|_| refuse("is not a URL"))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    match url.scheme() {
        "https" if !host.is_empty() => {}
        "http" if is_loopback(&host) => {}
        "http" => return Err(refuse("would send secrets in clear")),
        _ => return Err(refuse("is not an address over TLS")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(refuse("has a login or `?` in it"));
    }
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

/// Requests a token with the client credentials flow.
async fn request_token(
    clients: &Clients,
    identity: &Identity<'_>,
    audience: &str,
) -> Result<Issued, VaultError> {
    let scope = format!("https://{audience}/.default");
    let assertion;
    let proof = match identity.proof {
        Proof::Secret(secret) => vec![("client_secret", secret.expose())],
        Proof::File(path) => {
            assertion = read_token(path, "AZURE_FEDERATED_TOKEN_FILE").await?;
            vec![
                ("client_assertion_type", ASSERTION_TYPE),
                ("client_assertion", assertion.expose()),
            ]
        }
    };
    let mut form = vec![
        ("grant_type", "client_credentials"),
        ("client_id", identity.client_id),
        ("scope", scope.as_str()),
    ];
    form.extend(proof);
    let client = clients.azure()?;
    let service = format!(
        "the issuer of tokens at {}",
        identity.endpoint.host_str().unwrap_or_default()
    );
    let reply = send(&service, || {
        client.post(identity.endpoint.clone()).form(&form)
    })
    .await?;
    if !reply.status.is_success() {
        let why = match reply.parse_error::<TokenError>() {
            Some(found) => format!(
                "{}: {}",
                quote(&found.error),
                quote(&found.error_description)
            ),
            None => reply.status.to_string(),
        };
        return Err(VaultError::new(format!(
            "{service} refuses the identity {}: {why}",
            identity.client_id
        )));
    }
    let reply: TokenReply = reply.parse_json(&service)?;
    Ok(Issued {
        token: Secret::new(reply.access_token),
        lifetime: Duration::from_secs(reply.expires_in),
    })
}

async fn request_secret(
    clients: &Clients,
    secret: &KeyVaultSecret,
    token: &Secret,
) -> Result<Reply, VaultError> {
    let client = clients.azure()?;
    send(&service_name(secret), || {
        client
            .get(secret.url.clone())
            .query(&[("api-version", API_VERSION)])
            .bearer_auth(token.expose())
    })
    .await
}

fn service_name(secret: &KeyVaultSecret) -> String {
    format!(
        "the key vault {}",
        secret.url.host_str().unwrap_or_default()
    )
}

fn parse_value(secret: &KeyVaultSecret, reply: &Reply) -> Result<Secret, VaultError> {
    if reply.status.is_success() {
        let reply: SecretReply = reply.parse_json(&service_name(secret))?;
        return Ok(Secret::new(reply.value));
    }
    let found = reply
        .parse_error::<KeyVaultError>()
        .map(|found| found.error);
    let detail = found.map_or(String::new(), |body| {
        format!(" ({}: {})", quote(&body.code), quote(&body.message))
    });
    let url = &secret.url;
    let why = match reply.status {
        StatusCode::UNAUTHORIZED => {
            format!("{url} is not open to the identity: its vault accepts no token of this tenant")
        }
        StatusCode::FORBIDDEN => {
            format!("{url} is not open to the identity: give it the role `Key Vault Secrets User`")
        }
        StatusCode::NOT_FOUND => format!("{url} does not exist in this vault and version"),
        status => format!("{} responds to {url} with {status}", service_name(secret)),
    };
    Err(VaultError::new(format!("{why}{detail}")))
}
