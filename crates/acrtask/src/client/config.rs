//! What `acrtask login` remembers: `$XDG_CONFIG_HOME/acrtask/config.json`, for this user's eyes only.
//!
//! Invariants: the file is replaced whole, and is never readable by others, not even for a moment. A token is found by
//! the address that it is for, and by nothing else.

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

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    /// The server that is meant where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// Servers by their address.
    pub(crate) servers: BTreeMap<String, Login>,
}

/// A login.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Login {
    /// The token.
    pub(crate) token: SecretText,
    /// A file with the authorities that the server is trusted by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// It may be spoken to in clear wherever it is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) allow_plaintext: bool,
}

impl Config {
    /// What is remembered; nothing where nothing was ever stored.
    pub(crate) fn read() -> Result<Self, CliError> {
        match path() {
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
                "{} is not what `acrtask login` wrote",
                path.display()
            ))
            .because(&error)
            .help("remove the file, and log in again")
        })
    }

    /// Writes it down; gives back where.
    pub(crate) fn write(&self) -> Result<PathBuf, CliError> {
        let path = path().ok_or_else(|| {
            CliError::usage(
                "there is no place to remember a login: neither XDG_CONFIG_HOME nor HOME is set",
            )
            .help("set HOME, or give ACRTASK_SERVER and ACRTASK_TOKEN to each command")
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
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// The server that `args` mean, if any is known.
    ///
    /// # Errors
    /// An address that is none.
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

    /// Remembers a login, and that its server is the one that is meant from now on.
    pub(crate) fn log_in(&mut self, url: &Url, login: Login) {
        self.servers.insert(url.to_string(), login);
        self.current = Some(url.to_string());
    }

    /// Forgets the login for `url`; false where there was none.
    pub(crate) fn log_out(&mut self, url: &Url) -> bool {
        if self.current.as_deref() == Some(url.as_str()) {
            self.current = None;
        }
        self.servers.remove(url.as_str()).is_some()
    }
}

fn path() -> Option<PathBuf> {
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
    fn what_was_written_is_read_and_nobody_else_may() {
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
    fn a_token_goes_to_its_own_server_only() {
        let config = logged_in();
        let of = |server: Option<&str>, env: Option<&str>| {
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
        let known = "https://ci.example.com/".to_owned();
        assert_eq!(of(None, None), Some((known.clone(), Some("t1".into()))));
        // The same server in other words.
        assert_eq!(
            of(Some("ci.example.com:443/api/v1/"), None),
            Some((known.clone(), Some("t1".into())))
        );
        assert_eq!(
            of(Some("https://other.example.com"), None),
            Some(("https://other.example.com/".into(), None))
        );
        assert_eq!(of(None, Some("t2")), Some((known, Some("t2".into()))));
        let mut out = config.clone();
        assert!(out.log_out(&server_url("https://ci.example.com").unwrap()));
        assert_eq!(out, Config::default());
    }
}
