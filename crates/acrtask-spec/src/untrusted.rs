//! Checks that untrusted values stay text, and that none of them changes the structure of the task.
//!
//! A rendering records which of its bytes were computed from untrusted input. This module replaces
//! each of these ranges by a placeholder and parses both texts. The two YAML trees, and the words
//! of each line, must be equal except for the placeholders. Each value is then checked against the
//! rule for its place.
//!
//! Invariants:
//! - A value is never part of a key.
//! - A value never changes which words, flags or commands a line has.
//! - A value never contains a character that an interpreter such as a shell acts on, except as the
//!   value of a variable.
//!
//! Left out: conditions. A template may branch on an untrusted value, because its author wrote each
//! branch.

mod lines;
mod marks;
mod rules;
mod script;

use std::{collections::BTreeMap, ops::Range};

use acrtask_model::StepId;
use acrtask_template::Sources;

use self::{
    lines::Line,
    marks::Marks,
    rules::{ALIAS, Checked, Fault, ID, SETTING},
};
use crate::{
    alias::Aliases,
    diagnostic::Diagnostic,
    env::{self, Quoting},
    graph::AT_ONCE,
    read::Report,
    yaml::{self, Kind, Node},
};

pub(crate) use marks::Names;

/// A part of the path from the root of a task to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'n> {
    Key(&'n str),
    Item,
}

/// A rendering of a task or of its alias block.
pub(crate) struct Rendering<'r> {
    pub(crate) text: &'r str,
    /// The ranges of `text` that were computed from untrusted input.
    pub(crate) untrusted: &'r [(Range<usize>, Sources)],
    pub(crate) names: &'r Names,
}

/// Checks a rendered task. Spans of the reported problems are ranges of the rendering.
pub(crate) fn check_task(
    rendering: &Rendering<'_>,
    aliases: Option<&Aliases>,
    report: &mut Report<'_>,
) {
    check_rendering(rendering, Block::Task(aliases), report);
}

/// The untrusted ranges of the values of aliases, by the name of the alias.
pub(crate) type UntrustedAliases = BTreeMap<String, Vec<(Range<usize>, Sources)>>;

/// Checks a rendered `alias:` block. Returns the untrusted ranges of its values.
pub(crate) fn check_aliases(
    rendering: &Rendering<'_>,
    report: &mut Report<'_>,
) -> UntrustedAliases {
    check_rendering(rendering, Block::Aliases, report)
}

/// The kind of a rendering.
#[derive(Debug, Clone, Copy)]
enum Block<'c> {
    Task(Option<&'c Aliases>),
    Aliases,
}

fn check_rendering(
    rendering: &Rendering<'_>,
    block: Block<'_>,
    report: &mut Report<'_>,
) -> UntrustedAliases {
    let Some(marks) = Marks::new(rendering) else {
        return BTreeMap::new();
    };
    let mut checker = Checker {
        marks: &marks,
        block,
        ids: Vec::new(),
        aliases: BTreeMap::new(),
        step: None,
        problems: Vec::new(),
    };
    let roots = match (yaml::parse(rendering.text), yaml::parse(&marks.text)) {
        (Ok(real), Ok(marked)) => Some((real.root, marked.root)),
        // The reader of the task reports invalid YAML.
        (Err(_), Err(_)) => return BTreeMap::new(),
        _ => None,
    };
    match roots {
        Some((Some(real), Some(marked))) => {
            checker.collect_ids(&real, &marked);
            checker.check_node(&real, &marked, &mut Vec::new());
        }
        Some((None, None)) => {}
        _ => {
            let whole = 0..rendering.text.len();
            checker.add_fault(Err(structure_fault(marks.all_sources())), whole);
        }
    }
    for diagnostic in checker.problems {
        report.push(diagnostic);
    }
    checker.aliases
}

/// Checks an image reference that was rendered outside of a task file.
pub(crate) fn check_image(rendering: &Rendering<'_>) -> Option<Diagnostic> {
    let marks = Marks::new(rendering)?;
    let fault = marks.check_reference(&marks.text, rendering.text).err()?;
    let whole = 0..rendering.text.len();
    Some(Diagnostic {
        labels: Vec::new(),
        ..marks.diagnostic(&fault, whole, None)
    })
}

fn structure_fault(sources: Sources) -> Fault {
    Fault::new(sources, "it would change the structure of the task file")
        .help("give a value without line breaks, quotes and other marks of YAML")
}

struct Checker<'c> {
    marks: &'c Marks<'c>,
    block: Block<'c>,
    /// Step ids in the real text and in the text with placeholders.
    ids: Vec<(String, String)>,
    aliases: UntrustedAliases,
    /// The id of the step that is being checked.
    step: Option<String>,
    problems: Vec<Diagnostic>,
}

impl<'c> Checker<'c> {
    fn add_fault(&mut self, checked: Checked, span: Range<usize>) {
        if let Err(fault) = checked {
            let diagnostic = self.marks.diagnostic(&fault, span, self.step.as_deref());
            self.problems.push(diagnostic);
        }
    }

    fn collect_ids(&mut self, real: &Node, marked: &Node) {
        let steps = |root: &Node| -> Vec<String> {
            let Some(Kind::List(steps)) = map_entry(root, "steps").map(|node| &node.kind) else {
                return Vec::new();
            };
            let id = |(i, step): (usize, &std::rc::Rc<Node>)| {
                let id = map_entry(step, "id").and_then(Node::scalar);
                id.map_or_else(|| StepId::default_at(i).to_string(), str::to_owned)
            };
            steps.iter().enumerate().map(id).collect()
        };
        self.ids = steps(real).into_iter().zip(steps(marked)).collect();
    }

    /// Compares a node with its counterpart with placeholders, and checks the values in it.
    fn check_node<'n>(&mut self, real: &'n Node, marked: &'n Node, path: &mut Vec<Part<'n>>) {
        match (&real.kind, &marked.kind) {
            (Kind::List(real), Kind::List(others)) if real.len() == others.len() => {
                for (i, (real, marked)) in real.iter().zip(others).enumerate() {
                    if matches!(path.as_slice(), [Part::Key("steps")]) {
                        self.step = self.ids.get(i).map(|(id, _)| id.clone());
                    }
                    path.push(Part::Item);
                    self.check_node(real, marked, path);
                    path.pop();
                }
                if path.len() == 1 {
                    self.step = None;
                }
            }
            (Kind::Map(real_entries), Kind::Map(entries))
                if real_entries.len() == entries.len() =>
            {
                for ((real_key, real), (key, marked)) in real_entries.iter().zip(entries) {
                    let name = match (real_key.scalar(), key.scalar()) {
                        (Some(real), Some(name)) if real == name => name,
                        _ => {
                            let fault = structure_fault(self.marks.all_sources());
                            self.add_fault(Err(fault), real_key.span.clone());
                            continue;
                        }
                    };
                    // Merged entries count as those of the map around `<<`.
                    let is_merge = name == "<<";
                    if !is_merge {
                        path.push(Part::Key(name));
                    }
                    self.check_node(real, marked, path);
                    if !is_merge {
                        path.pop();
                    }
                }
            }
            (
                Kind::Scalar { text, plain },
                Kind::Scalar {
                    text: marked_text,
                    plain: marked_plain,
                },
            ) if plain == marked_plain && self.marks.matches(marked_text, text) => {
                if self.marks.is_marked(marked_text) {
                    let checked = if real.is_null() {
                        Err(Fault::new(
                            self.marks.sources_of(marked_text),
                            "it means `null` in YAML, so the key would have no value",
                        ))
                    } else {
                        self.check_scalar(text, marked_text, path)
                    };
                    self.add_fault(checked, real.span.clone());
                }
            }
            _ => {
                let sources = match marked.scalar() {
                    Some(text) if self.marks.is_marked(text) => self.marks.sources_of(text),
                    _ => self.marks.all_sources(),
                };
                self.add_fault(Err(structure_fault(sources)), real.span.clone());
            }
        }
    }

    /// Checks a text with placeholders against the rule for its place.
    fn check_scalar(&mut self, real: &str, marked: &str, path: &[Part<'_>]) -> Checked {
        use Part::{Item, Key};
        let marks = self.marks;
        let aliases = match self.block {
            Block::Task(aliases) => aliases,
            Block::Aliases => {
                let [Key("alias"), Key("values"), Key(name)] = path else {
                    return marks.forbid(marked, "a setting of the alias block");
                };
                marks.check_characters(marked, ALIAS)?;
                let fault = |message| Err(Fault::new(marks.sources_of(marked), message));
                if real.starts_with('-') && !marked.starts_with('-') {
                    return fault("it begins with `-`, so it would be a flag");
                }
                if real == "docker" {
                    return fault("it would be a command of `docker` instead of an image");
                }
                self.aliases
                    .insert((*name).to_owned(), marks.ranges_in(marked));
                return Ok(());
            }
        };
        let in_step = match path {
            [Key("steps"), Item, rest @ ..] => rest,
            [Key("env"), Item] => {
                marks.check_variable(marked, "the name of a variable")?;
                let entries = |text: &str| {
                    let parts = env::read_entries(text, Quoting::Word).len();
                    (text.matches(',').count(), parts)
                };
                if entries(real) != entries(marked) {
                    return Err(Fault::new(
                        marks.sources_of(marked),
                        "it contains `,` or a quote, which changes where variables begin",
                    )
                    .help("write the variable under `env` of the step"));
                }
                return Ok(());
            }
            [Key("volumes"), Item, Key("secret"), Key(_)] => return Ok(()),
            [Key("workingDirectory" | "stepTimeout")] => {
                return marks.check_characters(marked, SETTING);
            }
            // The reader of the task ignores any other key.
            [
                Key("version" | "secrets" | "networks" | "volumes" | "alias"),
                ..,
            ] => {
                return marks.forbid(marked, "a declaration of the task");
            }
            _ => return Ok(()),
        };
        let line = Line { real, marked };
        match in_step {
            [Key("cmd")] => marks.check_cmd_line(line, aliases),
            [Key("build")] => marks.check_build_line(line),
            [Key("push"), Item] => marks.check_reference(marked, real),
            [Key("env"), Item] => marks.check_variable(marked, "the name of a variable"),
            [Key("when"), Item] => self.check_when(real, marked),
            [Key("id")] => marks.check_characters(marked, ID),
            [
                Key(
                    "workingDirectory"
                    | "timeout"
                    | "startDelay"
                    | "retries"
                    | "retryDelay"
                    | "repeat"
                    | "cmdDownloadRetries"
                    | "cmdDownloadRetryDelay"
                    | "cpus"
                    | "user"
                    | "cache"
                    | "keep"
                    | "ignoreErrors"
                    | "pull"
                    | "disableWorkingDirectoryOverride",
                ),
            ]
            | [Key("ports" | "expose" | "retryOnErrors"), Item] => {
                marks.check_characters(marked, SETTING)
            }
            [Key(name), ..] => marks.forbid(marked, &format!("`{name}` of the step")),
            _ => marks.forbid(marked, "the kind of the step"),
        }
    }

    /// Checks an entry of `when`. Any value must lead to the same step.
    fn check_when(&self, real: &str, marked: &str) -> Checked {
        let position = |found: &dyn Fn(&(String, String)) -> bool| self.ids.iter().position(found);
        let by_real = position(&|(id, _)| id == real);
        let by_marked = position(&|(_, id)| id == marked);
        if by_marked.is_some() && by_real == by_marked && real != AT_ONCE {
            return Ok(());
        }
        Err(Fault::new(
            self.marks.sources_of(marked),
            "it would decide which steps this one waits for",
        )
        .help("write the id of the step itself"))
    }
}

/// Returns the value of a key of a map.
fn map_entry<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Kind::Map(entries) = &node.kind else {
        return None;
    };
    let mut found = entries.iter().filter(|(key, _)| key.scalar() == Some(name));
    found.next().map(|(_, value)| value.as_ref())
}
