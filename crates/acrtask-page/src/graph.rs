//! Graphs and charts as SVG. Positions are attributes, colors are classes.

use std::fmt;

use crate::{
    StateBadge,
    layout::{BOX_HEIGHT, BOX_WIDTH, lay_out},
    show_hidden,
    text::write_escaped,
};

/// Most boxes of a graph.
pub const MAX_BOXES: usize = 300;
/// Most characters of the label of a box.
const LABEL: usize = 22;
/// Margin around the drawing.
const MARGIN: i32 = 4;

/// A box of a graph.
#[derive(Debug, Clone)]
pub struct GraphNode {
    /// Name.
    pub name: String,
    /// State.
    pub state: StateBadge,
    /// Path of the page behind the box. `None` if there is none.
    pub url: Option<String>,
}

/// Steps of a run or tasks of a cascade, with their order. Prints itself as `<svg>`.
#[derive(Debug, Clone)]
pub struct StepGraph {
    label: &'static str,
    nodes: Vec<GraphNode>,
    edges: Vec<(usize, usize)>,
}

impl StepGraph {
    /// Creates a graph. `edges` are pairs of positions in `nodes`. `None` if the graph has no edges
    /// or more than [`MAX_BOXES`] boxes.
    pub fn new(
        label: &'static str,
        nodes: Vec<GraphNode>,
        edges: Vec<(usize, usize)>,
    ) -> Option<Self> {
        let fits = !edges.is_empty() && nodes.len() <= MAX_BOXES;
        fits.then_some(Self {
            label,
            nodes,
            edges,
        })
    }
}

impl fmt::Display for StepGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = lay_out(self.nodes.len(), &self.edges);
        let (width, height) = (layout.width + 2 * MARGIN, layout.height + 2 * MARGIN);
        write!(
            f,
            "<svg class=\"graph\" role=\"group\" aria-label=\"{}\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"{} {} {width} {height}\">",
            self.label, -MARGIN, -MARGIN
        )?;
        for points in &layout.edges {
            write_edge(f, points)?;
        }
        for (node, (left, top)) in self.nodes.iter().zip(&layout.boxes) {
            write_node(f, node, *left, *top)?;
        }
        f.write_str("</svg>")
    }
}

impl askama::filters::HtmlSafe for StepGraph {}

fn write_edge(f: &mut fmt::Formatter<'_>, points: &[(i32, i32)]) -> fmt::Result {
    let Some((x, y)) = points.first() else {
        return Ok(());
    };
    write!(f, "<path class=\"edge\" d=\"M{x} {y}")?;
    for pair in points.windows(2) {
        let ((from_x, from_y), (to_x, to_y)) = (pair[0], pair[1]);
        if from_y == to_y {
            write!(f, "H{to_x}")?;
        } else {
            let middle = (from_x + to_x) / 2;
            write!(f, "C{middle} {from_y} {middle} {to_y} {to_x} {to_y}")?;
        }
    }
    f.write_str("\"/>")
}

fn write_node(f: &mut fmt::Formatter<'_>, node: &GraphNode, left: i32, top: i32) -> fmt::Result {
    let name = show_hidden(&node.name);
    let state = &node.state;
    if let Some(url) = &node.url {
        f.write_str("<a href=\"")?;
        write_escaped(f, url, false)?;
        f.write_str("\">")?;
    }
    write!(f, "<g class=\"node {}\"><title>", state.class())?;
    write_escaped(f, &name, false)?;
    f.write_str(": ")?;
    write_escaped(f, state.word(), false)?;
    let (x, y) = (left + 28, top + BOX_HEIGHT / 2 + 5);
    write!(
        f,
        "</title><rect x=\"{left}\" y=\"{top}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"5\"/>\
         <text class=\"mark\" x=\"{}\" y=\"{y}\">{}</text><text x=\"{x}\" y=\"{y}\">",
        left + 9,
        state.icon()
    )?;
    let mut chars = name.chars();
    let short: String = chars.by_ref().take(LABEL).collect();
    write_escaped(f, &short, false)?;
    if chars.next().is_some() {
        f.write_str("…")?;
    }
    f.write_str("</text></g>")?;
    if node.url.is_some() {
        f.write_str("</a>")?;
    }
    Ok(())
}

/// Durations of the last runs of a task, the oldest first. Prints itself as `<svg>`.
#[derive(Debug, Clone)]
pub struct DurationChart {
    bars: Vec<(StateBadge, u64, String)>,
}

impl DurationChart {
    /// Creates a chart of states, milliseconds and labels. `None` if there are fewer than two.
    pub fn new(bars: Vec<(StateBadge, u64, String)>) -> Option<Self> {
        (bars.len() > 1).then_some(Self { bars })
    }
}

impl fmt::Display for DurationChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEIGHT: u64 = 48;
        let longest = self.bars.iter().map(|(_, ms, _)| *ms).max().unwrap_or(0);
        let width = self.bars.len() * 14;
        write!(
            f,
            "<svg class=\"chart\" role=\"img\" aria-label=\"Durations of the last runs\" width=\"{width}\" \
             height=\"{HEIGHT}\" viewBox=\"0 0 {width} {HEIGHT}\">"
        )?;
        for (index, (state, ms, label)) in self.bars.iter().enumerate() {
            let height = (ms * HEIGHT / longest.max(1)).max(2);
            write!(
                f,
                "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"10\" height=\"{height}\" rx=\"1\"><title>",
                state.class(),
                index * 14 + 2,
                HEIGHT - height
            )?;
            write_escaped(f, label, false)?;
            f.write_str("</title></rect>")?;
        }
        f.write_str("</svg>")
    }
}

impl askama::filters::HtmlSafe for DurationChart {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_graphs_are_inert() {
        let node = |name: &str, url: Option<&str>| GraphNode {
            name: name.into(),
            state: StateBadge::good("fresh"),
            url: url.map(str::to_owned),
        };
        let nodes = vec![
            node("<script>alert(1)</script>\u{202e}", Some("/tasks/\"x")),
            node("b", None),
        ];
        let graph = StepGraph::new("Steps", nodes, vec![(0, 1)]).unwrap();
        let text = graph.to_string();
        assert!(
            !text.contains("<script") && !text.contains('\u{202e}'),
            "{text}"
        );
        assert!(text.contains("href=\"/tasks/&quot;x\""), "{text}");
        assert!(text.contains("&lt;script&gt;alert(1)&lt;/scri…"), "{text}");
        assert!(StepGraph::new("Steps", vec![node("a", None)], Vec::new()).is_none());
    }

    #[test]
    fn chart_scales_to_the_longest_run() {
        let bar = |ms| (StateBadge::good("ok"), ms, "r<1>".to_owned());
        let text = DurationChart::new(vec![bar(10), bar(0), bar(20)])
            .unwrap()
            .to_string();
        for height in ["height=\"24\"", "height=\"2\"", "height=\"48\""] {
            assert!(text.contains(height), "{text}");
        }
        assert!(text.contains("r&lt;1&gt;"), "{text}");
        assert!(DurationChart::new(vec![bar(1)]).is_none());
    }
}
