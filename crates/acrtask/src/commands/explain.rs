//! `acrtask explain`: prints the documentation of diagnostic codes.

use std::fmt::Write as _;

use acrtask_spec::Code;

use crate::{error::CliError, exit::Exit};

/// Prints the page of a code. Without a code, prints a list of all codes.
pub(crate) fn explain(code: Option<Code>) -> Result<Exit, CliError> {
    match code {
        Some(code) => super::print(code.page().as_bytes()),
        None => super::print(list_codes().as_bytes()),
    }
}

fn list_codes() -> String {
    let width = Code::ALL.iter().map(|code| code.as_str().len()).max();
    let width = width.unwrap_or_default();
    let mut out = String::new();
    for code in Code::ALL {
        let _ = writeln!(out, "{:width$}  {}", code.as_str(), code.summary());
    }
    out
}
