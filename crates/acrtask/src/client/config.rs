//! Stored logins of `acrtask login`: `$XDG_CONFIG_HOME/acrtask/config.json`, readable only by this
//! user.
//!
//! Invariants: the file is replaced atomically, and other users can never read it. A token is found
//! only by the address of its server.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use acrtask_api::run::SecretText;
use acrtask_model::Secret;
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Connection, server_url};
use crate::{args::server::ServerArgs, error::CliError};

/// Content of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    /// Default server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// Logins by server address.
    pub(crate) servers: BTreeMap<String, Login>,
}

/// Login for a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Login {
    /// API token.
    pub(crate) token: SecretText,
    /// File with the certificate authorities for the server; `None`: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Allows plain HTTP to a server on another machine.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) allow_plaintext: bool,
}

impl Config {
    /// Reads the stored logins; returns the default if the file does not exist.
    pub(crate) fn read() -> Result<Self, CliError> {
        match config_path() {
            Some(path) => Self::read_from(&path),
            None => Ok(Self::default()),
        }
    }

    fn read_from(path: &Path) -> Result<Self, CliError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(
                    CliError::usage(format!("cannot read {}", path.display())).because(&error)
                );
            }
        };
        serde_json::from_slice(&text).map_err(|error| {
            CliError::usage(format!(
                "{} is not a configuration of `acrtask login`",
                path.display()
            ))
            .because(&error)
            .help("remove the file, and log in again")
        })
    }

    /// Writes the file and returns its path.
    pub(crate) fn write(&self) -> Result<PathBuf, CliError> {
        let path = config_path().ok_or_else(|| {
            CliError::usage("cannot store a login: neither XDG_CONFIG_HOME nor HOME is set")
                .help("set HOME, or set ACRTASK_SERVER and ACRTASK_TOKEN for each command")
        })?;
        self.write_to(&path).map_err(|error| {
            CliError::usage(format!("cannot write {}", path.display())).because(&error)
        })?;
        Ok(path)
    }

    fn write_to(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let text = serde_json::to_string_pretty(self)?;
        // The temporary file has mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Returns the connection for `args`; `None` if no server is configured.
    ///
    /// # Errors
    /// Fails if the address is invalid.
    pub(crate) fn connection(
        &self,
        args: &ServerArgs,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Connection>, CliError> {
        let named = args.server.as_deref().filter(|url| !url.is_empty());
        let Some(url) = named.or(self.current.as_deref()) else {
            return Ok(None);
        };
        let url = server_url(url)?;
        let login = self.servers.get(url.as_str());
        let token = env("ACRTASK_TOKEN")
            .filter(|token| !token.trim().is_empty())
            .map(|token| Secret::new(token.trim()))
            .or_else(|| login.map(|login| Secret::new(login.token.0.clone())));
        Ok(Some(Connection {
            token,
            ca: args.ca.clone().or_else(|| login?.ca.clone()),
            allow_plaintext: args.allow_plaintext
                || login.is_some_and(|login| login.allow_plaintext),
            url,
        }))
    }

    /// Stores a login and makes its server the default.
    pub(crate) fn log_in(&mut self, url: &Url, login: Login) {
        self.servers.insert(url.to_string(), login);
        self.current = Some(url.to_string());
    }

    /// Removes the login for `url`; returns `false` if there was none.
    pub(crate) fn log_out(&mut self, url: &Url) -> bool {
        if self.current.as_deref() == Some(url.as_str()) {
            self.current = None;
        }
        self.servers.remove(url.as_str()).is_some()
    }
}

fn config_path() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = var("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(folder.join("acrtask").join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged_in() -> Config {
        let mut config = Config::default();
        let url = server_url("https://ci.example.com/").unwrap();
        config.log_in(
            &url,
            Login {
                token: SecretText("t1".into()),
                ..Login::default()
            },
        );
        config
    }

    #[test]
    fn config_is_read_back_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/config.json");
        let config = logged_in();
        config.write_to(&path).unwrap();
        assert_eq!(Config::read_from(&path).unwrap(), config);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(
            Config::read_from(&folder.path().join("none")).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn token_is_used_for_its_own_server_only() {
        let config = logged_in();
        let connection = |server: Option<&str>, env: Option<&str>| {
            let args = ServerArgs {
                server: server.map(Into::into),
                ..ServerArgs::default()
            };
            let env = env.map(str::to_owned);
            config.connection(&args, |_| env.clone()).unwrap().map(|c| {
                let token = c.token.map(|t| t.expose().to_owned());
                (c.url.to_string(), token)
            })
        };
        let own = "https://ci.example.com/".to_owned();
        assert_eq!(
            connection(None, None),
            Some((own.clone(), Some("t1".into())))
        );
        // Another spelling of the same server.
        assert_eq!(
            connection(Some("ci.example.com:443/api/v1/"), None),
            Some((own.clone(), Some("t1".into())))
        );
        assert_eq!(
            connection(Some("https://other.example.com"), None),
            Some(("https://other.example.com/".into(), None))
        );
        assert_eq!(connection(None, Some("t2")), Some((own, Some("t2".into()))));
        let mut out = config.clone();
        assert!(out.log_out(&server_url("https://ci.example.com").unwrap()));
        assert_eq!(out, Config::default());
    }
}
