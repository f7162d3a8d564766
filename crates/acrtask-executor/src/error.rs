//! What can go wrong between this process and an engine.

use std::error::Error;

/// An engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("could not {attempted}")]
pub struct EngineError {
    /// What was attempted, on what: `create container web`.
    pub attempted: String,
    /// What the engine, or the way to it, said.
    #[source]
    pub source: bollard::errors::Error,
}

impl EngineError {
    /// For `map_err`.
    pub(crate) fn on(
        attempted: impl Into<String>,
    ) -> impl FnOnce(bollard::errors::Error) -> EngineError {
        let attempted = attempted.into();
        move |source| EngineError { attempted, source }
    }

    /// True where the engine said that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// The engine's status code, where it answered at all.
    pub fn status(&self) -> Option<u16> {
        match &self.source {
            bollard::errors::Error::DockerResponseServerError { status_code, .. } => {
                Some(*status_code)
            }
            _ => None,
        }
    }

    /// What the engine itself said, without the library's words around it.
    pub fn engine_says(&self) -> String {
        match &self.source {
            bollard::errors::Error::DockerResponseServerError { message, .. } => message.clone(),
            bollard::errors::Error::DockerStreamError { error } => error.clone(),
            other => chain(other),
        }
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<EngineError>() {
        return format!("{error}: {}", error.engine_says());
    }
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = match error.downcast_ref::<EngineError>() {
            Some(error) => format!("{error}: {}", error.engine_says()),
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

/// Neither the engine nor the builder can be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach {what} at {address}")]
pub struct ConnectError {
    /// `the Docker engine` or `BuildKit`.
    pub what: &'static str,
    /// Where it was looked for.
    pub address: String,
    /// What the user can do.
    pub help: String,
    /// What happened.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}
