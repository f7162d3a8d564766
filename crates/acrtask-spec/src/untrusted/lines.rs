//! Checks for lines of build and cmd steps. A value must stay inside one word and satisfy the rule
//! for it.

use super::{
    marks::Marks,
    rules::{Checked, Fault, SETTING},
};
use crate::{
    alias::{Aliases, expand_image},
    build_line::{self, ContextRef},
    cmd_line::{
        self, CmdLine, Command, CommandKind, ContainerLine, Redirect, Word, WordPart,
        is_script_flag,
    },
    flags::{GivenFlag, PlacedWord},
    lexer::{self, Token, TokenKind},
};

/// Flags of `docker build` whose value is an image reference, or contains one.
const REFERENCES: [&str; 3] = ["tag", "cache-from", "cache-to"];
/// Flags of `docker build` with a value `NAME=TEXT`.
const VARIABLES: [&str; 3] = ["build-arg", "label", "annotation"];
/// Flags of `docker build` whose value selects what is built, without granting access.
const SETTINGS: [&str; 15] = [
    "file",
    "target",
    "platform",
    "no-cache-filter",
    "progress",
    "shm-size",
    "memory",
    "memory-swap",
    "cpu-period",
    "cpu-quota",
    "cpu-shares",
    "cpuset-cpus",
    "cpuset-mems",
    "ulimit",
    "build-context",
];

/// A line, and the same line with placeholders.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'l> {
    pub(super) real: &'l str,
    pub(super) marked: &'l str,
}

impl Marks<'_> {
    /// Checks the line of a build step.
    pub(super) fn check_build_line(&self, line: Line<'_>) -> Checked {
        let Some(tokens) = self.match_words(line)? else {
            return Ok(());
        };
        let (real, marked): (Vec<PlacedWord>, Vec<PlacedWord>) = tokens
            .iter()
            .filter_map(|(real, marked)| match (&real.kind, &marked.kind) {
                (TokenKind::Word(real), TokenKind::Word(marked)) => {
                    Some(((real.clone(), 0..0), (marked.clone(), 0..0)))
                }
                _ => None,
            })
            .unzip();
        self.check_build_words(&real, &marked, line)
    }

    fn check_build_words(
        &self,
        real: &[PlacedWord],
        marked: &[PlacedWord],
        line: Line<'_>,
    ) -> Checked {
        let (real, marked) = match (
            build_line::split_flags(real),
            build_line::split_flags(marked),
        ) {
            (Ok(real), Ok(marked)) => (real, marked),
            // The line is refused for another reason.
            (Err(_), _) => return Ok(()),
            _ => return Err(self.words_fault(line)),
        };
        if real.0.len() != marked.0.len() || real.1.len() != marked.1.len() {
            return Err(self.words_fault(line));
        }
        for (real, marked) in real.0.iter().zip(&marked.0) {
            self.check_build_flag(real, marked)?;
        }
        for ((real, _), (marked, _)) in real.1.iter().zip(&marked.1) {
            let (real, marked) = (word_text(real), word_text(marked));
            let kind = |text: &str| std::mem::discriminant(&build_line::context_ref(text.into()));
            if kind(&real) != kind(&marked) {
                return Err(self.fault_in(&marked, "it would decide what kind of context is built"));
            }
            match build_line::context_ref(marked.clone()) {
                ContextRef::Path(_) | ContextRef::Stdin => {
                    self.check_characters(&marked, SETTING)?;
                }
                _ => {
                    let host = marked.split("://").nth(1).unwrap_or(&marked);
                    let host = host.split('/').next().unwrap_or_default();
                    self.forbid(host, "which host the context comes from")?;
                    self.check_characters(&marked, SETTING)?;
                }
            }
        }
        Ok(())
    }

    fn check_build_flag(&self, real: &GivenFlag, marked: &GivenFlag) -> Checked {
        let (real_text, marked_text) = (word_text(&real.value), word_text(&marked.value));
        if real.name != marked.name {
            return Err(self.fault_in(&marked_text, "it would be a flag of the build"));
        }
        if !self.is_marked(&marked_text) {
            return Ok(());
        }
        let name = marked.name;
        if name == "tag" {
            self.check_reference(&marked_text, &real_text)
        } else if REFERENCES.contains(&name) {
            let parts = marked_text.split(',').zip(real_text.split(','));
            for (marked, real) in parts {
                match (marked.split_once('='), real.split_once('=')) {
                    (Some((key, marked)), Some((_, real))) => {
                        self.forbid(key, "an attribute of the cache")?;
                        self.check_reference(marked, real)?;
                    }
                    _ => self.check_reference(marked, real)?,
                }
            }
            self.check_entry_count(&marked_text, &real_text, ',')
        } else if VARIABLES.contains(&name) {
            self.check_variable(&marked_text, &format!("a name of `--{name}`"))
        } else if name == "build-context" {
            self.check_variable(&marked_text, "the name of a context")?;
            let place = marked_text.split_once('=').map_or("", |(_, place)| place);
            if place.contains("://") {
                return self.forbid(place, "where a context comes from");
            }
            self.check_characters(place, SETTING)
        } else if SETTINGS.contains(&name) {
            self.check_characters(&marked_text, SETTING)
        } else {
            self.forbid(&marked_text, &format!("the flag `{}`", marked.written))
        }
    }

    /// Checks the line of a cmd step.
    pub(super) fn check_cmd_line(&self, line: Line<'_>, aliases: Option<&Aliases>) -> Checked {
        if self.match_words(line)?.is_none() {
            return Ok(());
        }
        let image = |word: &str| {
            aliases
                .and_then(|aliases| aliases.image(word))
                .map(str::to_owned)
        };
        let expanded = |line: &str| {
            let expanded = aliases.and_then(|aliases| expand_image(line, aliases));
            expanded.map_or_else(|| line.to_owned(), |(line, _)| line)
        };
        let (real_line, marked_line) = (expanded(line.real), expanded(line.marked));
        let real = match cmd_line::parse(&real_line, &image) {
            Ok(real) => real,
            Err(_) => return Ok(()),
        };
        let Ok(marked) = cmd_line::parse_unchecked(&marked_line, &image) else {
            return Err(self.words_fault(line));
        };
        let (real, marked) = (all_commands(&real), all_commands(&marked));
        if real.len() != marked.len() {
            return Err(self.words_fault(line));
        }
        for (real, marked) in real.into_iter().zip(marked) {
            self.check_command(real, marked, line)?;
        }
        Ok(())
    }

    fn check_command(&self, real: &Command, marked: &Command, line: Line<'_>) -> Checked {
        for redirect in &marked.redirects {
            if let Redirect::Output { to: file, .. } | Redirect::Input { from: file } = redirect {
                self.check_characters(&word_text(file), SETTING)?;
            }
        }
        match (&real.kind, &marked.kind) {
            (CommandKind::Container(real), CommandKind::Container(marked)) => {
                self.check_container(real, marked, line)
            }
            (CommandKind::Docker(real), CommandKind::Docker(marked)) => {
                self.check_docker(real, marked, line)
            }
            // A value in a filter would decide what is deleted.
            (CommandKind::Acr(_), CommandKind::Acr(marked)) => marked
                .iter()
                .try_for_each(|word| self.forbid(&word_text(word), "an argument of `acr`")),
            (CommandKind::Builtin(real), CommandKind::Builtin(marked))
                if real.len() == marked.len() =>
            {
                let Some((name, arguments)) = marked.split_first() else {
                    return Ok(());
                };
                self.forbid(&word_text(name), "which command runs")?;
                arguments
                    .iter()
                    .try_for_each(|word| self.check_argument(&word_text(word), false))
            }
            _ => Err(self.words_fault(line)),
        }
    }

    fn check_container(
        &self,
        real: &ContainerLine,
        marked: &ContainerLine,
        line: Line<'_>,
    ) -> Checked {
        if container_shape(real) != container_shape(marked) {
            return Err(self.words_fault(line));
        }
        let flags = &marked.flags;
        for word in &flags.env {
            self.check_variable(&word_text(word), "the name of a variable")?;
        }
        for word in &flags.labels {
            self.check_variable(&word_text(word), "the name of a label")?;
        }
        let names = [&flags.name, &flags.workdir, &flags.user];
        let settings = names.into_iter().flatten();
        let lists = [
            &flags.volumes,
            &flags.ports,
            &flags.expose,
            &flags.network_aliases,
        ];
        for word in settings.chain(lists.into_iter().flatten()) {
            self.check_characters(&word_text(word), SETTING)?;
        }
        for word in flags.entrypoint.iter() {
            self.forbid(&word_text(word), "which program runs")?;
        }
        for word in flags.network.iter() {
            self.forbid(&word_text(word), "which network the container joins")?;
        }
        for (name, word) in &flags.other {
            match name.as_str() {
                "mount" | "volumes-from" | "device" | "cap-add" | "security-opt" | "pid"
                | "ipc" | "userns" | "runtime" | "env-file" | "label-file" | "cidfile" | "link"
                | "add-host" | "init" | "read-only" | "publish-all" | "oom-kill-disable" => {
                    self.forbid(&word_text(word), &format!("the flag `--{name}`"))?
                }
                _ => self.check_characters(&word_text(word), SETTING)?,
            }
        }
        self.check_reference(&word_text(&marked.image), &word_text(&real.image))?;
        let mut script = false;
        for word in &marked.args {
            let argument = word_text(word);
            self.check_argument(&argument, script)?;
            script = is_script_flag(Some(&argument));
        }
        Ok(())
    }

    fn check_docker(&self, real: &[Word], marked: &[Word], line: Line<'_>) -> Checked {
        if real.len() != marked.len() {
            return Err(self.words_fault(line));
        }
        let names: Vec<String> = marked.iter().take(2).map(word_text).collect();
        let placed = |words: &[Word], skip: usize| -> Vec<PlacedWord> {
            let words = words.iter().skip(skip);
            words.map(|word| (word.clone(), 0..0)).collect()
        };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match names.as_slice() {
            ["build", ..] => self.check_build_words(&placed(real, 1), &placed(marked, 1), line),
            ["buildx" | "image", "build"] => {
                self.check_build_words(&placed(real, 2), &placed(marked, 2), line)
            }
            ["run", ..] => {
                match (
                    cmd_line::container_from_words(&real[1..]),
                    cmd_line::container_from_words_unchecked(&marked[1..]),
                ) {
                    (Ok(real), Ok(marked)) => self.check_container(&real, &marked, line),
                    (Err(_), _) => Ok(()),
                    _ => Err(self.words_fault(line)),
                }
            }
            [name, ..] => {
                self.forbid(name, "which command of `docker` runs")?;
                for (real, marked) in real.iter().zip(marked).skip(1) {
                    let (real, marked) = (word_text(real), word_text(marked));
                    match marked.split_once('=') {
                        Some((flag, marked)) if flag.starts_with('-') => {
                            self.forbid(flag, "a flag of `docker`")?;
                            self.check_characters(marked, SETTING)?;
                        }
                        _ if marked.starts_with('-') => {
                            self.forbid(&marked, "a flag of `docker`")?;
                        }
                        _ => self.check_reference(&marked, &real)?,
                    }
                }
                Ok(())
            }
            [] => Ok(()),
        }
    }

    /// Splits both lines into words. Checks that the words differ only by values. `None` if the
    /// line itself cannot be split.
    fn match_words(&self, line: Line<'_>) -> Result<Option<Vec<(Token, Token)>>, Fault> {
        let (real, marked) = match (lexer::tokenize(line.real), lexer::tokenize(line.marked)) {
            (Ok(real), Ok(marked)) => (real, marked),
            (Err(_), Err(_)) => return Ok(None),
            _ => return Err(self.words_fault(line)),
        };
        if real.len() != marked.len() {
            return Err(self.words_fault(line));
        }
        for (real, marked) in real.iter().zip(&marked) {
            let same = match (&real.kind, &marked.kind) {
                (TokenKind::Word(one), TokenKind::Word(other)) => {
                    self.check_word(one, other, line)?;
                    true
                }
                (one, other) => one == other,
            };
            if !same {
                return Err(self.words_fault(line));
            }
        }
        Ok(Some(real.into_iter().zip(marked).collect()))
    }

    fn check_word(&self, real: &Word, marked: &Word, line: Line<'_>) -> Checked {
        let same_part = |real: &WordPart, marked: &WordPart| match (real, marked) {
            (WordPart::Text(real), WordPart::Text(marked)) => self.matches(marked, real),
            (real, marked) => real == marked,
        };
        let same = real.parts.len() == marked.parts.len()
            && real
                .parts
                .iter()
                .zip(&marked.parts)
                .all(|(real, marked)| same_part(real, marked));
        if !same {
            return Err(self.words_fault(line));
        }
        let (real, marked) = (real.head(), marked.head());
        if ["--privileged=", "--detach="]
            .iter()
            .any(|flag| marked.starts_with(flag))
        {
            self.forbid(marked, "a flag of the container")?;
        }
        if real.starts_with('-') && !marked.starts_with('-') {
            return Err(self.fault_in(marked, "it begins with `-`, so it would be a flag"));
        }
        if real.is_empty() && !marked.is_empty() {
            return Err(self.fault_in(
                marked,
                "it is empty, so a word of the line would be missing",
            ));
        }
        Ok(())
    }

    fn check_entry_count(&self, marked: &str, real: &str, separator: char) -> Checked {
        if marked.matches(separator).count() == real.matches(separator).count() {
            return Ok(());
        }
        Err(self.fault_in(
            marked,
            format!("it contains `{separator}`, which begins another entry"),
        ))
    }

    fn fault_in(&self, marked: &str, message: impl Into<String>) -> Fault {
        Fault::new(self.sources_of(marked), message)
    }

    fn words_fault(&self, line: Line<'_>) -> Fault {
        self.fault_in(line.marked, "it would change the words of the line")
    }
}

/// Returns the text of a word.
fn word_text(word: &Word) -> String {
    let parts = word.parts.iter().map(|part| match part {
        WordPart::Text(text) | WordPart::Date(text) => text.as_str(),
        WordPart::Home => "~",
    });
    parts.collect()
}

fn all_commands(line: &CmdLine) -> Vec<&Command> {
    let pipelines = std::iter::once(&line.first).chain(line.rest.iter().map(|(_, rest)| rest));
    pipelines.flat_map(|pipeline| &pipeline.commands).collect()
}

/// Returns the properties of a container that no value may change.
fn container_shape(line: &ContainerLine) -> (Vec<usize>, [bool; 2], Vec<&str>) {
    let flags = &line.flags;
    let lists = [
        &flags.env,
        &flags.volumes,
        &flags.ports,
        &flags.expose,
        &flags.network_aliases,
        &flags.labels,
        &line.args,
    ];
    let single = [
        &flags.workdir,
        &flags.entrypoint,
        &flags.name,
        &flags.user,
        &flags.network,
    ];
    let counts = lists.into_iter().map(Vec::len);
    let counts = counts.chain(single.into_iter().map(|word| usize::from(word.is_some())));
    let other = flags.other.iter().map(|(name, _)| name.as_str());
    (
        counts.collect(),
        [flags.detach, flags.privileged],
        other.collect(),
    )
}
