//! Functions shared by the commands that read a task file.

use acrtask_spec::{Diagnostic, TaskSource};
use serde_json::{Map, Value};

use crate::{args::task_file::RunVariableArgs, error::CliError, render::style::Style};

/// Returns the host of `--registry`: `reg.example.com` for `https://reg.example.com/`.
pub(crate) fn registry_host(args: &RunVariableArgs) -> Option<String> {
    let text = args.registry.as_deref()?;
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    Some(host.trim_end_matches('/').to_owned()).filter(|host| !host.is_empty())
}

/// Prints the diagnostics of a task file on standard error.
pub(crate) fn print_diagnostics(source: &TaskSource, diagnostics: &[Diagnostic], style: Style) {
    if !diagnostics.is_empty() {
        let text = acrtask_spec::render_diagnostics(
            source,
            diagnostics,
            style.is_colored(),
            terminal_width(),
        );
        super::remote::write_error(&text);
    }
}

/// Parses a values file and prints its warnings.
pub(crate) fn read_values(name: &str, text: &str) -> Result<Map<String, Value>, CliError> {
    let file = acrtask_spec::values_from_yaml(text)
        .map_err(|diagnostic| invalid_file_error("values", name, text, diagnostic))?;
    if !file.warnings.is_empty() {
        let source = TaskSource {
            name: name.into(),
            text: text.into(),
        };
        let width = terminal_width();
        super::remote::write_error(&acrtask_spec::render_diagnostics(
            &source,
            &file.warnings,
            false,
            width,
        ));
    }
    Ok(file.values)
}

/// Creates the error for a file that is not a valid `what`, with the position of the problem.
pub(crate) fn invalid_file_error(
    what: &str,
    name: &str,
    text: &str,
    diagnostic: Diagnostic,
) -> CliError {
    let source = TaskSource {
        name: name.into(),
        text: text.into(),
    };
    let shown = acrtask_spec::render_diagnostics(&source, &[diagnostic], false, terminal_width());
    CliError::usage(format!("the {what} in {name} are invalid\n{shown}"))
}

/// Returns the width for diagnostics: the terminal's columns, limited to 40 to 140; 100 without a
/// terminal.
pub(crate) fn terminal_width() -> usize {
    let terminal = console::Term::stderr()
        .size_checked()
        .map(|(_, columns)| usize::from(columns));
    terminal.unwrap_or(100).clamp(40, 140)
}
