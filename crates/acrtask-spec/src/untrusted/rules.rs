//! Rules for the characters of a value, by its place.

use acrtask_template::Sources;

use super::{
    marks::{Marks, Piece},
    script,
};

/// The reason why a value is refused in its place.
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

/// The characters that a value may contain besides letters and digits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    marks: &'static str,
    place: &'static str,
}

/// End of a proxy variable's name, with the `=` before its value: `http_proxy=`.
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
/// A whole image reference.
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

/// Describes a character for a message.
fn describe_char(c: char) -> String {
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

    fn allow_only(&self, number: usize, text: &str, allowed: Allowed) -> Checked {
        match text
            .chars()
            .find(|c| !c.is_alphanumeric() && !allowed.marks.contains(*c))
        {
            None => Ok(()),
            Some(c) => Err(self
                .fault(
                    number,
                    format!(
                        "it contains {}, which {} may not",
                        describe_char(c),
                        allowed.place
                    ),
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
                self.allow_only(number, self.values[number].text(), allowed)?;
            }
        }
        Ok(())
    }

    /// Refuses any value in `marked`. `what` is the decision that a value would make.
    pub(super) fn forbid(&self, marked: &str, what: &str) -> Checked {
        if !self.is_marked(marked) {
            return Ok(());
        }
        Err(
            Fault::new(self.sources_of(marked), format!("it would decide {what}"))
                .help("write the text itself there"),
        )
    }

    /// Checks an argument of a program. `script` is `true` if the flag before it makes it a script.
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
            // Base 64 may end with `=`.
            self.allow_only(number, text.trim_end_matches('='), ARGUMENT)
                .map_err(suggest_variable)?;
            let follows_word = before
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || ARGUMENT.marks.contains(c));
            if text.starts_with('-') && !follows_word {
                return Err(self.fault(number, "it begins with `-`, so it would be a flag"));
            }
            if before.ends_with('$') || before.ends_with("${") {
                return Err(suggest_variable(
                    self.fault(number, "it would decide which variable a script reads"),
                ));
            }
            if is_script && script::begins_command(&before) {
                return Err(suggest_variable(
                    self.fault(number, "it would be a command of a script"),
                ));
            }
            before.push_str(text);
        }
        Ok(())
    }

    /// Checks `NAME=VALUE`. The author must write the name. The value may be any text.
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

    /// Checks an image reference. A value must stay inside the part of the reference that contains
    /// it. It may name the registry if it is the whole reference, or if it is written in place of
    /// the registry.
    pub(super) fn check_reference(&self, marked: &str, real: &str) -> Checked {
        let pieces = self.pieces(marked);
        if let [Piece::Value(number)] = pieces.as_slice() {
            let text = self.values[*number].text();
            self.refuse_flag(*number, text)?;
            return self.allow_only(*number, text, REFERENCE);
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
                self.refuse_flag(number, text)?;
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
            self.allow_only(number, bare, allowed)?;
            before.push_str(&self.placeholder_text(number));
        }
        Ok(())
    }

    fn refuse_flag(&self, number: usize, text: &str) -> Checked {
        if text.starts_with('-') {
            return Err(self.fault(number, "it begins with `-`, so it would be a flag"));
        }
        Ok(())
    }

    /// Returns the text that represents a checked value in the text before the next piece.
    fn placeholder_text(&self, number: usize) -> String {
        self.values[number].text().replace(['@', ':'], "")
    }
}

fn suggest_variable(fault: Fault) -> Fault {
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
