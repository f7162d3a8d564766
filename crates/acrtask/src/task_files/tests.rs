//! Tests of parsing files into definitions and diagnostics.

use super::*;

fn parse(files: &[(&str, &str)]) -> TaskFiles {
    let mut declared = TaskFiles::default();
    for (name, text) in files {
        declared.add_text(name, text);
    }
    declared
}

const TWO: &str = "\
# Tasks of this folder.
name: app
context: https://github.com/org/app.git#main
registry: reg.example.com
---
name: nightly
cmd: reg.example.com/check:1
triggers:
  timers:
    night: {schedule: 0 3 * * *}
---
# nothing more
";

#[test]
fn file_contains_several_tasks() {
    let declared = parse(&[("tasks.yaml", TWO)]);
    assert!(declared.is_complete());
    let names: Vec<_> = declared
        .tasks
        .iter()
        .map(|task| (task.definition.name.as_str(), task.line))
        .collect();
    assert_eq!(names, [("app", 1), ("nightly", 5)]);
    let json = parse(&[("a.json", "{\"name\": \"a\", \"file\": \"b.yaml\"}")]);
    assert_eq!(json.tasks[0].definition.file.as_deref(), Some("b.yaml"));
}

/// Diagnostics have positions, and valid documents are kept.
#[test]
fn errors_do_not_affect_other_documents() {
    let declared = parse(&[
        (
            "a.yaml",
            "name: one\n---\nname: two\nconetxt: x\n---\nname: three\nqueue:\n  priority: high\n---\nname: [\n---\nname: four\n",
        ),
        ("b.yaml", "name: four\ncmd: x\n---\ncmd: y\n"),
    ]);
    let names: Vec<_> = declared
        .tasks
        .iter()
        .map(|task| task.definition.name.as_str())
        .collect();
    assert_eq!(names, ["one", "four"]);
    insta::assert_snapshot!(render_problems(&declared, false, 90));
}

#[test]
fn exported_task_can_be_applied() {
    for task in parse(&[("tasks.yaml", TWO)]).tasks {
        let text = to_yaml(&task.definition).unwrap();
        let again = parse(&[("again.yaml", &text)]);
        assert!(
            again.is_complete(),
            "{}",
            render_problems(&again, false, 90)
        );
        assert_eq!(again.tasks[0].definition, task.definition, "{text}");
    }
    // YAML reads these texts as other types if they are not quoted.
    let mut task = parse(&[("tasks.yaml", TWO)]).tasks.remove(0).definition;
    for text in [
        "yes",
        "1.0",
        "null",
        "a: b",
        " - x",
        "steps:\n  - cmd: a\n\n",
        "# c",
        "~",
        "\t",
    ] {
        task.text = Some(text.into());
        task.values.insert("v".into(), text.into());
        let again = parse(&[("again.yaml", &to_yaml(&task).unwrap())]);
        assert_eq!(again.tasks[0].definition, task, "{text:?}");
    }
}

#[test]
fn folder_is_read_recursively_in_name_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("b.yml", "name: b");
    file("sub/a.yaml", "name: a");
    file("README.md", "name: no");
    file(".hidden.yaml", "name: no");
    std::os::unix::fs::symlink("nowhere", folder.path().join("dead.yaml")).unwrap();
    let declared = super::read_folder(folder.path(), Path::new("tasks"));
    let found: Vec<_> = declared
        .tasks
        .iter()
        .map(|task| (task.definition.name.as_str(), task.source.as_str()))
        .collect();
    assert_eq!(found, [("b", "tasks/b.yml"), ("a", "tasks/sub/a.yaml")]);
    assert!(declared.is_complete());
    file("bad.yaml", "name: \u{0}");
    std::fs::write(folder.path().join("binary.yaml"), [0xff, 0xfe]).unwrap();
    let declared = super::read_folder(folder.path(), Path::new("tasks"));
    assert_eq!(declared.tasks.len(), 2);
    assert_eq!((declared.problems.len(), declared.unread.len()), (1, 1));
}

#[test]
fn key_at_the_wrong_level_gets_its_path_as_help() {
    let mut declared = TaskFiles::default();
    declared.add_text("a.yaml", "name: one\ncmd: x\nconcurrency:\n  max: 1\n");
    let text = render_problems(&declared, false, 90);
    assert!(
        text.contains("help: write `concurrency` under `queue:`; docs/task-definition.md"),
        "{text}"
    );
}
