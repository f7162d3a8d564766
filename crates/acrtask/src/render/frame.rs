//! Live frame of a run: one line for each step, and details of running steps. Pure: the state, the
//! time and the size go in, lines come out.
//!
//! Invariants: no line is wider than the screen, and the frame has fewer lines than the screen has
//! rows, so that it can always be redrawn.

use acrtask_api::outline::{StepOutline, VertexOutline};
use acrtask_model::StepState;
use jiff::Timestamp;

use super::{
    plain::{first_line, state_name, state_reason},
    style::Style,
    text,
    view::{RunView, VertexActivity, millis_between},
};

/// Size of a screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Characters per line.
    pub(crate) columns: usize,
    /// Number of lines.
    pub(crate) rows: usize,
}

/// Maximum number of lines below a running build: vertices, and the output of the last one.
const BUILD_LINES: usize = 8;
/// Maximum number of output lines below a running vertex.
const VERTEX_TAIL: usize = 4;

/// Renders the frame at `now`.
pub(crate) fn render_frame(
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
    let mut lines = vec![heading_line(view, interrupted, now, size, style)];
    if let Some(progress) = &view.progress {
        lines.push(fit_line(
            style.dim("·"),
            &text::plain_line(progress),
            String::new(),
            size,
            style,
        ));
    }
    let blocks = step_blocks(view, now, size, style, budget.saturating_sub(lines.len()));
    lines.extend(blocks);
    lines.truncate(budget);
    lines
}

fn heading_line(
    view: &RunView,
    interrupted: bool,
    now: Timestamp,
    size: Size,
    style: Style,
) -> String {
    let run = view.run.as_ref().map_or("", |r| r.as_str());
    let finished = view.steps.iter().filter(|s| s.state.is_final()).count();
    let elapsed = view
        .started_at
        .map_or(0, |started| millis_between(started, now));
    let what = if interrupted {
        style.warn("stopping; Ctrl-C again exits now")
    } else if view.is_waiting {
        "waiting".to_owned()
    } else {
        format!(
            "{finished} of {} done",
            text::count(view.steps.len(), "step")
        )
    };
    fit_line(
        style.bold("[+]"),
        &format!("{} {what}", style.bold(&format!("run {run}"))),
        text::format_duration(elapsed),
        size,
        style,
    )
}

/// Renders the steps in file order. If `max_lines` is too small, running steps come first,
/// with fewer lines each. Other steps fill the rest, and a last line counts the hidden ones.
fn step_blocks(
    view: &RunView,
    now: Timestamp,
    size: Size,
    style: Style,
    max_lines: usize,
) -> Vec<String> {
    let running = view
        .steps
        .iter()
        .filter(|s| s.state == StepState::Running)
        .count();
    let others = view.steps.len() - running;
    // Lines below each running step, after every step got its own line.
    let below = max_lines
        .saturating_sub(view.steps.len())
        .checked_div(running)
        .unwrap_or(0)
        .min(BUILD_LINES);
    let fits = view.steps.len() <= max_lines;
    let mut spare = if fits {
        others
    } else {
        max_lines.saturating_sub(running + 1)
    };
    let mut hidden = 0;
    let id_width = view.id_width(size.columns / 3);
    let mut lines = Vec::new();
    for step in &view.steps {
        if step.state == StepState::Running {
            lines.push(step_line(step, id_width, now, size, style));
            lines.extend(build_details(view, step, now, size, style, below));
        } else if spare > 0 {
            spare -= 1;
            lines.push(step_line(step, id_width, now, size, style));
        } else {
            hidden += 1;
        }
    }
    if hidden > 0 {
        lines.truncate(max_lines.saturating_sub(1));
        let more = format!("   and {}", text::count(hidden, "more step"));
        lines.push(fit_line(
            String::new(),
            &style.dim(&more),
            String::new(),
            size,
            style,
        ));
    }
    lines
}

fn step_line(
    step: &StepOutline,
    id_width: usize,
    now: Timestamp,
    size: Size,
    style: Style,
) -> String {
    let id = text::pad(&text::truncate(step.id.as_str(), id_width.max(1)), id_width);
    let kind = &step.r#type;
    let written = format!("{kind}: {}", first_line(&step.line));
    let (mark, what) = match &step.state {
        StepState::Pending => {
            let after: Vec<_> = step.after.iter().map(|s| s.as_str()).collect();
            let waits = if after.is_empty() {
                "waiting".to_owned()
            } else {
                format!("after {}", after.join(", "))
            };
            (style.dim("·"), style.dim(&waits))
        }
        StepState::Running => match &step.retrying {
            Some(why) => (
                style.warn("↻"),
                style.warn(&format!("retrying soon: {}", text::plain_line(why))),
            ),
            None if step.attempt > 1 => (
                style.step(0, "▸"),
                format!("{written} (attempt {})", step.attempt),
            ),
            None => (style.step(0, "▸"), written),
        },
        StepState::Succeeded => (style.good("✔"), style.dim(&written)),
        state => {
            let why = state_reason(state)
                .map(|r| format!(": {r}"))
                .unwrap_or_default();
            let mark = if matches!(state, StepState::Skipped { .. }) {
                "-"
            } else {
                "✘"
            };
            (
                style.state(state, mark),
                style.state(state, &format!("{}{why}", state_name(state))),
            )
        }
    };
    let time = match step.state {
        StepState::Pending | StepState::Skipped { .. } => String::new(),
        _ => step
            .elapsed_ms(now)
            .map(text::format_duration)
            .unwrap_or_default(),
    };
    fit_line(
        format!(" {mark}"),
        &format!("{id}  {what}"),
        time,
        size,
        style,
    )
}

/// Renders the details of a running build: its running vertices with their last lines, and the
/// number of finished ones.
fn build_details(
    view: &RunView,
    step: &StepOutline,
    now: Timestamp,
    size: Size,
    style: Style,
    max_lines: usize,
) -> Vec<String> {
    if max_lines == 0 || step.vertices.is_empty() {
        return Vec::new();
    }
    let finished = step
        .vertices
        .iter()
        .filter(|v| v.completed_at.is_some())
        .count();
    let cached = step.vertices.iter().filter(|v| v.cached).count();
    let mut lines = Vec::new();
    if finished > 0 {
        let cached = if cached > 0 {
            format!(", {cached} from the cache")
        } else {
            String::new()
        };
        let done = style.dim(&format!(
            "{finished} of {} done{cached}",
            text::count(step.vertices.len(), "operation")
        ));
        lines.push(fit_line(
            "    ".into(),
            &format!("=> {done}"),
            String::new(),
            size,
            style,
        ));
    }
    let active: Vec<&VertexOutline> = step.vertices.iter().filter(|v| v.is_running()).collect();
    for vertex in &active {
        let time = text::format_duration(vertex.elapsed_ms(now));
        let moved = transfer_text(view.activity(step, vertex))
            .map(|t| format!(" {}", style.dim(&t)))
            .unwrap_or_default();
        let name = text::plain_line(&vertex.name);
        lines.push(fit_line(
            "    ".into(),
            &format!("=> {name}{moved}"),
            time,
            size,
            style,
        ));
    }
    lines.truncate(max_lines);
    // Shows the output of the vertex that started last, because the build waits for it.
    if let Some(vertex) = active.last() {
        let max_lines = (max_lines - lines.len()).min(VERTEX_TAIL);
        let tail = view.activity(step, vertex).map(|activity| &activity.tail);
        for output in tail
            .into_iter()
            .flat_map(|tail| tail.range(tail.len().saturating_sub(max_lines)..))
        {
            lines.push(fit_line(
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

/// Returns the progress of the current transfers of a vertex, like `12.3 MB / 45.6 MB`.
fn transfer_text(activity: Option<&VertexActivity>) -> Option<String> {
    let open: Vec<_> = activity?
        .transfers
        .iter()
        .filter(|t| !t.done && t.current > 0)
        .collect();
    if open.is_empty() {
        return None;
    }
    let current: i64 = open.iter().map(|t| t.current).sum();
    let total_is_available = open.iter().all(|t| t.total > 0);
    let total: i64 = open.iter().map(|t| t.total).sum();
    Some(if total_is_available {
        format!(
            "{} / {}",
            text::format_bytes(current),
            text::format_bytes(total)
        )
    } else {
        text::format_bytes(current)
    })
}

/// Renders `mark what ... right`, at most as wide as the screen.
fn fit_line(mark: String, what: &str, right: String, size: Size, style: Style) -> String {
    // The last column stays free, because some terminals wrap as soon as it is written.
    let columns = size.columns.saturating_sub(1);
    let right_width = text::display_width(&right);
    let left = format!("{mark} {what}");
    if right_width + 8 > columns {
        return text::truncate(&left, columns);
    }
    if right.is_empty() {
        return text::truncate(&left, columns);
    }
    let max_lines = columns - right_width - 1;
    let left = text::pad(&text::truncate(&left, max_lines), max_lines);
    format!("{left} {}", style.dim(&right))
}
