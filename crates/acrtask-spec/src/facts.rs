//! What a run knows before its task file is read, and what it may ask for while it is.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use acrtask_model::Secret;
use acrtask_template::{Sources, Untrusted};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use crate::untrusted::Names;

/// The facts of a run: what `.Run`, `.Values` and `.Secrets` hold.
#[derive(Debug, Clone, Default)]
pub struct RunFacts {
    /// `.Run.ID`.
    pub id: String,
    /// `.Run.Registry`: host and port of the registry that belongs to the run.
    pub registry: String,
    /// `.Run.Commit`.
    pub commit: String,
    /// `.Run.Branch`.
    pub branch: String,
    /// `.Run.GitTag`.
    pub git_tag: String,
    /// `.Run.Repository`.
    pub repository: String,
    /// `.Run.Date`, shown in UTC.
    pub date: Timestamp,
    /// `.Run.SharedVolume`.
    pub shared_volume: String,
    /// `.Run.OS`: `linux`.
    pub os: String,
    /// `.Run.OSVersion`.
    pub os_version: String,
    /// `.Run.Architecture`, in Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// `.Run.TriggeredBy`.
    pub triggered_by: String,
    /// `.Run.TaskName`; also part of the cache's tag.
    pub task_name: String,
    /// From `--values`; see [`crate::values_from_yaml`].
    pub values: Map<String, Value>,
    /// From `--set`: each wins over a value of the same name.
    pub set: Vec<(String, String)>,
    /// From `--set-secret` and `--secret-file`: in `.Secrets`, where each wins over what the file says about the
    /// secret, and in `.Values`.
    pub secrets: Vec<(String, Secret)>,
    /// From `--env`: `KEY=VALUE` for every step; what the file sets wins.
    pub env: Vec<String>,
    /// Images behind the names `acr az bash curl cssc`, where others are wanted than [`BUILTIN_IMAGES`].
    pub images: BTreeMap<String, String>,
    /// The facts and values that the author of the task does not vouch for.
    pub untrusted: UntrustedFacts,
}

/// The facts and values of a run that may be any text, and must not change what a task does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UntrustedFacts {
    /// Names in `values`, `set` and `secrets`.
    pub values: BTreeSet<String>,
    /// `commit`, `branch` and `git_tag`, which the author of a commit chooses.
    pub git: bool,
}

/// The images that the reference executor runs for these words at the beginning of a cmd.
pub const BUILTIN_IMAGES: [(&str, &str); 5] = [
    ("acr", "mcr.microsoft.com/acr/acr-cli:0.19"),
    ("az", "mcr.microsoft.com/acr/azure-cli:2ff604c"),
    ("bash", "mcr.microsoft.com/acr/bash:2ff604c"),
    ("curl", "mcr.microsoft.com/acr/curl:2ff604c"),
    ("cssc", "mcr.microsoft.com/acr/cssc:2ff604c"),
];

/// What a task file may ask of the outside while it is read.
pub trait Lookup {
    /// The text of a file or an `http(s)` URL that `alias: src:` names.
    ///
    /// # Errors
    ///
    /// Says in one sentence why it cannot be read.
    fn alias_source(&self, location: &str) -> Result<String, String>;

    /// The value of a secret that the file declares and nobody set; nothing where this kind of source
    /// cannot be reached from here.
    ///
    /// # Errors
    ///
    /// Says in one sentence why it cannot be read.
    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String>;

    /// Returns the values of several secrets, in their order.
    fn secrets(&self, declared: &[SecretDeclaration]) -> Vec<Result<Option<Secret>, String>> {
        declared.iter().map(|one| self.secret(one)).collect()
    }
}

/// An entry of the task file's `secrets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretDeclaration {
    /// What `.Secrets` calls it.
    pub id: String,
    /// Where its value is.
    pub source: SecretSource,
}

/// Where the value of a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// `keyvault`: the URL of a secret in an Azure Key Vault, read as the identity `clientID`.
    KeyVault {
        /// `https://NAME.vault.azure.net/secrets/ID`.
        url: String,
        /// A user-assigned identity. `None`: the operator's.
        client_id: Option<String>,
    },
    /// `vault`: `PATH#KEY` of a secret in a HashiCorp Vault. Ours; the reference executor has no such source.
    Vault(String),
    /// `env`: a variable of the environment of acrtask. Ours; the reference executor has no such source.
    Env(String),
    /// `file`: a file beside the run, not in its context. Ours; as above.
    File(String),
}

/// Returns `true` if the value cannot end its text in JSON, nor the quotes around the JSON.
fn is_plain(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "._/@:+,=-".contains(c))
}

impl RunFacts {
    /// Returns what is untrusted in the data of a template, and the names of its sources.
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
        let values = self
            .untrusted
            .values
            .iter()
            .map(|name| (["Values", "ValuesJSON"], name.as_str(), self.value(name)));
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

    /// Returns `.Values.NAME` as a text.
    fn value(&self, name: &str) -> Cow<'_, str> {
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

    /// What a template sees. Each call exposes `secrets` to the text that is rendered with it.
    pub(crate) fn template_data<'a>(
        &self,
        secrets: impl IntoIterator<Item = (&'a str, &'a Secret)>,
    ) -> Value {
        let mut values = self.values.clone();
        // As the cloud has it: a value that was set as a secret is a value like any other, only masked.
        for (key, value) in &self.secrets {
            values.insert(key.clone(), json!(value.expose()));
        }
        for (key, value) in &self.set {
            values.insert(key.clone(), json!(value));
        }
        let values = sorted(Value::Object(values));
        let date = self.date.to_zoned(TimeZone::UTC).strftime("%Y%m%d-%H%M%Sz");
        let registry_name = self.registry.split('.').next().unwrap_or_default();
        // In the order of their names, as the reference executor prints `.RunJSON`.
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
            "ValuesJSON": for_a_shell(&values),
            "RunJSON": for_a_shell(&run),
            "Run": run,
            "Values": values,
            "Secrets": secrets,
        })
    }
}

/// Maps in the order of their keys, as Go prints them.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Compact JSON as Go prints it, quoted where a shell would not take it as one word.
fn for_a_shell(value: &Value) -> String {
    let json = value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    // A map always has its braces, which a shell does not take bare.
    format!("'{}'", json.replace('\'', "'\"'\"'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_data_is_what_the_reference_passes() {
        let facts = RunFacts {
            id: "ca7".into(),
            registry: "reg.example.com:5000".into(),
            date: "2026-01-02T03:04:05Z".parse().unwrap(),
            values: crate::values_from_yaml("b: 1\na: {d: yes, c: \"it's <1>\"}\n")
                .unwrap()
                .values,
            set: vec![("b".into(), "2".into())],
            secrets: vec![("t".into(), Secret::new("token"))],
            ..RunFacts::default()
        };
        let data = facts.template_data([("s", &Secret::new("hush"))]);
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
