//! The address of a secret in a task file, checked before a token is sent to it. Pure.

use std::fmt;

use acrtask_registry::net::is_loopback;
use url::Url;

use crate::VaultError;

/// Domains of Key Vault: in the public cloud, in China, for the government of the United States, in
/// Germany.
const KEY_VAULT_DOMAINS: [&str; 4] = [
    "vault.azure.net",
    "vault.azure.cn",
    "vault.usgovcloudapi.net",
    "vault.microsoftazure.de",
];
/// Audience of the tokens for hosts that the operator lists.
const DEFAULT_DOMAIN: &str = KEY_VAULT_DOMAINS[0];
/// Maximum length of the name of a secret in a Key Vault, in characters.
const MAX_NAME: usize = 127;
/// Maximum length of the address of a secret, in bytes.
const MAX_ADDRESS: usize = 1024;

/// Address of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretAddress {
    /// A secret in an Azure Key Vault.
    KeyVault(KeyVaultSecret),
    /// A secret in a HashiCorp Vault.
    Vault(VaultSecret),
}

impl SecretAddress {
    /// Parses the value of `keyvault:`, with that of `clientID:`.
    ///
    /// # Errors
    /// [`VaultError`] if it is not the address of a secret, or its host is not among `hosts`.
    pub fn key_vault(
        url: &str,
        client_id: Option<&str>,
        hosts: &KeyVaultHosts,
    ) -> Result<Self, VaultError> {
        KeyVaultSecret::parse(url, client_id, hosts).map(Self::KeyVault)
    }

    /// Parses the value of `vault:`, which is `PATH#KEY`.
    ///
    /// # Errors
    /// [`VaultError`] if it is not a path and a key.
    pub fn vault(text: &str) -> Result<Self, VaultError> {
        VaultSecret::parse(text).map(Self::Vault)
    }
}

/// Shows the location of a secret and never its value.
impl fmt::Display for SecretAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyVault(secret) => write!(f, "{}", secret.url),
            Self::Vault(secret) => write!(f, "{}#{}", secret.path(), secret.key),
        }
    }
}

/// The hosts to which a token for Key Vault may be sent: those of Azure, and those that the
/// operator lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyVaultHosts {
    listed: Vec<String>,
    any: bool,
}

impl KeyVaultHosts {
    /// Returns all hosts, for callers that send nothing.
    pub fn any() -> Self {
        Self {
            listed: Vec::new(),
            any: true,
        }
    }

    /// Adds hosts: `HOST` or `HOST:PORT`. A host on this machine is used over plain HTTP.
    ///
    /// # Errors
    /// A sentence for the first one that is not a host.
    pub fn new(hosts: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let listed = hosts
            .into_iter()
            .map(|host| {
                let url = Url::parse(&format!("https://{host}/")).ok();
                let authority = url.as_ref().and_then(authority);
                authority
                    .filter(|authority| host.eq_ignore_ascii_case(authority))
                    .ok_or_else(|| {
                        format!("`{host}` is not a host; write HOST or HOST:PORT, as in `vault.example.com`")
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { listed, any: false })
    }

    /// Checks that a token may be sent to the host of `url`. Returns the audience of the token.
    fn audience(&self, url: &Url) -> Result<&'static str, String> {
        let authority = authority(url).unwrap_or_default();
        let is_listed = self.any || self.listed.contains(&authority);
        let domain = KEY_VAULT_DOMAINS.into_iter().find(|domain| {
            authority
                .strip_suffix(domain)
                .and_then(|name| name.strip_suffix('.'))
                .is_some_and(is_vault_name)
        });
        let domain = domain.or(is_listed.then_some(DEFAULT_DOMAIN)).ok_or_else(|| {
            format!(
                "`{authority}` is not a host of Azure Key Vault; write `https://NAME.{DEFAULT_DOMAIN}/secrets/SECRET`, or \
                 let the operator list the host with `--key-vault-host {authority}`"
            )
        })?;
        let is_here = is_listed && is_loopback(url.host_str().unwrap_or_default());
        match url.scheme() {
            "https" => Ok(domain),
            "http" if is_here => Ok(domain),
            _ => Err("it does not begin with `https://`".into()),
        }
    }
}

/// Returns `HOST` or `HOST:PORT` of a URL, in lower case.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn is_vault_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A secret of a Key Vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyVaultSecret {
    pub(crate) url: Url,
    /// `https://HOST/secrets/NAME` in lower case, without the version. The case of secret names has
    /// no meaning.
    pub(crate) canonical: String,
    /// The required domain of a token.
    pub(crate) audience: &'static str,
    /// The identity that reads the secret. `None`: that of the operator's settings.
    pub(crate) client_id: Option<String>,
}

impl KeyVaultSecret {
    fn parse(
        text: &str,
        client_id: Option<&str>,
        hosts: &KeyVaultHosts,
    ) -> Result<Self, VaultError> {
        let refuse =
            |why: &str| VaultError::new(format!("`{}` cannot be read: {why}", shortened(text)));
        let form = "it is not the address of a secret; write `https://NAME.vault.azure.net/secrets/SECRET`, with \
                    `/VERSION` behind it for one version";
        if text.len() > MAX_ADDRESS {
            return Err(refuse(form));
        }
        let url = Url::parse(text.trim()).map_err(|_| refuse(form))?;
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(refuse(
                "a login, `?` and `#` do not belong into the address of a secret",
            ));
        }
        let audience = hosts.audience(&url).map_err(|why| refuse(&why))?;
        let segments: Vec<&str> = url.path_segments().into_iter().flatten().collect();
        let (name, version) = match segments.as_slice() {
            ["secrets", name] | ["secrets", name, ""] => (*name, None),
            ["secrets", name, version] => (*name, Some(*version)),
            _ => return Err(refuse(form)),
        };
        let version_is_good = |version: &str| {
            version.len() <= 64 && version.bytes().all(|b| b.is_ascii_alphanumeric())
        };
        if name.len() > MAX_NAME || !is_vault_name(name) || !version.is_none_or(version_is_good) {
            return Err(refuse(form));
        }
        let origin = format!("{}://{}", url.scheme(), authority(&url).unwrap_or_default());
        let canonical = format!("{origin}/secrets/{name}").to_ascii_lowercase();
        Ok(Self {
            canonical,
            audience,
            client_id: client_id.map(str::to_owned),
            url,
        })
    }
}

/// A key of a secret in a Vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultSecret {
    /// The path in the form of `vault kv get`, including the mount.
    segments: Vec<String>,
    pub(crate) key: String,
}

impl VaultSecret {
    fn parse(text: &str) -> Result<Self, VaultError> {
        let refuse = |why: &str| {
            VaultError::new(format!(
                "`{}` cannot be read: {why}; write `PATH#KEY`, as in `secret/team/app#password`",
                shortened(text)
            ))
        };
        if text.len() > MAX_ADDRESS {
            return Err(refuse("it is too long"));
        }
        let (path, key) = text
            .trim()
            .split_once('#')
            .ok_or_else(|| refuse("it names no key"))?;
        if key.is_empty() || key.contains(char::is_control) {
            return Err(refuse("it names no key"));
        }
        let segments: Vec<String> = path.split('/').map(str::to_owned).collect();
        let is_good = |segment: &String| {
            !matches!(segment.as_str(), "" | "." | "..")
                && !segment.contains(|c: char| c.is_control() || "?%\\*".contains(c))
        };
        if segments.len() < 2 || !segments.iter().all(is_good) {
            return Err(refuse("it is not the path of a secret"));
        }
        Ok(Self {
            segments,
            key: key.to_owned(),
        })
    }

    /// Returns the path, including the mount.
    pub(crate) fn path(&self) -> String {
        self.segments.join("/")
    }

    /// Returns the segments of the path after `mount`, which ends with `/`. `None` if the path is
    /// not below it.
    pub(crate) fn segments_below(&self, mount: &str) -> Option<&[String]> {
        let mounts: Vec<&str> = mount.trim_end_matches('/').split('/').collect();
        let (front, rest) = self.segments.split_at_checked(mounts.len())?;
        (front == mounts && !rest.is_empty()).then_some(rest)
    }

    /// Returns the segments of the whole path.
    pub(crate) fn segments(&self) -> &[String] {
        &self.segments
    }
}

/// Returns the beginning of an address, for a quote in an error.
fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(200).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_vault(url: &str) -> Result<KeyVaultSecret, VaultError> {
        let hosts = KeyVaultHosts::new(["127.0.0.1:8200".into(), "kv.example.com".into()]).unwrap();
        KeyVaultSecret::parse(url, None, &hosts)
    }

    #[test]
    fn key_vault_addresses_are_parsed() {
        for (url, canonical, audience) in [
            (
                "https://Team.vault.azure.net/secrets/Pass-1",
                "https://team.vault.azure.net/secrets/pass-1",
                "vault.azure.net",
            ),
            (
                "https://team.vault.azure.net:443/secrets/pass/0123456789abcdef0123456789abcdef",
                "https://team.vault.azure.net/secrets/pass",
                "vault.azure.net",
            ),
            (
                "https://team.vault.azure.cn/secrets/pass/",
                "https://team.vault.azure.cn/secrets/pass",
                "vault.azure.cn",
            ),
            (
                "https://t.vault.usgovcloudapi.net/secrets/a",
                "https://t.vault.usgovcloudapi.net/secrets/a",
                "vault.usgovcloudapi.net",
            ),
            (
                "https://t.vault.microsoftazure.de/secrets/a",
                "https://t.vault.microsoftazure.de/secrets/a",
                "vault.microsoftazure.de",
            ),
            (
                "https://kv.example.com/secrets/a",
                "https://kv.example.com/secrets/a",
                "vault.azure.net",
            ),
            (
                "http://127.0.0.1:8200/secrets/a",
                "http://127.0.0.1:8200/secrets/a",
                "vault.azure.net",
            ),
        ] {
            let secret = key_vault(url).unwrap();
            assert_eq!(secret.canonical, canonical, "{url}");
            assert_eq!(secret.audience, audience, "{url}");
        }
    }

    #[test]
    fn token_for_key_vault_is_sent_to_no_other_host() {
        for url in [
            "https://evil.example.com/secrets/a",
            "https://vault.azure.net/secrets/a",
            "https://evilvault.azure.net/secrets/a",
            "https://team.vault.azure.net.evil.example.com/secrets/a",
            "https://team.vault.azure.net:8443/secrets/a",
            "https://team.vault.azure.net@evil.example.com/secrets/a",
            "https://evil.example.com#.vault.azure.net/secrets/a",
            "https://evil.example.com\\.vault.azure.net/secrets/a",
            "https://a.b.vault.azure.net/secrets/a",
            "https://hsm.managedhsm.azure.net/secrets/a",
            "https://kv.example.com:444/secrets/a",
            "https://127.0.0.1/secrets/a",
            "https://169.254.169.254/secrets/a",
            "http://team.vault.azure.net/secrets/a",
            "http://kv.example.com/secrets/a",
            "ftp://kv.example.com/secrets/a",
            "file:///secrets/a",
        ] {
            let error = key_vault(url).unwrap_err();
            assert!(
                !error.unreachable && error.message.contains("cannot be read"),
                "{error}"
            );
        }
    }

    #[test]
    fn addresses_of_other_objects_are_refused() {
        for url in [
            "",
            "team",
            "https://team.vault.azure.net",
            "https://team.vault.azure.net/secrets",
            "https://team.vault.azure.net/secrets/",
            "https://team.vault.azure.net/keys/a",
            "https://team.vault.azure.net/secrets/a/v/x",
            "https://team.vault.azure.net/secrets/../keys/a",
            "https://team.vault.azure.net/secrets/a%2fb",
            "https://team.vault.azure.net/secrets/a?x=1",
            "https://team.vault.azure.net/secrets/a/v-1",
            &format!("https://team.vault.azure.net/secrets/{}", "a".repeat(128)),
            &format!("https://team.vault.azure.net/secrets/{}", "a".repeat(5000)),
        ] {
            let error = key_vault(url).unwrap_err();
            assert!(error.message.len() < 700, "{error}");
        }
    }

    #[test]
    fn vault_addresses_are_a_path_and_a_key() {
        let secret = VaultSecret::parse("kv/team/app#user name").unwrap();
        assert_eq!(
            (secret.path().as_str(), secret.key.as_str()),
            ("kv/team/app", "user name")
        );
        assert_eq!(secret.segments_below("kv/").unwrap(), ["team", "app"]);
        assert_eq!(secret.segments_below("kv/team/").unwrap(), ["app"]);
        assert_eq!(secret.segments_below("kv/team/app/"), None);
        assert_eq!(secret.segments_below("kv/te/"), None);
        assert_eq!(secret.segments_below("k/"), None);
        for bad in [
            "",
            "kv/app",
            "kv/app#",
            "app#key",
            "/kv/app#key",
            "kv//app#key",
            "kv/../sys/raw#key",
            "kv/./app#key",
            "kv/app/#key",
            "kv/a%2e%2e#key",
            "kv/app?version=1#key",
            "kv/a\\b#key",
            "kv/a\nb#key",
            "https://vault.example.com/v1/kv/app#key",
        ] {
            let error = VaultSecret::parse(bad).unwrap_err();
            assert!(error.message.contains("PATH#KEY"), "{error}");
        }
    }

    #[test]
    fn invalid_hosts_are_refused() {
        for bad in [
            "",
            "https://a",
            "a/b",
            "a@b",
            "a b",
            "*.example.com/",
            "a:x",
        ] {
            assert!(KeyVaultHosts::new([bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(KeyVaultHosts::new(["KV.example.com".to_owned()]).is_ok());
    }
}
