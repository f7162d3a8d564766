//! What the user is told: one line before each thing that is done. Standard error only, so that
//! standard output stays free for data (`cargo xtask env`).

use std::fmt::Display;
use std::io::IsTerminal;

/// Announces a thing that is about to be done.
pub(crate) fn doing(what: impl Display) {
    line("==>", "1;34", what);
}

/// Reports a fact that was found, under the announcement before it.
pub(crate) fn found(what: impl Display) {
    line("   ", "0", what);
}

/// Reports the good end of a command.
pub(crate) fn done(what: impl Display) {
    line(" ok", "1;32", what);
}

/// Reports that a command failed, with everything that led to it.
pub(crate) fn failed(error: &anyhow::Error) {
    line("error:", "1;31", error);
    for cause in error.chain().skip(1) {
        line("  because:", "31", cause);
    }
}

fn line(mark: &str, colour: &str, what: impl Display) {
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        eprintln!("\x1b[{colour}m{mark}\x1b[0m {what}");
    } else {
        eprintln!("{mark} {what}");
    }
}
