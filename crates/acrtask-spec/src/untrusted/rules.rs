//! The rules for the characters of a value, by the kind of place that it fills.

use acrtask_template::Sources;

use super::{
    marks::{Marks, Piece},
    script,
};

/// Reason to refuse a value in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) sources: Sources,
    pub(super) message: String,
    pub(super) help: String,
}

impl Fault {
    pub(super) fn new(sources: Sources, message: impl Into<String>) -> Self {
        Self {
            sources,
            message: message.into(),
            help: "give a value of letters, digits and `.`, `_`, `-`".to_owned(),
        }
    }

    #[must_use]
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }
}

pub(super) type Checked = Result<(), Fault>;

/// Characters that a value may contain besides letters and digits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    marks: &'static str,
    place: &'static str,
}

/// End of the name of a variable that is a proxy, with its value: `http_proxy=`.
const PROXY: &str = "_proxy=";

/// An argument of a program, which may be an interpreter.
const ARGUMENT: Allowed = Allowed {
    marks: "._/@:+,-",
    place: "an argument",
};
/// A setting such as a path, a number or a name.
pub(super) const SETTING: Allowed = Allowed {
    marks: "._/+-",
    place: "this setting",
};
/// The id of a step.
pub(super) const ID: Allowed = Allowed {
    marks: "._/:@+-",
    place: "the id of a step",
};
/// An alias, whose text becomes part of the template.
pub(super) const ALIAS: Allowed = Allowed {
    marks: "._/@:+-",
    place: "an alias",
};
/// The whole of an image reference.
const REFERENCE: Allowed = Allowed {
    marks: "._/@:-",
    place: "an image",
};
const REGISTRY: Allowed = Allowed {
    marks: ".:-",
    place: "the registry of an image",
};
const REPOSITORY: Allowed = Allowed {
    marks: "._/-",
    place: "the repository of an image",
};
const COMPONENT: Allowed = Allowed {
    marks: "._-",
    place: "this part of an image",
};
const TAG: Allowed = Allowed {
    marks: "._-",
    place: "the tag of an image",
};
const DIGEST: Allowed = Allowed {
    marks: ":",
    place: "the digest of an image",
};

/// A character as a message shows it.
fn shown(c: char) -> String {
    match c {
        '`' => "a back quote".to_owned(),
        ' ' => "a space".to_owned(),
        '\n' => "a line break".to_owned(),
        c if c.is_control() || !c.is_ascii() => format!("the character U+{:04X}", u32::from(c)),
        c => format!("`{c}`"),
    }
}

impl Marks<'_> {
    fn fault(&self, number: usize, message: impl Into<String>) -> Fault {
        Fault::new(self.values[number].sources, message)
    }

    fn only(&self, number: usize, text: &str, allowed: Allowed) -> Checked {
        match text
            .chars()
            .find(|c| !c.is_alphanumeric() && !allowed.marks.contains(*c))
        {
            None => Ok(()),
            Some(c) => Err(self
                .fault(
                    number,
                    format!("it contains {}, which {} may not", shown(c), allowed.place),
                )
                .help(format!(
                    "letters, digits and `{}` are allowed there",
                    allowed.marks
                ))),
        }
    }

    /// Checks the values in `marked` against one rule.
    pub(super) fn check_characters(&self, marked: &str, allowed: Allowed) -> Checked {
        for piece in self.pieces(marked) {
            if let Piece::Value(number) = piece {
                self.only(number, self.values[number].text(), allowed)?;
            }
        }
        Ok(())
    }

    /// Refuses any value in `marked`. `what` names what a value would decide.
    pub(super) fn forbid(&self, marked: &str, what: &str) -> Checked {
        if !self.is_marked(marked) {
            return Ok(());
        }
        Err(
            Fault::new(self.sources_of(marked), format!("it would decide {what}"))
                .help("write the text itself there"),
        )
    }

    /// Checks an argument of a program. `script`: the word before it says that it is one.
    pub(super) fn check_argument(&self, marked: &str, script: bool) -> Checked {
        let pieces = self.pieces(marked);
        let is_script = script || marked.contains([';', '|', '&', '$', '\n']);
        let mut before = String::new();
        for piece in pieces {
            let number = match piece {
                Piece::Text(text) => {
                    before.push_str(text);
                    continue;
                }
                Piece::Value(number) => number,
            };
            let text = self.values[number].text();
            // `=` is what base 64 ends with.
            self.only(number, text.trim_end_matches('='), ARGUMENT)
                .map_err(as_variable)?;
            let follows_word = before
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || ARGUMENT.marks.contains(c));
            if text.starts_with('-') && !follows_word {
                return Err(self.fault(number, "it begins with `-`, so it would be a flag"));
            }
            if before.ends_with('$') || before.ends_with("${") {
                return Err(as_variable(
                    self.fault(number, "it would decide which variable a script reads"),
                ));
            }
            if is_script && script::begins_command(&before) {
                return Err(as_variable(
                    self.fault(number, "it would be a command of a script"),
                ));
            }
            before.push_str(text);
        }
        Ok(())
    }

    /// Checks `NAME=VALUE`: the name is the author's, the value may be any text.
    pub(super) fn check_variable(&self, marked: &str, what: &str) -> Checked {
        match marked.split_once('=') {
            Some(_) if marked.to_ascii_lowercase().contains(PROXY) => self.forbid(
                marked,
                "a proxy, which BuildKit leaves out of the key of a cached layer",
            ),
            Some((name, _)) => self.forbid(name, what),
            None => self.forbid(marked, what),
        }
    }

    /// Checks an image reference: a value stays inside the part of the reference that it was written for.
    /// A value may name the registry if it is the whole reference, or is written in place of the registry.
    pub(super) fn check_reference(&self, marked: &str, real: &str) -> Checked {
        let pieces = self.pieces(marked);
        if let [Piece::Value(number)] = pieces.as_slice() {
            let text = self.values[*number].text();
            self.not_a_flag(*number, text)?;
            return self.only(*number, text, REFERENCE);
        }
        let mut before = String::new();
        let last = pieces.len() - 1;
        for (i, piece) in pieces.iter().enumerate() {
            let number = match piece {
                Piece::Text(text) => {
                    before.push_str(text);
                    continue;
                }
                Piece::Value(number) => *number,
            };
            let text = self.values[number].text();
            let next = pieces.get(i + 1);
            let component = before.rsplit('/').next().unwrap_or_default();
            if before.is_empty() {
                self.not_a_flag(number, text)?;
            }
            let allowed = if before.contains('@') {
                DIGEST
            } else if component.contains(':') {
                TAG
            } else if before.contains('/') {
                REPOSITORY
            } else if before.is_empty()
                && (matches!(next, Some(Piece::Text(text)) if text.starts_with('/'))
                    || matches!(next, Some(Piece::Value(_))))
            {
                REGISTRY
            } else if pieces[i..=last]
                .iter()
                .any(|piece| matches!(piece, Piece::Text(text) if text.contains('/')))
            {
                COMPONENT
            } else {
                if names_registry(real) {
                    return Err(self
                        .fault(number, "it would decide which registry the image is in")
                        .help("write the registry before the value"));
                }
                REPOSITORY
            };
            let bare = if allowed.place == REGISTRY.place {
                text.strip_suffix('/').unwrap_or(text)
            } else {
                text
            };
            self.only(number, bare, allowed)?;
            before.push_str(&self.placeholder_text(number));
        }
        Ok(())
    }

    fn not_a_flag(&self, number: usize, text: &str) -> Checked {
        if text.starts_with('-') {
            return Err(self.fault(number, "it begins with `-`, so it would be a flag"));
        }
        Ok(())
    }

    /// Returns a text in place of a value whose characters were checked.
    fn placeholder_text(&self, number: usize) -> String {
        self.values[number].text().replace(['@', ':'], "")
    }
}

fn as_variable(fault: Fault) -> Fault {
    let help = fault.help.clone();
    let hint =
        "hand any other text to the program as a variable: `env: [\"NAME={{.Values.name}}\"]`";
    if help.contains("allowed there") {
        fault.help(format!("{help}; {hint}"))
    } else {
        fault.help(hint)
    }
}

fn names_registry(reference: &str) -> bool {
    reference
        .split_once('/')
        .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}
