//! What a task file may ask of the outside while it is read: `alias: src:` and the sources of `secrets`.
//!
//! The author of a task file need not be trusted with this machine: a file is read only inside the context,
//! a URL only at a public address, and this machine's environment only for a task of the operator's own
//! folder.

use std::{io::Read, path::Path, time::Duration};

use acrtask_model::Secret;
use acrtask_registry::{AddressPolicy, net};
use acrtask_spec::{Lookup, SecretDeclaration, SecretSource};

use crate::Files;

/// The longest alias source that is read, in bytes.
const MAX_SOURCE: u64 = 1 << 20;
/// The time that a download may take.
const DOWNLOAD_TIME: Duration = Duration::from_secs(30);

/// The outside of a task file.
#[derive(Debug)]
pub(crate) struct Outside {
    files: Files,
}

impl Outside {
    /// With these files.
    pub(crate) fn new(files: Files) -> Self {
        Self { files }
    }

    fn file(&self, path: &str) -> Result<String, String> {
        let root = match &self.files {
            Files::OfTheOperator(root) | Files::FromElsewhere(root) => root,
            Files::None => return Err("the run has no context that it could be in".into()),
        };
        let found = acrtask_source::paths::inside(root, Path::new(path))
            .map_err(|error| error.to_string())?;
        let mut text = String::new();
        std::fs::File::open(found)
            .and_then(|file| file.take(MAX_SOURCE + 1).read_to_string(&mut text))
            .map_err(|error| error.to_string())?;
        if text.len() as u64 > MAX_SOURCE {
            return Err(format!("it is larger than {} MiB", MAX_SOURCE >> 20));
        }
        Ok(text)
    }
}

impl Lookup for Outside {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        if location.starts_with("https://") || location.starts_with("http://") {
            return download(location);
        }
        self.file(location)
    }

    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String> {
        let own = matches!(self.files, Files::OfTheOperator(_));
        match &declared.source {
            SecretSource::KeyVault { .. } => Ok(None),
            SecretSource::Env(_) if !own => {
                Err("a task file that was fetched cannot read this machine's environment".into())
            }
            SecretSource::Env(name) => match std::env::var(name) {
                Ok(value) => Ok(Some(Secret::new(value))),
                Err(_) => Err(format!("the environment has no {name}")),
            },
            SecretSource::File(path) => self.file(path).map(|text| Some(Secret::new(text))),
        }
    }
}

/// The text at `url`. Blocks, on a thread of its own, because the caller may be inside a runtime.
fn download(url: &str) -> Result<String, String> {
    std::thread::scope(|scope| {
        let fetched = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| e.to_string())?;
            runtime.block_on(async {
                tokio::time::timeout(DOWNLOAD_TIME, fetch(url))
                    .await
                    .unwrap_or_else(|_| {
                        Err(format!("no answer within {} s", DOWNLOAD_TIME.as_secs()))
                    })
            })
        });
        fetched
            .join()
            .unwrap_or_else(|_| Err("the download broke off".into()))
    })
}

async fn fetch(url: &str) -> Result<String, String> {
    let url: url::Url = url
        .parse()
        .map_err(|error| format!("it is no URL: {error}"))?;
    net::check_literal(AddressPolicy::PublicOnly, &url).map_err(|error| error.to_string())?;
    let client = net::client(AddressPolicy::PublicOnly, true).map_err(|error| chain(&error))?;
    let mut response = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| chain(&error))?;
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        text.extend_from_slice(&chunk);
        if text.len() as u64 > MAX_SOURCE {
            return Err(format!("it is larger than {} MiB", MAX_SOURCE >> 20));
        }
    }
    String::from_utf8(text).map_err(|_| "it is not UTF-8 text".into())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> SecretDeclaration {
        SecretDeclaration {
            id: "s".into(),
            source: SecretSource::Env(name.into()),
        }
    }

    #[test]
    fn files_only_inside_the_context() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::write(root.join("aliases.yaml"), "values: {}").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        let outside = Outside::new(Files::OfTheOperator(root));
        assert_eq!(
            outside.alias_source("aliases.yaml"),
            Ok("values: {}".into())
        );
        for elsewhere in ["/etc/passwd", "../x", "link"] {
            assert!(outside.alias_source(elsewhere).is_err(), "{elsewhere}");
        }
        assert!(
            Outside::new(Files::None)
                .alias_source("aliases.yaml")
                .is_err()
        );
    }

    #[test]
    fn addresses_of_this_machine_are_refused() {
        for url in [
            "http://127.0.0.1:1/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[::1]/",
        ] {
            let error = Outside::new(Files::None).alias_source(url).unwrap_err();
            assert!(!error.contains("refused to connect"), "{error}");
        }
    }

    #[test]
    fn the_environment_only_for_the_operators_own_folder() {
        let own = Outside::new(Files::OfTheOperator("/".into()));
        assert!(own.secret(&env("PATH")).unwrap().is_some());
        assert!(own.secret(&env("NO_SUCH_VARIABLE_HERE")).is_err());
        assert!(
            Outside::new(Files::FromElsewhere("/".into()))
                .secret(&env("PATH"))
                .is_err()
        );
    }
}
