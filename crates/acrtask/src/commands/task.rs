//! What the commands that read a task file have in common.

use acrtask_spec::{Diagnostic, TaskSource};
use serde_json::{Map, Value};

use crate::{args::task::FactArgs, error::CliError, render::style::Style};

/// `--registry` as references have it: `https://reg.example.com/` is `reg.example.com`.
pub(crate) fn registry(args: &FactArgs) -> Option<String> {
    let text = args.registry.as_deref()?;
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    Some(host.trim_end_matches('/').to_owned()).filter(|host| !host.is_empty())
}

/// Says on standard error what was found in a task file, if anything.
pub(crate) fn tell(source: &TaskSource, diagnostics: &[Diagnostic], style: Style) {
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

/// Reads a values file, and shows what is odd about it.
pub(crate) fn read_values(name: &str, text: &str) -> Result<Map<String, Value>, CliError> {
    let file = acrtask_spec::values_from_yaml(text)
        .map_err(|diagnostic| unusable("values", name, text, diagnostic))?;
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

/// Of a text of the user's that holds something else than `what`: what is wrong with it, with its place.
pub(crate) fn unusable(what: &str, name: &str, text: &str, diagnostic: Diagnostic) -> CliError {
    let source = TaskSource {
        name: name.into(),
        text: text.into(),
    };
    let shown = acrtask_spec::render_diagnostics(&source, &[diagnostic], false, terminal_width());
    CliError::usage(format!("the {what} in {name} cannot be used\n{shown}"))
}

/// Columns to write text in: those of the terminal, or as many as a usual one has.
pub(crate) fn terminal_width() -> usize {
    let terminal = console::Term::stderr()
        .size_checked()
        .map(|(_, columns)| usize::from(columns));
    terminal.unwrap_or(100).clamp(40, 140)
}
