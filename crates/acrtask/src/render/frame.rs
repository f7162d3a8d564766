//! The part of the screen that is redrawn while a run is under way: one line for each step, running
//! ones with what they are doing. Pure: the state, the time and the size go in, lines come out.
//!
//! Invariants: no line is wider than the screen, and there are fewer lines than the screen has rows, so
//! that the frame can always be drawn over again.

use acrtask_model::StepState;
use jiff::Timestamp;

use super::{
    plain::{first_line, reason, word},
    style::Style,
    text,
    view::{RunView, StepView, VertexView, millis},
};

/// Columns and rows of a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Characters in a line.
    pub(crate) columns: usize,
    /// Lines.
    pub(crate) rows: usize,
}

/// Most lines below a running build: vertices and the output of the last one.
const BUILD_LINES: usize = 8;
/// Most lines of output below a running vertex.
const VERTEX_TAIL: usize = 4;

/// The frame at `now`.
pub(crate) fn frame(
    view: &RunView,
    interrupted: bool,
    now: Timestamp,
    size: Size,
    style: Style,
) -> Vec<String> {
    if view.finished.is_some() {
        return Vec::new();
    }
    let budget = size.rows.saturating_sub(1).max(1);
    let mut lines = vec![heading(view, interrupted, now, size, style)];
    if let Some(progress) = &view.progress {
        lines.push(line(
            style.dim("·"),
            &text::plain(progress),
            String::new(),
            size,
            style,
        ));
    }
    let blocks = blocks(view, now, size, style, budget.saturating_sub(lines.len()));
    lines.extend(blocks);
    lines.truncate(budget);
    lines
}

fn heading(view: &RunView, interrupted: bool, now: Timestamp, size: Size, style: Style) -> String {
    let run = view.run.as_ref().map_or("", |r| r.as_str());
    let over = view.steps.iter().filter(|s| s.state.is_final()).count();
    let elapsed = view.started.map_or(0, |started| millis(started, now));
    let what = if interrupted {
        style.warn("stopping; Ctrl-C again leaves at once")
    } else if view.waits {
        "waits".to_owned()
    } else {
        format!("{over} of {} done", text::count(view.steps.len(), "step"))
    };
    line(
        style.bold("[+]"),
        &format!("{} {what}", style.bold(&format!("run {run}"))),
        text::duration(elapsed),
        size,
        style,
    )
}

/// The steps' lines, in file order. Where there is no room for all: running steps first, with fewer lines
/// each, then failed, waiting and finished ones as far as there is room, and a line that counts the others.
fn blocks(view: &RunView, now: Timestamp, size: Size, style: Style, room: usize) -> Vec<String> {
    let running = view
        .steps
        .iter()
        .filter(|s| s.state == StepState::Running)
        .count();
    let others = view.steps.len() - running;
    // What each running step may take below its own line, once every other step has its line.
    let below = room
        .saturating_sub(view.steps.len())
        .checked_div(running)
        .unwrap_or(0)
        .min(BUILD_LINES);
    let fits = view.steps.len() <= room;
    let mut spare = if fits {
        others
    } else {
        room.saturating_sub(running + 1)
    };
    let mut hidden = 0;
    let id_width = view.id_width(size.columns / 3);
    let mut lines = Vec::new();
    for step in &view.steps {
        if step.state == StepState::Running {
            lines.push(step_line(step, id_width, now, size, style));
            lines.extend(details(step, now, size, style, below));
        } else if spare > 0 {
            spare -= 1;
            lines.push(step_line(step, id_width, now, size, style));
        } else {
            hidden += 1;
        }
    }
    if hidden > 0 {
        lines.truncate(room.saturating_sub(1));
        let more = format!("   and {}", text::count(hidden, "more step"));
        lines.push(line(
            String::new(),
            &style.dim(&more),
            String::new(),
            size,
            style,
        ));
    }
    lines
}

fn step_line(step: &StepView, id_width: usize, now: Timestamp, size: Size, style: Style) -> String {
    let id = text::pad(
        &text::cut(step.summary.id.as_str(), id_width.max(1)),
        id_width,
    );
    let kind = &step.summary.r#type;
    let written = format!("{kind}: {}", first_line(&step.summary.line));
    let (mark, what) = match &step.state {
        StepState::Pending => {
            let after: Vec<_> = step.summary.after.iter().map(|s| s.as_str()).collect();
            let waits = if after.is_empty() {
                "waits".to_owned()
            } else {
                format!("after {}", after.join(", "))
            };
            (style.dim("·"), style.dim(&waits))
        }
        StepState::Running => match &step.retrying {
            Some(why) => (
                style.warn("↻"),
                style.warn(&format!("again soon: {}", text::plain(why))),
            ),
            None if step.attempt > 1 => (
                style.step(0, "▸"),
                format!("{written} (attempt {})", step.attempt),
            ),
            None => (style.step(0, "▸"), written),
        },
        StepState::Succeeded => (style.good("✔"), style.dim(&written)),
        state => {
            let why = reason(state).map(|r| format!(": {r}")).unwrap_or_default();
            let mark = if matches!(state, StepState::Skipped { .. }) {
                "-"
            } else {
                "✘"
            };
            (
                style.state(state, mark),
                style.state(state, &format!("{}{why}", word(state))),
            )
        }
    };
    let time = match step.state {
        StepState::Pending | StepState::Skipped { .. } => String::new(),
        _ => step.elapsed_ms(now).map(text::duration).unwrap_or_default(),
    };
    line(
        format!(" {mark}"),
        &format!("{id}  {what}"),
        time,
        size,
        style,
    )
}

/// What a running build does: its running vertices with their last lines, and how many are over.
fn details(step: &StepView, now: Timestamp, size: Size, style: Style, room: usize) -> Vec<String> {
    if room == 0 || step.vertices.is_empty() {
        return Vec::new();
    }
    let over = step
        .vertices
        .iter()
        .filter(|v| v.vertex.completed.is_some())
        .count();
    let cached = step.vertices.iter().filter(|v| v.vertex.cached).count();
    let mut lines = Vec::new();
    if over > 0 {
        let cached = if cached > 0 {
            format!(", {cached} from the cache")
        } else {
            String::new()
        };
        let done = style.dim(&format!(
            "{over} of {} done{cached}",
            text::count(step.vertices.len(), "operation")
        ));
        lines.push(line(
            "    ".into(),
            &format!("=> {done}"),
            String::new(),
            size,
            style,
        ));
    }
    let active: Vec<&VertexView> = step.vertices.iter().filter(|v| v.is_running()).collect();
    for vertex in &active {
        let time = text::duration(vertex.elapsed_ms(now));
        let moved = transfers(vertex)
            .map(|t| format!(" {}", style.dim(&t)))
            .unwrap_or_default();
        let name = text::plain(&vertex.vertex.name);
        lines.push(line(
            "    ".into(),
            &format!("=> {name}{moved}"),
            time,
            size,
            style,
        ));
    }
    lines.truncate(room);
    // The output of the vertex that began last: it is what the build waits for.
    if let Some(vertex) = active.last() {
        let room = (room - lines.len()).min(VERTEX_TAIL);
        for output in vertex
            .tail
            .iter()
            .skip(vertex.tail.len().saturating_sub(room))
        {
            lines.push(line(
                "    ".into(),
                &style.dim(&format!("   | {output}")),
                String::new(),
                size,
                style,
            ));
        }
    }
    lines
}

/// `12.3 MB / 45.6 MB`: what a vertex moves just now.
fn transfers(vertex: &VertexView) -> Option<String> {
    let open: Vec<_> = vertex
        .transfers
        .iter()
        .filter(|t| !t.done && t.current > 0)
        .collect();
    if open.is_empty() {
        return None;
    }
    let current: i64 = open.iter().map(|t| t.current).sum();
    let all_known = open.iter().all(|t| t.total > 0);
    let total: i64 = open.iter().map(|t| t.total).sum();
    Some(if all_known {
        format!("{} / {}", text::bytes(current), text::bytes(total))
    } else {
        text::bytes(current)
    })
}

/// `mark what ... right`, in exactly the width of the screen or less.
fn line(mark: String, what: &str, right: String, size: Size, style: Style) -> String {
    // The last column stays free: some terminals wrap as soon as it is written.
    let columns = size.columns.saturating_sub(1);
    let right_width = text::width(&right);
    let left = format!("{mark} {what}");
    if right_width + 8 > columns {
        return text::cut(&left, columns);
    }
    if right.is_empty() {
        return text::cut(&left, columns);
    }
    let room = columns - right_width - 1;
    let left = text::pad(&text::cut(&left, room), room);
    format!("{left} {}", style.dim(&right))
}
