//! A task as its YAML says it: every key read and typed, nothing checked against anything else yet.

use std::ops::Range;

use crate::{
    diagnostic::Diagnostic,
    facts::{SecretDeclaration, SecretSource},
    read::{Fields, Int, Report, Text},
    yaml::Node,
};

/// What the keys of a task hold.
#[derive(Debug, Default)]
pub(crate) struct RawTask {
    pub(crate) version: Option<Text>,
    pub(crate) alias: Option<Range<usize>>,
    pub(crate) steps: Vec<RawStep>,
    pub(crate) step_timeout: Option<Int>,
    pub(crate) secrets: Vec<RawSecret>,
    pub(crate) networks: Vec<RawNetwork>,
    pub(crate) volumes: Vec<RawVolume>,
    pub(crate) env: Vec<Text>,
    pub(crate) working_directory: Option<Text>,
}

/// What the keys of a step hold.
#[derive(Debug)]
pub(crate) struct RawStep {
    pub(crate) span: Range<usize>,
    pub(crate) id: Option<Text>,
    pub(crate) cmd: Option<Text>,
    pub(crate) build: Option<Text>,
    pub(crate) push: Vec<Text>,
    /// Whether build, cmd or push is there and could not be read; that has been noted.
    pub(crate) unread: bool,
    /// Where the key `push` stands, if it does.
    pub(crate) push_key: Option<Range<usize>>,
    pub(crate) working_directory: Option<Text>,
    pub(crate) entry_point: Option<Text>,
    pub(crate) user: Option<Text>,
    pub(crate) network: Option<Text>,
    pub(crate) isolation: Option<Text>,
    pub(crate) cpus: Option<Text>,
    pub(crate) cache: Option<Text>,
    pub(crate) volume_mounts: Vec<RawMount>,
    pub(crate) env: Vec<Text>,
    pub(crate) expose: Vec<Text>,
    pub(crate) ports: Vec<Text>,
    pub(crate) when: Vec<Text>,
    pub(crate) timeout: Option<Int>,
    pub(crate) download_retries: Option<Int>,
    pub(crate) download_retry_delay: Option<Int>,
    pub(crate) start_delay: Option<Int>,
    pub(crate) retry_delay: Option<Int>,
    pub(crate) retries: Option<Int>,
    pub(crate) retry_on_errors: Vec<Text>,
    pub(crate) repeat: Option<Int>,
    pub(crate) keep: bool,
    pub(crate) detach: bool,
    pub(crate) privileged: bool,
    pub(crate) ignore_errors: bool,
    pub(crate) disable_working_directory_override: bool,
    pub(crate) pull: bool,
}

/// An entry of `secrets`.
#[derive(Debug)]
pub(crate) struct RawSecret {
    pub(crate) span: Range<usize>,
    pub(crate) id: Option<Text>,
    pub(crate) keyvault: Option<Text>,
    pub(crate) client_id: Option<Text>,
    pub(crate) vault: Option<Text>,
    pub(crate) env: Option<Text>,
    pub(crate) file: Option<Text>,
}

impl RawSecret {
    /// The entry with its one source, if it has an id and a source.
    pub(crate) fn declaration(&self) -> Option<SecretDeclaration> {
        let source = match (&self.keyvault, &self.vault, &self.env, &self.file) {
            (Some(url), ..) => SecretSource::KeyVault {
                url: url.value.clone(),
                client_id: self.client_id.as_ref().map(|id| id.value.clone()),
            },
            (_, Some(address), ..) => SecretSource::Vault(address.value.clone()),
            (.., Some(name), _) => SecretSource::Env(name.value.clone()),
            (.., Some(path)) => SecretSource::File(path.value.clone()),
            _ => return None,
        };
        Some(SecretDeclaration {
            id: self.id.as_ref()?.value.clone(),
            source,
        })
    }
}

/// An entry of `networks`.
#[derive(Debug)]
pub(crate) struct RawNetwork {
    pub(crate) span: Range<usize>,
    pub(crate) name: Option<Text>,
    pub(crate) driver: Option<Text>,
    pub(crate) ipv6: bool,
    pub(crate) skip_creation: bool,
    pub(crate) is_default: bool,
}

/// An entry of `volumes`.
#[derive(Debug)]
pub(crate) struct RawVolume {
    pub(crate) span: Range<usize>,
    pub(crate) name: Option<Text>,
    /// File names and contents in base 64; nothing where the key `secret` is absent.
    pub(crate) secret: Option<Vec<(Text, Text)>>,
}

/// An entry of `volumeMounts`.
#[derive(Debug)]
pub(crate) struct RawMount {
    pub(crate) span: Range<usize>,
    pub(crate) name: Option<Text>,
    pub(crate) mount_path: Option<Text>,
}

const STEPS_EXAMPLE: &str = "steps:\n  - build: -t {{.Run.Registry}}/app:{{.Run.ID}} .";

/// Reads a task out of the first node of `source`.
pub(crate) fn read(root: &Node, source: &str, report: &mut Report<'_>) -> RawTask {
    let mut task = RawTask::default();
    let Some(mut fields) = Fields::open(root, "a task file", STEPS_EXAMPLE, source, report) else {
        return task;
    };
    task.version = fields.text("version");
    task.step_timeout = fields.int("stepTimeout");
    task.env = fields.texts("env");
    task.working_directory = fields.text("workingDirectory");
    task.alias = fields.key_span("alias");
    fields.node("alias");

    for node in fields.nodes(
        "secrets",
        "secrets:\n  - id: token\n    keyvault: https://...",
    ) {
        if let Some(mut entry) =
            fields.inner(node, "a secret", "- id: token\n  keyvault: https://...")
        {
            task.secrets.push(RawSecret {
                span: entry.span.clone(),
                id: entry.text("id"),
                keyvault: entry.text("keyvault"),
                client_id: entry.text("clientID"),
                vault: entry.text("vault"),
                env: entry.text("env"),
                file: entry.text("file"),
            });
            entry.finish("a secret", |key| {
                (key == "akv").then(|| "write `keyvault`".to_owned())
            });
        }
    }
    for node in fields.nodes("networks", "networks:\n  - name: backend") {
        if let Some(mut entry) = fields.inner(node, "a network", "- name: backend") {
            task.networks.push(RawNetwork {
                span: entry.span.clone(),
                name: entry.text("name"),
                driver: entry.text("driver"),
                ipv6: entry.flag("ipv6").unwrap_or(false),
                skip_creation: entry.flag("skipCreation").unwrap_or(false),
                is_default: entry.flag("isDefault").unwrap_or(false),
            });
            entry.finish("a network", |_| None);
        }
    }
    for node in fields.nodes(
        "volumes",
        "volumes:\n  - name: keys\n    secret:\n      key.txt: {{.Secrets.key | b64enc}}",
    ) {
        if let Some(volume) = fields.inner(
            node,
            "a volume",
            "- name: keys\n  secret:\n    key.txt: ...",
        ) {
            task.volumes.push(read_volume(volume));
        }
    }
    for node in fields.nodes("steps", STEPS_EXAMPLE) {
        if let Some(step) = fields.inner(node, "a step", "- cmd: alpine echo hello") {
            task.steps.push(read_step(step));
        }
    }
    if fields.node("steps").is_none() {
        let warning = Diagnostic::warning(
            "no-steps",
            "the file has no `steps`, so there is nothing to do",
        )
        .help(format!("add some:\n{STEPS_EXAMPLE}"));
        let warning = match fields.key_span("steps") {
            Some(span) => warning.at(span, "nothing under it"),
            None => warning,
        };
        fields.report(warning);
    }
    fields.finish("a task file", |key| {
        let renamed = match plain(key).as_str() {
            "environment" | "envs" | "envvars" | "variables" => "write `env: [\"NAME=VALUE\"]`",
            "steptimeoutinseconds" | "steptimeoutseconds" => "write `stepTimeout`, in seconds",
            "workdir" | "workingdir" => "write `workingDirectory`",
            _ => "",
        };
        if !renamed.is_empty() {
            return Some(renamed.to_owned());
        }
        outside_the_file(key).or_else(|| {
            STEP_KEYS.contains(&key).then(|| {
                format!("`{key}` belongs to a step: write it under one of `steps`, indented")
            })
        })
    });
    task
}

fn read_volume(mut fields: Fields<'_, '_, '_>) -> RawVolume {
    let span = fields.span.clone();
    let name = fields.text("name");
    let mut secret = None;
    if let Some(node) = fields.node("secret")
        && let Some(mut files) = fields.inner(node, "`secret`", "secret:\n  file.txt: aGVsbG8=")
    {
        let mut read = Vec::new();
        for (key, value) in files.pairs() {
            let name = files.text_of(key, "secret");
            let content = files.text_of(value, key.scalar().unwrap_or("secret"));
            if let (Some(name), Some(content)) = (name, content) {
                read.push((name, content));
            }
        }
        secret = Some(read);
    }
    fields.finish("a volume", |_| None);
    RawVolume { span, name, secret }
}

/// The keys of a step, as [`read_step`] takes them.
const STEP_KEYS: [&str; 34] = [
    "id",
    "cmd",
    "build",
    "push",
    "workingDirectory",
    "entryPoint",
    "user",
    "network",
    "isolation",
    "cpus",
    "cache",
    "volumeMounts",
    "env",
    "expose",
    "ports",
    "when",
    "exitedWith",
    "exitedWithout",
    "timeout",
    "cmdDownloadRetries",
    "cmdDownloadRetryDelay",
    "startDelay",
    "retryDelay",
    "retries",
    "retryOnErrors",
    "repeat",
    "keep",
    "detach",
    "privileged",
    "ignoreErrors",
    "disableWorkingDirectoryOverride",
    "pull",
    "secret",
    "secrets",
];

fn read_step(mut fields: Fields<'_, '_, '_>) -> RawStep {
    let mut volume_mounts = Vec::new();
    for node in fields.nodes(
        "volumeMounts",
        "volumeMounts:\n  - name: keys\n    mountPath: /run/keys",
    ) {
        if let Some(mut mount) =
            fields.inner(node, "a mount", "- name: keys\n  mountPath: /run/keys")
        {
            volume_mounts.push(RawMount {
                span: mount.span.clone(),
                name: mount.text("name"),
                mount_path: mount.text("mountPath"),
            });
            mount.finish("a mount", |_| None);
        }
    }
    for key in ["exitedWith", "exitedWithout"] {
        if let Some(span) = fields.key_span(key) {
            fields.node(key);
            fields.report(
                Diagnostic::warning("no-effect", format!("`{key}` has no effect"))
                    .at(
                        span,
                        "the reference executor reads it and does nothing with it",
                    )
                    .help("a step whose failure must not fail the run: `ignoreErrors: true`"),
            );
        }
    }
    let errors = fields.errors();
    let (cmd, build, push) = (
        fields.text("cmd"),
        fields.text("build"),
        fields.texts("push"),
    );
    let step = RawStep {
        span: fields.span.clone(),
        unread: fields.errors() > errors,
        id: fields.text("id"),
        cmd,
        build,
        push_key: fields.key_span("push"),
        push,
        working_directory: fields.text("workingDirectory"),
        entry_point: fields.text("entryPoint"),
        user: fields.text("user"),
        network: fields.text("network"),
        isolation: fields.text("isolation"),
        cpus: fields.text("cpus"),
        cache: fields.text("cache"),
        volume_mounts,
        env: fields.texts("env"),
        expose: fields.texts("expose"),
        ports: fields.texts("ports"),
        when: fields.texts("when"),
        timeout: fields.int("timeout"),
        download_retries: fields.int("cmdDownloadRetries"),
        download_retry_delay: fields.int("cmdDownloadRetryDelay"),
        start_delay: fields.int("startDelay"),
        retry_delay: fields.int("retryDelay"),
        retries: fields.int("retries"),
        retry_on_errors: fields.texts("retryOnErrors"),
        repeat: fields.int("repeat"),
        keep: fields.flag("keep").unwrap_or(false),
        detach: fields.flag("detach").unwrap_or(false),
        privileged: fields.flag("privileged").unwrap_or(false),
        ignore_errors: fields.flag("ignoreErrors").unwrap_or(false),
        disable_working_directory_override: fields
            .flag("disableWorkingDirectoryOverride")
            .unwrap_or(false),
        pull: fields.flag("pull").unwrap_or(false),
    };
    fields.finish("a step", |key| {
        let help = match key {
            "image" | "run" | "bash" | "script" | "command" => {
                "a container is one line: `cmd: IMAGE ARGUMENTS`"
            }
            "dockerfile" | "context" | "tags" | "args" => {
                "a build is one line, as `docker build` takes it: `build: -t IMAGE -f Dockerfile .`"
            }
            "secret" | "secrets" => "`secrets` belongs to the task, beside `steps`",
            _ => match of_other_systems(key) {
                Some(help) => help,
                None => return outside_the_file(key),
            },
        };
        Some(help.to_owned())
    });
    step
}

/// Returns the key in lower case, without `-` and `_`.
fn plain(key: &str) -> String {
    key.replace(['-', '_'], "").to_lowercase()
}

/// Keys of a step as other systems name them.
fn of_other_systems(key: &str) -> Option<&'static str> {
    Some(match plain(key).as_str() {
        "dependson" | "needs" | "after" | "waitfor" | "requires" => {
            "write `when: [ID]`, with the ids of the steps to wait for; `when: [\"-\"]` waits for none"
        }
        "continueonerror" | "allowfailure" | "ignoreerror" | "failfast" => {
            "write `ignoreErrors: true`"
        }
        "environment" | "envs" | "envvars" | "variables" => "write `env: [\"NAME=VALUE\"]`",
        "mounts" | "mount" | "volumes" | "volume" => {
            "write `volumeMounts`, with `name` and `mountPath`, of a volume under the task's `volumes`"
        }
        "name" | "displayname" | "title" => "write `id`: letters, digits, `-` and `_`",
        "steptimeout" | "timeoutinseconds" | "timeoutseconds" | "timeoutinminutes" => {
            "write `timeout`, in seconds"
        }
        "retrydelayinseconds" | "retrydelayseconds" | "retryinterval" | "backoff" => {
            "write `retryDelay`, in seconds"
        }
        "retry" | "retrycount" | "maxretries" | "attempts" => "write `retries`",
        "startdelayinseconds" | "startdelayseconds" | "delay" => "write `startDelay`, in seconds",
        "workdir" | "workingdir" | "cwd" => "write `workingDirectory`",
        "if" | "condition" => {
            "a step has no condition: write `{{if ...}}` and `{{end}}` around it in the file"
        }
        _ => return None,
    })
}

/// Settings of the cloud service's task resource, which people put into the file.
fn outside_the_file(key: &str) -> Option<String> {
    let flag = match key {
        "platform" | "os" | "architecture" => "use `--platform`",
        "timeout" => "the limit of one step is `stepTimeout`; that of the run is `--timeout`",
        "values" | "arguments" => "use `--set NAME=VALUE` or `--values FILE`",
        "credentials" | "registryCredentials" => {
            "use `--credential`, or `docker login` before the run"
        }
        "trigger" | "triggers" | "schedule" | "schedules" | "agentPool" | "agentPoolName"
        | "agentConfiguration" | "identity" | "logTemplate" | "status" | "isSystemTask"
        | "location" => "it is a setting of the cloud service's task, and nothing in a file",
        _ => return None,
    };
    Some(flag.to_owned())
}
