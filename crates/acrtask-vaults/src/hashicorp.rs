//! HashiCorp Vault and OpenBao: a token, the lookup of a path's mount, and one `GET` of a secret of
//! the KV engine.
//!
//! Only mounts of the KV engine are read. Another engine would create credentials or reveal the
//! operator's own token.
//!
//! Source: Vault HTTP API, "KV - Version 1", "KV - Version 2", "AppRole", "JWT/OIDC",
//! "/sys/internal/ui/mounts".

use std::time::Duration;

use acrtask_model::Secret;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::Url;

use crate::{
    VaultError, VaultSecret, VaultSettings,
    azure::{missing_settings, parse_base_url},
    http::{Clients, Reply, quote, send},
    settings::read_token,
    tokens::{Issued, Tokens},
};

/// Maximum number of keys of a secret that an error lists.
const MAX_KEYS: usize = 10;

/// Reads secrets of one Vault.
#[derive(Debug)]
pub(crate) struct HashiCorp {
    settings: VaultSettings,
    tokens: Tokens,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct LoginReply {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
}

#[derive(Deserialize)]
struct MountReply {
    data: Mount,
}

#[derive(Deserialize)]
struct Mount {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    options: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct SecretReply {
    data: Map<String, Value>,
}

/// A Vault and a token for it.
struct Session<'s> {
    base: Url,
    clients: &'s Clients,
    settings: &'s VaultSettings,
    token: Option<Secret>,
}

impl HashiCorp {
    pub(crate) fn new(settings: VaultSettings) -> Self {
        Self {
            settings,
            tokens: Tokens::default(),
        }
    }

    /// Reads a secret. Replaces a token from a login that is not accepted, once.
    pub(crate) async fn read(
        &self,
        clients: &Clients,
        secret: &VaultSecret,
    ) -> Result<Secret, VaultError> {
        let settings = &self.settings;
        let Some(address) = &settings.address else {
            return Err(missing_settings("Vault", &[(true, "VAULT_ADDR")]));
        };
        let mut session = Session {
            base: parse_base_url(address, "VAULT_ADDR")?,
            clients,
            settings,
            token: None,
        };
        let token = self.get_token(&session, None).await?;
        session.token = Some(token.clone());
        match session.read(secret).await {
            // Vault sends the same response for an expired token and for a path that the token may
            // not read.
            Err(Refusal::Denied(_)) if settings.uses_login() => {
                session.token = Some(self.get_token(&session, Some(&token)).await?);
                session.read(secret).await
            }
            result => result,
        }
        .map_err(Refusal::into_error)
    }

    async fn get_token(
        &self,
        session: &Session<'_>,
        refused: Option<&Secret>,
    ) -> Result<Secret, VaultError> {
        let settings = &self.settings;
        if let Some(token) = &settings.token {
            return Ok(Secret::new(token.expose().trim()));
        }
        if settings.uses_login() {
            let login = async { session.log_in().await };
            return self
                .tokens
                .get("", refused, &session.clients.renewed, login)
                .await;
        }
        match &settings.token_file {
            Some(path) if path.exists() => read_token(path, "`vault login`").await,
            _ => Err(missing_settings(
                "Vault",
                &[(
                    true,
                    "VAULT_TOKEN, VAULT_ROLE_ID (with VAULT_SECRET_ID) or VAULT_JWT_FILE (with VAULT_JWT_ROLE)",
                )],
            )),
        }
    }
}

impl VaultSettings {
    /// Returns `true` if tokens come from a login, so that an expired one can be replaced.
    fn uses_login(&self) -> bool {
        self.token.is_none() && (self.role_id.is_some() || self.jwt_file.is_some())
    }
}

/// Reason of a failed read.
enum Refusal {
    /// 403: the token has expired, or may not read the path.
    Denied(VaultError),
    Other(VaultError),
}

impl Refusal {
    fn into_error(self) -> VaultError {
        match self {
            Self::Denied(error) | Self::Other(error) => error,
        }
    }
}

impl From<VaultError> for Refusal {
    fn from(error: VaultError) -> Self {
        Self::Other(error)
    }
}

impl Session<'_> {
    fn service(&self) -> String {
        format!("the vault {}", self.base.host_str().unwrap_or_default())
    }

    /// Returns the address of an endpoint, with each segment encoded.
    fn url<'p>(&self, segments: impl IntoIterator<Item = &'p str>) -> Result<Url, VaultError> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| VaultError::new("VAULT_ADDR has no path"))?
            .pop_if_empty()
            .push("v1")
            .extend(segments);
        Ok(url)
    }

    fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, VaultError> {
        let client = self.clients.vault(self.settings.ca.as_deref())?;
        // Vault requires this header so that no web page in a browser can send requests.
        let mut request = client
            .request(method, url.clone())
            .header("X-Vault-Request", "true");
        if let Some(namespace) = &self.settings.namespace {
            request = request.header("X-Vault-Namespace", namespace.trim());
        }
        if let Some(token) = &self.token {
            request = request.header("X-Vault-Token", token.expose());
        }
        Ok(request)
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        body: Option<&Value>,
    ) -> Result<Reply, VaultError> {
        // The request is built here once, so that a failure to build it is not retried.
        let request = self.request(method, url)?;
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let copy = || {
            request
                .try_clone()
                .expect("a request with its body in memory is cloned")
        };
        send(&self.service(), copy).await
    }

    async fn log_in(&self) -> Result<Issued, VaultError> {
        let settings = self.settings;
        let (default_path, body) = match (&settings.role_id, &settings.jwt_file) {
            (Some(role), _) => {
                let mut body = json!({"role_id": role});
                if let Some(secret) = &settings.secret_id {
                    body["secret_id"] = secret.expose().trim().into();
                }
                ("approle", body)
            }
            (None, Some(path)) => {
                let token = read_token(path, "VAULT_JWT_FILE").await?;
                let mut body = json!({"jwt": token.expose()});
                if let Some(role) = &settings.jwt_role {
                    body["role"] = role.as_str().into();
                }
                ("jwt", body)
            }
            (None, None) => {
                return Err(VaultError::new(
                    "the settings contain no identity for a login",
                ));
            }
        };
        let path = settings.auth_path.as_deref().unwrap_or(default_path);
        let path = path.trim_matches('/');
        let path = path.strip_prefix("auth/").unwrap_or(path);
        let url = self.url(["auth"].into_iter().chain(path.split('/')).chain(["login"]))?;
        let reply = self.send(Method::POST, &url, Some(&body)).await?;
        if !reply.status.is_success() {
            return Err(VaultError::new(format!(
                "{} refuses the login at auth/{path}: {}",
                self.service(),
                refusal_reason(&reply)
            )));
        }
        let auth = reply.parse_json::<LoginReply>(&self.service())?.auth;
        Ok(Issued {
            token: Secret::new(auth.client_token),
            lifetime: Duration::from_secs(auth.lease_duration),
        })
    }

    async fn read(&self, secret: &VaultSecret) -> Result<Secret, Refusal> {
        let path = secret.path();
        let mount = self.find_mount(secret).await?;
        let version = mount.options.as_ref().and_then(|options| {
            let version = options.get("version")?;
            Some(
                version
                    .as_str()
                    .map_or_else(|| version.to_string(), str::to_owned),
            )
        });
        let is_second = version.as_deref() == Some("2");
        let Some(rest) = secret.segments_below(&mount.path) else {
            return Err(VaultError::new(format!(
                "{path} is not the path of a secret below the mount {}",
                quote(&mount.path)
            ))
            .into());
        };
        let front = mount.path.trim_matches('/').split('/');
        let data = is_second.then_some("data");
        let url = self.url(front.chain(data).chain(rest.iter().map(String::as_str)))?;
        let reply = self.send(Method::GET, &url, None).await?;
        match reply.status {
            StatusCode::FORBIDDEN => return Err(self.denied_error(&path, &reply)),
            StatusCode::NOT_FOUND => {
                let hint = match rest.first().map(String::as_str) {
                    Some("data") if is_second => {
                        "; write the path as `vault kv get` takes it, without `data/`"
                    }
                    _ => "",
                };
                return Err(VaultError::new(format!(
                    "{} has no secret {path}{hint}",
                    self.service()
                ))
                .into());
            }
            status if !status.is_success() => {
                return Err(VaultError::new(format!(
                    "{} responds to {path} with {}",
                    self.service(),
                    refusal_reason(&reply)
                ))
                .into());
            }
            _ => {}
        }
        let mut data = reply.parse_json::<SecretReply>(&self.service())?.data;
        if is_second {
            data = match data.remove("data") {
                Some(Value::Object(inner)) => inner,
                _ => {
                    return Err(VaultError::new(format!(
                        "the newest version of {path} is deleted"
                    ))
                    .into());
                }
            };
        }
        Ok(value_of_key(&path, &secret.key, &data)?)
    }

    /// Returns the mount of the path, which must belong to the KV engine.
    async fn find_mount(&self, secret: &VaultSecret) -> Result<Mount, Refusal> {
        let path = secret.path();
        let fixed = ["sys", "internal", "ui", "mounts"];
        let segments = secret.segments().iter().map(String::as_str);
        let url = self.url(fixed.into_iter().chain(segments))?;
        let reply = self.send(Method::GET, &url, None).await?;
        match reply.status {
            StatusCode::FORBIDDEN => return Err(self.denied_error(&path, &reply)),
            status if !status.is_success() => {
                return Err(VaultError::new(format!(
                    "{} does not report where {path} is mounted: {}",
                    self.service(),
                    refusal_reason(&reply)
                ))
                .into());
            }
            _ => {}
        }
        let mount = reply.parse_json::<MountReply>(&self.service())?.data;
        if !matches!(mount.kind.as_str(), "kv" | "generic") {
            return Err(VaultError::new(format!(
                "{path} is in a mount of the type `{}`, and only secrets of the KV engine are read",
                quote(&mount.kind)
            ))
            .into());
        }
        Ok(mount)
    }

    fn denied_error(&self, path: &str, reply: &Reply) -> Refusal {
        Refusal::Denied(VaultError::new(format!(
            "{path} is not open to the identity, or its token has expired: {}",
            refusal_reason(reply)
        )))
    }
}

/// Returns the value of a key as text.
fn value_of_key(path: &str, key: &str, data: &Map<String, Value>) -> Result<Secret, VaultError> {
    match data.get(key) {
        Some(Value::String(text)) => Ok(Secret::new(text.as_str())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Secret::new(value.to_string())),
        Some(_) => Err(VaultError::new(format!(
            "`{key}` of {path} is neither text nor a number"
        ))),
        None => {
            let keys: Vec<String> = data.keys().take(MAX_KEYS).map(|key| quote(key)).collect();
            Err(VaultError::new(format!(
                "{path} has no key `{key}`; it has `{}`",
                keys.join("`, `")
            )))
        }
    }
}

/// Returns Vault's own text about a refusal.
fn refusal_reason(reply: &Reply) -> String {
    let errors = reply.parse_error::<Errors>().map(|found| found.errors);
    let first = errors.and_then(|errors| errors.into_iter().next());
    match first.map(|text| quote(text.trim())) {
        Some(text) if !text.is_empty() => format!("{} ({text})", reply.status),
        _ => reply.status.to_string(),
    }
}
