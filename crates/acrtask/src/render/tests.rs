//! Snapshot tests with recorded runs. `testdata/NAME.jsonl` contains the events; the snapshots
//! beside this file contain the plain log with its summary, and the frames on a terminal.

use std::fmt::Write as _;

use acrtask_model::{Event, EventKind};
use jiff::{SignedDuration, Timestamp};

use super::{
    Form, Output, Renderer,
    frame::{Size, render_frame},
    style::Style,
    summary,
    view::RunView,
};

fn events(name: &str) -> Vec<Event> {
    let path = format!(
        "{}/src/render/testdata/{name}.jsonl",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read_to_string(&path)
        .expect("the recorded run is there")
        .lines()
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{path}:{}: {e}", at + 1))
        })
        .collect()
}

fn render(name: &str, form: Form) -> String {
    let mut bytes = Vec::new();
    let mut renderer = Renderer::new(form, Output::new(&mut bytes));
    for event in events(name) {
        let time = event.time;
        renderer.accept(&event.into());
        renderer.draw(false, time);
    }
    let view = renderer.finish();
    let mut text = String::from_utf8(bytes).unwrap();
    if let Some(verdict) = summary::failure_message(&view) {
        let _ = write!(text, "\n-- standard error --\n{verdict}\n");
    }
    text
}

/// Returns the frame after each second of a run.
fn frames(name: &str, size: Size) -> String {
    let events = events(name);
    let start = events[0].time;
    let end = events[events.len() - 1].time;
    let mut view = RunView::default();
    let mut coming = events.iter().peekable();
    let mut text = String::new();
    let mut now = start;
    while now < end {
        while let Some(event) = coming.next_if(|event| event.time <= now) {
            view.apply(event);
        }
        let _ = writeln!(text, "--- after {}s", now.duration_since(start).as_secs());
        let lines = render_frame(&view, false, now, size, Style::PLAIN);
        assert!(
            lines.len() < size.rows,
            "the frame is higher than the screen"
        );
        for line in lines {
            assert!(
                super::text::display_width(&line) < size.columns,
                "too wide: {line:?}"
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        now += SignedDuration::from_secs(1);
    }
    text
}

#[test]
fn successful_run_as_plain_lines() {
    insta::assert_snapshot!(render("succeeded", Form::Plain(Style::PLAIN)));
}

#[test]
fn staged_images_are_marked_in_the_summary() {
    let mut view = RunView::default();
    for mut event in events("succeeded") {
        if let EventKind::ImagePushed { tag_deferred, .. } = &mut event.kind {
            *tag_deferred = true;
        }
        view.apply(&event);
    }
    let text = summary::render_summary(&view, Style::PLAIN);
    let (_, images) = text.split_once("Images\n").unwrap();
    let first = images.lines().next().unwrap();
    assert!(first.ends_with("  staged (no tag yet)"), "{text}");
}

#[test]
fn failed_run_as_plain_lines() {
    insta::assert_snapshot!(render("failed", Form::Plain(Style::PLAIN)));
}

#[test]
fn failed_build_as_plain_lines() {
    insta::assert_snapshot!(render("build_failed", Form::Plain(Style::PLAIN)));
}

#[test]
fn interrupted_run_as_plain_lines() {
    insta::assert_snapshot!(render("interrupted", Form::Plain(Style::PLAIN)));
}

#[test]
fn frames_of_a_run() {
    insta::assert_snapshot!(frames(
        "succeeded",
        Size {
            columns: 80,
            rows: 24
        }
    ));
}

#[test]
fn frames_of_a_run_on_a_small_screen() {
    insta::assert_snapshot!(frames(
        "succeeded",
        Size {
            columns: 40,
            rows: 5
        }
    ));
}

/// Long and numerous steps are truncated and counted while the run is being stopped.
#[test]
fn frame_of_a_stopping_run() {
    let mut view = RunView::default();
    for event in events("succeeded")
        .iter()
        .take_while(|event| event.time < stop())
    {
        view.apply(event);
    }
    let size = Size {
        columns: 60,
        rows: 12,
    };
    insta::assert_snapshot!(render_frame(&view, true, stop(), size, Style::PLAIN).join("\n"));
}

fn stop() -> Timestamp {
    "2026-01-02T03:04:07.5Z".parse().expect("it is a time")
}

#[test]
fn json_output_equals_the_events() {
    for name in ["succeeded", "failed", "build_failed", "interrupted"] {
        let again: Vec<Event> = render(name, Form::Json)
            .lines()
            .take_while(|l| !l.is_empty())
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(again, events(name), "{name}");
    }
}

/// The output of containers, failed steps and the summary stay on a terminal after the run.
#[test]
fn terminal_content_after_a_run() {
    for name in ["succeeded", "build_failed"] {
        let bytes = render(name, Form::Live(Style::PLAIN));
        let mut terminal = vt100::Parser::new(60, 80, 0);
        terminal.process(bytes.as_bytes());
        assert!(!terminal.screen().hide_cursor());
        insta::assert_snapshot!(
            format!("terminal_after_{name}"),
            terminal.screen().contents()
        );
    }
}

#[test]
fn closed_output_does_not_stop_the_renderer() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for form in [
        Form::Json,
        Form::Plain(Style::PLAIN),
        Form::Live(Style::PLAIN),
    ] {
        let mut renderer = Renderer::new(form, Output::new(Closed));
        for event in events("succeeded") {
            renderer.accept(&event.into());
        }
        renderer.draw(false, Timestamp::UNIX_EPOCH);
        assert!(renderer.finish().finished.is_some());
    }
}

proptest::proptest! {
    /// The frame fits the screen for any names and any size.
    #[test]
    fn frames_fit(columns in 20usize..200, rows in 2usize..40, steps in 0usize..60, running in 0usize..60, name in "\\PC{1,80}") {
        use acrtask_model::{EventKind, RunId, StepId, events::StepSummary};
        let id = |n: usize| StepId::new(format!("{}-{n}", "x".repeat(n))).unwrap();
        let event = |kind| Event { time: Timestamp::UNIX_EPOCH, run: RunId::new("r1").unwrap(), kind };
        let mut view = RunView::default();
        let summaries = (0..steps).map(|n| StepSummary { id: id(n), r#type: "cmd".into(), line: name.clone(), after: vec![] }).collect();
        view.apply(&event(EventKind::RunStarted { steps: summaries, engine: "e".into(), builder: "b".into() }));
        for n in 0..running.min(steps) {
            view.apply(&event(EventKind::StepStarted { step: id(n), attempt: 1 }));
        }
        let lines = render_frame(&view, false, Timestamp::UNIX_EPOCH, Size { columns, rows }, Style::COLORED);
        proptest::prop_assert!(lines.len() < rows.max(2));
        for line in lines {
            proptest::prop_assert!(super::text::display_width(&line) < columns, "{line:?}");
        }
    }
}

/// A run followed from another machine looks the same as a local run.
#[test]
fn serialized_events_render_the_same() {
    for name in ["succeeded", "failed", "build_failed", "interrupted"] {
        for form in [
            Form::Plain(Style::PLAIN),
            Form::Plain(Style::COLORED),
            Form::Json,
        ] {
            let mut bytes = Vec::new();
            let mut renderer = Renderer::new(form, Output::new(&mut bytes));
            for event in events(name) {
                let time = event.time;
                let line = serde_json::to_string(&event).unwrap();
                let received: Event = serde_json::from_str(&line).unwrap();
                renderer.accept(&received.into());
                renderer.draw(false, time);
            }
            let view = renderer.finish();
            let mut text = String::from_utf8(bytes).unwrap();
            if let Some(verdict) = summary::failure_message(&view) {
                let _ = write!(text, "\n-- standard error --\n{verdict}\n");
            }
            assert_eq!(text, render(name, form), "{name}");
        }
    }
}

/// After the runner was lost, the second attempt looks like a run of its own.
#[test]
fn new_attempt_restarts_the_log() {
    let first = events("succeeded");
    let mut bytes = Vec::new();
    let mut renderer = Renderer::new(Form::Plain(Style::PLAIN), Output::new(&mut bytes));
    for event in first.iter().take(first.len() / 2) {
        renderer.accept(&event.clone().into());
    }
    renderer.accept(&super::Feed::NewAttempt { attempt: 2 });
    renderer.draw(false, first[0].time);
    for event in first {
        renderer.accept(&event.into());
    }
    renderer.finish();
    let text = String::from_utf8(bytes).unwrap();
    let mark = "the runner was lost; attempt 2 starts\n";
    let (_, second) = text.split_once(mark).unwrap();
    let alone = render("succeeded", Form::Plain(Style::PLAIN));
    assert_eq!(second, alone);
}

#[test]
fn frame_of_a_waiting_run() {
    let mut view = RunView::default();
    view.set_waiting(
        &acrtask_model::RunId::new("r1").unwrap(),
        "2 runs come before it; no runner has the label disk=ssd",
    );
    let size = Size {
        columns: 80,
        rows: 24,
    };
    let lines = render_frame(&view, false, Timestamp::UNIX_EPOCH, size, Style::PLAIN);
    insta::assert_snapshot!(lines.join("\n"));
    // The first event ends the wait.
    for event in events("succeeded").iter().take(1) {
        view.apply(event);
    }
    assert!(!view.is_waiting);
}
