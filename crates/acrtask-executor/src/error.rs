//! Errors between this process and an engine.

use std::error::Error;

/// A request that an engine did not carry out.
#[derive(Debug, thiserror::Error)]
#[error("could not {attempted}")]
pub struct EngineError {
    /// The attempted action and its object: `create container web`.
    pub attempted: String,
    /// The error of the engine or of the connection to it.
    #[source]
    pub source: bollard::errors::Error,
}

impl EngineError {
    /// Returns a function for `map_err`.
    pub(crate) fn could_not(
        attempted: impl Into<String>,
    ) -> impl FnOnce(bollard::errors::Error) -> EngineError {
        let attempted = attempted.into();
        move |source| EngineError { attempted, source }
    }

    /// Returns `true` if the engine responded that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Returns the status code of the engine's response. `None` if it did not respond.
    pub fn status(&self) -> Option<u16> {
        match &self.source {
            bollard::errors::Error::DockerResponseServerError { status_code, .. } => {
                Some(*status_code)
            }
            _ => None,
        }
    }

    /// Returns the engine's own message, without the library's text around it.
    pub fn engine_message(&self) -> String {
        match &self.source {
            bollard::errors::Error::DockerResponseServerError { message, .. } => message.clone(),
            bollard::errors::Error::DockerStreamError { error } => error.clone(),
            other => error_chain(other),
        }
    }
}

/// Formats an error and all its causes in one line.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return format!("{error}: {}", error.engine_message());
    }
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = match error.downcast_ref::<EngineError>() {
            Some(error) => format!("{error}: {}", error.engine_message()),
            None => error.to_string(),
        };
        // Some libraries repeat the cause in their own text.
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        if error.is::<EngineError>() {
            break;
        }
        cause = error.source();
    }
    out
}

/// A failed connection to the engine or the builder.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach {what} at {address}")]
pub struct ConnectError {
    /// `the Docker engine` or `BuildKit`.
    pub what: &'static str,
    /// The address of the attempt.
    pub address: String,
    /// A remedy for the user.
    pub help: String,
    /// The cause.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}
