//! Errors that prevent reading a task.

use std::error::Error;

/// An error that prevents reading a run's task. Its text is for the user who requested the run.
#[derive(Debug)]
pub struct JobError {
    /// The problem, in one sentence.
    pub message: String,
    /// The remedy.
    pub help: Option<String>,
    /// Set if a host was unreachable, so another attempt may succeed.
    pub unreachable: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl JobError {
    /// Returns an error about the request.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            unreachable: false,
            source: None,
        }
    }

    /// Returns an error about an unreachable host.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            unreachable: true,
            ..Self::new(message)
        }
    }

    /// Adds a remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for JobError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

impl From<&acrtask_source::SourceError> for JobError {
    /// Converts the error of fetching a context.
    fn from(error: &acrtask_source::SourceError) -> Self {
        let cause = std::error::Error::source(error).map(ErrorText::of);
        Self {
            message: error.to_string(),
            help: error.help(),
            unreachable: error.is_unreachable(),
            source: cause.map(|cause| Box::new(cause) as Box<dyn Error + Send + Sync>),
        }
    }
}

/// The texts of an error and of its causes.
#[derive(Debug)]
struct ErrorText {
    text: String,
    cause: Option<Box<ErrorText>>,
}

impl ErrorText {
    fn of(error: &(dyn Error + 'static)) -> Self {
        Self {
            text: error.to_string(),
            cause: error.source().map(|cause| Box::new(Self::of(cause))),
        }
    }
}

impl std::fmt::Display for ErrorText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for ErrorText {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn Error + 'static))
    }
}
