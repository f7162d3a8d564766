//! What the README shows of a command that needs no engine is what the command prints.

use acrtask_tests::{World, checkout};

/// The blocks of `text` that begin with `$ acrtask`: the command's words, and what follows it.
fn shown(text: &str) -> Vec<(Vec<&str>, &str)> {
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
fn shows_what_the_program_prints() {
    let Some(world) = World::find() else { return };
    let readme = std::fs::read_to_string(checkout().join("README.md"));
    let readme = readme.expect("the project has a README");
    let blocks = shown(&readme);
    assert_eq!(blocks.len(), 2, "the README shows two commands");
    for (args, output) in blocks {
        let printed = world
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
