//! Errors that end a runner. The runner retries temporary failures instead.

use std::{error::Error, io, path::PathBuf};

/// Reason why a runner cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The server's address is not usable.
    #[error("the server `{server}` cannot be used: {reason}")]
    Server {
        /// The address as configured.
        server: String,
        /// The reason, with the correction.
        reason: String,
    },
    /// The state folder is not usable.
    #[error("cannot {attempt}")]
    State {
        /// The attempted operation and its path.
        attempt: String,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// Another process uses the state folder.
    #[error(
        "{} belongs to a runner that is running; give each runner a folder of its own",
        path.display()
    )]
    InUse {
        /// The state folder.
        path: PathBuf,
    },
    /// The key file has another content than this program writes.
    #[error(
        "the key in {} cannot be read: {reason}; remove the file and register again",
        path.display()
    )]
    Key {
        /// The key file.
        path: PathBuf,
        /// The mistake in the file.
        reason: String,
    },
    /// The runner has neither a key nor a token.
    #[error(
        "this runner is not registered ({} has no key); make a token with `acrtask runner token` and give it to \
         the first start",
        path.display()
    )]
    NotRegistered {
        /// The state folder.
        path: PathBuf,
    },
    /// The server rejected the registration token.
    #[error("{server} did not register this runner: {message}")]
    Registration {
        /// The server.
        server: String,
        /// The response of the server.
        message: String,
    },
    /// The server rejects the key.
    #[error(
        "{server} does not know this runner's key ({message}); if the runner was removed on purpose, remove {} and \
         register again",
        path.display()
    )]
    KeyRefused {
        /// The server.
        server: String,
        /// The response of the server.
        message: String,
        /// The key file.
        path: PathBuf,
    },
    /// The registration does not allow the pool, labels or slots of the runner.
    #[error("{server} refuses this runner: {message}; to register again, remove {}", path.display())]
    NotRegisteredFor {
        /// The server.
        server: String,
        /// The response of the server.
        message: String,
        /// The key file.
        path: PathBuf,
    },
    /// The TLS settings are not usable.
    #[error("cannot set up TLS to {server}")]
    Tls {
        /// The server.
        server: String,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl AgentError {
    /// Returns a function for `map_err` that adds the attempted operation.
    pub(crate) fn state(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let attempt = attempt.into();
        move |source| Self::State { attempt, source }
    }
}

/// Formats an error with all its causes in one line.
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
