//! A plan for graphviz: `acrtask cascade plan REF -o dot | dot -Tsvg`.

use std::fmt::Write as _;

use crate::plan::{PinTo, Plan};

/// The plan as a graph: bases that moved as ellipses, tasks as boxes; dashed where a base is waited for but is no
/// reason for the build.
pub fn dot(plan: &Plan<'_>) -> String {
    let mut out =
        String::from("digraph cascade {\n  rankdir=LR;\n  node [fontname=\"monospace\"];\n");
    for change in plan.change_views() {
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
    for node in plan.nodes() {
        let name = format!("task {}", plan.name(node));
        let images: Vec<&str> = plan
            .graph()
            .images_of(plan.task(node))
            .map(|image| plan.graph().image_name(image))
            .collect();
        let label = format!("{}\n{}", plan.name(node), images.join("\n"));
        line(
            &mut out,
            &format!("{} [shape=box, label={}];", quoted(&name), quoted(&label)),
        );
    }
    for node in plan.nodes() {
        let name = quoted(&format!("task {}", plan.name(node)));
        for pin in plan.pins(node) {
            let from = match pin.to {
                PinTo::Output(parent) => format!("task {}", plan.name(parent)),
                PinTo::Digest(_) if pin.is_reason() => {
                    plan.graph().image_name(pin.image).to_owned()
                }
                PinTo::Digest(_) => continue,
            };
            let style = if pin.is_reason() {
                ""
            } else {
                " [style=dashed]"
            };
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
