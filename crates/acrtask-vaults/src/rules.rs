//! The operator's rules for the secrets that tasks of a server may read. Pure.

use std::{fmt, str::FromStr};

use acrtask_model::TaskPattern;

use crate::{KeyVaultHosts, SecretAddress, VaultError};

/// Permissions of a run in the vaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// All secrets that the identity can read: the run is the user's own.
    Everything,
    /// Secrets that the rules list for the stored task with this name.
    Task(String),
    /// No secret, for this reason.
    Nothing(String),
}

impl Access {
    /// Checks that a run may read `address`.
    pub(crate) fn check_access(
        &self,
        address: &SecretAddress,
        rules: &[VaultRule],
    ) -> Result<(), VaultError> {
        match self {
            Self::Everything => Ok(()),
            Self::Nothing(why) => Err(VaultError::new(why.as_str())),
            Self::Task(task) => {
                if rules.iter().any(|rule| rule.allows(task, address)) {
                    return Ok(());
                }
                let shown = match address {
                    SecretAddress::KeyVault(secret) => secret.canonical.clone(),
                    SecretAddress::Vault(secret) => secret.path(),
                };
                Err(VaultError::new(format!(
                    "the task `{task}` may not read {shown}; the operator of the runner allows it with \
                     `--allow-vault '{task}={shown}'`"
                )))
            }
        }
    }
}

/// A set of tasks, and the secrets that they may read: `TASKS=SECRETS`.
///
/// `TASKS` is the name of a task, or a prefix of names followed by `*`. `SECRETS` is the address of
/// one secret, or a prefix of addresses that ends in `/` or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultRule {
    tasks: Tasks,
    secrets: Addresses,
    /// The rule as it was written.
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tasks {
    One(String),
    Pattern(TaskPattern),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Addresses {
    /// Addresses in a Key Vault, in lower case.
    KeyVault(Match),
    /// Paths in a Vault.
    Vault(Match),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Match {
    One(String),
    Prefix(String),
}

impl Match {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::One(one) => text == one,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
        }
    }
}

impl VaultRule {
    fn allows(&self, task: &str, address: &SecretAddress) -> bool {
        let for_task = match &self.tasks {
            Tasks::One(name) => name == task,
            Tasks::Pattern(pattern) => pattern.matches(task),
        };
        for_task
            && match (&self.secrets, address) {
                (Addresses::KeyVault(urls), SecretAddress::KeyVault(secret)) => {
                    urls.matches(&secret.canonical)
                }
                (Addresses::Vault(paths), SecretAddress::Vault(secret)) => {
                    paths.matches(&secret.path())
                }
                _ => false,
            }
    }

    /// Checks the hosts of the rule.
    ///
    /// # Errors
    /// A sentence if the rule names a Key Vault at a host that is not among `hosts`, and so would
    /// never apply.
    pub fn check_host(&self, hosts: &KeyVaultHosts) -> Result<(), String> {
        let Addresses::KeyVault(Match::One(url) | Match::Prefix(url)) = &self.secrets else {
            return Ok(());
        };
        // Any secret below the prefix is on its host.
        let mut parts = url.splitn(4, '/');
        let origin: Vec<&str> = parts.by_ref().take(3).collect();
        let example = format!("{}/secrets/x", origin.join("/"));
        match SecretAddress::key_vault(&example, None, hosts) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("`{}`: {error}", self.text)),
        }
    }
}

impl FromStr for VaultRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| {
            format!(
                "{why}; write TASKS=SECRETS, as in `team/*=https://team.vault.azure.net/secrets/` or `team/*=secret/team/`"
            )
        };
        let (tasks, secrets) = text
            .split_once('=')
            .ok_or_else(|| refuse("there is no `=`"))?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let tasks = if tasks.ends_with('*') {
            Tasks::Pattern(tasks.parse().map_err(|error| refuse(&format!("{error}")))?)
        } else if tasks.is_empty() || tasks.ends_with('/') || !tasks.chars().all(is_name) {
            return Err(refuse(&format!("`{tasks}` is not the name of a task")));
        } else {
            Tasks::One(tasks.to_owned())
        };
        let is_url = secrets.contains("://");
        let (body, is_prefix) = match secrets.strip_suffix('*') {
            Some(body) => (body, true),
            None => (secrets, secrets.ends_with('/')),
        };
        let is_good = |c: char| !c.is_control() && !"*?#%\\".contains(c);
        let path = body.split_once("://").map_or(body, |(_, rest)| rest);
        let segments: Vec<&str> = path.split('/').collect();
        let (last, front) = segments.split_last().expect("a split has a part");
        let bad = |part: &&str| matches!(*part, "" | "." | "..");
        if front.is_empty()
            || front.iter().any(bad)
            || matches!(*last, "." | "..")
            || (last.is_empty() && !is_prefix)
            || !body.chars().all(is_good)
        {
            return Err(refuse(&format!("`{secrets}` is not an address of secrets")));
        }
        if is_url && front.get(1) != Some(&"secrets") {
            return Err(refuse(&format!(
                "`{secrets}` is not an address of secrets in a Key Vault: it has no `/secrets/`"
            )));
        }
        let body = if is_url {
            body.to_ascii_lowercase()
        } else {
            body.to_owned()
        };
        let matching = if is_prefix {
            Match::Prefix(body)
        } else {
            Match::One(body)
        };
        Ok(Self {
            tasks,
            secrets: if is_url {
                Addresses::KeyVault(matching)
            } else {
                Addresses::Vault(matching)
            },
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for VaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(rules: &[&str], task: &str, address: &str) -> bool {
        let rules: Vec<VaultRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let hosts = KeyVaultHosts::default();
        let address = if address.starts_with("https://") {
            SecretAddress::key_vault(address, None, &hosts).unwrap()
        } else {
            SecretAddress::vault(address).unwrap()
        };
        Access::Task(task.into())
            .check_access(&address, &rules)
            .is_ok()
    }

    #[test]
    fn task_reads_only_secrets_that_a_rule_lists_for_it() {
        let rules = [
            "team/*=https://Team.vault.azure.net/secrets/",
            "team/*=secret/team/",
            "app=https://shared.vault.azure.net/secrets/app-*",
            "one=secret/one",
        ];
        for (task, address, expected) in [
            ("team/a", "https://team.vault.azure.net/secrets/x", true),
            ("team/a", "https://TEAM.vault.azure.net/secrets/X/1", true),
            ("team/a/b", "secret/team/a#k", true),
            ("team", "secret/team/a#k", false),
            ("team2/a", "secret/team/a#k", false),
            ("team/a", "secret/team#k", false),
            ("team/a", "secret/team2/a#k", false),
            ("team/a", "https://team2.vault.azure.net/secrets/x", false),
            (
                "app",
                "https://shared.vault.azure.net/secrets/app-key",
                true,
            ),
            ("app", "https://shared.vault.azure.net/secrets/other", false),
            (
                "app2",
                "https://shared.vault.azure.net/secrets/app-key",
                false,
            ),
            ("one", "secret/one#k", true),
            ("one", "secret/one/more#k", false),
            ("", "secret/one#k", false),
        ] {
            assert_eq!(allowed(&rules, task, address), expected, "{task} {address}");
        }
        assert!(!allowed(&[], "team/a", "secret/team/a#k"));
    }

    #[test]
    fn refusal_names_the_option_for_the_operator() {
        let address = SecretAddress::vault("secret/team/a#k").unwrap();
        let error = Access::Task("team/a".into())
            .check_access(&address, &[])
            .unwrap_err();
        assert!(
            error
                .message
                .contains("--allow-vault 'team/a=secret/team/a'"),
            "{error}"
        );
        let error = Access::Nothing("no".into())
            .check_access(&address, &[])
            .unwrap_err();
        assert_eq!(error.message, "no");
        Access::Everything.check_access(&address, &[]).unwrap();
    }

    #[test]
    fn ambiguous_rules_are_refused() {
        for bad in [
            "",
            "team/*",
            "=secret/a/",
            "team/=secret/a/",
            "te*am=secret/a/",
            "team/*=",
            "team/*=*",
            "team/*=secret",
            "team/*=/",
            "team/*=/secret/",
            "team/*=secret/../a/",
            "team/*=secret//a",
            "team/*=sec*ret/a",
            "team/*=https://team.vault.azure.net",
            "team/*=https://team.vault.azure.net*",
            "team/*=https://team.vault.azure.net/",
            "team/*=https://*",
            "team/*=https://team.vault.azure.net/keys/",
        ] {
            let error = bad.parse::<VaultRule>().unwrap_err();
            assert!(error.contains("TASKS=SECRETS"), "{bad}: {error}");
        }
        assert!("*=secret/*".parse::<VaultRule>().is_ok());
    }

    #[test]
    fn rules_for_unlisted_hosts_are_refused() {
        let hosts = KeyVaultHosts::new(["kv.example.com".to_owned()]).unwrap();
        let check = |rule: &str| rule.parse::<VaultRule>().unwrap().check_host(&hosts);
        check("a=https://kv.example.com/secrets/").unwrap();
        check("a=https://t.vault.azure.net/secrets/x-*").unwrap();
        check("a=secret/x").unwrap();
        let error = check("a=https://other.example.com/secrets/").unwrap_err();
        assert!(
            error.contains("--key-vault-host other.example.com"),
            "{error}"
        );
    }
}
