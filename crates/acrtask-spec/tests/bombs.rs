//! Texts that would cost much time and memory. This file is a separate program, so that its peak
//! memory is that of these tests.

mod common;

use std::time::{Duration, Instant};

use acrtask_spec::{TaskSource, plan_text, render_diagnostics, resolve};
use common::{TestLookup, run_variables};

/// Maximum time for each text. A bomb that expands takes minutes.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns the peak memory of this process, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

fn nested_aliases(depth: usize, width: usize) -> String {
    let mut text = String::from("a0: &a0 [x]\n");
    for i in 1..depth {
        text += &format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", i - 1).repeat(width));
    }
    text
}

#[test]
fn bombs_are_refused_in_time() {
    let bombs: Vec<(&str, String, Option<&str>)> = vec![
        ("aliases", nested_aliases(30, 9), Some("too-large")),
        ("a chain of aliases", nested_aliases(4000, 1), Some("too-deep")),
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
        ("many unknown keys", (0..9_000).fold("steps:\n- cmd: b\n".into(), |text, i| text + &format!("  k{i}: 1\n")), None),
        ("many volumes and mounts", format!(
            "version: v1.1.0\nvolumes:\n{}steps:\n- cmd: a\n  volumeMounts:\n{}",
            (0..1_800).fold(String::new(), |text, i| text + &format!("- {{name: v{i}, secret: {{a: b}}}}\n")),
            (0..1_800).fold(String::new(), |text, i| text + &format!("  - {{name: w{i}, mountPath: /x}}\n")),
        ), Some("mount")),
        ("many pushed images", format!("steps:\n- push: [{}]\n", (0..14_000).fold(String::new(), |text, i| text + &format!("a{i}, "))), None),
        ("a long id", format!("steps:\n- {{id: {}, cmd: a}}\n", "a".repeat(129)), Some("step-id")),
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
    let before = peak_kib();
    for (name, text, code) in bombs {
        let source = TaskSource {
            name: name.into(),
            text,
        };
        let started = Instant::now();
        let resolution = resolve(&source, &run_variables(), &TestLookup);
        let took = started.elapsed();
        let shown = render_diagnostics(&source, &resolution.for_plan(), false, 100);
        let text_of_plan = resolution
            .plan
            .as_ref()
            .map(|plan| plan_text(plan, false, 100));
        let size = shown.len() + text_of_plan.map_or(0, |text| text.len());
        assert!(size < 2 << 20, "{name} produces {size} bytes");
        println!("{name}: {took:?}, peak {} KiB", peak_kib());
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
    let used = peak_kib() - before;
    assert!(used < 64 << 10, "{used} KiB");
}
