//! Commands of the getting-started guide that need no engine: their output must match the guide.

use acrtask_tests::{TestEnvironment, checkout};

/// Returns the blocks of `text` that begin with `$ acrtask`: the arguments of the command and its
/// output.
fn parse_commands(text: &str) -> Vec<(Vec<&str>, &str)> {
    text.split("\n```\n$ acrtask ")
        .skip(1)
        .filter_map(|rest| {
            let (command, rest) = rest.split_once('\n')?;
            let (output, _) = rest.split_once("\n```")?;
            Some((command.split_whitespace().collect(), output))
        })
        .collect()
}

#[test]
fn guide_shows_the_output_of_the_program() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let guide = std::fs::read_to_string(checkout().join("docs/getting-started.md"));
    let guide = guide.expect("the project has a getting-started guide");
    let blocks = parse_commands(&guide);
    assert_eq!(blocks.len(), 2, "the guide shows two commands");
    for (args, output) in blocks {
        let printed = environment
            .command()
            .args(&args)
            .current_dir(checkout())
            .env("NO_COLOR", "1")
            .output();
        let printed = printed.expect("the program starts");
        let text = [printed.stdout, printed.stderr].concat();
        assert_eq!(
            String::from_utf8_lossy(&text).trim_end(),
            output.trim_end(),
            "{args:?}"
        );
    }
}
