//! Task files in `tests/cases`. Each has a snapshot of its diagnostics, its plan as JSON and its
//! plan as text.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of a #[test]")]

mod common;

use std::path::Path;

use acrtask_spec::{TaskSource, plan_json, plan_text, render_diagnostics, resolve};
use common::{TestLookup, run_variables};

fn assert_snapshot(name: &str, text: String) {
    let source = TaskSource {
        name: format!("{name}.yaml"),
        text,
    };
    let resolution = resolve(&source, &run_variables(), &TestLookup);
    let mut out = render_diagnostics(&source, &resolution.for_plan(), false, 100);
    if let Some(plan) = &resolution.plan {
        out += &format!("\n{}", plan_text(plan, false, 100));
        out += "\n";
        for step in plan_json(plan)["steps"].as_array().unwrap() {
            // Only values that are not empty. The corpus covers every key.
            let shown: Vec<String> = step
                .as_object()
                .unwrap()
                .iter()
                .filter(|(_, value)| {
                    let text = value.to_string();
                    !["\"\"", "[]", "false", "0"].contains(&text.as_str())
                })
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            out += &format!("{}\n", shown.join(" "));
        }
    }
    assert_eq!(
        resolution.plan.is_none(),
        resolution
            .diagnostics
            .iter()
            .any(acrtask_spec::Diagnostic::is_error)
    );
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false, snapshot_path => "cases" }, {
        insta::assert_snapshot!(name, out);
    });
}

#[test]
fn task_files_match_their_snapshots() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    paths.sort();
    assert!(paths.len() > 20, "the cases are missing");
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_snapshot(&name, std::fs::read_to_string(&path).unwrap());
    }
}

/// Bytes that an editor would change.
#[test]
fn unusual_bytes_match_their_snapshots() {
    assert_snapshot(
        "byte-order-mark",
        "\u{feff}version: v1.1.0\nsteps:\n  - cmd: bash echo $ID\n    When: [x]\n".into(),
    );
    assert_snapshot(
        "crlf",
        "version: v1.1.0\r\n# a comment\r\nsteps:\r\n  - cmd: |\r\n      bash echo one \\\r\n        two $ID\r\n    tiemout: 5\r\n".into(),
    );
    assert_snapshot(
        "crlf-v1.0.0",
        "version: v1.0.0\r\nsteps:\r\n  - build: >\r\n      -t app\r\n      .\r\n".into(),
    );
    assert_snapshot("tabs", "steps:\n\t- cmd: alpine\n".into());
    assert_snapshot(
        "tab-in-step",
        "steps:\n  - cmd: alpine\n\t  timeout: 5\n".into(),
    );
    assert_snapshot("empty", String::new());
    assert_snapshot(
        "no-end-of-line",
        "steps:\n  - build: |\n      -t app .".into(),
    );
}

#[test]
fn diagnostics_convert_to_json() {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: "steps:\n  - id: ä\n    cmd: alpine\n    When: x\n  - id: ä\n    build: .\n    cmd: alpine\n".into(),
    };
    let resolution = resolve(&source, &run_variables(), &TestLookup);
    let json: Vec<_> = resolution
        .for_plan()
        .iter()
        .map(|d| d.to_json(&source))
        .collect();
    insta::with_settings!({ omit_expression => true, sort_maps => false }, { insta::assert_json_snapshot!(json) });
}

#[test]
fn diagnostics_and_plan_are_colored() {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: "steps:\n  - cmd: alpine $X\n    When: x\n".into(),
    };
    let resolution = resolve(&source, &run_variables(), &TestLookup);
    let shown = render_diagnostics(&source, &resolution.for_run(), true, 60);
    let text = plan_text(resolution.plan.as_ref().unwrap(), true, 60);
    insta::with_settings!({ omit_expression => true }, {
        insta::assert_snapshot!(format!("{shown}{text}").replace('\u{1b}', "<esc>"));
    });
}

#[test]
fn long_lines_are_not_shown() {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: format!(
            "steps:\n  - cmd: alpine {}\n    When: x\n",
            "x".repeat(5000)
        ),
    };
    let shown = render_diagnostics(
        &source,
        &resolve(&source, &run_variables(), &TestLookup).for_plan(),
        false,
        80,
    );
    assert!(
        shown.contains("task.yaml:3:5: a step has no key `When`"),
        "{shown}"
    );
    assert!(shown.len() < 500);
}

/// A missing `-r` is one error, however often the registry is used.
#[test]
fn empty_registry_is_one_error() {
    let variables = acrtask_spec::RunVariables {
        registry: String::new(),
        ..run_variables()
    };
    let source = TaskSource {
        name: "task.yaml".into(),
        text: "version: v1.1.0\nsteps:\n  - build: -t $Registry/app:$ID -t {{.Run.Registry}}/app:latest .\n  \
               - cmd: $Registry/app:$ID test\n  - push: [$Registry/app:$ID]\n"
            .into(),
    };
    let resolution = resolve(&source, &variables, &TestLookup);
    let refused: Vec<_> = resolution
        .for_run()
        .into_iter()
        .filter(|diagnostic| diagnostic.is_error())
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].message.contains("`$Registry` is empty"));
    assert!(refused[0].help.as_deref().unwrap().contains("`-r HOST`"));
    assert_eq!(refused[0].labels.len(), 3);
}

/// Settings of a run that change the plan.
#[test]
fn run_settings_change_the_plan() {
    let variables = acrtask_spec::RunVariables {
        images: [
            ("bash".into(), "mirror.example.com/bash:1".into()),
            ("own".into(), "own:1".into()),
        ]
        .into(),
        env: vec!["A=flag,B=flag".into(), "C=flag".into()],
        secrets: vec![("unknown".into(), acrtask_model::Secret::new("given"))],
        set: vec![("v".into(), "set".into())],
        values: acrtask_spec::values_from_yaml("{v: file, w: [1, two]}")
            .unwrap()
            .values,
        ..run_variables()
    };
    let text = "version: v1.1.0\nenv: [A=file]\nsecrets: [{id: unknown, keyvault: x}]\nsteps:\n  \
                - cmd: bash {{.Values.v}} {{index .Values.w 1}} {{.Secrets.unknown}}\n  - cmd: own\n";
    let source = TaskSource {
        name: "task.yaml".into(),
        text: text.into(),
    };
    let resolution = resolve(&source, &variables, &TestLookup);
    let plan = plan_json(resolution.plan.as_ref().unwrap());
    assert_eq!(
        plan["steps"][0]["cmd"],
        "mirror.example.com/bash:1 set two given"
    );
    assert_eq!(plan["steps"][1]["cmd"], "own:1");
    assert_eq!(
        plan["steps"][0]["env"],
        serde_json::json!(["A=file", "B=flag", "C=flag"])
    );
    assert!(plan_text(resolution.plan.as_ref().unwrap(), false, 80).contains("set two ***"));
}
