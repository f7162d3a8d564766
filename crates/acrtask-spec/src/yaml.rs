//! YAML as a tree with source spans.
//!
//! The events come from `granit-parser`. Their meaning follows YAML 1.1, like the reference
//! executor: `yes` and `off` are booleans, `010` is eight, `<<` merges, anchors may be reused, and
//! only the first document counts.
//!
//! Invariants:
//! - An alias shares the node it names, so memory grows with the text and not with its expansion.
//! - A tree that expands to more than [`MAX_NODES`] or nests deeper than [`MAX_DEPTH`] is refused.
//!
//! Left out: `!!binary`, sets, ordered maps and time stamps, which no key of a task file accepts.

mod explain;
mod quoted;

use std::{borrow::Cow, collections::HashMap, ops::Range, rc::Rc};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Tag};

use self::explain::scan_error;
use crate::{code::Code, diagnostic::Diagnostic};

/// Maximum number of nodes that a file may expand to. The largest known file has fewer than a
/// thousand.
pub(crate) const MAX_NODES: u64 = 100_000;

/// Maximum nesting depth, with aliases followed.
pub(crate) const MAX_DEPTH: u32 = 200;

/// A node and its span.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Byte range of the parsed text. For an alias: that of the node it names.
    pub(crate) span: Range<usize>,
    /// `true` if the node has an anchor `&name`.
    pub(crate) anchored: bool,
    /// Number of nodes in it, with aliases expanded.
    weight: u64,
    depth: u32,
}

/// The kind and content of a node.
#[derive(Debug)]
pub(crate) enum Kind {
    Scalar {
        text: String,
        /// `true` if written without quotes and without a tag that makes it text.
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// The value that YAML 1.1 assigns to a scalar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Meaning {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text,
}

impl Node {
    /// Returns the text of a scalar. `None` for other nodes.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Returns the value of a scalar. `None` for a list or a map.
    pub(crate) fn meaning(&self) -> Option<Meaning> {
        match &self.kind {
            Kind::Scalar { text, plain: true } => Some(resolve_scalar(text)),
            Kind::Scalar { .. } => Some(Meaning::Text),
            _ => None,
        }
    }

    /// Returns `true` if the node is null.
    pub(crate) fn is_null(&self) -> bool {
        self.meaning() == Some(Meaning::Null)
    }

    /// Returns the kind of the node for a message.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
            Kind::Scalar { .. } => match self.meaning() {
                Some(Meaning::Null) => "nothing",
                Some(Meaning::Bool(_)) => "a boolean",
                Some(Meaning::Int(_) | Meaning::Float(_)) => "a number",
                _ => "text",
            },
        }
    }
}

/// Resolves a plain scalar by the rules of YAML 1.1.
fn resolve_scalar(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Meaning::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Meaning::Bool(false);
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Meaning::Float(f64::INFINITY);
        }
        "-.inf" | "-.Inf" | "-.INF" => return Meaning::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Meaning::Float(f64::NAN),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Meaning::Text;
    }
    let digits = text.replace('_', "");
    if let Some(int) = parse_integer(&digits) {
        return Meaning::Int(int);
    }
    let float_like = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    match digits.parse::<f64>() {
        // A number that is too large is text, such as the commit `5e12345`.
        Ok(float) if float_like && float.is_finite() => Meaning::Float(float),
        _ => Meaning::Text,
    }
}

/// Parses decimal numbers, `0x`, `0b`, `0o` and, as in YAML 1.1, octal numbers with a plain `0`.
fn parse_integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

/// The first document of a text.
#[derive(Debug)]
pub(crate) struct Document {
    /// Root of the document. `None` if the text has no document, or an empty one.
    pub(crate) root: Option<Rc<Node>>,
    /// Start of a second document, which is not read.
    pub(crate) second: Option<Range<usize>>,
}

/// Parses the first document of `text`. Spans of a diagnostic are ranges of `text`.
pub(crate) fn parse(text: &str) -> Result<Document, Diagnostic> {
    // libyaml accepts some scalars that the parser refuses: `[-]`, and quoted scalars whose next
    // line is not deeper than their key. Each such scalar is replaced by a text of the same length
    // on one line. The builder then restores the value.
    let mut patched = Cow::Borrowed(text);
    let mut values = HashMap::new();
    loop {
        let (at, value, refusal) = match parse_events(&patched, text, &values) {
            Err(Stop::Accepted(at, value, refusal)) => (at, value, refusal),
            Err(Stop::Refused(refusal)) => return Err(*refusal),
            Ok(document) => return Ok(document),
        };
        if values.len() * text.len() >= MAX_REREAD || values.contains_key(&at.start) {
            return Err(*refusal);
        }
        let placeholder = match at.len() {
            1 => "x".to_owned(),
            length => quoted::placeholder(length),
        };
        patched.to_mut().replace_range(at.clone(), &placeholder);
        values.insert(at.start, value);
    }
}

/// Maximum number of bytes to parse again for scalars that only libyaml accepts.
const MAX_REREAD: usize = 2 << 20;

/// The reason why parsing stopped.
enum Stop {
    /// A scalar that libyaml accepts and the parser does not, with its value.
    Accepted(Range<usize>, String, Box<Diagnostic>),
    Refused(Box<Diagnostic>),
}

impl From<Diagnostic> for Stop {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Refused(Box::new(diagnostic))
    }
}

/// Parses `text`. It equals `original` except for the scalars in `values`, by their first byte.
fn parse_events(
    text: &str,
    original: &str,
    values: &HashMap<usize, String>,
) -> Result<Document, Stop> {
    let options = granit_parser::options! { emit_comments: false };
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    let ends_in_a_line = !last_line.trim().is_empty();
    let mut builder = Builder::default();
    let mut done = false;
    for event in Parser::new_from_str_with_options(text, options) {
        if done {
            // The rest of the file need not be YAML.
            if let Ok((Event::DocumentStart(..), span)) = &event {
                let start = span.start.byte_offset().unwrap_or(text.len());
                let line = text[start..].find('\n').map_or(text.len(), |i| start + i);
                return Ok(Document {
                    root: builder.root,
                    second: Some(start..line),
                });
            }
            if event.is_err() {
                break;
            }
            continue;
        }
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or(0);
                let dash = error.kind() == &ErrorKind::PlainScalarStartsWithDashFlowIndicator;
                if let Some(at) = dash.then(|| find_dash(text, at)).flatten() {
                    let refusal =
                        Diagnostic::error(Code::Yaml, "this is not YAML: a `-` alone in a list")
                            .at(at..at + 1, "it stops making sense here")
                            .help("put it in quotes: `[\"-\"]`");
                    return Err(Stop::Accepted(at..at + 1, "-".into(), Box::new(refusal)));
                }
                let refusal = scan_error(original, &error);
                return Err(match quoted::underindented(text, &error) {
                    Some((at, value)) => Stop::Accepted(at, value, Box::new(refusal)),
                    None => refusal.into(),
                });
            }
        };
        let span = span.byte_range().unwrap_or(text.len()..text.len());
        match event {
            Event::Scalar(value, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !is_text_tag(tag.as_deref());
                let mut value = match values.get(&span.start) {
                    Some(value) => value.clone(),
                    None => value.into_owned(),
                };
                // A block ends without a line break if the file does.
                if matches!(style, ScalarStyle::Literal | ScalarStyle::Folded)
                    && span.end >= text.len()
                    && ends_in_a_line
                    && value.ends_with('\n')
                {
                    value.pop();
                }
                let kind = Kind::Scalar { text: value, plain };
                builder.add_node(kind, span, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                builder.open_node(Kind::List(Vec::new()), span, anchor, text)?;
            }
            Event::MappingStart(_, anchor, _) => {
                builder.open_node(Kind::Map(Vec::new()), span, anchor, text)?;
            }
            Event::SequenceEnd | Event::MappingEnd => builder.close_node(span)?,
            Event::Alias(id) => builder.add_alias(id, span)?,
            Event::DocumentEnd => done = true,
            _ => {}
        }
    }
    Ok(Document {
        root: builder.root,
        second: None,
    })
}

/// Returns the position of a dash at `at` or directly before it.
fn find_dash(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    [Some(at), at.checked_sub(1)]
        .into_iter()
        .flatten()
        .find(|at| bytes.get(*at) == Some(&b'-'))
}

/// Returns `true` for tags that make a plain scalar text: `!!str`, `!` and custom ones.
fn is_text_tag(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|tag| !matches!(tag.core_suffix(), Some("null" | "bool" | "int" | "float")))
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Option<Rc<Node>>>,
    root: Option<Rc<Node>>,
}

struct Open {
    kind: Kind,
    span: Range<usize>,
    anchor: usize,
    /// A key whose value is not read yet.
    key: Option<Rc<Node>>,
}

impl Builder {
    fn add_node(
        &mut self,
        kind: Kind,
        span: Range<usize>,
        anchor: usize,
    ) -> Result<(), Diagnostic> {
        let children: Box<dyn Iterator<Item = &Rc<Node>>> = match &kind {
            Kind::Scalar { .. } => Box::new(std::iter::empty()),
            Kind::List(items) => Box::new(items.iter()),
            Kind::Map(pairs) => Box::new(pairs.iter().flat_map(|(key, value)| [key, value])),
        };
        let (weight, depth) = children.fold((1u64, 0u32), |(weight, depth), child| {
            (weight.saturating_add(child.weight), depth.max(child.depth))
        });
        let node = Rc::new(Node {
            kind,
            span,
            anchored: anchor != 0,
            weight,
            depth: depth + 1,
        });
        if anchor != 0 {
            self.anchors.insert(anchor, Some(node.clone()));
        }
        self.attach_node(node.clone(), node.span.clone())
    }

    /// Adds a finished node to the open node. `at` is the range that refers to it.
    fn attach_node(&mut self, node: Rc<Node>, at: Range<usize>) -> Result<(), Diagnostic> {
        if node.weight > MAX_NODES {
            return Err(Diagnostic::error(
                Code::TooLarge,
                format!("the file expands to more than {MAX_NODES} values"),
            )
            .at(at, "with this")
            .help("use fewer aliases (`*name`) of nodes that contain aliases themselves"));
        }
        if node.depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open {
                kind: Kind::List(items),
                ..
            }) => items.push(node),
            Some(Open {
                kind: Kind::Map(pairs),
                key,
                ..
            }) => match key.take() {
                Some(key) => pairs.push((key, node)),
                None => *key = Some(node),
            },
            Some(Open {
                kind: Kind::Scalar { .. },
                ..
            }) => {}
        }
        Ok(())
    }

    fn open_node(
        &mut self,
        kind: Kind,
        span: Range<usize>,
        anchor: usize,
        text: &str,
    ) -> Result<(), Diagnostic> {
        if self.open.len() >= MAX_DEPTH as usize {
            let end = text.ceil_char_boundary((span.start + 1).min(text.len()));
            return Err(too_deep(span.start..end));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        self.open.push(Open {
            kind,
            span,
            anchor,
            key: None,
        });
        Ok(())
    }

    fn close_node(&mut self, end: Range<usize>) -> Result<(), Diagnostic> {
        let Some(done) = self.open.pop() else {
            return Ok(());
        };
        // A block ends with its last child, not at the start of the next line.
        let last = match &done.kind {
            Kind::List(items) => items.last(),
            Kind::Map(pairs) => pairs.last().map(|(_, value)| value),
            Kind::Scalar { .. } => None,
        };
        let end = match last {
            Some(child) if end.is_empty() && child.span.start >= done.span.start => child.span.end,
            _ => end.end,
        };
        self.add_node(
            done.kind,
            done.span.start..end.max(done.span.end),
            done.anchor,
        )
    }

    fn add_alias(&mut self, id: usize, at: Range<usize>) -> Result<(), Diagnostic> {
        match self.anchors.get(&id) {
            Some(Some(node)) => {
                let node = node.clone();
                self.attach_node(node, at)
            }
            _ => Err(Diagnostic::error(
                Code::Yaml,
                "an alias is used inside the node that it names",
            )
            .at(at, "this would never end")
            .help("name a node that ends before this one")),
        }
    }
}

fn too_deep(at: Range<usize>) -> Diagnostic {
    Diagnostic::error(
        Code::TooDeep,
        format!("the file nests deeper than {MAX_DEPTH} levels"),
    )
    .at(at, "here")
    .help("a task file needs five levels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_resolved_by_yaml_1_1() {
        for (text, meaning) in [
            ("", Meaning::Null),
            ("~", Meaning::Null),
            ("yes", Meaning::Bool(true)),
            ("Off", Meaning::Bool(false)),
            ("010", Meaning::Int(8)),
            ("0x1F", Meaning::Int(31)),
            ("0b11", Meaning::Int(3)),
            ("1_000", Meaning::Int(1000)),
            ("-5", Meaning::Int(-5)),
            ("+5", Meaning::Int(5)),
            ("1.5", Meaning::Float(1.5)),
            ("1e3", Meaning::Float(1000.0)),
            (".5", Meaning::Float(0.5)),
            ("1.", Meaning::Float(1.0)),
            ("5e12345", Meaning::Text),
            ("685_230.15", Meaning::Float(685_230.15)),
            ("1.0.0", Meaning::Text),
            ("v1", Meaning::Text),
            ("-", Meaning::Text),
            ("--x", Meaning::Text),
            ("08", Meaning::Float(8.0)),
            ("infinity", Meaning::Text),
        ] {
            assert_eq!(resolve_scalar(text), meaning, "{text:?}");
        }
    }

    #[test]
    fn aliases_share_nodes_and_bombs_are_refused() {
        let document = parse("a: &x [1, 2]\nb: *x\n").unwrap();
        let Kind::Map(pairs) = &document.root.as_ref().unwrap().kind else {
            panic!("a map")
        };
        assert!(Rc::ptr_eq(&pairs[0].1, &pairs[1].1));

        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..30 {
            let previous = format!("*a{}, ", i - 1).repeat(9);
            bomb += &format!("a{i}: &a{i} [{previous}]\n");
        }
        assert_eq!(parse(&bomb).unwrap_err().code, "too-large");
        let mut chain = String::from("a0: &a0 [x]\n");
        for i in 1..5000 {
            chain += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
        }
        assert_eq!(parse(&chain).unwrap_err().code, "too-deep");
        assert_eq!(parse(&"[".repeat(5000)).unwrap_err().code, "too-deep");
        assert_eq!(parse("a: &a [*a]").unwrap_err().code, "yaml");
    }

    #[test]
    fn blocks_end_at_the_end_of_the_file() {
        for (text, expected) in [
            ("a: |\n  b", "b"),
            ("a: |\n  b\n", "b\n"),
            ("a: |\n  b\n  ", "b\n"),
            ("a: >\n  b\n  c", "b c"),
            ("a: |+\n  b\n\n", "b\n\n"),
            ("a: |-\n  b\n\n", "b"),
        ] {
            let root = parse(text).unwrap().root.unwrap();
            let Kind::Map(pairs) = &root.kind else {
                panic!("a map")
            };
            assert_eq!(pairs[0].1.scalar(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn bare_dashes_are_text_in_flow_lists() {
        for (text, expected) in [
            ("[-]", vec!["-"]),
            ("[ -]", vec!["-"]),
            ("[-, a, -]", vec!["-", "a", "-"]),
            ("[x,-]", vec!["x", "-"]),
        ] {
            let root = parse(text).unwrap().root.unwrap();
            let Kind::List(items) = &root.kind else {
                panic!("a list")
            };
            let texts: Vec<_> = items.iter().filter_map(|item| item.scalar()).collect();
            assert_eq!(texts, expected, "{text}");
        }
    }

    #[test]
    fn only_the_first_document_is_read() {
        let document = parse("a: 1\n---\nb: [\n").unwrap();
        assert!(document.second.is_some());
        assert!(parse("").unwrap().root.is_none());
    }
}
