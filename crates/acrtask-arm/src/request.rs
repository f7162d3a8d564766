//! Requests for runs: the four kinds of ARM, converted to the requests of the acrtask API.

use std::collections::BTreeMap;

use acrtask_api::{
    run::{CreateRun, RunCredential, SecretText, StartTask},
    spec::{BuildSpec, ContextSource, RunSource, RunSpec, Variables},
    task::QueueOptions,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};

/// Prefix of the relative path of an upload. The id of the upload follows.
pub const UPLOAD_PREFIX: &str = "source/";

/// A request that acrtask cannot carry out. The message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl Refusal {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A request for a run.
#[derive(Debug, Clone, PartialEq)]
pub enum RunRequest {
    /// Run without a stored task.
    Create(Box<CreateRun>),
    /// Run of a stored task.
    Start {
        /// Name of the task.
        task: String,
        /// Overrides of the task.
        start: Box<StartTask>,
    },
}

/// Deserializes `null` like an absent member.
pub(crate) fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Deserializes an object. `null` counts as absent. An array is not an object.
pub(crate) fn object<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + DeserializeOwned,
    D: Deserializer<'de>,
{
    match Option::<Map<String, Value>>::deserialize(deserializer)? {
        None => Ok(T::default()),
        Some(members) => {
            serde_json::from_value(Value::Object(members)).map_err(serde::de::Error::custom)
        }
    }
}

/// Deserializes a list of objects. `null` counts as absent.
pub(crate) fn objects<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    let list = Option::<Vec<Map<String, Value>>>::deserialize(deserializer)?.unwrap_or_default();
    list.into_iter()
        .map(|members| serde_json::from_value(Value::Object(members)))
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

/// Members of all kinds of requests. Unknown members are ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawRequest {
    r#type: String,
    #[serde(deserialize_with = "or_default")]
    image_names: Vec<String>,
    is_push_enabled: Option<bool>,
    no_cache: Option<bool>,
    source_location: Option<String>,
    platform: Option<Platform>,
    docker_file_path: Option<String>,
    #[serde(deserialize_with = "objects")]
    arguments: Vec<Argument>,
    target: Option<String>,
    timeout: Option<u64>,
    agent_pool_name: Option<String>,
    #[serde(deserialize_with = "object")]
    credentials: Credentials,
    task_file_path: Option<String>,
    values_file_path: Option<String>,
    #[serde(deserialize_with = "objects")]
    values: Vec<Argument>,
    encoded_task_content: Option<String>,
    encoded_values_content: Option<String>,
    task_id: Option<String>,
    task_name: Option<String>,
    #[serde(deserialize_with = "object")]
    override_task_step_properties: Overrides,
}

/// Platform of a run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Platform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Platform {
    /// Returns the platform as acrtask writes it: `linux/arm64/v8`. `None` if the platform names no
    /// architecture.
    pub(crate) fn to_text(&self) -> Result<Option<String>, Refusal> {
        let os = self.os.as_deref().unwrap_or("linux").to_ascii_lowercase();
        if os != "linux" {
            return Err(Refusal::new(format!(
                "the platform `{os}` is not supported: write `linux`"
            )));
        }
        let Some(architecture) = self.architecture.as_deref().filter(|it| !it.is_empty()) else {
            return Ok(None);
        };
        let architecture = match architecture.to_ascii_lowercase().as_str() {
            "x86" => "386".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.as_deref().filter(|it| !it.is_empty());
        Ok(Some(match variant {
            Some(variant) => format!("{os}/{architecture}/{}", variant.to_ascii_lowercase()),
            None => format!("{os}/{architecture}"),
        }))
    }
}

/// Build argument or value. A secret one may have no value: the stored one applies.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Argument {
    pub(crate) name: String,
    #[serde(deserialize_with = "text_of_scalar")]
    pub(crate) value: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(crate) is_secret: bool,
}

/// Deserializes a text, a number or a truth value as text.
fn text_of_scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Array(_) | Value::Object(_) => {
            Err(serde::de::Error::custom("a value must be a text"))
        }
        other => Ok(Some(other.to_string())),
    }
}

/// Logins of a run or task.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Credentials {
    #[serde(deserialize_with = "object")]
    source_registry: SourceRegistry,
    #[serde(deserialize_with = "or_default")]
    pub(crate) custom_registries: BTreeMap<String, Option<CustomRegistry>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SourceRegistry {
    identity: Option<String>,
}

/// Login of one registry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CustomRegistry {
    pub(crate) user_name: Option<SecretObject>,
    pub(crate) password: Option<SecretObject>,
    pub(crate) identity: Option<String>,
}

/// Text in a request, or the address of a secret in a vault.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SecretObject {
    value: Option<String>,
    r#type: Option<String>,
}

impl SecretObject {
    /// Returns the text.
    pub(crate) fn text(&self, host: &str) -> Result<Option<String>, Refusal> {
        let kind = self.r#type.as_deref().unwrap_or("Opaque");
        if kind.eq_ignore_ascii_case("Opaque") {
            return Ok(self.value.clone());
        }
        Err(Refusal::new(format!(
            "the login for `{host}` is a `{kind}`, which this server does not resolve: send the user name and password"
        )))
    }
}

impl Credentials {
    /// Refuses an identity, which only Azure has.
    pub(crate) fn check_identity(&self) -> Result<(), Refusal> {
        match self.source_registry.identity.as_deref() {
            None | Some("" | "[system]") => Ok(()),
            Some(identity) => Err(unknown_identity(identity)),
        }
    }
}

pub(crate) fn unknown_identity(identity: &str) -> Refusal {
    Refusal::new(format!(
        "the identity `{identity}` does not exist outside of Azure: set a login, `--username` and `--password`"
    ))
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Overrides {
    context_path: Option<String>,
    file: Option<String>,
    #[serde(deserialize_with = "objects")]
    arguments: Vec<Argument>,
    target: Option<String>,
    #[serde(deserialize_with = "objects")]
    values: Vec<Argument>,
    update_trigger_token: Option<String>,
}

pub(crate) fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Deserializes a part of a request.
pub(crate) fn parse_part<T: DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
    serde_json::from_value(value.clone())
        .map_err(|error| Refusal::new(format!("the request is invalid: {error}")))
}

/// Values and secrets of a request, by name.
pub(crate) fn split_secrets(
    arguments: &[Argument],
) -> (BTreeMap<String, String>, BTreeMap<String, SecretText>) {
    let (mut plain, mut secret) = (BTreeMap::new(), BTreeMap::new());
    for argument in arguments {
        let value = argument.value.clone().unwrap_or_default();
        if argument.is_secret {
            secret.insert(argument.name.clone(), SecretText(value));
        } else {
            plain.insert(argument.name.clone(), value);
        }
    }
    (plain, secret)
}

/// Returns the source of the files for the location in a request.
pub(crate) fn context_of(location: Option<&str>) -> ContextSource {
    match filled(location) {
        None | Some("/dev/null") => ContextSource::None,
        Some(location) => match location.strip_prefix(UPLOAD_PREFIX) {
            Some(id) => ContextSource::Upload { id: id.to_owned() },
            None => ContextSource::url(repository_url(location)),
        },
    }
}

/// Adds `.git` to the address of a repository at a public forge, which Azure accepts without it.
pub(crate) fn repository_url(location: &str) -> String {
    const FORGES: [&str; 3] = ["github.com", "gitlab.com", "bitbucket.org"];
    let (address, rest) = match location.find('#') {
        Some(at) => location.split_at(at),
        None => (location, ""),
    };
    let parts: Vec<&str> = address
        .strip_prefix("https://")
        .unwrap_or_default()
        .trim_end_matches('/')
        .split('/')
        .collect();
    match parts.as_slice() {
        [host, owner, name] if FORGES.contains(host) && !name.ends_with(".git") => {
            format!("https://{host}/{owner}/{name}.git{rest}")
        }
        _ => location.to_owned(),
    }
}

/// Decodes a task file in base 64.
pub(crate) fn decode_text(name: &str, encoded: &str) -> Result<String, Refusal> {
    let bytes = STANDARD
        .decode(encoded.trim())
        .map_err(|_| Refusal::new(format!("`{name}` is not base 64")))?;
    String::from_utf8(bytes).map_err(|_| Refusal::new(format!("`{name}` is not UTF-8")))
}

/// Refuses a file of values, which only the runner could read.
pub(crate) fn refuse_values_file(path: Option<&str>, encoded: Option<&str>) -> Result<(), Refusal> {
    if filled(path).is_none() && filled(encoded).is_none() {
        return Ok(());
    }
    Err(Refusal::new(
        "a file of values is not supported: send each value, `--set NAME=VALUE`",
    ))
}

/// Parses the body of `scheduleRun` for a registry with the host `server`.
///
/// # Errors
/// Returns a refusal if the request has no known kind, or if acrtask cannot carry it out.
pub fn parse_run_request(body: &Value, server: &str) -> Result<RunRequest, Refusal> {
    let raw: RawRequest = parse_part(body)?;
    let kind = raw.r#type.to_ascii_lowercase();
    if kind == "taskrunrequest" {
        return parse_task_request(raw);
    }
    raw.credentials.check_identity()?;
    let platform = raw.platform.clone().unwrap_or_default().to_text()?;
    let context = context_of(raw.source_location.as_deref());
    let arguments = if kind == "dockerbuildrequest" {
        &raw.arguments
    } else {
        &raw.values
    };
    let (plain, secrets) = split_secrets(arguments);
    let mut spec = RunSpec {
        context,
        variables: Variables {
            registry: server.to_owned(),
            ..Variables::default()
        },
        platforms: platform.into_iter().collect(),
        timeout_secs: raw.timeout,
        ..RunSpec::default()
    };
    match kind.as_str() {
        "dockerbuildrequest" => {
            spec.source = RunSource::Build(BuildSpec {
                images: raw.image_names,
                dockerfile: filled(raw.docker_file_path.as_deref())
                    .unwrap_or("Dockerfile")
                    .to_owned(),
                target: filled(raw.target.as_deref()).map(str::to_owned),
                args: plain,
                secret_args: secrets.keys().cloned().collect(),
                labels: BTreeMap::new(),
                no_cache: raw.no_cache.unwrap_or_default(),
            });
            spec.no_push = raw.is_push_enabled == Some(false);
        }
        "filetaskrunrequest" => {
            refuse_values_file(raw.values_file_path.as_deref(), None)?;
            spec.source = match filled(raw.task_file_path.as_deref()) {
                Some(path) => RunSource::File { path: path.into() },
                None => RunSource::DefaultFile,
            };
            spec.set = plain;
        }
        "encodedtaskrunrequest" => {
            refuse_values_file(None, raw.encoded_values_content.as_deref())?;
            let text = raw.encoded_task_content.unwrap_or_default();
            spec.source = RunSource::Inline {
                name: "acr-task.yaml".into(),
                text: decode_text("encodedTaskContent", &text)?,
            };
            spec.set = plain;
        }
        _ => {
            return Err(Refusal::new(format!(
                "`{}` is not a kind of run: write DockerBuildRequest, FileTaskRunRequest, EncodedTaskRunRequest or \
                 TaskRunRequest",
                raw.r#type
            )));
        }
    }
    spec.build_secrets = secrets.keys().cloned().collect();
    spec.secrets = spec.build_secrets.clone();
    Ok(RunRequest::Create(Box::new(CreateRun {
        id: None,
        spec,
        queue: QueueOptions {
            pool: filled(raw.agent_pool_name.as_deref()).map(str::to_owned),
            ..QueueOptions::default()
        },
        secrets,
        credentials: run_credentials(&raw.credentials)?,
    })))
}

fn run_credentials(credentials: &Credentials) -> Result<Vec<RunCredential>, Refusal> {
    let mut logins = Vec::new();
    for (host, registry) in &credentials.custom_registries {
        let Some(registry) = registry else { continue };
        if let Some(identity) = filled(registry.identity.as_deref()) {
            return Err(unknown_identity(identity));
        }
        let text = |part: &Option<SecretObject>| match part {
            Some(part) => part.text(host),
            None => Ok(None),
        };
        let (Some(username), Some(password)) =
            (text(&registry.user_name)?, text(&registry.password)?)
        else {
            return Err(Refusal::new(format!(
                "the login for `{host}` has no user name or no password"
            )));
        };
        logins.push(RunCredential {
            host: host.clone(),
            username,
            password: SecretText(password),
        });
    }
    Ok(logins)
}

fn parse_task_request(raw: RawRequest) -> Result<RunRequest, Refusal> {
    let id = filled(raw.task_id.as_deref())
        .or(filled(raw.task_name.as_deref()))
        .ok_or_else(|| Refusal::new("`taskId` is missing: write the id of the task"))?;
    let task = id.rsplit('/').next().unwrap_or(id).to_owned();
    let overrides = raw.override_task_step_properties;
    if !overrides.arguments.is_empty() || filled(overrides.target.as_deref()).is_some() {
        return Err(Refusal::new(
            "a run cannot replace the build arguments or the target of its task: change the task, or send values \
             (`--set`) to a task with a task file",
        ));
    }
    if filled(overrides.update_trigger_token.as_deref()).is_some() {
        return Err(Refusal::new(
            "`updateTriggerToken` is not supported: leave it out",
        ));
    }
    let (set, secrets) = split_secrets(&overrides.values);
    let context = match context_of(overrides.context_path.as_deref()) {
        ContextSource::None => None,
        context => Some(context),
    };
    Ok(RunRequest::Start {
        task,
        start: Box::new(StartTask {
            set,
            secrets,
            context,
            file: filled(overrides.file.as_deref()).map(str::to_owned),
            ..StartTask::default()
        }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn create(body: &Value) -> CreateRun {
        match parse_run_request(body, "registry.test").unwrap() {
            RunRequest::Create(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn docker_build_becomes_a_build() {
        let run = create(&json!({
            "type": "DockerBuildRequest", "imageNames": ["hello:1"], "isPushEnabled": false, "noCache": true,
            "sourceLocation": "source/c1", "platform": {"os": "Linux", "architecture": "arm64", "variant": "v8"},
            "dockerFilePath": "docker/Dockerfile", "target": "final", "timeout": 600, "agentPoolName": "large",
            "arguments": [{"name": "a", "value": "b", "isSecret": false}, {"name": "s", "value": "t", "isSecret": true}],
            "credentials": {"sourceRegistry": {"loginMode": "Default"}, "customRegistries": {
                "other.test": {"userName": {"type": "Opaque", "value": "u"}, "password": {"type": "Opaque", "value": "p"}}}},
            "unknown": 1,
        }));
        insta::assert_json_snapshot!(run);
    }

    #[test]
    fn task_files_are_in_the_context_or_the_request() {
        let file = create(
            &json!({"type": "FileTaskRunRequest", "taskFilePath": "acr-task.yaml",
            "sourceLocation": "https://forge.test/o/r.git#main:sub", "values": null,
            "platform": {"os": "linux", "architecture": null}}),
        );
        assert_eq!(
            file.spec.source,
            RunSource::File {
                path: "acr-task.yaml".into()
            }
        );
        assert_eq!(
            file.spec.context,
            ContextSource::url("https://forge.test/o/r.git#main:sub")
        );
        assert!(file.spec.platforms.is_empty());
        let text = "steps:\n  - cmd: hello\n";
        let inline = create(
            &json!({"type": "EncodedTaskRunRequest", "encodedTaskContent": STANDARD.encode(text),
            "values": [{"name": "n", "value": 3}, {"name": "s", "value": "t", "isSecret": true}]}),
        );
        assert_eq!(
            inline.spec.source,
            RunSource::Inline {
                name: "acr-task.yaml".into(),
                text: text.into()
            }
        );
        assert_eq!(inline.spec.set["n"], "3");
        assert_eq!(inline.spec.secrets, ["s"]);
        assert_eq!(inline.spec.context, ContextSource::None);
    }

    #[test]
    fn repositories_of_public_forges_need_no_suffix() {
        for (location, expected) in [
            ("https://github.com/o/r", "https://github.com/o/r.git"),
            (
                "https://github.com/o/r/#main:sub",
                "https://github.com/o/r.git#main:sub",
            ),
            ("https://github.com/o/r.git", "https://github.com/o/r.git"),
            ("https://github.com/o", "https://github.com/o"),
            ("https://forge.test/o/r", "https://forge.test/o/r"),
        ] {
            assert_eq!(context_of(Some(location)), ContextSource::url(expected));
        }
    }

    #[test]
    fn task_request_names_its_task_by_id_or_name() {
        let id = format!("{}/tasks/app", crate::registry_id("r"));
        for member in [json!({"taskId": id}), json!({"taskName": "app"})] {
            let mut body = json!({"type": "TaskRunRequest", "overrideTaskStepProperties": {
                "contextPath": "source/c1", "values": [{"name": "a", "value": "b"}], "arguments": []}});
            body.as_object_mut()
                .unwrap()
                .extend(member.as_object().unwrap().clone());
            let RunRequest::Start { task, start } = parse_run_request(&body, "r.test").unwrap()
            else {
                panic!("not a run of a task");
            };
            assert_eq!(task, "app");
            assert_eq!(start.set["a"], "b");
            assert_eq!(
                start.context,
                Some(ContextSource::Upload { id: "c1".into() })
            );
        }
    }

    #[test]
    fn unsupported_requests_are_refused_with_words() {
        let refusals: Vec<String> = [
            json!({}),
            json!({"type": "Other"}),
            json!({"type": "DockerBuildRequest", "platform": {"os": "Windows"}}),
            json!({"type": "DockerBuildRequest", "credentials": {"sourceRegistry": {"identity": "id"}}}),
            json!({"type": "DockerBuildRequest", "credentials": {"customRegistries": {"h": {
                "userName": {"type": "Vaultsecret", "value": "https://v"}, "password": {"value": "p"}}}}}),
            json!({"type": "DockerBuildRequest", "credentials": {"customRegistries": {"h": {"identity": "[system]"}}}}),
            json!({"type": "DockerBuildRequest", "credentials": {"customRegistries": {"h": {"userName": {"value": "u"}}}}}),
            json!({"type": "FileTaskRunRequest", "valuesFilePath": "values.yaml"}),
            json!({"type": "EncodedTaskRunRequest", "encodedTaskContent": "%"}),
            json!({"type": "EncodedTaskRunRequest", "encodedTaskContent": "/w=="}),
            json!({"type": "TaskRunRequest"}),
            json!({"type": "TaskRunRequest", "taskId": "t", "overrideTaskStepProperties": {"target": "x"}}),
            json!({"type": "DockerBuildRequest", "timeout": "x"}),
        ]
        .iter()
        .map(|body| parse_run_request(body, "r.test").unwrap_err().to_string())
        .collect();
        insta::assert_snapshot!(refusals.join("\n"));
    }
}
