//! Why a runner cannot run. What may pass by itself is tried again instead and is no error.

use std::{error::Error, io, path::PathBuf};

/// Why a runner cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The server's address cannot be used.
    #[error("the server `{server}` cannot be used: {reason}")]
    Server {
        /// As it was given.
        server: String,
        /// Why not, and what to write instead.
        reason: String,
    },
    /// The state folder cannot be used.
    #[error("cannot {attempt}")]
    State {
        /// What was attempted, on what.
        attempt: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has the state folder.
    #[error(
        "{} belongs to a runner that is running; give each runner a folder of its own",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The key file is not what this program wrote.
    #[error(
        "the key in {} cannot be read: {reason}; remove the file and register again",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no key and no token.
    #[error(
        "this runner is not registered ({} holds no key); make a token with `acrtask runner token` and give it to \
         the first start",
        path.display()
    )]
    NotRegistered {
        /// The state folder.
        path: PathBuf,
    },
    /// The token was not taken.
    #[error("{server} did not register this runner: {message}")]
    Registration {
        /// The server.
        server: String,
        /// What it said.
        message: String,
    },
    /// The key is not known, or not any more.
    #[error(
        "{server} does not know this runner's key ({message}); if the runner was removed on purpose, remove {} and \
         register again",
        path.display()
    )]
    KeyRefused {
        /// The server.
        server: String,
        /// What it said.
        message: String,
        /// The key's file.
        path: PathBuf,
    },
    /// The runner's registration does not allow the pool, labels or slots that the runner was started with.
    #[error("{server} refuses this runner: {message}; to register again, remove {}", path.display())]
    NotRegisteredFor {
        /// The server.
        server: String,
        /// The reason of the server.
        message: String,
        /// The key's file.
        path: PathBuf,
    },
    /// The connection cannot be set up as it was asked for.
    #[error("cannot set up TLS to {server}")]
    Tls {
        /// The server.
        server: String,
        /// What is wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl AgentError {
    /// For `map_err`: what was attempted.
    pub(crate) fn state(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::State { attempt, source }
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !out.contains(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        cause = error.source();
    }
    out
}
