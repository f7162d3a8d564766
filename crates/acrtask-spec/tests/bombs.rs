//! Texts made to cost time and memory. This file is a program of its own, so that its peak memory is that
//! of these tests.

mod common;

use std::time::{Duration, Instant};

use acrtask_spec::{TaskSource, plan_text, render_diagnostics, resolve};
use common::{World, facts};

/// What each may take: 50 ms, and more where the compiler did not optimize.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 50 });

/// Peak memory of this process so far, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn laughs(depth: usize, width: usize) -> String {
    let mut text = String::from("a0: &a0 [x]\n");
    for i in 1..depth {
        text += &format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", i - 1).repeat(width));
    }
    text
}

#[test]
fn bombs_are_refused_in_time() {
    let bombs: Vec<(&str, String, Option<&str>)> = vec![
        ("aliases", laughs(30, 9), Some("too-large")),
        ("a chain of aliases", laughs(4000, 1), Some("too-deep")),
        ("merges", {
            let mut text = String::from("a0: &a0 {x: 1}\n");
            for i in 1..25 {
                text += &format!("a{i}: &a{i} {{<<: [*a{0}, *a{0}, *a{0}]}}\n", i - 1);
            }
            text + "steps:\n  - <<: *a24\n"
        }, Some("too-large")),
        ("brackets", "[".repeat(100_000), Some("too-deep")),
        ("braces", "{a: ".repeat(30_000), Some("too-deep")),
        ("dashes", "- ".repeat(60_000), Some("too-deep")),
        ("a template that never ends", "{{ range $i := until 1000000 }}{{ range $j := until 1000000 }}x{{ end }}{{ end }}".into(), Some("template")),
        ("huge output", "steps:\n  - cmd: {{ repeat 1000000000 \"x\" }}\n".into(), Some("template")),
        ("output in a loop", "{{ range until 100000 }}{{ repeat 10000 \"x\" }}{{ end }}".into(), Some("template")),
        ("steps in a loop", "steps:\n{{ range until 100000 }}- {cmd: x, push: []}\n{{ end }}".into(), Some("template")),
        ("recursion", "{{ define \"a\" }}{{ template \"a\" . }}{{ template \"a\" . }}{{ end }}{{ template \"a\" . }}".into(), Some("template")),
        ("alias values", format!("version: v1.1.0\nalias:\n  values:\n    a: {}\nsteps:\n  - cmd: {}\n", "x".repeat(10_000), "$a".repeat(10_000)), Some("too-large")),
        ("a large file", "x".repeat(2 << 20), Some("too-large")),
        ("many unknown names", (0..2400).fold("steps:\n".into(), |text, i| text + &format!("- {{id: a{i}, cmd: x, when: [b{i}]}}\n")), Some("when")),
        ("many bare dashes", (0..2400).fold("steps:\n".into(), |text, i| text + &format!("- {{id: a{i}, cmd: x, when: [-]}}\n")), Some("yaml")),
        ("a long cycle", (0..2400).fold("steps:\n".into(), |text, i| text + &format!("- {{id: a{i}, cmd: x, when: [a{}]}}\n", (i + 1) % 2400)), Some("cycle")),
        ("a refused line of escapes", format!("steps:\n- cmd: \"a $X {}\"\n", "\\u0041".repeat(20_000)), None),
        ("many refused lines", format!("steps:\n{}", "- cmd: a `x`\n".repeat(9000)), None),
        ("a long line that is refused", format!("steps:\n- cmd: a {}\n", "`".repeat(120_000)), None),
        ("variables for each of many steps", format!(
            "env:\n{}steps:\n{}",
            (0..4000).fold(String::new(), |text, i| text + &format!("- a{i}=1\n")),
            "- cmd: a\n".repeat(6000),
        ), Some("too-large")),
        ("a folder for each of many steps", format!(
            "workingDirectory: {}\nsteps:\n{}",
            "a".repeat(60_000),
            "- cmd: a\n".repeat(6000),
        ), Some("too-large")),
        ("many quotes", format!("steps:\n- cmd: a {} $X\n", "\\\"".repeat(60_000)), None),
    ];
    let before = peak();
    for (name, text, code) in bombs {
        let source = TaskSource {
            name: name.into(),
            text,
        };
        let started = Instant::now();
        let resolution = resolve(&source, &facts(), &World);
        let took = started.elapsed();
        let shown = render_diagnostics(&source, &resolution.for_plan(), false, 100);
        let pictured = resolution
            .plan
            .as_ref()
            .map(|plan| plan_text(plan, false, 100));
        let size = shown.len() + pictured.map_or(0, |picture| picture.len());
        assert!(size < 2 << 20, "{name} is answered with {size} bytes");
        println!("{name}: {took:?}, peak {} KiB", peak());
        let codes: Vec<&str> = resolution.diagnostics.iter().map(|d| &*d.code).collect();
        match code {
            Some(code) => assert!(
                codes.contains(&code),
                "{name}: {:?}",
                resolution.diagnostics
            ),
            None => assert!(resolution.plan.is_some(), "{name}: {codes:?}"),
        }
        assert!(took < LIMIT, "{name} took {took:?}");
    }
    let used = peak() - before;
    assert!(used < 64 << 10, "{used} KiB");
}
