//! Why there is no task to read.

use std::error::Error;

/// Why a run's task cannot be read. Its text is for whoever asked for the run.
#[derive(Debug)]
pub struct JobError {
    /// What is wrong, in one sentence.
    pub message: String,
    /// What to do instead.
    pub help: Option<String>,
    /// Something could not be reached: trying again may help.
    pub unreachable: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl JobError {
    /// A mistake in what was asked for.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            unreachable: false,
            source: None,
        }
    }

    /// Something that could not be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            unreachable: true,
            ..Self::new(message)
        }
    }

    /// The same, with what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same, with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Error + Send + Sync + 'static) -> Self {
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
    /// What kept a context from being fetched.
    fn from(error: &acrtask_source::SourceError) -> Self {
        let cause = std::error::Error::source(error).map(Chain::of);
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
struct Chain {
    text: String,
    cause: Option<Box<Chain>>,
}

impl Chain {
    fn of(error: &(dyn Error + 'static)) -> Self {
        Self {
            text: error.to_string(),
            cause: error.source().map(|cause| Box::new(Self::of(cause))),
        }
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Chain {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn Error + 'static))
    }
}
