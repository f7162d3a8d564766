//! Lines of the corpus that no run executes.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::fmt::Write as _;

use acrtask_spec::{
    RunVariables, TaskSource,
    cmd_line::{CmdLine, CommandKind, RunFlags, WordPart},
    plan::StepKind,
    resolve,
};
use common::{TestLookup, corpus_folder, read_cases, run_variables};

/// Returns `true` if the reference executor's shell does more with the line than split it.
fn needs_shell_features(line: &CmdLine) -> bool {
    let [command] = line.first.commands.as_slice() else {
        return true;
    };
    let is_literal = |words: &[acrtask_spec::cmd_line::Word]| {
        words
            .iter()
            .flat_map(|word| &word.parts)
            .all(|part| matches!(part, WordPart::Text(_)))
    };
    let plain = match &command.kind {
        CommandKind::Container(container) => {
            container.flags == RunFlags::default() && is_literal(&container.args)
        }
        CommandKind::Docker(words) | CommandKind::Acr(words) | CommandKind::Builtin(words) => {
            is_literal(words)
        }
    };
    !line.rest.is_empty() || !command.redirects.is_empty() || !plain
}

#[test]
fn refused_corpus_lines_match_the_snapshot() {
    let Some(folder) = corpus_folder() else {
        return;
    };
    let mut seen = Vec::new();
    let mut out = String::new();
    let (mut cmds, mut builds, mut accepted, mut refused_cmds) = (0, 0, 0, 0);
    for case in read_cases(&folder) {
        let variables = RunVariables {
            set: case.set.clone(),
            ..run_variables()
        };
        let source = TaskSource {
            name: case.name.clone(),
            text: case.text,
        };
        let Some(plan) = resolve(&source, &variables, &TestLookup).plan else {
            continue;
        };
        for step in &plan.steps {
            let (kind, raw, refused) = match &step.kind {
                StepKind::Build(build) => {
                    builds += 1;
                    ("build", &build.raw, build.line.as_ref().err())
                }
                StepKind::Cmd(cmd) => {
                    cmds += 1;
                    match &cmd.line {
                        Ok(line) => accepted += usize::from(needs_shell_features(line)),
                        Err(_) => refused_cmds += 1,
                    }
                    ("cmd", &cmd.raw, cmd.line.as_ref().err())
                }
                StepKind::Push(_) => continue,
            };
            let Some(refused) = refused else { continue };
            if seen.contains(raw) {
                continue;
            }
            seen.push(raw.clone());
            let help = refused.help.as_deref().unwrap_or_default();
            let short = |text: &str| -> String {
                let line = text.replace('\n', "⏎");
                if line.chars().count() > 200 {
                    line.chars().take(200).chain("...".chars()).collect()
                } else {
                    line
                }
            };
            writeln!(
                out,
                "{kind}: {}\n  at:   {}\n  why:  {}\n  help: {}",
                short(raw),
                short(&raw[refused.span.clone()]),
                refused.message,
                short(help)
            )
            .unwrap();
        }
    }
    insta::assert_snapshot!(format!(
        "{cmds} cmds: {accepted} use features of a shell and run, {refused_cmds} are refused; {builds} builds
refused, each once:
{out}"
    ));
}
