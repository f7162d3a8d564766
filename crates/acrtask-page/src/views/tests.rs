//! Snapshots of small pages.

use acrtask_model::RunState;

use super::*;

fn moment() -> Moment {
    let at = "2026-01-02T03:04:05Z".parse().unwrap();
    Moment::new(at, "2026-01-02T03:09:06Z".parse().unwrap())
}

fn frame(title: &str, section: Section) -> Frame {
    Frame::new(title, section, Some("laptop <1>"))
}

fn row(state: RunState, task: Option<&str>) -> RunRow {
    RunRow {
        id: "r1".into(),
        state: state.into(),
        task: task.map(str::to_owned),
        trigger: Foreign::line("manual by a\u{202e}b"),
        created: moment(),
        duration: "1.2 s".into(),
    }
}

#[test]
fn list_of_runs_with_a_filter() {
    let page = RunsPage {
        frame: frame("Runs", Section::Runs),
        filters: RunFilters {
            state: Some("failed".into()),
            task: Some("team/*".into()),
            since: None,
        },
        is_continued: false,
        runs: vec![
            row(RunState::Failed, Some("team/app")),
            row(RunState::Failed, None),
        ],
        next: Some("1:r1".into()),
    };
    insta::assert_snapshot!(page.render().unwrap());
}

#[test]
fn run_that_failed() {
    let page = RunPage {
        frame: frame("failed run r1", Section::Runs),
        id: "r1".into(),
        state: RunState::Failed.into(),
        sentence: Foreign::line("The run failed after 1.2 s: step test failed."),
        task: Some("team/app".into()),
        causes: vec![Foreign::line("laptop requested it.")],
        rerun_of: Some("r0".into()),
        created: moment(),
        started: Some(moment()),
        finished: Some(moment()),
        runner: Some(Foreign::line("big")),
        attempt: 1,
        facts: vec![("Branch", Foreign::line("<script>"))],
        waits: Vec::new(),
        steps: vec![StepRow {
            id: Foreign::line("test"),
            state: RunState::Failed.into(),
            reason: Foreign::line("exit code 1"),
            duration: "1.0 s".into(),
        }],
        images: vec![ImageRow {
            name: Foreign::line("r.io/app:1"),
            digest: "sha256:abc".into(),
            step: Foreign::line("build"),
            result: "built, not pushed",
        }],
        bases: Vec::new(),
        is_final: true,
        opens_at_end: true,
    };
    insta::assert_snapshot!(page.render().unwrap());
}

#[test]
fn log_with_colors() {
    let lines = [
        ("", 1, "2 steps"),
        ("build", 1, "\x1b[32mok\x1b[0m <b>"),
        ("build", 2, "end"),
    ];
    let lines = lines.map(|(step, number, text)| crate::LogLine::new(step, number, text));
    let page = LogPage {
        frame: frame("Log of run r1", Section::Runs),
        id: "r1".into(),
        state: RunState::Running.into(),
        attempt: 2,
        attempts: vec![1, 2],
        step: None,
        first: 1,
        previous: None,
        next: Some(501),
        is_live: true,
        lines: lines.into(),
    };
    insta::assert_snapshot!(page.render().unwrap());
}

#[test]
fn sign_in_with_a_problem() {
    let page = SignInPage {
        frame: Frame::new("Sign in", Section::Other, None),
        next: "/runs?a=\"b\"".into(),
        problem: Some(Foreign::line("the token is wrong")),
    };
    insta::assert_snapshot!(page.render().unwrap());
}

#[test]
fn templates_contain_no_script_and_no_style() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    let mut read = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for banned in [
            "<script",
            "style=",
            "|safe",
            "| safe",
            "<style",
            "{% autoescape",
        ] {
            assert!(!text.contains(banned), "{} has {banned}", path.display());
        }
        read += 1;
    }
    assert!(read > 10, "{read}");
}
