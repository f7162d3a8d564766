//! Cascades as lists and trees. Pure: the time is a parameter.
//!
//! A tree shows each task once: below the last task that it waits for, or below the changed base.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use acrtask_api::cascade::{
    CascadeDetail, CascadeImage, CascadeImageState, CascadeNode, CascadeNodeState, CascadePhase,
    CascadePromotion, CascadeSummary,
};
use acrtask_model::Digest;
use jiff::Timestamp;

use super::{
    frame::Size,
    run::format_age,
    style::Style,
    table::{render_list, write_section},
    text,
    view::millis_between,
};

/// Renders a list of cascades.
pub(crate) fn render_cascades(cascades: &[CascadeSummary], now: Timestamp, style: Style) -> String {
    let rows = cascades.iter().map(|cascade| {
        let counts = &cascade.counts;
        let total = counts.total();
        let open = counts.pending + counts.ready + counts.running;
        vec![
            cascade.id.to_string(),
            phase_text(cascade, style),
            format_age(cascade.created_at, now),
            format!("{}/{total}", total - open),
            base_names(&cascade.changes),
            notes(cascade, style).join(", "),
        ]
    });
    render_list(
        &["ID", "STATE", "CREATED", "TASKS", "BASES", ""],
        rows.collect(),
        "no cascades",
        style,
    )
}

fn base_names(changes: &BTreeMap<String, Digest>) -> String {
    let mut names: Vec<&str> = changes.keys().map(String::as_str).collect();
    let more = names.len().saturating_sub(2);
    names.truncate(2);
    let names = names.join(", ");
    if more > 0 {
        format!("{names} and {more} more")
    } else {
        names
    }
}

/// Returns the phase of a cascade in its color.
fn phase_text(cascade: &CascadeSummary, style: Style) -> String {
    let counts = &cascade.counts;
    match cascade.phase {
        CascadePhase::Settling => style.dim("settling"),
        CascadePhase::Active if cascade.paused => style.warn("paused"),
        CascadePhase::Active => "active".into(),
        CascadePhase::Canceling => style.warn("canceling"),
        CascadePhase::Finished if counts.failed > 0 => style.bad("failed"),
        CascadePhase::Finished if counts.canceled > 0 => style.warn("canceled"),
        CascadePhase::Finished if counts.stale > 0 => style.warn("incomplete"),
        CascadePhase::Finished => style.good("done"),
    }
}

/// Returns additional facts about a cascade.
fn notes(cascade: &CascadeSummary, style: Style) -> Vec<String> {
    let counts = &cascade.counts;
    let mut notes = Vec::new();
    if cascade.awaiting_approval {
        notes.push(style.warn("waiting for approval"));
    }
    if cascade.phase != CascadePhase::Active && cascade.paused && !is_finished(cascade) {
        notes.push(style.warn("paused"));
    }
    for (count, name) in [(counts.failed, "failed"), (counts.stale, "stale")] {
        if count > 0 {
            notes.push(style.warn(&format!("{count} {name}")));
        }
    }
    match cascade.promotion {
        CascadePromotion::None => {}
        CascadePromotion::Staged => notes.push("images staged".into()),
        CascadePromotion::Promoted => notes.push("promoted".into()),
        CascadePromotion::RolledBack => notes.push(style.warn("rolled back")),
        CascadePromotion::Discarded => notes.push(style.warn("staged images discarded")),
    }
    if let Some(before) = cascade.follows {
        notes.push(style.dim(&format!("follows {before}")));
    }
    notes
}

/// Returns `true` if the cascade is finished.
pub(crate) fn is_finished(cascade: &CascadeSummary) -> bool {
    cascade.phase == CascadePhase::Finished
}

/// Renders a cascade with its tree, counts and images.
pub(crate) fn render_cascade(detail: &CascadeDetail, now: Timestamp, style: Style) -> String {
    let mut out = String::new();
    for line in heading(&detail.summary, now, style) {
        let _ = writeln!(out, "{line}");
    }
    out.push('\n');
    for line in tree_lines(detail, now, style) {
        let _ = writeln!(out, "{}", line.text);
    }
    let _ = writeln!(out, "\n{}", node_counts(&detail.summary, style));
    out += &render_images(&detail.images, style);
    out
}

/// Renders the images that a cascade pushed.
pub(crate) fn render_images(images: &[CascadeImage], style: Style) -> String {
    let rows = images.iter().map(|image| {
        let before = image
            .before
            .as_ref()
            .map_or_else(|| "(no tag)".into(), |digest| digest.short().to_owned());
        let state = match image.state {
            CascadeImageState::Staged => "staged: the tag is unchanged".into(),
            CascadeImageState::Promoted => style.good("promoted: the tag is set"),
            CascadeImageState::RolledBack => style.warn("rolled back"),
            CascadeImageState::Discarded => style.warn("discarded: the tag is unchanged"),
        };
        vec![
            image.name.clone(),
            format!("{before} -> {}", image.after.short()),
            match &image.reason {
                Some(why) => format!("{state} ({})", text::plain_line(why)),
                None => state,
            },
        ]
    });
    let mut out = String::new();
    write_section("Images", rows.collect(), style, &mut out);
    out
}

/// Returns the lines above the tree.
fn heading(cascade: &CascadeSummary, now: Timestamp, style: Style) -> Vec<String> {
    let end = cascade.finished_at.unwrap_or(now);
    let elapsed = text::format_duration(millis_between(cascade.created_at, end));
    let mut first = vec![
        style.bold(&format!("cascade {}", cascade.id)),
        phase_text(cascade, style),
        style.dim(&elapsed),
    ];
    first.extend(notes(cascade, style));
    let mut lines = vec![first.join("  ")];
    if let Some(until) = cascade.settles_at.filter(|until| *until > now) {
        let left = text::format_duration(millis_between(now, until));
        lines.push(style.dim(&format!("waits {left} for more changes")));
    }
    if cascade.awaiting_approval {
        lines.push(format!(
            "approve it with `acrtask cascade approve {}`",
            cascade.id
        ));
    }
    if let Some(note) = &cascade.promotion_note {
        lines.push(style.warn(&text::plain_line(note)));
    }
    if cascade.paused && !is_finished(cascade) {
        lines.push(format!(
            "resume it with `acrtask cascade resume {}`",
            cascade.id
        ));
    }
    lines
}

/// Returns the line below the tree: the number of tasks in each state.
fn node_counts(cascade: &CascadeSummary, style: Style) -> String {
    let parts: Vec<String> = CascadeNodeState::ALL
        .into_iter()
        .filter_map(|state| {
            let count = cascade.counts.of(state);
            (count > 0).then(|| colored_state(state, &format!("{count} {}", state.as_str()), style))
        })
        .collect();
    if parts.is_empty() {
        return style.dim("no tasks");
    }
    parts.join(", ")
}

fn colored_state(state: CascadeNodeState, text: &str, style: Style) -> String {
    match state {
        CascadeNodeState::Succeeded => style.good(text),
        CascadeNodeState::Failed => style.bad(text),
        CascadeNodeState::Stale | CascadeNodeState::Canceled => style.warn(text),
        CascadeNodeState::Running => style.step(0, text),
        CascadeNodeState::Pending | CascadeNodeState::Ready | CascadeNodeState::Skipped => {
            style.dim(text)
        }
    }
}

/// Line of a tree.
struct TreeLine {
    text: String,
    /// State of the line's task; `None` for a base.
    state: Option<CascadeNodeState>,
}

/// Entry of the tree that a task is shown below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TreeParent<'d> {
    /// The root of the tree.
    Root,
    Base(&'d str),
    Task(&'d str),
}

/// Renders the changed bases, and below them the tasks that they rebuild.
fn tree_lines(detail: &CascadeDetail, now: Timestamp, style: Style) -> Vec<TreeLine> {
    let depths = node_depths(&detail.nodes);
    let mut below: BTreeMap<TreeParent<'_>, Vec<&CascadeNode>> = BTreeMap::new();
    for node in &detail.nodes {
        let parent = tree_parent(node, detail, &depths);
        below.entry(parent).or_default().push(node);
    }
    let mut lines = Vec::new();
    for (base, digest) in &detail.summary.changes {
        lines.push(TreeLine {
            text: format!("{base} -> {}", digest.short()),
            state: None,
        });
        push_branches(&below, TreeParent::Base(base), now, style, &mut lines);
    }
    for node in below.get(&TreeParent::Root).into_iter().flatten() {
        lines.push(node_line(node, "", now, style));
        push_branches(&below, TreeParent::Task(&node.task), now, style, &mut lines);
    }
    lines
}

/// Returns by task the longest chain of tasks to build before it.
fn node_depths(nodes: &[CascadeNode]) -> HashMap<&str, usize> {
    let mut depths: HashMap<&str, usize> = HashMap::with_capacity(nodes.len());
    let mut waiting: HashMap<&str, usize> = HashMap::new();
    let mut below: HashMap<&str, Vec<&str>> = HashMap::new();
    for node in nodes {
        depths.insert(&node.task, 0);
    }
    let mut ready = Vec::new();
    for node in nodes {
        // Tasks of an earlier cascade are not part of this tree.
        let is_shown = |parent: &&String| depths.contains_key(parent.as_str());
        let parents: Vec<&String> = node.after.iter().filter(is_shown).collect();
        if parents.is_empty() {
            ready.push(node.task.as_str());
        }
        waiting.insert(&node.task, parents.len());
        for parent in parents {
            below.entry(parent).or_default().push(&node.task);
        }
    }
    while let Some(task) = ready.pop() {
        let depth = depths.get(task).copied().unwrap_or(0) + 1;
        for child in below.get(task).into_iter().flatten() {
            if let Some(current) = depths.get_mut(child) {
                *current = depth.max(*current);
            }
            if let Some(left) = waiting.get_mut(child) {
                *left -= 1;
                if *left == 0 {
                    ready.push(child);
                }
            }
        }
    }
    depths
}

fn tree_parent<'d>(
    node: &'d CascadeNode,
    detail: &'d CascadeDetail,
    depths: &HashMap<&str, usize>,
) -> TreeParent<'d> {
    let own = depths.get(node.task.as_str()).copied().unwrap_or(0);
    let parents = node.after.iter().filter_map(|parent| {
        let depth = *depths.get(parent.as_str())?;
        // Prevents cycles, whose tasks would never be shown.
        (depth < own).then_some((depth, parent))
    });
    if let Some((_, parent)) = parents.max() {
        return TreeParent::Task(parent);
    }
    let changes = &detail.summary.changes;
    let base = node.pins.keys().find(|base| changes.contains_key(*base));
    base.map_or(TreeParent::Root, |base| TreeParent::Base(base))
}

/// Appends the lines below a parent. Uses an explicit stack, because branches can be deep.
fn push_branches<'d>(
    below: &BTreeMap<TreeParent<'d>, Vec<&'d CascadeNode>>,
    parent: TreeParent<'d>,
    now: Timestamp,
    style: Style,
    lines: &mut Vec<TreeLine>,
) {
    let children = |parent: TreeParent<'d>, indent: &str| -> Vec<(&'d CascadeNode, String, bool)> {
        let nodes = below.get(&parent).map_or(&[][..], Vec::as_slice);
        let last = nodes.len().saturating_sub(1);
        let mut children: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (*node, indent.to_owned(), index == last))
            .collect();
        children.reverse();
        children
    };
    let mut waiting = children(parent, "");
    while let Some((node, indent, last)) = waiting.pop() {
        let (branch, next) = if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        lines.push(node_line(node, &format!("{indent}{branch}"), now, style));
        waiting.extend(children(
            TreeParent::Task(&node.task),
            &format!("{indent}{next}"),
        ));
    }
}

fn node_line(node: &CascadeNode, indent: &str, now: Timestamp, style: Style) -> TreeLine {
    let mark = match node.state {
        CascadeNodeState::Pending => "·",
        CascadeNodeState::Ready => "○",
        CascadeNodeState::Running => "▸",
        CascadeNodeState::Succeeded => "✔",
        CascadeNodeState::Failed | CascadeNodeState::Canceled => "✘",
        CascadeNodeState::Stale => "!",
        CascadeNodeState::Skipped => "-",
    };
    TreeLine {
        text: format!(
            "{indent}{} {}  {}",
            colored_state(node.state, mark, style),
            node.task,
            node_text(node, now, style)
        ),
        state: Some(node.state),
    }
}

/// Returns the state of a task with its reason, duration and run.
fn node_text(node: &CascadeNode, now: Timestamp, style: Style) -> String {
    let name = node.state.as_str();
    let state = match node.reason.as_deref().map(text::plain_line) {
        None => name.to_owned(),
        // The reason may repeat the state: `canceled by sam`.
        Some(why) if why.starts_with(name) => why.into_owned(),
        Some(why) => format!("{name}: {why}"),
    };
    let mut parts = vec![colored_state(node.state, &state, style)];
    let is_waiting = matches!(
        node.state,
        CascadeNodeState::Pending | CascadeNodeState::Ready
    );
    if let Some(started) = node.started_at.filter(|_| !is_waiting) {
        let running = node.state == CascadeNodeState::Running;
        if let Some(end) = node.ended_at.or(running.then_some(now)) {
            let mut time = text::format_duration(millis_between(started, end));
            if let Some(estimate) = node.estimate_ms.filter(|_| running) {
                let _ = write!(time, " of about {}", text::format_duration(estimate));
            }
            parts.push(style.dim(&time));
        }
    }
    if node.attempts > 1 {
        parts.push(style.dim(&format!("attempt {}", node.attempts)));
    }
    if let Some(run) = &node.run {
        parts.push(style.dim(&format!("run {run}")));
    }
    parts.join("  ")
}

/// Renders a frame of the cascade that fits the screen. If there are more tasks than rows, running,
/// ready and failed ones remain.
pub(crate) fn render_frame(
    detail: &CascadeDetail,
    now: Timestamp,
    size: Size,
    style: Style,
) -> Vec<String> {
    let mut above = heading(&detail.summary, now, style);
    let mut below = vec![node_counts(&detail.summary, style)];
    // Keeps the last row free for the cursor.
    let rows = size.rows.saturating_sub(1).max(1);
    let mut lines = tree_lines(detail, now, style);
    let max_lines = rows.saturating_sub(above.len() + below.len());
    if lines.len() > max_lines {
        let max_lines = max_lines.saturating_sub(1);
        let all = lines.len();
        for drop in [
            CascadeNodeState::Skipped,
            CascadeNodeState::Succeeded,
            CascadeNodeState::Pending,
            CascadeNodeState::Stale,
            CascadeNodeState::Canceled,
            CascadeNodeState::Ready,
        ] {
            let mut surplus = lines.len().saturating_sub(max_lines);
            // Removes the last ones first, because the next tasks to build are at the top.
            let mut kept: Vec<TreeLine> = Vec::with_capacity(lines.len());
            for line in lines.into_iter().rev() {
                if surplus > 0 && line.state == Some(drop) {
                    surplus -= 1;
                } else {
                    kept.push(line);
                }
            }
            kept.reverse();
            lines = kept;
        }
        lines.truncate(max_lines);
        let left = all - lines.len();
        below.insert(0, style.dim(&format!("… and {left} more")));
    }
    above.extend(lines.into_iter().map(|line| line.text));
    above.extend(below);
    above.truncate(rows);
    // The last column stays free, because some terminals wrap as soon as it is written.
    let columns = size.columns.saturating_sub(1);
    above
        .into_iter()
        .map(|line| text::truncate(&line, columns))
        .collect()
}

/// Renders the changes since `before`, one line for each task.
pub(crate) fn render_changes(
    before: Option<&CascadeDetail>,
    detail: &CascadeDetail,
    now: Timestamp,
    style: Style,
) -> String {
    let id = detail.summary.id;
    let summary =
        |detail: &CascadeDetail| heading(&detail.summary, detail.summary.created_at, Style::PLAIN);
    let mut summary_line = String::new();
    if before.is_none_or(|before| summary(before) != summary(detail)) {
        let mut line = vec![format!(
            "cascade {id}: {}",
            phase_text(&detail.summary, style)
        )];
        line.extend(notes(&detail.summary, style));
        summary_line = format!("{}\n", line.join(", "));
    }
    let mut out = String::new();
    let previous: HashMap<&str, &CascadeNode> = before
        .into_iter()
        .flat_map(|before| &before.nodes)
        .map(|node| (node.task.as_str(), node))
        .collect();
    for node in &detail.nodes {
        let unchanged = previous.get(node.task.as_str()).is_some_and(|before| {
            (before.state, &before.reason, &before.run) == (node.state, &node.reason, &node.run)
        });
        if !unchanged {
            let _ = writeln!(out, "{}: {}", node.task, node_text(node, now, style));
        }
    }
    // The end of the cascade comes last.
    if is_finished(&detail.summary) {
        out + &summary_line
    } else {
        summary_line + &out
    }
}

#[cfg(test)]
#[path = "cascades_tests.rs"]
mod tests;
