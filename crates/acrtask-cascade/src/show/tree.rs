//! A plan as a tree for a person: below each base that moved, what is built because of it.
//!
//! Each task is shown once, below the last one that it waits for; the others that it waits for are named beside it.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::plan::{NodeId, PinTo, Plan};

/// The plan as a tree, with an estimate for so many runs side by side.
pub fn tree(plan: &Plan<'_>, parallel: usize) -> String {
    let mut out = String::new();
    let mut below: BTreeMap<Place, Vec<NodeId>> = BTreeMap::new();
    for node in plan.nodes() {
        below.entry(place(plan, node)).or_default().push(node);
    }
    for change in plan.change_views() {
        let from: Vec<&str> = change.from.iter().map(|digest| digest.short()).collect();
        let from = if from.is_empty() {
            "nothing is stale".to_owned()
        } else {
            format!("{} -> {}", from.join(", "), change.to.short())
        };
        say(&mut out, &format!("{}  {from}", change.image));
        branches(plan, &below, &Place::Image(change.image), &mut out);
    }
    if plan.is_empty() {
        say(&mut out, "nothing to build");
    } else {
        let size = plan.size();
        let estimate = plan.estimate(parallel);
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
    for refused in plan.refused() {
        say(&mut out, &format!("not built: {refused}"));
    }
    for image in plan.unknown() {
        say(&mut out, &format!("nothing is known to stand on {image}"));
    }
    out
}

/// What a task is shown below.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Image(String),
    Node(NodeId),
}

fn place(plan: &Plan<'_>, node: NodeId) -> Place {
    if let Some(parent) = plan.after(node).last() {
        return Place::Node(*parent);
    }
    // A task without a parent is in the plan because a digest moved.
    let moved = plan.pins(node).find(crate::plan::Pin::is_reason);
    Place::Image(moved.map_or_else(String::new, |pin| {
        plan.graph().image_name(pin.image).to_owned()
    }))
}

/// Writes what is below a place, deepest branches with a stack of our own.
fn branches(
    plan: &Plan<'_>,
    below: &BTreeMap<Place, Vec<NodeId>>,
    place: &Place,
    out: &mut String,
) {
    let children = |place: &Place, indent: &str| -> Vec<(NodeId, String, bool)> {
        let nodes = below.get(place).map_or(&[][..], Vec::as_slice);
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
        let branch = if last { "└─ " } else { "├─ " };
        say(out, &format!("{indent}{branch}{}", describe(plan, node)));
        let indent = format!("{indent}{}", if last { "   " } else { "│  " });
        waiting.extend(children(&Place::Node(node), &indent));
    }
}

fn describe(plan: &Plan<'_>, node: NodeId) -> String {
    let images: Vec<&str> = plan
        .graph()
        .images_of(plan.task(node))
        .map(|image| plan.graph().image_name(image))
        .collect();
    let mut text = plan.name(node).to_owned();
    if !images.is_empty() {
        let _ = write!(text, " -> {}", images.join(", "));
    }
    if let Some(ms) = plan.run_ms(node) {
        let _ = write!(text, "  {}", time(ms));
    }
    let after = plan.after(node);
    let others: Vec<&str> = after
        .iter()
        .rev()
        .skip(1)
        .rev()
        .map(|parent| plan.name(*parent))
        .collect();
    if !others.is_empty() {
        let _ = write!(text, "  also after {}", others.join(", "));
    }
    let shown = match place(plan, node) {
        Place::Image(image) => image,
        Place::Node(_) => String::new(),
    };
    let bases: Vec<&str> = plan
        .pins(node)
        .filter(|pin| pin.is_reason() && matches!(pin.to, PinTo::Digest(_)))
        .map(|pin| plan.graph().image_name(pin.image))
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
