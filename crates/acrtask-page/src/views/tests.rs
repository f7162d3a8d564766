//! Snapshots of small pages.

use acrtask_model::RunState;

use super::*;
use crate::LogLine;

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
        running_since: None,
    }
}

/// Compares a page with its snapshot, without the hashes of the static files.
fn check(name: &str, page: &impl Template) {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter("/assets/[0-9a-f]{16}/", "/assets/HASH/");
    let text = page.render().unwrap();
    settings.bind(|| insta::assert_snapshot!(name, text));
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
    check("list_of_runs_with_a_filter", &page);
}

#[test]
fn run_that_failed() {
    let line = LogLine::new("test", 7, "\x1b[31mfailed\x1b[0m <b>");
    let node = |name: &str, state: RunState| crate::GraphNode {
        name: name.into(),
        state: state.into(),
        url: Some(format!("/runs/r1/log?step={name}")),
    };
    let nodes = vec![
        node("build", RunState::Succeeded),
        node("lint", RunState::Succeeded),
        node("test", RunState::Failed),
    ];
    let page = RunPage {
        frame: frame("failed run r1", Section::Runs),
        head: RunHead {
            id: "r1".into(),
            state: RunState::Failed.into(),
            sentence: Foreign::line("The run failed after 1.2 s: step test failed."),
            task: Some("team/app".into()),
            created: moment(),
            started: Some(moment()),
            finished: Some(moment()),
            duration: "1.2 s".into(),
            running_since: None,
            runner: Some(Foreign::line("big")),
            attempt: 1,
            cached: "3 of 7".into(),
            facts: vec![("Branch", Foreign::line("<script>"))],
        },
        actions: RunActions {
            id: "r1".into(),
            cancel: true,
            rerun: true,
            approve: true,
            commit: Foreign::line("abc <b>"),
            log: true,
            failure_url: Some("/runs/r1/log?at=test:7#test%3AL7".into()),
        },
        causes: vec![Foreign::line("laptop requested it.")],
        delivery: Some("d1".into()),
        cascade: Some(7),
        rerun_of: Some("r0".into()),
        steps: RunSteps {
            id: "r1".into(),
            waits: Vec::new(),
            excerpt: Some(LogExcerpt {
                title: Foreign::line("Step test failed"),
                url: "/runs/r1/log?at=failure".into(),
                is_failure: true,
                lines: vec![line],
            }),
            graph: crate::StepGraph::new("Steps", nodes, vec![(0, 2), (1, 2)]),
            steps: vec![StepRow {
                id: Foreign::line("test"),
                log_url: "/runs/r1/log?step=test".into(),
                state: RunState::Failed.into(),
                line: Foreign::line("app test"),
                reason: Foreign::line("exit code 1"),
                duration: "1.0 s".into(),
                running_since: None,
                cached: "1 of 2".into(),
                bar: Some((100, 900)),
            }],
            is_final: true,
        },
        outcome: RunOutcome {
            images: vec![ImageRow {
                name: Foreign::line("r.io/app:1"),
                digest: "sha256:abc".into(),
                pull: Some("r.io/app@sha256:abc".into()),
                url: Some("/images/r.io/app%3A1".into()),
                step: Foreign::line("build"),
                result: "pushed",
            }],
            bases: Vec::new(),
        },
        is_live: false,
    };
    check("run_that_failed", &page);
}

#[test]
fn log_with_colors() {
    let lines = [
        ("", 1, "2 steps"),
        ("build", 1, "\x1b[32mok\x1b[0m <b>"),
        ("build", 2, "end"),
    ];
    let lines = lines.map(|(step, number, text)| LogLine::new(step, number, text));
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
        follows: false,
        failure_url: None,
        lines: lines.into(),
    };
    check("log_with_colors", &page);
}

#[test]
fn sign_in_with_a_problem() {
    let page = SignInPage {
        frame: Frame::new("Sign in", Section::Other, None),
        next: "/runs?a=\"b\"".into(),
        problem: Some(Foreign::line("the token is wrong")),
    };
    check("sign_in_with_a_problem", &page);
}

#[test]
fn templates_contain_only_the_own_script_and_no_style() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    let mut read = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let own = "<script type=\"module\" src=\"{{ frame.script_url() }}\"></script>";
        let text = text.replace(own, "");
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
