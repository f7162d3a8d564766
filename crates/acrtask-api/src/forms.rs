//! Forms of the texts in requests, for the OpenAPI document: patterns and lengths.
//!
//! These types are only named in `#[schema(value_type = ...)]`; requests hold plain texts. The server checks the same
//! forms, with messages that name the mistake: a test in `acrtask-server` compares the two. Rules that no pattern can
//! express, such as the grammar of a URL or of a task file, are not part of a form. Requests that break them get 422.

use utoipa::ToSchema;

macro_rules! forms {
    ($($(#[$attribute:meta])* $name:ident;)*) => {$(
        #[derive(Debug, Clone, ToSchema)]
        $(#[$attribute])*
        pub struct $name(pub String);
    )*};
}

forms! {
    /// Name of a task: parts of letters, digits, `-`, `_` and `.`, with `/` between them. No part is of dots alone.
    #[schema(max_length = 100, pattern = r"^[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*(/[.]*[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")]
    TaskName;
    /// Name of one task, or the beginning of names with `*` behind it.
    #[schema(min_length = 1, max_length = 200, pattern = r"^[A-Za-z0-9._/-]*[*]?$")]
    TaskNames;
    /// Name of a secret: letters, digits, `-`, `_` and `.`.
    #[schema(max_length = 100, pattern = r"^[A-Za-z0-9._-]+$")]
    SecretName;
    /// Value of a secret. At least 4 bytes without the white space around it, because logs cannot mask shorter ones.
    #[schema(min_length = 4, max_length = 65536)]
    SecretValue;
    /// Secret that the sender of deliveries proves itself with. At most 1024 bytes.
    #[schema(min_length = 8, max_length = 1024)]
    WebhookSecret;
    /// Name of a pool, a label, a timer or a federation.
    #[schema(max_length = 100, pattern = r"^[A-Za-z0-9._/-]+$")]
    Word;
    /// Name of a webhook, which is part of its URL.
    #[schema(max_length = 100, pattern = r"^[A-Za-z0-9._-]+$")]
    WebhookName;
    /// Sender of deliveries: a forge or a registry.
    #[schema(pattern = r"^(github|gitlab|gitea|forgejo|bitbucket-cloud|bitbucket-server|azure-devops|generic|distribution|harbor|docker-hub|azure|github-packages|quay|ecr)$")]
    Provider;
    /// Value of a label.
    #[schema(max_length = 100)]
    LabelValue;
    /// Name of a concurrency group. Its parts, with `/` between them, are not empty, `.` or `..`.
    #[schema(min_length = 1, max_length = 100, pattern = r"\S")]
    GroupName;
    /// Text for people, without control characters.
    #[schema(max_length = 200, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$")]
    Title;
    /// Name of a user of a registry or a git host, without control characters.
    #[schema(max_length = 65536, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$")]
    Username;
    /// Pattern of `sub` of an identity token. `*` matches any text, and is not the whole pattern.
    #[schema(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^*\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$")]
    Subject;
    /// Audience in `aud` of an identity token.
    #[schema(pattern = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$")]
    Audience;
    /// Host, with or without a port: `registry.example.com:5000`.
    #[schema(max_length = 255, pattern = r"^[A-Za-z0-9.:_\[\]-]+$")]
    Host;
    /// Host with or without a port; empty: none.
    #[schema(max_length = 255, pattern = r"^[A-Za-z0-9.:_\[\]-]*$")]
    OptionalHost;
    /// Platform: `linux/amd64`, `linux/arm/v7`.
    #[schema(pattern = r"^[a-z0-9.]+/[a-z0-9.]+(/[a-z0-9.]+)?$")]
    Platform;
    /// Digest: `sha256:` and 64 hexadecimal digits, or `sha512:` and 128.
    #[schema(pattern = r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")]
    ContentDigest;
    /// Full name of a commit.
    #[schema(pattern = r"^([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$")]
    CommitName;
    /// Path inside the context, without a part `..`.
    #[schema(pattern = r"^[^/\u0000][^\u0000]*$")]
    ContextPath;
    /// URL of a git repository or a tarball, or `oci://REFERENCE`. No white space.
    #[schema(pattern = r"^[^\s\u0000-\u001f\u007f-\u009f-][^\s\u0000-\u001f\u007f-\u009f]*$")]
    ContextUrl;
    /// Name of a variable.
    #[schema(pattern = r"^[^=\u0000]+$")]
    VariableName;
    /// Text without the character U+0000.
    #[schema(pattern = r"^[^\u0000]*$")]
    VariableValue;
    /// Word of task files that names an image.
    #[schema(pattern = r"^(acr|az|bash|curl|cssc)$")]
    AliasName;
    /// Text that is not empty or white space alone.
    #[schema(pattern = r"\S")]
    NotBlank;
    /// Id of a run: lower-case letters, digits and `-`, with a letter or digit at both ends.
    #[schema(max_length = 40, pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    NewRunId;
    /// Time of day: `22:00` or `22:00:30`.
    #[schema(pattern = r"^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$")]
    TimeOfDay;
    /// Subject of a quota: `task:NAME`, `task:*`, `tasks:PREFIX*`, `token:ID`, `token:*`.
    #[schema(pattern = r"^(task:([*]|[A-Za-z0-9._/-]{1,200})|tasks:([*]|[A-Za-z0-9._/-]{1,200}[*])|token:([*]|[A-Za-z0-9._/-]{1,200}))$")]
    QuotaOf;
    /// States of runs, with `,` between them.
    #[schema(pattern = r"^(queued|leased|running|succeeded|failed|canceled|timed_out|error)(,(queued|leased|running|succeeded|failed|canceled|timed_out|error))*$")]
    RunStates;
    /// Time: RFC 3339, or a date, which begins at midnight in UTC.
    #[schema(pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2}))?$")]
    TimeOrDate;
    /// Key of a request that may be sent again: at most 500 characters.
    #[schema(max_length = 500)]
    IdempotencyKey;
    /// Generation of a task, with or without quotes.
    #[schema(pattern = "^(\"?[0-9]{1,18}\"?)?$")]
    Generation;
    /// `id` of an event.
    #[schema(pattern = r"^([0-9]{1,18})?$")]
    EventId;
}
