//! A plan as a tree for a person: below each base that moved, what is built because of it.
//!
//! Each task is shown once, below the last one that it waits for; the others that it waits for are named beside it.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{NodeView, PinToView, PlanView};

/// The plan as a tree.
pub fn tree(plan: &PlanView) -> String {
    let mut out = String::new();
    let mut below: BTreeMap<Place<'_>, Vec<&NodeView>> = BTreeMap::new();
    for node in &plan.nodes {
        below.entry(place(node)).or_default().push(node);
    }
    for change in &plan.changes {
        let from: Vec<&str> = change.from.iter().map(|digest| digest.short()).collect();
        let from = if from.is_empty() {
            "nothing is stale".to_owned()
        } else {
            format!("{} -> {}", from.join(", "), change.to.short())
        };
        say(&mut out, &format!("{}  {from}", change.image));
        branches(&below, Place::Image(&change.image), &mut out);
    }
    if plan.nodes.is_empty() {
        say(&mut out, "nothing to build");
    } else {
        let (size, estimate) = (plan.size, plan.estimate);
        let mut text = format!(
            "\n{}, {}, {}; about {} with {} side by side",
            counted(size.tasks, "task"),
            counted(size.images, "image"),
            counted(size.waves, "wave"),
            time(estimate.total_ms),
            estimate.parallel,
        );
        if estimate.guessed > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, " ({} never ran before)", estimate.guessed);
        }
        say(&mut out, &text);
    }
    for refused in &plan.refused {
        say(&mut out, &format!("not built: {}", refused.message));
    }
    for image in &plan.unknown {
        say(&mut out, &format!("nothing is known to stand on {image}"));
    }
    out
}

/// What a task is shown below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'p> {
    Image(&'p str),
    Task(&'p str),
}

fn place(node: &NodeView) -> Place<'_> {
    if let Some(parent) = node.after.last() {
        return Place::Task(parent);
    }
    // A task without a parent is in the plan because a digest moved.
    let moved = node.pins.iter().find(|pin| pin.reason);
    Place::Image(moved.map_or("", |pin| &pin.image))
}

/// Writes what is below a place, deepest branches with a stack of our own.
fn branches<'p>(
    below: &BTreeMap<Place<'p>, Vec<&'p NodeView>>,
    place: Place<'p>,
    out: &mut String,
) {
    let mut waiting = children(below, place, "");
    while let Some((node, indent, last)) = waiting.pop() {
        let branch = if last { "└─ " } else { "├─ " };
        say(out, &format!("{indent}{branch}{}", describe(node)));
        let indent = format!("{indent}{}", if last { "   " } else { "│  " });
        waiting.extend(children(below, Place::Task(&node.task), &indent));
    }
}

/// What is below a place, the last one first; with its indent, and whether it is the last one.
fn children<'p>(
    below: &BTreeMap<Place<'p>, Vec<&'p NodeView>>,
    place: Place<'p>,
    indent: &str,
) -> Vec<(&'p NodeView, String, bool)> {
    let nodes = below.get(&place).map_or(&[][..], Vec::as_slice);
    let last = nodes.len().saturating_sub(1);
    let mut children: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| (*node, indent.to_owned(), index == last))
        .collect();
    children.reverse();
    children
}

fn describe(node: &NodeView) -> String {
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
        let _ = write!(text, "  {}", time(ms));
    }
    if let Some((_, others)) = node.after.split_last()
        && !others.is_empty()
    {
        let _ = write!(text, "  also after {}", others.join(", "));
    }
    let shown = match place(node) {
        Place::Image(image) => image,
        Place::Task(_) => "",
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

fn say(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

fn counted(count: usize, thing: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{s}")
}

/// Milliseconds for a person: `850 ms`, `12 s`, `3m 5s`, `2h 10m`.
fn time(ms: u64) -> String {
    let seconds = (ms + 500) / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}
