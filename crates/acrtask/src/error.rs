//! Errors of the program for the user: the message, its causes, and the remedy.

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
    /// Creates an error about the command line or a file of the user.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Creates an error about a service that could not be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unreachable, message)
    }

    /// Creates the error for an interruption before anything was started.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted before the run started")
    }

    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            causes: Vec::new(),
            help: None,
        }
    }

    /// Adds `error` and its sources as causes.
    #[must_use]
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Some libraries repeat the text of the source in their own.
            if !self.causes.last().unwrap_or(&self.message).ends_with(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Adds the remedy.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Returns the message and its causes in one line, and the remedy.
    pub(crate) fn into_message_and_help(self) -> (String, Option<String>) {
        let mut parts = vec![self.message];
        parts.extend(self.causes);
        (parts.join(": "), self.help)
    }

    /// Returns the outcome of a program that ends with this error.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Returns the whole text, with line breaks.
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
