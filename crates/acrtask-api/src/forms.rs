//! String formats in requests, for the OpenAPI document: patterns and lengths.
//!
//! Only `#[schema(value_type = ...)]` refers to these types. Request fields are plain strings. The
//! server checks the same formats and names the mistake in its message; a test in `acrtask-server`
//! compares the two.
//!
//! Formats omit rules that no pattern can express, for example the grammar of a URL or of a task
//! file. The server rejects such requests with status 422.

use utoipa::ToSchema;

macro_rules! forms {
    ($($(#[$attribute:meta])* $name:ident;)*) => {$(
        #[derive(Debug, Clone, ToSchema)]
        $(#[$attribute])*
        pub struct $name(pub String);
    )*};
}

forms! {
    /// Name of a task: segments of letters, digits, `-`, `_` and `.`, separated by `/`. A segment
    /// must not consist of dots only.
    #[schema(max_length = 100, pattern = r"^[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*(/[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")]
    TaskName;
    /// Name of one task, or a prefix of task names followed by `*`.
    #[schema(min_length = 1, max_length = 200, pattern = r"^[A-Za-z0-9._/-]*[*]?$")]
    TaskPattern;
    /// Prefix of task names followed by `*`.
    #[schema(min_length = 2, max_length = 200, pattern = r"^[A-Za-z0-9._/-]+[*]$")]
    TaskPrefix;
    /// Name of a secret: letters, digits, `-`, `_` and `.`.
    #[schema(max_length = 100, pattern = r"^[A-Za-z0-9._-]+$")]
    SecretName;
    /// Value of a secret. At least 4 bytes without surrounding white space, because logs cannot
    /// mask shorter values.
    #[schema(min_length = 4, max_length = 65536)]
    SecretValue;
    /// Secret that authenticates the sender of deliveries. At most 1024 bytes.
    #[schema(min_length = 8, max_length = 1024)]
    WebhookSecret;
    /// Name of a pool, a label, a timer or a federation.
    #[schema(max_length = 100, pattern = r"^[A-Za-z0-9._/-]+$")]
    ShortName;
    /// Name of a webhook. It is part of the webhook's URL.
    #[schema(max_length = 100, pattern = r"^[A-Za-z0-9._-]+$")]
    WebhookName;
    /// Sender of deliveries: a forge or a registry.
    #[schema(pattern = r"^(github|gitlab|gitea|forgejo|bitbucket-cloud|bitbucket-server|azure-devops|generic|distribution|harbor|docker-hub|azure|github-packages|quay|ecr)$")]
    Provider;
    /// Value of a label.
    #[schema(max_length = 100)]
    LabelValue;
    /// Name of a concurrency group. Segments are separated by `/` and must not be empty, `.` or
    /// `..`.
    #[schema(min_length = 1, max_length = 100, pattern = r"\S")]
    GroupName;
    /// Human-readable text without control characters.
    #[schema(max_length = 200, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$")]
    Title;
    /// User name for a registry or a git host, without control characters.
    #[schema(max_length = 65536, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$")]
    Username;
    /// Pattern for `sub` of an identity token. `*` matches any text. The whole pattern must not be
    /// `*`.
    #[schema(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^*\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$")]
    Subject;
    /// Value of `aud` in an identity token.
    #[schema(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$")]
    Audience;
    /// Host, with or without a port: `registry.example.com:5000`.
    #[schema(max_length = 255, pattern = r"^[A-Za-z0-9.:_\[\]-]+$")]
    Host;
    /// Host, with or without a port. Empty if there is none.
    #[schema(max_length = 255, pattern = r"^[A-Za-z0-9.:_\[\]-]*$")]
    OptionalHost;
    /// Platform: `linux/amd64`, `linux/arm/v7`.
    #[schema(pattern = r"^[a-z0-9.]+/[a-z0-9.]+(/[a-z0-9.]+)?$")]
    Platform;
    /// Digest: `sha256:` and 64 hexadecimal digits, or `sha512:` and 128.
    #[schema(pattern = r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")]
    ContentDigest;
    /// Full commit hash.
    #[schema(pattern = r"^([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$")]
    CommitHash;
    /// Path inside the context, without `..` segments.
    #[schema(pattern = r"^[^/\u0000][^\u0000]*$")]
    ContextPath;
    /// URL of a git repository or a tarball, or `oci://REFERENCE`, without white space.
    #[schema(pattern = r"^[^\s\u0000-\u001f\u007f-\u009f-][^\s\u0000-\u001f\u007f-\u009f]*$")]
    ContextUrl;
    /// Name of a variable.
    #[schema(pattern = r"^[^=\u0000]+$")]
    VariableName;
    /// Text without the character U+0000.
    #[schema(pattern = r"^[^\u0000]*$")]
    VariableValue;
    /// Alias for an image in task files.
    #[schema(pattern = r"^(acr|az|bash|curl|cssc)$")]
    AliasName;
    /// Text that is not blank.
    #[schema(pattern = r"\S")]
    NotBlank;
    /// Id of a run: lower-case letters, digits and `-`. The first and last character is a letter or
    /// a digit.
    #[schema(max_length = 40, pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    NewRunId;
    /// Time of day: `22:00` or `22:00:30`.
    #[schema(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$")]
    TimeOfDay;
    /// Subject of a quota: `task:NAME`, `task:*`, `tasks:PREFIX*`, `token:ID`, `token:*`.
    #[schema(pattern = r"^(task:([*]|[A-Za-z0-9._/-]{1,200})|tasks:([*]|[A-Za-z0-9._/-]{1,200}[*])|token:([*]|[A-Za-z0-9._/-]{1,200}))$")]
    QuotaSubjectText;
    /// Run states, separated by `,`.
    #[schema(pattern = r"^(queued|leased|running|succeeded|failed|canceled|timed_out|error)(,(queued|leased|running|succeeded|failed|canceled|timed_out|error))*$")]
    RunStates;
    /// Time in RFC 3339 format, or a date. A date means midnight UTC.
    #[schema(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2}))?$")]
    TimeOrDate;
    /// Idempotency key for requests that may be repeated. At most 500 characters.
    #[schema(max_length = 500)]
    IdempotencyKey;
    /// Generation of a task, with or without quotes.
    #[schema(pattern = "^(\"?[0-9]{1,18}\"?)?$")]
    Generation;
    /// Address of a line in the log of an attempt: `STEP:NUMBER`. The step is empty for a line of the
    /// run itself.
    #[schema(max_length = 1000, pattern = r"^\S*:[1-9][0-9]{0,17}$")]
    LineAddress;
    /// `next` or `previous` of other lines.
    #[schema(pattern = r"^[1-9][0-9]{0,17}$")]
    LineCursor;
    /// Text to search for, in one line.
    #[schema(min_length = 1, max_length = 500, pattern = r"^[^\n\r\u0000]+$")]
    SearchText;
    /// Id of an event, as in the `id` field of the stream.
    #[schema(pattern = r"^([0-9]{1,18})?$")]
    EventId;
}
