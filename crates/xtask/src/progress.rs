//! Progress lines on standard error: one before each action. Standard output carries data only
//! (`cargo xtask env`).

use std::fmt::Display;
use std::io::IsTerminal;

/// Announces an action before it starts.
pub(crate) fn announce(what: impl Display) {
    print_line("==>", "1;34", what);
}

/// Reports a fact about the action announced last.
pub(crate) fn report(what: impl Display) {
    print_line("   ", "0", what);
}

/// Reports the success of a command.
pub(crate) fn finish(what: impl Display) {
    print_line(" ok", "1;32", what);
}

/// Reports the failure of a command with all its causes.
pub(crate) fn fail(error: &anyhow::Error) {
    print_line("error:", "1;31", error);
    for cause in error.chain().skip(1) {
        print_line("  because:", "31", cause);
    }
}

fn print_line(mark: &str, colour: &str, what: impl Display) {
    if std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        eprintln!("\x1b[{colour}m{mark}\x1b[0m {what}");
    } else {
        eprintln!("{mark} {what}");
    }
}
