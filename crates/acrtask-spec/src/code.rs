//! Codes of diagnostics, each with its page of the documentation.

/// Defines [`Code`]: a variant, its text and its page from one line.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// Kind of a problem in a file of the user. A code never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// All codes in alphabetical order.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the text of the code, such as `unknown-key`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// Returns the meaning of the code in one sentence, in Markdown.
            pub fn summary(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_start(),)+
                }
            }

            /// Returns the page of the documentation about the code, in Markdown.
            pub const fn page(self) -> &'static str {
                match self {
                    $(Self::$variant => {
                        include_str!(concat!("../../../docs/diagnostics/", $text, ".md"))
                    })+
                }
            }
        }
    };
}

impl Code {
    /// Returns the code with a text, such as `unknown-key`. `None` if there is none.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

codes! {
    /// `alias.directive` is not one character that marks aliases.
    AliasDirective = "alias-directive",
    /// The name of an alias contains characters that a use of it cannot contain.
    AliasName = "alias-name",
    /// An entry of `alias.src` cannot be read.
    AliasSource = "alias-source",
    /// The `cache` key has an unusable value, or the cache cannot be stored.
    Cache = "cache",
    /// A line needs a feature that a step does not have, such as a shell.
    CannotRun = "cannot-run",
    /// Steps wait for each other.
    Cycle = "cycle",
    /// A step uses a `docker` command that is not built in.
    DockerWord = "docker-word",
    /// A key occurs twice in one map.
    DuplicateKey = "duplicate-key",
    /// Two documents define the same stored task.
    DuplicateTask = "duplicate-task",
    /// A step builds a folder of a context without files.
    EmptyContext = "empty-context",
    /// An entry of `env` sets no variable.
    Env = "env",
    /// An entry of `volumeMounts` is incomplete or wrong.
    Mount = "mount",
    /// A number of times is below 0.
    Negative = "negative",
    /// A network is declared wrongly, or not at all.
    Network = "network",
    /// A part of the file has no effect.
    NoEffect = "no-effect",
    /// The file contains no steps.
    NoSteps = "no-steps",
    /// A step needs a permission of the operator.
    NotAllowed = "not-allowed",
    /// A pin of a cascade cannot be applied to an image name.
    NotPinned = "not-pinned",
    /// The age of a purge is missing or wrong.
    PurgeAge = "purge-age",
    /// A filter of a purge selects something else than it seems to.
    PurgeFilter = "purge-filter",
    /// A purge of a large registry needs more time than its step has.
    PurgeTimeout = "purge-timeout",
    /// The server rejected the definition of a stored task.
    Refused = "refused",
    /// A secret is declared wrongly.
    Secret = "secret",
    /// A declared secret has no value.
    SecretUnresolved = "secret-unresolved",
    /// A document is not valid cascade settings.
    Settings = "settings",
    /// The id of a step is unusable or not unique.
    StepId = "step-id",
    /// A step has none or several of `build`, `cmd` and `push`.
    StepKind = "step-kind",
    /// A document is not the definition of a stored task.
    Task = "task",
    /// The template of the file cannot be rendered.
    Template = "template",
    /// Values nest too deep.
    TooDeep = "too-deep",
    /// The file, or what it expands to, exceeds a limit.
    TooLarge = "too-large",
    /// A map contains a key that the language does not have.
    UnknownKey = "unknown-key",
    /// A value that others supply is used in an unsafe position.
    UntrustedValue = "untrusted-value",
    /// A values file is unusable or ambiguous.
    Values = "values",
    /// The `version` line is unknown or ambiguous.
    Version = "version",
    /// A volume is declared wrongly.
    Volume = "volume",
    /// An entry of `when` names no other step.
    When = "when",
    /// A key has a value of the wrong type.
    WrongType = "wrong-type",
    /// The text is not YAML.
    Yaml = "yaml",
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
