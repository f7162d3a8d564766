//! Registries that the ARM API shows.

use std::{fmt, str::FromStr};

/// Longest name of a registry, in characters, as in Azure.
const MAX_NAME: usize = 50;

/// A registry under the name that Azure's clients use: `NAME=HOST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmRegistry {
    /// Name in ARM addresses.
    pub name: String,
    /// Host and port of the registry.
    pub server: String,
}

/// An error for a text that is not `NAME=HOST`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: write NAME=HOST, as in myregistry=registry.example.com:5000")]
pub struct ArmRegistryError(String);

impl FromStr for ArmRegistry {
    type Err = ArmRegistryError;

    fn from_str(text: &str) -> Result<Self, ArmRegistryError> {
        let refuse = |reason: String| Err(ArmRegistryError(reason));
        let Some((name, server)) = text.split_once('=') else {
            return refuse(format!("`{text}` contains no `=`"));
        };
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
            return refuse(format!(
                "`{name}` is not a name of 1 to {MAX_NAME} letters, digits and `-`"
            ));
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "-.:[]_".contains(c);
        if server.is_empty() || server.len() > 255 || !server.chars().all(good) {
            return refuse(format!(
                "`{server}` is not the host of a registry, without scheme and path"
            ));
        }
        Ok(Self {
            name: name.into(),
            server: server.into(),
        })
    }
}

impl fmt::Display for ArmRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_has_a_name_and_a_host() {
        let parsed: ArmRegistry = "myreg=127.0.0.1:5000".parse().unwrap();
        assert_eq!(
            (parsed.name.as_str(), parsed.server.as_str()),
            ("myreg", "127.0.0.1:5000")
        );
        assert_eq!(parsed.to_string(), "myreg=127.0.0.1:5000");
    }

    #[test]
    fn errors_name_the_right_form() {
        for text in [
            "myreg",
            "=host",
            "my reg=host",
            "myreg=",
            "myreg=https://host",
            "a=b/c",
        ] {
            let error = text.parse::<ArmRegistry>().unwrap_err().to_string();
            assert!(
                error.ends_with("myregistry=registry.example.com:5000"),
                "{error}"
            );
        }
    }
}
