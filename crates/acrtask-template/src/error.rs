//! What can go wrong, as data.

use std::ops::Range;

/// Why a template was refused, and where.
///
/// `message` says what Go's `text/template` says of the same fault, without its `template: name:line:` prefix: the
/// place is in `span`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// What is wrong.
    pub message: String,
    /// The bytes of the template that are to blame.
    pub span: Range<usize>,
    /// What to write instead, where that can be known.
    pub help: Option<String>,
    /// At which stage it was refused.
    pub kind: TemplateErrorKind,
}

/// The stage at which a template was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateErrorKind {
    /// The text is not a template.
    Parse,
    /// The template does not fit its data, or a function refused its arguments.
    Exec,
    /// Rendering would take more time, memory or output than [`crate::Limits`] allow.
    Limit,
}

/// A refusal by a function or a limit, before the executor adds the place.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The function refused what it was given.
    Call,
    /// A limit was reached.
    Limit,
}

impl Fault {
    pub(crate) fn call(message: impl Into<String>) -> Self {
        Self {
            kind: FaultKind::Call,
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self {
            kind: FaultKind::Limit,
            message: message.into(),
            help: None,
        }
    }

    pub(crate) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}
