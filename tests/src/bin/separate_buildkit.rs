//! Starts a separate BuildKit, prints its URL, and stops it when standard input ends.
//! `cargo xtask test` starts this program for tests that need a buildkitd.

use std::io::{Read as _, Write as _};

fn main() -> std::io::Result<()> {
    let Some(buildkit) = acrtask_tests::separate_buildkit::SeparateBuildkit::start() else {
        return Err(std::io::Error::other(
            "this machine cannot run a second engine",
        ));
    };
    let mut output = std::io::stdout();
    writeln!(output, "{}", buildkit.unix)?;
    output.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
