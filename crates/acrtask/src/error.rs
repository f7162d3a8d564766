//! What went wrong, as a person reads it: the message, its causes, and last what to do.

use std::{error::Error, fmt};

use crate::{args::values::ValueError, exit::Exit, render::style::Style};

/// An error that ends the program.
#[derive(Debug)]
pub(crate) struct CliError {
    exit: Exit,
    message: String,
    causes: Vec<String>,
    help: Option<String>,
}

impl CliError {
    /// A mistake in what was typed or in a file of the user's.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Something that is needed could not be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, message)
    }

    /// Stopped before anything was started.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted before the run began")
    }

    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            causes: Vec::new(),
            help: None,
        }
    }

    /// The same, with `error` and everything below it as its causes.
    #[must_use]
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Some libraries repeat their source's text in their own.
            if !self.causes.last().unwrap_or(&self.message).ends_with(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// The same, with what to do.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// In one sentence, its first causes included, and what to do.
    pub(crate) fn told(self) -> (String, Option<String>) {
        let mut parts = vec![self.message];
        parts.extend(self.causes);
        (parts.join(": "), self.help)
    }

    /// How the program ends with it.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// The whole text, with line ends.
    pub(crate) fn render(&self, style: Style) -> String {
        let indented = |text: &str| text.trim_end().replace('\n', "\n    ");
        let mut out = format!("{} {}\n", style.bad("error:"), indented(&self.message));
        for cause in &self.causes {
            out.push_str(&format!(
                "  {} {}\n",
                style.bold("caused by:"),
                indented(cause)
            ));
        }
        if let Some(help) = &self.help {
            out.push_str(&format!("  {} {}\n", style.good("help:"), indented(help)));
        }
        out
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {}

impl From<ValueError> for CliError {
    fn from(error: ValueError) -> Self {
        Self::usage(error.message).help(error.help)
    }
}
