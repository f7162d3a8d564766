//! A task as written in YAML. Every key is read and typed, but not yet checked against others.

use std::ops::Range;

use crate::{
    code::Code,
    diagnostic::Diagnostic,
    read::{Fields, Int, Report, Text},
    run_variables::{SecretDeclaration, SecretSource},
    yaml::Node,
};

/// The values of a task's keys.
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

/// The values of a step's keys.
#[derive(Debug)]
pub(crate) struct RawStep {
    pub(crate) span: Range<usize>,
    pub(crate) id: Option<Text>,
    pub(crate) cmd: Option<Text>,
    pub(crate) build: Option<Text>,
    pub(crate) push: Vec<Text>,
    /// `true` if build, cmd or push is present but has the wrong type, which is already reported.
    pub(crate) unread: bool,
    /// Span of the key `push`. `None` if it is missing.
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
    /// Returns the id and the source of the secret. `None` if one of them is missing.
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
    /// File names and their contents in base 64. `None` if the key `secret` is missing.
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

/// Reads a task from the root node of `source`.
pub(crate) fn read_task(root: &Node, source: &str, report: &mut Report<'_>) -> RawTask {
    let mut task = RawTask::default();
    let Some(mut fields) = Fields::open(root, "a task file", STEPS_EXAMPLE, source, report) else {
        return task;
    };
    task.version = fields.take_text("version");
    task.step_timeout = fields.take_int("stepTimeout");
    task.env = fields.take_texts("env");
    task.working_directory = fields.take_text("workingDirectory");
    task.alias = fields.key_span("alias");
    fields.take_node("alias");

    for node in fields.take_nodes(
        "secrets",
        "secrets:\n  - id: token\n    keyvault: https://...",
    ) {
        if let Some(mut entry) =
            fields.open_inner(node, "a secret", "- id: token\n  keyvault: https://...")
        {
            task.secrets.push(RawSecret {
                span: entry.span.clone(),
                id: entry.take_text("id"),
                keyvault: entry.take_text("keyvault"),
                client_id: entry.take_text("clientID"),
                vault: entry.take_text("vault"),
                env: entry.take_text("env"),
                file: entry.take_text("file"),
            });
            entry.finish("a secret", |key| {
                (key == "akv").then(|| "write `keyvault`".to_owned())
            });
        }
    }
    for node in fields.take_nodes("networks", "networks:\n  - name: backend") {
        if let Some(mut entry) = fields.open_inner(node, "a network", "- name: backend") {
            task.networks.push(RawNetwork {
                span: entry.span.clone(),
                name: entry.take_text("name"),
                driver: entry.take_text("driver"),
                ipv6: entry.take_flag("ipv6").unwrap_or(false),
                skip_creation: entry.take_flag("skipCreation").unwrap_or(false),
                is_default: entry.take_flag("isDefault").unwrap_or(false),
            });
            entry.finish("a network", |_| None);
        }
    }
    for node in fields.take_nodes(
        "volumes",
        "volumes:\n  - name: keys\n    secret:\n      key.txt: {{.Secrets.key | b64enc}}",
    ) {
        if let Some(volume) = fields.open_inner(
            node,
            "a volume",
            "- name: keys\n  secret:\n    key.txt: ...",
        ) {
            task.volumes.push(read_volume(volume));
        }
    }
    for node in fields.take_nodes("steps", STEPS_EXAMPLE) {
        if let Some(step) = fields.open_inner(node, "a step", "- cmd: alpine echo hello") {
            task.steps.push(read_step(step));
        }
    }
    if fields.take_node("steps").is_none() {
        let warning = Diagnostic::warning(
            Code::NoSteps,
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
        let renamed = match normalize_key(key).as_str() {
            "environment" | "envs" | "envvars" | "variables" => "write `env: [\"NAME=VALUE\"]`",
            "steptimeoutinseconds" | "steptimeoutseconds" => "write `stepTimeout`, in seconds",
            "workdir" | "workingdir" => "write `workingDirectory`",
            _ => "",
        };
        if !renamed.is_empty() {
            return Some(renamed.to_owned());
        }
        help_for_setting_outside_file(key).or_else(|| {
            STEP_KEYS.contains(&key).then(|| {
                format!("`{key}` belongs to a step: write it under one of `steps`, indented")
            })
        })
    });
    task
}

fn read_volume(mut fields: Fields<'_, '_, '_>) -> RawVolume {
    let span = fields.span.clone();
    let name = fields.take_text("name");
    let mut secret = None;
    if let Some(node) = fields.take_node("secret")
        && let Some(mut files) =
            fields.open_inner(node, "`secret`", "secret:\n  file.txt: aGVsbG8=")
    {
        let mut read = Vec::new();
        for (key, value) in files.pairs() {
            let name = files.read_text(key, "secret");
            let content = files.read_text(value, key.scalar().unwrap_or("secret"));
            if let (Some(name), Some(content)) = (name, content) {
                read.push((name, content));
            }
        }
        secret = Some(read);
    }
    fields.finish("a volume", |_| None);
    RawVolume { span, name, secret }
}

/// Keys of a step that [`read_step`] reads.
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
    for node in fields.take_nodes(
        "volumeMounts",
        "volumeMounts:\n  - name: keys\n    mountPath: /run/keys",
    ) {
        if let Some(mut mount) =
            fields.open_inner(node, "a mount", "- name: keys\n  mountPath: /run/keys")
        {
            volume_mounts.push(RawMount {
                span: mount.span.clone(),
                name: mount.take_text("name"),
                mount_path: mount.take_text("mountPath"),
            });
            mount.finish("a mount", |_| None);
        }
    }
    for key in ["exitedWith", "exitedWithout"] {
        if let Some(span) = fields.key_span(key) {
            fields.take_node(key);
            fields.report(
                Diagnostic::warning(Code::NoEffect, format!("`{key}` has no effect"))
                    .at(
                        span,
                        "the reference executor reads it and does nothing with it",
                    )
                    .help("a step whose failure must not fail the run: `ignoreErrors: true`"),
            );
        }
    }
    let errors = fields.problem_count();
    let (cmd, build, push) = (
        fields.take_text("cmd"),
        fields.take_text("build"),
        fields.take_texts("push"),
    );
    let step = RawStep {
        span: fields.span.clone(),
        unread: fields.problem_count() > errors,
        id: fields.take_text("id"),
        cmd,
        build,
        push_key: fields.key_span("push"),
        push,
        working_directory: fields.take_text("workingDirectory"),
        entry_point: fields.take_text("entryPoint"),
        user: fields.take_text("user"),
        network: fields.take_text("network"),
        isolation: fields.take_text("isolation"),
        cpus: fields.take_text("cpus"),
        cache: fields.take_text("cache"),
        volume_mounts,
        env: fields.take_texts("env"),
        expose: fields.take_texts("expose"),
        ports: fields.take_texts("ports"),
        when: fields.take_texts("when"),
        timeout: fields.take_int("timeout"),
        download_retries: fields.take_int("cmdDownloadRetries"),
        download_retry_delay: fields.take_int("cmdDownloadRetryDelay"),
        start_delay: fields.take_int("startDelay"),
        retry_delay: fields.take_int("retryDelay"),
        retries: fields.take_int("retries"),
        retry_on_errors: fields.take_texts("retryOnErrors"),
        repeat: fields.take_int("repeat"),
        keep: fields.take_flag("keep").unwrap_or(false),
        detach: fields.take_flag("detach").unwrap_or(false),
        privileged: fields.take_flag("privileged").unwrap_or(false),
        ignore_errors: fields.take_flag("ignoreErrors").unwrap_or(false),
        disable_working_directory_override: fields
            .take_flag("disableWorkingDirectoryOverride")
            .unwrap_or(false),
        pull: fields.take_flag("pull").unwrap_or(false),
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
            _ => match help_for_foreign_key(key) {
                Some(help) => help,
                None => return help_for_setting_outside_file(key),
            },
        };
        Some(help.to_owned())
    });
    step
}

/// Returns the key in lower case, without `-` and `_`.
fn normalize_key(key: &str) -> String {
    key.replace(['-', '_'], "").to_lowercase()
}

/// Returns help for a step key of another system.
fn help_for_foreign_key(key: &str) -> Option<&'static str> {
    Some(match normalize_key(key).as_str() {
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

/// Returns help for a setting of the cloud service's task resource, which does not belong into the
/// file.
fn help_for_setting_outside_file(key: &str) -> Option<String> {
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
