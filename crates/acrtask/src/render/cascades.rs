//! Cascades as lists and trees. Pure: the time comes in.
//!
//! A tree shows each task once: below the last one that it waits for, or below the base that moved.

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
    run::ago,
    style::Style,
    table::{list as table, titled},
    text,
    view::millis,
};

/// A list of cascades.
pub(crate) fn list(cascades: &[CascadeSummary], now: Timestamp, style: Style) -> String {
    let rows = cascades.iter().map(|cascade| {
        let counts = &cascade.counts;
        let total = counts.total();
        let open = counts.pending + counts.ready + counts.running;
        vec![
            cascade.id.to_string(),
            phase(cascade, style),
            ago(cascade.created, now),
            format!("{}/{total}", total - open),
            bases(&cascade.changes),
            notes(cascade, style).join(", "),
        ]
    });
    table(
        &["ID", "STATE", "BEGUN", "TASKS", "BASES", ""],
        rows.collect(),
        "there are no cascades",
        style,
    )
}

fn bases(changes: &BTreeMap<String, Digest>) -> String {
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

/// Where it stands, in one word and its colour.
fn phase(cascade: &CascadeSummary, style: Style) -> String {
    let counts = &cascade.counts;
    match cascade.phase {
        CascadePhase::Settling => style.dim("settling"),
        CascadePhase::Active if cascade.paused => style.warn("paused"),
        CascadePhase::Active => "active".into(),
        CascadePhase::Canceling => style.warn("canceling"),
        CascadePhase::Over if counts.failed > 0 => style.bad("failed"),
        CascadePhase::Over if counts.canceled > 0 => style.warn("canceled"),
        CascadePhase::Over if counts.stale > 0 => style.warn("incomplete"),
        CascadePhase::Over => style.good("done"),
    }
}

/// What else there is to say of it.
fn notes(cascade: &CascadeSummary, style: Style) -> Vec<String> {
    let counts = &cascade.counts;
    let mut notes = Vec::new();
    if cascade.waits_for_approval {
        notes.push(style.warn("waits for approval"));
    }
    if cascade.phase != CascadePhase::Active && cascade.paused && !is_over(cascade) {
        notes.push(style.warn("paused"));
    }
    for (count, word) in [(counts.failed, "failed"), (counts.stale, "stale")] {
        if count > 0 {
            notes.push(style.warn(&format!("{count} {word}")));
        }
    }
    match cascade.promotion {
        CascadePromotion::None => {}
        CascadePromotion::Held => notes.push("holds its pushes back".into()),
        CascadePromotion::Promoted => notes.push("promoted".into()),
        CascadePromotion::RolledBack => notes.push(style.warn("rolled back")),
        CascadePromotion::Dropped => notes.push(style.warn("its pushes were dropped")),
    }
    if let Some(before) = cascade.follows {
        notes.push(style.dim(&format!("follows {before}")));
    }
    notes
}

/// True where nothing of it changes any more.
pub(crate) fn is_over(cascade: &CascadeSummary) -> bool {
    cascade.phase == CascadePhase::Over
}

/// A cascade, whole.
pub(crate) fn cascade(detail: &CascadeDetail, now: Timestamp, style: Style) -> String {
    let mut out = String::new();
    for line in head(&detail.summary, now, style) {
        let _ = writeln!(out, "{line}");
    }
    out.push('\n');
    for line in tree(detail, now, style) {
        let _ = writeln!(out, "{}", line.text);
    }
    let _ = writeln!(out, "\n{}", counts(&detail.summary, style));
    out += &images(&detail.images, style);
    out
}

/// What a cascade pushed.
pub(crate) fn images(images: &[CascadeImage], style: Style) -> String {
    let rows = images.iter().map(|image| {
        let before = image
            .before
            .as_ref()
            .map_or_else(|| "(no tag)".into(), |digest| digest.short().to_owned());
        let state = match image.state {
            CascadeImageState::Held => "held back: the tag has not moved".into(),
            CascadeImageState::Moved => style.good("the tag has moved"),
            CascadeImageState::RolledBack => style.warn("rolled back"),
            CascadeImageState::Dropped => style.warn("dropped: the tag has not moved"),
        };
        vec![
            image.name.clone(),
            format!("{before} -> {}", image.after.short()),
            match &image.why {
                Some(why) => format!("{state} ({})", text::plain(why)),
                None => state,
            },
        ]
    });
    let mut out = String::new();
    titled("Images", rows.collect(), style, &mut out);
    out
}

/// The lines above the tree.
fn head(cascade: &CascadeSummary, now: Timestamp, style: Style) -> Vec<String> {
    let end = cascade.over_at.unwrap_or(now);
    let took = text::duration(millis(cascade.created, end));
    let mut first = vec![
        style.bold(&format!("cascade {}", cascade.id)),
        phase(cascade, style),
        style.dim(&took),
    ];
    first.extend(notes(cascade, style));
    let mut lines = vec![first.join("  ")];
    if let Some(until) = cascade.settles_at.filter(|until| *until > now) {
        let left = text::duration(millis(now, until));
        lines.push(style.dim(&format!("waits {left} for further changes")));
    }
    if cascade.waits_for_approval {
        lines.push(format!(
            "somebody has to agree: `acrtask cascade approve {}`",
            cascade.id
        ));
    }
    if let Some(note) = &cascade.promotion_note {
        lines.push(style.warn(&text::plain(note)));
    }
    if cascade.paused && !is_over(cascade) {
        lines.push(format!("to go on: `acrtask cascade resume {}`", cascade.id));
    }
    lines
}

/// The line below the tree: how many tasks stand where.
fn counts(cascade: &CascadeSummary, style: Style) -> String {
    let parts: Vec<String> = CascadeNodeState::ALL
        .into_iter()
        .filter_map(|state| {
            let count = cascade.counts.of(state);
            (count > 0).then(|| colored(state, &format!("{count} {}", state.as_str()), style))
        })
        .collect();
    if parts.is_empty() {
        return style.dim("no tasks");
    }
    parts.join(", ")
}

fn colored(state: CascadeNodeState, text: &str, style: Style) -> String {
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

/// A line of a tree.
struct Line {
    text: String,
    /// The state of the task that it is of; nothing for a base.
    state: Option<CascadeNodeState>,
}

/// What a task is shown below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'d> {
    /// Nothing.
    Top,
    Base(&'d str),
    Task(&'d str),
}

/// The bases that moved, and below them what is built because of it.
fn tree(detail: &CascadeDetail, now: Timestamp, style: Style) -> Vec<Line> {
    let depths = depths(&detail.nodes);
    let mut below: BTreeMap<Place<'_>, Vec<&CascadeNode>> = BTreeMap::new();
    for node in &detail.nodes {
        let place = place(node, detail, &depths);
        below.entry(place).or_default().push(node);
    }
    let mut lines = Vec::new();
    for (base, digest) in &detail.summary.changes {
        lines.push(Line {
            text: format!("{base} -> {}", digest.short()),
            state: None,
        });
        branches(&below, Place::Base(base), now, style, &mut lines);
    }
    for node in below.get(&Place::Top).into_iter().flatten() {
        lines.push(line(node, "", now, style));
        branches(&below, Place::Task(&node.task), now, style, &mut lines);
    }
    lines
}

/// By task: how many have to be built before it, one after the other.
fn depths(nodes: &[CascadeNode]) -> HashMap<&str, usize> {
    let mut depths: HashMap<&str, usize> = HashMap::with_capacity(nodes.len());
    let mut waiting: HashMap<&str, usize> = HashMap::new();
    let mut below: HashMap<&str, Vec<&str>> = HashMap::new();
    for node in nodes {
        depths.insert(&node.task, 0);
    }
    let mut ready = Vec::new();
    for node in nodes {
        // A task of a cascade before this one is not shown here.
        let here = |parent: &&String| depths.contains_key(parent.as_str());
        let parents: Vec<&String> = node.after.iter().filter(here).collect();
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
            if let Some(known) = depths.get_mut(child) {
                *known = depth.max(*known);
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

fn place<'d>(
    node: &'d CascadeNode,
    detail: &'d CascadeDetail,
    depths: &HashMap<&str, usize>,
) -> Place<'d> {
    let own = depths.get(node.task.as_str()).copied().unwrap_or(0);
    let parents = node.after.iter().filter_map(|parent| {
        let depth = *depths.get(parent.as_str())?;
        // Tasks that wait for each other would be shown nowhere.
        (depth < own).then_some((depth, parent))
    });
    if let Some((_, parent)) = parents.max() {
        return Place::Task(parent);
    }
    let changes = &detail.summary.changes;
    let moved = node.pins.keys().find(|base| changes.contains_key(*base));
    moved.map_or(Place::Top, |base| Place::Base(base))
}

/// Writes what is below a place, deepest branches with a stack of our own.
fn branches<'d>(
    below: &BTreeMap<Place<'d>, Vec<&'d CascadeNode>>,
    place: Place<'d>,
    now: Timestamp,
    style: Style,
    lines: &mut Vec<Line>,
) {
    let children = |place: Place<'d>, indent: &str| -> Vec<(&'d CascadeNode, String, bool)> {
        let nodes = below.get(&place).map_or(&[][..], Vec::as_slice);
        let last = nodes.len().saturating_sub(1);
        let mut children: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (*node, indent.to_owned(), index == last))
            .collect();
        children.reverse();
        children
    };
    let mut waiting = children(place, "");
    while let Some((node, indent, last)) = waiting.pop() {
        let (branch, next) = if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        lines.push(line(node, &format!("{indent}{branch}"), now, style));
        waiting.extend(children(
            Place::Task(&node.task),
            &format!("{indent}{next}"),
        ));
    }
}

fn line(node: &CascadeNode, indent: &str, now: Timestamp, style: Style) -> Line {
    let mark = match node.state {
        CascadeNodeState::Pending => "·",
        CascadeNodeState::Ready => "○",
        CascadeNodeState::Running => "▸",
        CascadeNodeState::Succeeded => "✔",
        CascadeNodeState::Failed | CascadeNodeState::Canceled => "✘",
        CascadeNodeState::Stale => "!",
        CascadeNodeState::Skipped => "-",
    };
    Line {
        text: format!(
            "{indent}{} {}  {}",
            colored(node.state, mark, style),
            node.task,
            words(node, now, style)
        ),
        state: Some(node.state),
    }
}

/// Where a task stands and why, how long it took, and its run.
fn words(node: &CascadeNode, now: Timestamp, style: Style) -> String {
    let word = node.state.as_str();
    let state = match node.why.as_deref().map(text::plain) {
        None => word.to_owned(),
        // `canceled by somebody`
        Some(why) if why.starts_with(word) => why.into_owned(),
        Some(why) => format!("{word}: {why}"),
    };
    let mut words = vec![colored(node.state, &state, style)];
    let is_waiting = matches!(
        node.state,
        CascadeNodeState::Pending | CascadeNodeState::Ready
    );
    if let Some(started) = node.started_at.filter(|_| !is_waiting) {
        let running = node.state == CascadeNodeState::Running;
        if let Some(end) = node.ended_at.or(running.then_some(now)) {
            let mut time = text::duration(millis(started, end));
            if let Some(estimate) = node.estimate_ms.filter(|_| running) {
                let _ = write!(time, " of about {}", text::duration(estimate));
            }
            words.push(style.dim(&time));
        }
    }
    if node.attempts > 1 {
        words.push(style.dim(&format!("attempt {}", node.attempts)));
    }
    if let Some(run) = &node.run {
        words.push(style.dim(&format!("run {run}")));
    }
    words.join("  ")
}

/// A cascade as it stands, to be drawn over the frame before. Fits the screen: of more tasks than it has rows, those
/// stay that run, wait for nothing but a place, or went wrong.
pub(crate) fn frame(
    detail: &CascadeDetail,
    now: Timestamp,
    size: Size,
    style: Style,
) -> Vec<String> {
    let mut above = head(&detail.summary, now, style);
    let mut below = vec![counts(&detail.summary, style)];
    // The last row stays free for the cursor.
    let rows = size.rows.saturating_sub(1).max(1);
    let mut lines = tree(detail, now, style);
    let room = rows.saturating_sub(above.len() + below.len());
    if lines.len() > room {
        let room = room.saturating_sub(1);
        let all = lines.len();
        for drop in [
            CascadeNodeState::Skipped,
            CascadeNodeState::Succeeded,
            CascadeNodeState::Pending,
            CascadeNodeState::Stale,
            CascadeNodeState::Canceled,
            CascadeNodeState::Ready,
        ] {
            let mut over = lines.len().saturating_sub(room);
            // The last ones go first: what is built next stands above.
            let mut kept: Vec<Line> = Vec::with_capacity(lines.len());
            for line in lines.into_iter().rev() {
                if over > 0 && line.state == Some(drop) {
                    over -= 1;
                } else {
                    kept.push(line);
                }
            }
            kept.reverse();
            lines = kept;
        }
        lines.truncate(room);
        let left = all - lines.len();
        below.insert(0, style.dim(&format!("… and {left} more")));
    }
    above.extend(lines.into_iter().map(|line| line.text));
    above.extend(below);
    above.truncate(rows);
    // The last column stays free: some terminals wrap as soon as it is written.
    let columns = size.columns.saturating_sub(1);
    above
        .into_iter()
        .map(|line| text::cut(&line, columns))
        .collect()
}

/// What has changed since `before`, a line for each task.
pub(crate) fn changes(
    before: Option<&CascadeDetail>,
    detail: &CascadeDetail,
    now: Timestamp,
    style: Style,
) -> String {
    let id = detail.summary.id;
    let said = |detail: &CascadeDetail| head(&detail.summary, detail.summary.created, Style::PLAIN);
    let mut whole = String::new();
    if before.is_none_or(|before| said(before) != said(detail)) {
        let mut line = vec![format!("cascade {id}: {}", phase(&detail.summary, style))];
        line.extend(notes(&detail.summary, style));
        whole = format!("{}\n", line.join(", "));
    }
    let mut out = String::new();
    let known: HashMap<&str, &CascadeNode> = before
        .into_iter()
        .flat_map(|before| &before.nodes)
        .map(|node| (node.task.as_str(), node))
        .collect();
    for node in &detail.nodes {
        let same = known.get(node.task.as_str()).is_some_and(|before| {
            (before.state, &before.why, &before.run) == (node.state, &node.why, &node.run)
        });
        if !same {
            let _ = writeln!(out, "{}: {}", node.task, words(node, now, style));
        }
    }
    // That it is over is told last.
    if is_over(&detail.summary) {
        out + &whole
    } else {
        whole + &out
    }
}

#[cfg(test)]
#[path = "cascades_tests.rs"]
mod tests;
