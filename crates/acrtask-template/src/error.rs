//! Errors of parsing and rendering, as data.

use std::ops::Range;

/// The reason why a template is refused, with its span.
///
/// `message` is the text of Go's `text/template` for the same fault. It has no `template:
/// name:line:` prefix, because `span` contains the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// Description of the fault.
    pub message: String,
    /// Byte range of the template that causes the fault.
    pub span: Range<usize>,
    /// Help about what to write instead. `None` if unknown.
    pub help: Option<String>,
    /// Stage at which the template is refused.
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

/// A refusal by a function or a limit, before the executor adds its span.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The function refuses its arguments.
    Call,
    /// A limit is exceeded.
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
