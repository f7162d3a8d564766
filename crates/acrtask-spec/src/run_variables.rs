//! Inputs of a run for its task file: variables, values and secrets, and the lookup of external
//! texts.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use acrtask_model::Secret;
use acrtask_template::{Sources, Untrusted};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use crate::untrusted::Names;

/// The inputs of a run, which templates read as `.Run`, `.Values` and `.Secrets`.
#[derive(Debug, Clone, Default)]
pub struct RunVariables {
    /// `.Run.ID`.
    pub id: String,
    /// `.Run.Registry`: host and port of the run's registry.
    pub registry: String,
    /// `.Run.Commit`.
    pub commit: String,
    /// `.Run.Branch`.
    pub branch: String,
    /// `.Run.GitTag`.
    pub git_tag: String,
    /// `.Run.Repository`.
    pub repository: String,
    /// `.Run.Date`, in UTC.
    pub date: Timestamp,
    /// `.Run.SharedVolume`.
    pub shared_volume: String,
    /// `.Run.OS`: `linux`.
    pub os: String,
    /// `.Run.OSVersion`.
    pub os_version: String,
    /// `.Run.Architecture` with Go's name: `amd64`, `arm64`.
    pub architecture: String,
    /// `.Run.TriggeredBy`.
    pub triggered_by: String,
    /// `.Run.TaskName`. Also part of the cache tag.
    pub task_name: String,
    /// Values of `--values`. See [`crate::values_from_yaml`].
    pub values: Map<String, Value>,
    /// Values of `--set`. Each takes precedence over a value of the same name.
    pub set: Vec<(String, String)>,
    /// Secrets of `--set-secret` and `--secret-file`, in `.Secrets` and `.Values`. They take
    /// precedence over the sources that the file declares.
    pub secrets: Vec<(String, Secret)>,
    /// Variables of `--env`, as `KEY=VALUE` for every step. The file takes precedence.
    pub env: Vec<String>,
    /// Images for `acr az bash curl cssc` that replace those of [`BUILTIN_IMAGES`].
    pub images: BTreeMap<String, String>,
    /// Inputs that the author of the task does not vouch for.
    pub untrusted: UntrustedVariables,
}

/// Names of inputs that may contain any text and must not change what a task does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UntrustedVariables {
    /// Names in `values`, `set` and `secrets`.
    pub values: BTreeSet<String>,
    /// `true` if the author of a commit chooses `commit`, `branch` and `git_tag`.
    pub git: bool,
}

/// Images that the reference executor runs for these words at the start of a cmd.
pub const BUILTIN_IMAGES: [(&str, &str); 5] = [
    ("acr", "mcr.microsoft.com/acr/acr-cli:0.19"),
    ("az", "mcr.microsoft.com/acr/azure-cli:2ff604c"),
    ("bash", "mcr.microsoft.com/acr/bash:2ff604c"),
    ("curl", "mcr.microsoft.com/acr/curl:2ff604c"),
    ("cssc", "mcr.microsoft.com/acr/cssc:2ff604c"),
];

/// Access to texts outside of the task file while it is resolved.
pub trait Lookup {
    /// Returns the text of a file or an `http(s)` URL in `alias: src:`.
    ///
    /// # Errors
    ///
    /// Returns one sentence about why it cannot be read.
    fn alias_source(&self, location: &str) -> Result<String, String>;

    /// Returns the value of a secret that the file declares and the run does not set.
    ///
    /// `None` if this lookup does not support the source.
    ///
    /// # Errors
    ///
    /// Returns one sentence about why it cannot be read.
    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String>;

    /// Returns the values of several secrets, in the same order.
    fn secrets(&self, declared: &[SecretDeclaration]) -> Vec<Result<Option<Secret>, String>> {
        declared
            .iter()
            .map(|declaration| self.secret(declaration))
            .collect()
    }
}

/// An entry of the task file's `secrets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretDeclaration {
    /// Name of the secret in `.Secrets`.
    pub id: String,
    /// Source of the value.
    pub source: SecretSource,
}

/// Source of a secret's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// `keyvault`: a secret in an Azure Key Vault.
    KeyVault {
        /// `https://NAME.vault.azure.net/secrets/ID`.
        url: String,
        /// Client id of a user-assigned identity. `None`: the operator's identity.
        client_id: Option<String>,
    },
    /// `vault`: `PATH#KEY` of a secret in a HashiCorp Vault. Not in the reference executor.
    Vault(String),
    /// `env`: a variable in the environment of acrtask. Not in the reference executor.
    Env(String),
    /// `file`: a file on the machine, outside of the context. Not in the reference executor.
    File(String),
}

/// Returns `true` if the text cannot end a JSON string, nor the quotes around the JSON.
fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "._/@:+,=-".contains(c))
}

impl RunVariables {
    /// Returns the untrusted parts of the template data, and the names of their sources.
    pub(crate) fn untrusted_data(&self) -> (Untrusted, Names) {
        let mut untrusted = Untrusted::default();
        let mut names = Names::default();
        let mut in_json = BTreeMap::new();
        let git = [
            ("Commit", &self.commit),
            ("Branch", &self.branch),
            ("GitTag", &self.git_tag),
        ];
        let git = git
            .into_iter()
            .filter(|(_, text)| self.untrusted.git && !text.is_empty())
            .map(|(name, text)| (["Run", "RunJSON"], name, Cow::Borrowed(text.as_str())));
        let values = self.untrusted.values.iter().map(|name| {
            (
                ["Values", "ValuesJSON"],
                name.as_str(),
                self.value_text(name),
            )
        });
        for ([map, json], name, text) in git.chain(values) {
            let sources = Sources::of(names.0.len());
            names.0.push(format!(".{map}.{name}"));
            let path = |map: &str| vec![map.to_owned(), name.to_owned()];
            untrusted.data.push((path(map), sources));
            if map == "Values" {
                untrusted.data.push((path("Secrets"), sources));
            }
            if !is_plain(&text) || !is_plain(name) {
                *in_json.entry(json).or_insert(Sources::NONE) |= sources;
            }
        }
        for (json, sources) in in_json {
            untrusted.data.push((vec![json.to_owned()], sources));
        }
        (untrusted, names)
    }

    /// Returns `.Values.NAME` as text.
    fn value_text(&self, name: &str) -> Cow<'_, str> {
        let set = self.set.iter().rfind(|(set, _)| set == name);
        let secret = self.secrets.iter().rfind(|(secret, _)| secret == name);
        match (set, secret) {
            (Some((_, text)), _) => text.into(),
            (None, Some((_, secret))) => secret.expose().into(),
            (None, None) => self
                .values
                .get(name)
                .map_or("".into(), |value| value.to_string().into()),
        }
    }

    /// Returns the data of a template. Each call exposes `secrets` to the rendered text.
    pub(crate) fn template_data<'a>(
        &self,
        secrets: impl IntoIterator<Item = (&'a str, &'a Secret)>,
    ) -> Value {
        let mut values = self.values.clone();
        // As in the cloud service, a value that is set as a secret is also a value. It is only
        // masked.
        for (key, value) in &self.secrets {
            values.insert(key.clone(), json!(value.expose()));
        }
        for (key, value) in &self.set {
            values.insert(key.clone(), json!(value));
        }
        let values = sort_keys(Value::Object(values));
        let date = self.date.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%Sz");
        let registry_name = self.registry.split('.').next().unwrap_or_default();
        // In alphabetical order, as the reference executor prints `.RunJSON`.
        let run = json!({
            "Architecture": self.architecture,
            "Branch": self.branch,
            "Commit": self.commit,
            "Date": date.to_string(),
            "GitTag": self.git_tag,
            "ID": self.id,
            "OS": self.os,
            "OSVersion": self.os_version,
            "Registry": self.registry,
            "RegistryName": registry_name,
            "Repository": self.repository,
            "SharedVolume": self.shared_volume,
            "TaskName": self.task_name,
            "TriggeredBy": self.triggered_by,
        });
        let secrets: Map<String, Value> = secrets
            .into_iter()
            .map(|(id, secret)| (id.to_owned(), json!(secret.expose())))
            .collect();
        json!({
            "Build": { "ID": self.id },
            "ValuesJSON": shell_quoted_json(&values),
            "RunJSON": shell_quoted_json(&run),
            "Run": run,
            "Values": values,
            "Secrets": secrets,
        })
    }
}

/// Sorts maps by key, as Go prints them.
fn sort_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(
                entries
                    .into_iter()
                    .map(|(k, v)| (k, sort_keys(v)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sort_keys).collect()),
        other => other,
    }
}

/// Formats a map as compact JSON like Go, quoted as one word for a shell.
fn shell_quoted_json(value: &Value) -> String {
    let json = value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    // A map always has braces, so it always needs quotes.
    format!("'{}'", json.replace('\'', "'\"'\"'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_data_equals_that_of_the_reference_executor() {
        let variables = RunVariables {
            id: "ca7".into(),
            registry: "reg.example.com:5000".into(),
            date: "2026-01-02T03:04:05Z".parse().unwrap(),
            values: crate::values_from_yaml("b: 1\na: {d: yes, c: \"it's <1>\"}\n")
                .unwrap()
                .values,
            set: vec![("b".into(), "2".into())],
            secrets: vec![("t".into(), Secret::new("token"))],
            ..RunVariables::default()
        };
        let data = variables.template_data([("s", &Secret::new("hush"))]);
        assert_eq!(data["Run"]["Date"], "20260102-030405z");
        assert_eq!(data["Run"]["RegistryName"], "reg");
        assert_eq!(data["Values"]["b"], "2");
        assert_eq!(data["Values"]["t"], "token");
        assert_eq!(data["Secrets"]["s"], "hush");
        assert_eq!(data["Build"]["ID"], "ca7");
        assert_eq!(
            data["ValuesJSON"],
            r#"'{"a":{"c":"it'"'"'s \u003c1\u003e","d":true},"b":"2","t":"token"}'"#
        );
    }
}
