//! The line of a cmd step, understood: a small closed grammar that never needs a shell of the runner.
//!
//! ```text
//! line     = pipeline { ("&&" | "||" | ";") pipeline }
//! pipeline = command { "|" command }
//! command  = container | docker-word | builtin, with redirections
//! ```
//!
//! The first command is always a container or a `docker` word; a line break is a `;`. Later commands may
//! also be one of [`BUILTINS`]. Everything else that a shell would do is refused, with the rewrite that
//! gives the line to a shell inside the container.

mod docker;
mod parse;

pub(crate) use docker::docker_word_name;
pub use docker::docker_word_supported;
pub use parse::{BUILTINS, container_from_words, parse};
pub(crate) use parse::{container_from_words_unchecked, is_script_flag, parse_unchecked};

/// A whole line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CmdLine {
    /// The first pipeline.
    pub first: Pipeline,
    /// The others, each with what must hold before it runs.
    pub rest: Vec<(Joiner, Pipeline)>,
}

/// What stands between two pipelines.
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

/// One command with its redirections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What runs.
    pub kind: CommandKind,
    /// Redirections, in order.
    pub redirects: Vec<Redirect>,
}

/// What a command is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandKind {
    /// `[docker run flags] IMAGE [ARGS]`.
    Container(Box<ContainerLine>),
    /// `docker WORD ...`, without the word `docker`: carried out by the executor itself where
    /// [`docker_word_supported`] says so.
    Docker(Vec<Word>),
    /// `true false echo exit pwd ls cat date`.
    Builtin(Vec<Word>),
}

/// A container, as asked for by the flags of `docker run`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerLine {
    /// Flags before the image.
    pub flags: RunFlags,
    /// The image.
    pub image: Word,
    /// What follows it.
    pub args: Vec<Word>,
}

/// The flags of `docker run` that a line may carry.
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
    /// Other flags, with their values: carried where the engine's API has them.
    pub other: Vec<(String, Word)>,
}

/// A word, of which parts are known only when it is used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Word {
    /// Its parts, in order.
    pub parts: Vec<WordPart>,
}

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordPart {
    /// As it is.
    Text(String),
    /// `$HOME`.
    Home,
    /// `$(date +FORMAT)`.
    Date(String),
}

/// Where output goes, or input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// `>` or `>>`, `2>` or `2>>`.
    Output {
        /// 1 or 2.
        fd: u8,
        /// A file in the workspace, or `/dev/null`.
        to: Word,
        /// `>>`.
        append: bool,
    },
    /// `2>&1`, `1>&2`.
    Duplicate {
        /// The one that is redirected.
        fd: u8,
        /// Where it goes.
        onto: u8,
    },
    /// `<`.
    Input {
        /// A file in the workspace.
        from: Word,
    },
}
