//! A plan for graphviz: `acrtask cascade plan REF -o dot | dot -Tsvg`.

use std::fmt::Write as _;

use super::{PinToView, PlanView};

/// The plan as a graph: bases that moved as ellipses, tasks as boxes; dashed where a base is waited for but is no
/// reason for the build.
pub fn dot(plan: &PlanView) -> String {
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
        line(
            &mut out,
            &format!("{} [label={}];", quoted(&change.image), quoted(&label)),
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
        line(
            &mut out,
            &format!("{} [shape=box, label={}];", quoted(&name), quoted(&label)),
        );
    }
    for node in &plan.nodes {
        let name = quoted(&format!("task {}", node.task));
        for pin in &node.pins {
            let from = match &pin.to {
                PinToView::OutputOf(parent) => format!("task {parent}"),
                PinToView::To(_) if pin.reason => pin.image.clone(),
                PinToView::To(_) => continue,
            };
            let style = if pin.reason { "" } else { " [style=dashed]" };
            line(&mut out, &format!("{} -> {name}{style};", quoted(&from)));
        }
    }
    out.push_str("}\n");
    out
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "  {text}");
}

fn quoted(text: &str) -> String {
    format!(
        "\"{}\"",
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    )
}
