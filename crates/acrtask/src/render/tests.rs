//! Recorded runs in, what is shown out. `testdata/NAME.jsonl` holds the events; the snapshots beside
//! this file hold the plain log with its summary, and the frames that a terminal shows on the way.

use std::fmt::Write as _;

use acrtask_model::{Event, EventKind};
use jiff::{SignedDuration, Timestamp};

use super::{
    Form, Output, Renderer,
    frame::{Size, frame},
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

fn rendered(name: &str, form: Form) -> String {
    let mut bytes = Vec::new();
    let mut renderer = Renderer::new(form, Output::new(&mut bytes));
    for event in events(name) {
        let time = event.time;
        renderer.take(&event.into());
        renderer.draw(false, time);
    }
    let view = renderer.finish();
    let mut text = String::from_utf8(bytes).unwrap();
    if let Some(verdict) = summary::verdict(&view) {
        let _ = write!(text, "\n-- standard error --\n{verdict}\n");
    }
    text
}

/// The frame after each second of a run.
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
        let lines = frame(&view, false, now, size, Style::PLAIN);
        assert!(
            lines.len() < size.rows,
            "the frame is higher than the screen"
        );
        for line in lines {
            assert!(
                super::text::width(&line) < size.columns,
                "too wide: {line:?}"
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        now += SignedDuration::from_secs(1);
    }
    text
}

#[test]
fn a_run_that_succeeds_as_plain_lines() {
    insta::assert_snapshot!(rendered("succeeded", Form::Plain(Style::PLAIN)));
}

#[test]
fn a_run_that_holds_its_images_back() {
    let mut view = RunView::default();
    for mut event in events("succeeded") {
        if let EventKind::ImagePushed { held, .. } = &mut event.kind {
            *held = true;
        }
        view.apply(&event);
    }
    let text = summary::summary(&view, Style::PLAIN);
    let (_, images) = text.split_once("Images\n").unwrap();
    let first = images.lines().next().unwrap();
    assert!(first.ends_with("  held (no tag yet)"), "{text}");
}

#[test]
fn a_run_that_fails_as_plain_lines() {
    insta::assert_snapshot!(rendered("failed", Form::Plain(Style::PLAIN)));
}

#[test]
fn a_build_that_fails_as_plain_lines() {
    insta::assert_snapshot!(rendered("build_failed", Form::Plain(Style::PLAIN)));
}

#[test]
fn a_run_that_was_interrupted_as_plain_lines() {
    insta::assert_snapshot!(rendered("interrupted", Form::Plain(Style::PLAIN)));
}

#[test]
fn the_frames_of_a_run() {
    insta::assert_snapshot!(frames(
        "succeeded",
        Size {
            columns: 80,
            rows: 24
        }
    ));
}

#[test]
fn the_frames_of_a_run_on_a_small_screen() {
    insta::assert_snapshot!(frames(
        "succeeded",
        Size {
            columns: 40,
            rows: 5
        }
    ));
}

/// Long steps, many of them, and a run that is being stopped: what is cut and what is counted.
#[test]
fn the_frame_of_a_run_that_is_being_stopped() {
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
    insta::assert_snapshot!(frame(&view, true, stop(), size, Style::PLAIN).join("\n"));
}

fn stop() -> Timestamp {
    "2026-01-02T03:04:07.5Z".parse().expect("it is a time")
}

#[test]
fn json_is_the_events_as_they_came() {
    for name in ["succeeded", "failed", "build_failed", "interrupted"] {
        let again: Vec<Event> = rendered(name, Form::Json)
            .lines()
            .take_while(|l| !l.is_empty())
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(again, events(name), "{name}");
    }
}

/// What stays on a terminal when the run is over: containers' output, ends of failed steps, the summary.
#[test]
fn a_terminal_after_a_run() {
    for name in ["succeeded", "build_failed"] {
        let bytes = rendered(name, Form::Live(Style::PLAIN));
        let mut terminal = vt100::Parser::new(60, 80, 0);
        terminal.process(bytes.as_bytes());
        assert!(!terminal.screen().hide_cursor());
        insta::assert_snapshot!(
            format!("a_terminal_after_{name}"),
            terminal.screen().contents()
        );
    }
}

#[test]
fn a_reader_that_went_away_is_no_error() {
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
            renderer.take(&event.into());
        }
        renderer.draw(false, Timestamp::UNIX_EPOCH);
        assert!(renderer.finish().finished.is_some());
    }
}

proptest::proptest! {
    /// Whatever the names and the size, the frame fits.
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
        let lines = frame(&view, false, Timestamp::UNIX_EPOCH, Size { columns, rows }, Style::COLORED);
        proptest::prop_assert!(lines.len() < rows.max(2));
        for line in lines {
            proptest::prop_assert!(super::text::width(&line) < columns, "{line:?}");
        }
    }
}

/// A run that is followed from afar shows what it would have shown here.
#[test]
fn events_that_went_over_a_network_are_shown_as_they_were() {
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
                let came: Event = serde_json::from_str(&line).unwrap();
                renderer.take(&came.into());
                renderer.draw(false, time);
            }
            let view = renderer.finish();
            let mut text = String::from_utf8(bytes).unwrap();
            if let Some(verdict) = summary::verdict(&view) {
                let _ = write!(text, "\n-- standard error --\n{verdict}\n");
            }
            assert_eq!(text, rendered(name, form), "{name}");
        }
    }
}

/// The runner was lost in the middle: the second attempt is shown as a run of its own.
#[test]
fn another_attempt_begins_anew() {
    let first = events("succeeded");
    let mut bytes = Vec::new();
    let mut renderer = Renderer::new(Form::Plain(Style::PLAIN), Output::new(&mut bytes));
    for event in first.iter().take(first.len() / 2) {
        renderer.take(&event.clone().into());
    }
    renderer.take(&super::Feed::Again { attempt: 2 });
    renderer.draw(false, first[0].time);
    for event in first {
        renderer.take(&event.into());
    }
    renderer.finish();
    let text = String::from_utf8(bytes).unwrap();
    let mark = "the runner was lost; attempt 2 begins anew\n";
    let (_, second) = text.split_once(mark).unwrap();
    let alone = rendered("succeeded", Form::Plain(Style::PLAIN));
    assert_eq!(second, alone);
}

#[test]
fn the_frame_of_a_run_that_waits() {
    let mut view = RunView::default();
    view.wait(
        &acrtask_model::RunId::new("r1").unwrap(),
        "2 runs come before it; no runner has the label disk=ssd",
    );
    let size = Size {
        columns: 80,
        rows: 24,
    };
    let lines = frame(&view, false, Timestamp::UNIX_EPOCH, size, Style::PLAIN);
    insta::assert_snapshot!(lines.join("\n"));
    // Its first event says that it has begun.
    for event in events("succeeded").iter().take(1) {
        view.apply(event);
    }
    assert!(!view.waits);
}
