//! Files in, definitions and mistakes out.

use super::*;

fn read(files: &[(&str, &str)]) -> Declared {
    let mut declared = Declared::default();
    for (name, text) in files {
        declared.read(name, text);
    }
    declared
}

const TWO: &str = "\
# What this folder builds.
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
fn a_file_holds_tasks() {
    let declared = read(&[("tasks.yaml", TWO)]);
    assert!(declared.is_whole());
    let names: Vec<_> = declared
        .tasks
        .iter()
        .map(|task| (task.definition.name.as_str(), task.line))
        .collect();
    assert_eq!(names, [("app", 1), ("nightly", 5)]);
    let json = read(&[("a.json", "{\"name\": \"a\", \"file\": \"b.yaml\"}")]);
    assert_eq!(json.tasks[0].definition.file.as_deref(), Some("b.yaml"));
}

/// Each mistake where it stands; what is right is there all the same.
#[test]
fn mistakes_lose_nothing_else() {
    let declared = read(&[
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
    insta::assert_snapshot!(shown(&declared, false, 90));
}

#[test]
fn what_is_exported_can_be_applied() {
    for task in read(&[("tasks.yaml", TWO)]).tasks {
        let text = yaml(&task.definition).unwrap();
        let again = read(&[("again.yaml", &text)]);
        assert!(again.is_whole(), "{}", shown(&again, false, 90));
        assert_eq!(again.tasks[0].definition, task.definition, "{text}");
    }
    // Texts that YAML would read as something else.
    let mut task = read(&[("tasks.yaml", TWO)]).tasks.remove(0).definition;
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
        let again = read(&[("again.yaml", &yaml(&task).unwrap())]);
        assert_eq!(again.tasks[0].definition, task, "{text:?}");
    }
}

#[test]
fn a_folder() {
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
    let declared = super::folder(folder.path(), Path::new("tasks"));
    let found: Vec<_> = declared
        .tasks
        .iter()
        .map(|task| (task.definition.name.as_str(), task.source.as_str()))
        .collect();
    assert_eq!(found, [("b", "tasks/b.yml"), ("a", "tasks/sub/a.yaml")]);
    assert!(declared.is_whole());
    file("bad.yaml", "name: \u{0}");
    std::fs::write(folder.path().join("binary.yaml"), [0xff, 0xfe]).unwrap();
    let declared = super::folder(folder.path(), Path::new("tasks"));
    assert_eq!(declared.tasks.len(), 2);
    assert_eq!((declared.problems.len(), declared.unread.len()), (1, 1));
}

#[test]
fn key_at_the_wrong_level_is_shown_with_its_own() {
    let mut declared = Declared::default();
    declared.read("a.yaml", "name: one\ncmd: x\nconcurrency:\n  max: 1\n");
    let text = shown(&declared, false, 90);
    assert!(
        text.contains("help: write `concurrency` under `queue:`; docs/task-definition.md"),
        "{text}"
    );
}
