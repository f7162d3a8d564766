//! The cmd lines of the corpus that no run carries out.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::fmt::Write as _;

use acrtask_spec::{RunFacts, TaskSource, plan::StepKind, resolve};
use common::{World, cases, corpus, facts};

#[test]
fn refused_lines_of_the_corpus() {
    let Some(folder) = corpus() else { return };
    let mut seen = Vec::new();
    let mut out = String::new();
    let (mut cmds, mut builds) = (0, 0);
    for case in cases(&folder) {
        let facts = RunFacts {
            set: case.set.clone(),
            ..facts()
        };
        let source = TaskSource {
            name: case.name.clone(),
            text: case.text,
        };
        let Some(plan) = resolve(&source, &facts, &World).plan else {
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
        "{cmds} cmds, {builds} builds; refused, each once:\n{out}"
    ));
}
