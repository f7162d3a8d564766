//! The parsed line of a cmd step. Its grammar is small and closed, so it never needs a shell of the
//! runner.
//!
//! ```text
//! line     = pipeline { ("&&" | "||" | ";") pipeline }
//! pipeline = command { "|" command }
//! command  = container | docker-word | acr-word | builtin, with redirections
//! ```
//!
//! The first command is always a container, or a `docker` or `acr` command. A line break counts as `;`. Later
//! commands may also be one of [`BUILTINS`]. Everything else that a shell could do is refused. The
//! help then shows how to pass the line to a shell inside the container.

mod acr;
mod docker;
mod parse;

pub(crate) use docker::docker_word_name;
pub use docker::docker_word_supported;
pub use parse::{BUILTINS, container_from_words, parse};
pub(crate) use parse::{container_from_words_unchecked, is_script_flag, parse_unchecked};

/// A parsed cmd line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmdLine {
    /// The first pipeline.
    pub first: Pipeline,
    /// The other pipelines, each with the condition for running it.
    pub rest: Vec<(Joiner, Pipeline)>,
}

/// Operator between two pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joiner {
    /// `&&`: only after success.
    And,
    /// `||`: only after failure.
    Or,
    /// `;`: always.
    Then,
}

/// Commands whose output feeds the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// At least one.
    pub commands: Vec<Command>,
}

/// A command with its redirections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Container, `docker` command or builtin to run.
    pub kind: CommandKind,
    /// Redirections, in order.
    pub redirects: Vec<Redirect>,
}

/// The kind of a command and its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandKind {
    /// `[docker run flags] IMAGE [ARGS]`.
    Container(Box<ContainerLine>),
    /// `docker WORD ...`, without the word `docker`. The executor runs it if
    /// [`docker_word_supported`] returns `true`.
    Docker(Vec<Word>),
    /// `acr WORD ...`, without the word `acr`. The executor runs it on the registry.
    Acr(Vec<Word>),
    /// `true false echo exit pwd ls cat date`.
    Builtin(Vec<Word>),
}

/// A container as described by the flags of `docker run`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerLine {
    /// Flags before the image.
    pub flags: RunFlags,
    /// The image.
    pub image: Word,
    /// Words after the image.
    pub args: Vec<Word>,
}

/// Flags of `docker run` before the image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFlags {
    /// `-e NAME[=VALUE]`.
    pub env: Vec<Word>,
    /// `-v SOURCE:TARGET[:ro]`: volumes of the run, or paths inside the workspace.
    pub volumes: Vec<Word>,
    /// `-w`.
    pub workdir: Option<Word>,
    /// `--entrypoint`.
    pub entrypoint: Option<Word>,
    /// `--name`.
    pub name: Option<Word>,
    /// `-u`.
    pub user: Option<Word>,
    /// `-p`.
    pub ports: Vec<Word>,
    /// `--expose`.
    pub expose: Vec<Word>,
    /// `--network`.
    pub network: Option<Word>,
    /// `--network-alias`.
    pub network_aliases: Vec<Word>,
    /// `-d`.
    pub detach: bool,
    /// `-l`.
    pub labels: Vec<Word>,
    /// `--privileged`.
    pub privileged: bool,
    /// Other flags with their values. They are passed on if the engine's API supports them.
    pub other: Vec<(String, Word)>,
}

/// A word. Some of its parts get their text only when the step runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Word {
    /// Parts in order.
    pub parts: Vec<WordPart>,
}

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordPart {
    /// Literal text.
    Text(String),
    /// `$HOME`.
    Home,
    /// `$(date +FORMAT)`.
    Date(String),
}

/// Redirection of an input or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// `>` or `>>`, `2>` or `2>>`.
    Output {
        /// File descriptor, 1 or 2.
        fd: u8,
        /// A file in the workspace, or `/dev/null`.
        to: Word,
        /// `true` for `>>`.
        append: bool,
    },
    /// `2>&1`, `1>&2`.
    Duplicate {
        /// File descriptor that is redirected.
        fd: u8,
        /// File descriptor that receives the output.
        onto: u8,
    },
    /// `<`.
    Input {
        /// A file in the workspace.
        from: Word,
    },
}
