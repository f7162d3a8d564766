//! Rendering of a plan for graphviz: `acrtask cascade plan REF -o dot | dot -Tsvg`.

use std::fmt::Write as _;

use super::{PinToView, PlanView};

/// Renders the plan as a graph, with moved bases as ellipses and tasks as boxes.
///
/// A dashed edge marks a base that the task waits for but that is not a reason for the build.
pub fn render_dot(plan: &PlanView) -> String {
    let mut out =
        String::from("digraph cascade {\n  rankdir=LR;\n  node [fontname=\"monospace\"];\n");
    for change in &plan.changes {
        let from: Vec<&str> = change.from.iter().map(|digest| digest.short()).collect();
        let label = format!(
            "{}\n{} -> {}",
            change.image,
            from.join(", "),
            change.to.short()
        );
        push_line(
            &mut out,
            &format!("{} [label={}];", quote(&change.image), quote(&label)),
        );
    }
    for node in &plan.nodes {
        let name = format!("task {}", node.task);
        let images: Vec<&str> = node
            .images
            .iter()
            .map(|image| image.image.as_str())
            .collect();
        let label = format!("{}\n{}", node.task, images.join("\n"));
        push_line(
            &mut out,
            &format!("{} [shape=box, label={}];", quote(&name), quote(&label)),
        );
    }
    for node in &plan.nodes {
        let name = quote(&format!("task {}", node.task));
        for pin in &node.pins {
            let from = match &pin.to {
                PinToView::OutputOf(parent) => format!("task {parent}"),
                PinToView::To(_) if pin.reason => pin.image.clone(),
                PinToView::To(_) => continue,
            };
            let style = if pin.reason { "" } else { " [style=dashed]" };
            push_line(&mut out, &format!("{} -> {name}{style};", quote(&from)));
        }
    }
    out.push_str("}\n");
    out
}

fn push_line(out: &mut String, text: &str) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(out, "  {text}");
}

fn quote(text: &str) -> String {
    format!(
        "\"{}\"",
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    )
}
