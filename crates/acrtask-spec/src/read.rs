//! Typed access to YAML nodes. A wrong type is reported with what to write instead, and reading
//! continues.

use std::{collections::HashSet, ops::Range, rc::Rc};

use crate::{
    code::Code,
    diagnostic::{Diagnostic, find_nearest},
    origin::Origin,
    yaml::{Kind, Meaning, Node},
};

/// Maximum number of reported problems of one file. The first error is reported in any case.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// The problems found so far, with spans of the author's text.
pub(crate) struct Report<'a> {
    origin: Origin<'a>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Number of words of purges that were checked.
    pub(crate) purge_words: usize,
}

impl<'a> Report<'a> {
    pub(crate) fn new(origin: Origin<'a>) -> Self {
        Self {
            origin,
            diagnostics: Vec::new(),
            purge_words: 0,
        }
    }

    /// Adds a problem with spans of the current text. Once [`MAX_PROBLEMS`] are reported, only a
    /// first error is added.
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        if self.is_closed() || (self.is_full() && !diagnostic.is_error()) {
            return;
        }
        let placed = self.with_author_spans(diagnostic);
        self.diagnostics.push(placed);
    }

    /// Returns the diagnostic with spans of the author's text.
    pub(crate) fn with_author_spans(&self, mut diagnostic: Diagnostic) -> Diagnostic {
        for label in &mut diagnostic.labels {
            label.span = self.origin.span(label.span.clone());
        }
        diagnostic
    }

    /// Returns the range of the author's text for `span`.
    pub(crate) fn author_span(&self, span: Range<usize>) -> Range<usize> {
        self.origin.span(span)
    }

    /// Returns the author's text of `span`, before aliases and templates, without white space
    /// around it.
    pub(crate) fn written(&self, span: Range<usize>) -> &'a str {
        self.origin.written(span).trim()
    }

    /// Returns the author's text of `span`, from the start of its line.
    pub(crate) fn written_line(&self, span: Range<usize>) -> &'a str {
        self.origin.written_line(span)
    }

    /// Returns `true` if [`MAX_PROBLEMS`] problems are reported.
    pub(crate) fn is_full(&self) -> bool {
        self.diagnostics.len() >= MAX_PROBLEMS
    }

    /// Returns `true` if the report accepts no further problem.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_full() && self.has_errors()
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// A text and its span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) value: String,
    pub(crate) span: Range<usize>,
}

/// A number and its span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Int {
    pub(crate) value: i64,
    pub(crate) span: Range<usize>,
}

/// A map whose keys are read one by one.
pub(crate) struct Fields<'n, 'r, 'a> {
    report: &'r mut Report<'a>,
    /// The whole text, for quotes in messages.
    source: &'r str,
    entries: Vec<(&'n Node, &'n Node)>,
    taken: HashSet<&'static str>,
    pub(crate) span: Range<usize>,
}

impl<'n, 'r, 'a> Fields<'n, 'r, 'a> {
    /// Opens `node` as a map. `what` is its name in a message.
    pub(crate) fn open(
        node: &'n Node,
        what: &str,
        example: &str,
        source: &'r str,
        report: &'r mut Report<'a>,
    ) -> Option<Self> {
        if !matches!(node.kind, Kind::Map(_)) {
            report.push(
                Diagnostic::error(
                    Code::WrongType,
                    format!(
                        "{what} is a map of keys and values, this is {}",
                        node.describe()
                    ),
                )
                .at(
                    first_line_span(node.span.clone(), source),
                    "expected `key: value`",
                )
                .help(format!("write it like this:\n{example}")),
            );
            return None;
        }
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        collect_entries(node, &mut entries, &mut seen, report);
        Some(Self {
            report,
            source,
            entries,
            taken: HashSet::new(),
            span: node.span.clone(),
        })
    }

    fn take_key(&mut self, key: &'static str) -> Option<&'n Node> {
        self.taken.insert(key);
        self.entries
            .iter()
            .find(|(name, _)| name.scalar() == Some(key))
            .map(|(_, value)| *value)
            .filter(|value| !value.is_null())
    }

    /// Returns the span of a key.
    pub(crate) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.entries
            .iter()
            .find(|(name, _)| name.scalar() == Some(key))
            .map(|(name, _)| name.span.clone())
    }

    /// Returns the node of a key.
    pub(crate) fn take_node(&mut self, key: &'static str) -> Option<&'n Node> {
        self.take_key(key)
    }

    /// Returns all entries, for maps whose keys the author chooses.
    pub(crate) fn pairs(&self) -> Vec<(&'n Node, &'n Node)> {
        self.entries.clone()
    }

    /// Reads a text. An empty one counts as missing.
    pub(crate) fn take_text(&mut self, key: &'static str) -> Option<Text> {
        let node = self.take_key(key)?;
        read_text(node, key, self.source, self.report).filter(|text| !text.value.is_empty())
    }

    /// Reads a list of texts.
    pub(crate) fn take_texts(&mut self, key: &'static str) -> Vec<Text> {
        let Some(node) = self.take_key(key) else {
            return Vec::new();
        };
        let Kind::List(items) = &node.kind else {
            let written = self.report.written(node.span.clone());
            let help = match node.scalar() {
                Some(_) if written.starts_with(['\'', '"']) && !written.contains('\n') => {
                    format!("write a list: `{key}: [{written}]`")
                }
                Some(_) if !written.is_empty() && !written.contains('\n') => {
                    format!("write a list: `{key}: [{}]`", quote_yaml(written))
                }
                _ if written.starts_with('{') => format!("write a list: `{key}: ['{written}']`"),
                _ => format!("write a list:\n{key}:\n  - ..."),
            };
            self.report.push(
                Diagnostic::error(
                    Code::WrongType,
                    format!("`{key}` takes a list of texts, this is {}", node.describe()),
                )
                .at(
                    first_line_span(node.span.clone(), self.source),
                    "expected a list",
                )
                .help(help),
            );
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items {
            if item.is_null() {
                texts.push(Text {
                    value: String::new(),
                    span: item.span.clone(),
                });
            } else if let Some(text) = read_text(item, key, self.source, self.report) {
                texts.push(text);
            }
        }
        texts
    }

    /// Returns the nodes of a list.
    pub(crate) fn take_nodes(&mut self, key: &'static str, example: &str) -> &'n [Rc<Node>] {
        match self.take_key(key) {
            None => &[],
            Some(Node {
                kind: Kind::List(items),
                ..
            }) => items,
            Some(node) => {
                self.report.push(
                    Diagnostic::error(
                        Code::WrongType,
                        format!("`{key}` takes a list, this is {}", node.describe()),
                    )
                    .at(
                        first_line_span(node.span.clone(), self.source),
                        "expected a list",
                    )
                    .help(format!("begin each entry with a dash:\n{example}")),
                );
                &[]
            }
        }
    }

    /// Reads a whole number.
    pub(crate) fn take_int(&mut self, key: &'static str) -> Option<Int> {
        let node = self.take_key(key)?;
        let value = match node.meaning() {
            Some(Meaning::Int(int)) => int,
            // The reference executor truncates the fraction, too.
            #[expect(
                clippy::cast_possible_truncation,
                reason = "checked against the range of i64"
            )]
            Some(Meaning::Float(float)) if float.abs() < 9.0e18 => float as i64,
            _ => {
                let meant = node.scalar().and_then(parse_seconds).map_or_else(
                    || format!("write a number: `{key}: 5`"),
                    |number| format!("write the bare number: `{key}: {number}`"),
                );
                let found = match node.meaning() {
                    Some(Meaning::Float(_)) => "a number out of range",
                    _ => node.describe(),
                };
                self.report.push(
                    Diagnostic::error(
                        Code::WrongType,
                        format!("`{key}` takes a whole number, this is {found}"),
                    )
                    .at(
                        first_line_span(node.span.clone(), self.source),
                        "expected a number",
                    )
                    .help(meant),
                );
                return None;
            }
        };
        Some(Int {
            value,
            span: node.span.clone(),
        })
    }

    /// Reads `true` or `false`.
    pub(crate) fn take_flag(&mut self, key: &'static str) -> Option<bool> {
        let node = self.take_key(key)?;
        if let Some(Meaning::Bool(value)) = node.meaning() {
            return Some(value);
        }
        let meant = match node.scalar().map(str::to_lowercase).as_deref() {
            Some("false" | "no" | "off" | "0" | "disabled") => "false",
            _ => "true",
        };
        self.report.push(
            Diagnostic::error(
                Code::WrongType,
                format!("`{key}` takes true or false, this is {}", node.describe()),
            )
            .at(
                first_line_span(node.span.clone(), self.source),
                "expected true or false",
            )
            .help(format!("write `{key}: {meant}`")),
        );
        None
    }

    /// Warns about every key that was not read. `elsewhere` returns help for a key that is valid in
    /// another map.
    pub(crate) fn finish(self, what: &str, elsewhere: impl Fn(&str) -> Option<String>) {
        for (key, value) in &self.entries {
            // A full report accepts no warning, and a search for the nearest name is slow.
            if self.report.is_full() {
                return;
            }
            // Anchored nodes are used through `*alias`, and keys with `x-` are for other tools.
            if value.anchored || key.scalar().is_some_and(|name| name.starts_with("x-")) {
                continue;
            }
            let Some(name) = key.scalar() else {
                self.report.push(
                    Diagnostic::warning(
                        Code::UnknownKey,
                        format!("{what} has a key that is not text"),
                    )
                    .at(
                        first_line_span(key.span.clone(), self.source),
                        "it is ignored",
                    ),
                );
                continue;
            };
            if self.taken.contains(name) {
                continue;
            }
            let warning =
                Diagnostic::warning(Code::UnknownKey, format!("{what} has no key `{name}`"))
                    .at(key.span.clone(), "it is ignored");
            let mut keys: Vec<&str> = self.taken.iter().copied().collect();
            keys.sort_unstable();
            self.report.push(match elsewhere(name) {
                Some(help) => warning.help(help),
                None => match find_nearest(name, keys.iter().copied()) {
                    Some(near) => warning.help(format!("write `{near}`")),
                    None => warning.help(format!("the keys here are: {}", keys.join(", "))),
                },
            });
        }
    }

    /// Returns the number of problems reported so far.
    pub(crate) fn problem_count(&self) -> usize {
        self.report.diagnostics.len()
    }

    /// Adds a problem.
    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.report.push(diagnostic);
    }

    /// Opens a node of this map as a map.
    pub(crate) fn open_inner<'s>(
        &'s mut self,
        node: &'n Node,
        what: &str,
        example: &str,
    ) -> Option<Fields<'n, 's, 'a>> {
        Fields::open(node, what, example, self.source, self.report)
    }

    /// Reads a node of this map as text.
    pub(crate) fn read_text(&mut self, node: &Node, key: &str) -> Option<Text> {
        read_text(node, key, self.source, self.report)
    }
}

/// Collects the entries of a map, including those that `<<` merges. The map's own keys take
/// precedence, then those of earlier merges. As in the reference executor, the last of several
/// equal keys takes effect.
fn collect_entries<'n>(
    node: &'n Node,
    entries: &mut Vec<(&'n Node, &'n Node)>,
    seen: &mut HashSet<&'n str>,
    report: &mut Report<'_>,
) {
    let Kind::Map(pairs) = &node.kind else {
        return;
    };
    let is_merge =
        |key: &Node| matches!(&key.kind, Kind::Scalar { text, plain: true } if text == "<<");
    let mut own = HashSet::new();
    for (key, value) in pairs.iter().rev().filter(|(key, _)| !is_merge(key)) {
        match key.scalar() {
            Some(name) if seen.contains(name) => {}
            Some(name) if !own.insert(name) => report.push(
                Diagnostic::warning(
                    Code::DuplicateKey,
                    format!("`{name}` is written twice; the last one counts"),
                )
                .at(key.span.clone(), "this one is ignored"),
            ),
            _ => entries.push((key, value)),
        }
    }
    seen.extend(own);
    for (_, value) in pairs.iter().filter(|(key, _)| is_merge(key)) {
        let sources: Vec<&Node> = match &value.kind {
            Kind::List(items) => items.iter().map(Rc::as_ref).collect(),
            _ => vec![value],
        };
        for source in sources {
            if matches!(source.kind, Kind::Map(_)) {
                collect_entries(source, entries, seen, report);
            } else {
                report.push(
                    Diagnostic::error(
                        Code::WrongType,
                        format!("`<<` merges maps, this is {}", source.describe()),
                    )
                    .at(source.span.clone(), "expected an alias of a map")
                    .help("write `<<: *name`, where `&name` is written before a map"),
                );
            }
        }
    }
}

/// Reads a scalar as the text that was written.
fn read_text(node: &Node, key: &str, source: &str, report: &mut Report<'_>) -> Option<Text> {
    if let Some(value) = node.scalar() {
        return Some(Text {
            value: if node.is_null() {
                String::new()
            } else {
                value.to_owned()
            },
            span: node.span.clone(),
        });
    }
    let help = match &node.kind {
        Kind::List(items) => {
            let words: Option<Vec<&str>> = items.iter().map(|item| item.scalar()).collect();
            words.filter(|words| !words.is_empty()).map(|words| {
                let one = words.join(" ");
                if words.len() > 1 && key == "cmd" {
                    format!(
                        "write one text, or one step for each: `{key}: {}`",
                        quote_yaml(&one)
                    )
                } else {
                    format!("write one text: `{key}: {}`", quote_yaml(&one))
                }
            })
        }
        _ => source
            .get(node.span.clone())
            .map(str::trim)
            .filter(|written| !written.contains('\n') && written.starts_with('{'))
            .map(|written| {
                format!(
                    "put it in quotes: `{key}: '{}'`",
                    written.replace('\'', "''")
                )
            }),
    };
    report.push(
        Diagnostic::error(
            Code::WrongType,
            format!("`{key}` takes text, this is {}", node.describe()),
        )
        .at(first_line_span(node.span.clone(), source), "expected text")
        .help(help.unwrap_or_else(|| {
            let example = match key {
                "cmd" => "IMAGE ARGUMENTS",
                "build" => "-t IMAGE -f Dockerfile .",
                _ => "...",
            };
            format!("write one text: `{key}: {example}`")
        })),
    );
    None
}

/// Parses seconds that are written with a unit where a bare number is required.
fn parse_seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let unit = match text[split..].trim() {
        "" | "s" | "sec" | "seconds" => 1,
        "m" | "min" | "minutes" => 60,
        "h" | "hours" => 3600,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Quotes `value` for YAML, as an item of `[...]` or a value of a key.
pub(crate) fn quote_yaml(value: &str) -> String {
    if value.contains(['\\', '\n']) || value.contains('\'') && !value.contains('"') {
        format!("{:?}", value)
    } else {
        format!("'{}'", value.replace('\'', "''"))
    }
}

/// Returns the first line of a span, so that a label does not cover half of the file.
pub(crate) fn first_line_span(span: Range<usize>, source: &str) -> Range<usize> {
    let text = source.get(span.clone()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default().trim_end();
    span.start..span.start + line.len().max(usize::from(!text.is_empty()))
}
