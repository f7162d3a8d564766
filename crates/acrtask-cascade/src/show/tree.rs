//! Rendering of a plan as a tree for people: each moved base with the tasks that it causes to be
//! built.
//!
//! Each task appears once, below the last task that it waits for. The other tasks it waits for are
//! named beside it.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{NodeView, PinToView, PlanView};

/// Renders the plan as a tree.
pub fn render_tree(plan: &PlanView) -> String {
    let mut out = String::new();
    let mut below: BTreeMap<Parent<'_>, Vec<&NodeView>> = BTreeMap::new();
    for node in &plan.nodes {
        below.entry(display_parent(node)).or_default().push(node);
    }
    for change in &plan.changes {
        let from: Vec<&str> = change.from.iter().map(|digest| digest.short()).collect();
        let from = if from.is_empty() {
            "nothing is stale".to_owned()
        } else {
            format!("{} -> {}", from.join(", "), change.to.short())
        };
        push_line(&mut out, &format!("{}  {from}", change.image));
        push_branches(&below, Parent::Image(&change.image), &mut out);
    }
    if plan.nodes.is_empty() {
        push_line(&mut out, "nothing to build");
    } else {
        let (size, estimate) = (plan.size, plan.estimate);
        let mut text = format!(
            "\n{}, {}, {}; about {} with {} side by side",
            pluralize(size.tasks, "task"),
            pluralize(size.images, "image"),
            pluralize(size.waves, "wave"),
            format_duration(estimate.total_ms),
            estimate.parallel,
        );
        if estimate.guessed > 0 {
            // Writing to a `String` cannot fail.
            let _ = write!(text, " ({} never ran before)", estimate.guessed);
        }
        push_line(&mut out, &text);
    }
    for refused in &plan.refused {
        push_line(&mut out, &format!("not built: {}", refused.message));
    }
    for image in &plan.unknown {
        push_line(&mut out, &format!("no known task uses {image}"));
    }
    out
}

/// Parent of a task in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Parent<'p> {
    Image(&'p str),
    Task(&'p str),
}

fn display_parent(node: &NodeView) -> Parent<'_> {
    if let Some(task) = node.after.last() {
        return Parent::Task(task);
    }
    // A task without a parent is in the plan because a digest moved.
    let moved = node.pins.iter().find(|pin| pin.reason);
    Parent::Image(moved.map_or("", |pin| &pin.image))
}

/// Writes the branches below `parent`. An explicit stack allows any depth.
fn push_branches<'p>(
    below: &BTreeMap<Parent<'p>, Vec<&'p NodeView>>,
    parent: Parent<'p>,
    out: &mut String,
) {
    let mut waiting = children_of(below, parent, "");
    while let Some((node, indent, last)) = waiting.pop() {
        let branch = if last { "└─ " } else { "├─ " };
        push_line(out, &format!("{indent}{branch}{}", describe_node(node)));
        let indent = format!("{indent}{}", if last { "   " } else { "│  " });
        waiting.extend(children_of(below, Parent::Task(&node.task), &indent));
    }
}

/// Returns the children of `parent` in reverse order, each with its indent and `true` for the last
/// child.
fn children_of<'p>(
    below: &BTreeMap<Parent<'p>, Vec<&'p NodeView>>,
    parent: Parent<'p>,
    indent: &str,
) -> Vec<(&'p NodeView, String, bool)> {
    let nodes = below.get(&parent).map_or(&[][..], Vec::as_slice);
    let last = nodes.len().saturating_sub(1);
    let mut children: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| (*node, indent.to_owned(), index == last))
        .collect();
    children.reverse();
    children
}

fn describe_node(node: &NodeView) -> String {
    let images: Vec<&str> = node
        .images
        .iter()
        .map(|image| image.image.as_str())
        .collect();
    let mut text = node.task.clone();
    if !images.is_empty() {
        let _ = write!(text, " -> {}", images.join(", "));
    }
    if let Some(ms) = node.run_ms {
        let _ = write!(text, "  {}", format_duration(ms));
    }
    if let Some((_, others)) = node.after.split_last()
        && !others.is_empty()
    {
        let _ = write!(text, "  also after {}", others.join(", "));
    }
    let shown = match display_parent(node) {
        Parent::Image(image) => image,
        Parent::Task(_) => "",
    };
    let bases: Vec<&str> = node
        .pins
        .iter()
        .filter(|pin| pin.reason && matches!(pin.to, PinToView::To(_)))
        .map(|pin| pin.image.as_str())
        .filter(|image| *image != shown)
        .collect();
    if !bases.is_empty() {
        let _ = write!(text, "  also on {}", bases.join(", "));
    }
    text
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn pluralize(count: usize, thing: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{s}")
}

/// Formats milliseconds for people: `850 ms`, `12 s`, `3m 5s`, `2h 10m`.
fn format_duration(ms: u64) -> String {
    let seconds = (ms + 500) / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}
