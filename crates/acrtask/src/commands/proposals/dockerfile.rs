//! Replaces image tags in the text of a Dockerfile, and reports the tags that it cannot replace.
//! Pure functions.
//!
//! Handles `FROM`, `COPY --from`, `RUN --mount=from` and `# syntax`. If a tag comes from an `ARG`
//! before the first stage, the argument's default changes. Invariant: everything else stays
//! unchanged, including spaces and line breaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use acrtask_executor::dockerfile::{expand, parse_declarations};
use acrtask_model::ImageRef;
use parse_dockerfile::{Flag, Instruction};

/// Replacement of an image tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TagChange {
    /// Registry and repository.
    pub(crate) image: String,
    /// Tag in use.
    pub(crate) used: String,
    /// Tag that replaces it.
    pub(crate) newest: String,
}

impl TagChange {
    fn matches_used(&self, reference: &str) -> bool {
        let Ok(image) = reference.parse::<ImageRef>() else {
            return false;
        };
        let image = image.or_latest();
        image.digest().is_none()
            && image.name() == self.image
            && image.tag() == Some(self.used.as_str())
    }

    fn matches_newest(&self, reference: &str) -> bool {
        let image = reference.parse::<ImageRef>();
        image.is_ok_and(|image| {
            image.name() == self.image && image.tag() == Some(self.newest.as_str())
        })
    }
}

/// Result of a replacement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RewrittenText {
    /// Text with the newer tags.
    pub(crate) text: String,
    /// Lines that need a manual change, with reasons.
    pub(crate) manual: Vec<(usize, String)>,
}

/// Argument before the first stage.
#[derive(Debug, Clone)]
struct GlobalArg {
    value: String,
    /// Position of the default; `None` if the default is empty or contains a variable.
    default: Option<Range<usize>>,
}

/// Replaces the tags of `changes` in `text`.
///
/// # Errors
/// Fails if the text is not a Dockerfile.
pub(crate) fn rewrite(text: &str, changes: &[TagChange]) -> Result<RewrittenText, String> {
    let found = ImageSpans::parse(text)?;
    let mut edits: BTreeMap<(usize, usize), String> = BTreeMap::new();
    let mut manual = Vec::new();
    let values: BTreeMap<String, String> = found
        .globals
        .iter()
        .map(|(name, global)| (name.clone(), global.value.clone()))
        .collect();
    for span in found.images {
        let raw = &text[span.clone()];
        let reference = expand(raw, &values);
        let Some(change) = changes
            .iter()
            .find(|change| change.matches_used(&reference))
        else {
            continue;
        };
        if !raw.contains('$') {
            let (at, tag) = replace_tag(raw, change);
            edits.insert((span.start + at.start, span.start + at.end), tag);
            continue;
        }
        match replace_arg_default(raw, &reference, &values, &found.globals, change, text) {
            Some((at, default)) => {
                edits.insert((at.start, at.end), default);
            }
            None => {
                let line = text[..span.start].matches('\n').count() + 1;
                manual.push((
                    line,
                    format!(
                        "`{raw}` is {reference} here, and should become {}:{}; no default before the first FROM sets its tag",
                        change.image, change.newest
                    ),
                ));
            }
        }
    }
    let mut new = String::with_capacity(text.len());
    let mut at = 0;
    for ((start, end), word) in edits {
        new += &text[at..start];
        new += &word;
        at = end;
    }
    new += &text[at..];
    Ok(RewrittenText { text: new, manual })
}

/// Returns the position of the tag in a reference, and its replacement. A missing tag is inserted
/// at the end.
fn replace_tag(raw: &str, change: &TagChange) -> (Range<usize>, String) {
    let slash = raw.rfind('/').map_or(0, |at| at + 1);
    match raw[slash..].rfind(':') {
        Some(colon) => (slash + colon + 1..raw.len(), change.newest.clone()),
        None => (raw.len()..raw.len(), format!(":{}", change.newest)),
    }
}

/// Returns the position and the new value of the argument default that sets the tag of a reference.
fn replace_arg_default(
    raw: &str,
    reference: &str,
    values: &BTreeMap<String, String>,
    globals: &BTreeMap<String, GlobalArg>,
    change: &TagChange,
    text: &str,
) -> Option<(Range<usize>, String)> {
    globals.iter().find_map(|(name, global)| {
        let span = global.default.clone()?;
        let default = &text[span.clone()];
        let try_default = |value: String| {
            let mut values = values.clone();
            values.insert(name.clone(), value.clone());
            let new = expand(raw, &values);
            (new != reference && change.matches_newest(&new)).then(|| (span.clone(), value))
        };
        // Tries the default as a part of the tag, then as the whole reference.
        let cut = change
            .used
            .find(default)
            .filter(|_| !default.is_empty())
            .and_then(|at| {
                let (before, after) = (&change.used[..at], &change.used[at + default.len()..]);
                change.newest.strip_prefix(before)?.strip_suffix(after)
            });
        if let Some(found) = cut.and_then(|tag| try_default(tag.to_owned())) {
            return Some(found);
        }
        if !change.matches_used(default) {
            return None;
        }
        let (at, tag) = replace_tag(default, change);
        try_default(format!("{}{tag}", &default[..at.start]))
    })
}

/// Positions of image references in a Dockerfile, and its global arguments.
#[derive(Debug, Default)]
struct ImageSpans {
    images: Vec<Range<usize>>,
    globals: BTreeMap<String, GlobalArg>,
}

impl ImageSpans {
    fn parse(text: &str) -> Result<Self, String> {
        let dockerfile = parse_dockerfile::parse(text).map_err(|error| error.to_string())?;
        let mut found = Self::default();
        let syntax = dockerfile.parser_directives.syntax.as_ref();
        found
            .images
            .extend(syntax.map(|syntax| syntax.value.span.clone()));
        let mut stages: BTreeSet<String> = BTreeSet::new();
        let mut first = true;
        for instruction in &dockerfile.instructions {
            match instruction {
                Instruction::Arg(arg) if first => found.add_args(text, &arg.arguments.span),
                Instruction::From(from) => {
                    first = false;
                    if !stages.contains(&from.image.value.to_lowercase()) {
                        found.images.push(from.image.span.clone());
                    }
                    stages.extend(from.as_.iter().map(|(_, name)| name.value.to_lowercase()));
                }
                Instruction::Copy(copy) => {
                    for flag in copy.options.iter().filter(|flag| flag.name.value == "from") {
                        found.add_copy_from(flag, &stages);
                    }
                }
                Instruction::Run(run) => {
                    for flag in run.options.iter().filter(|flag| flag.name.value == "mount") {
                        found.add_mount(text, flag, &stages);
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn add_args(&mut self, text: &str, span: &Range<usize>) {
        let raw = &text[span.clone()];
        for (name, default) in parse_declarations(raw) {
            let Some(default) = default else { continue };
            let values = self
                .globals
                .iter()
                .map(|(name, global)| (name.clone(), global.value.clone()))
                .collect();
            let value = expand(&default, &values);
            let span_of_default = raw
                .find(&format!("{name}="))
                .map(|at| at + name.len() + 1)
                .and_then(|at| Some(at + raw[at..].find(default.as_str())?))
                .map(|at| span.start + at..span.start + at + default.len())
                .filter(|_| !default.is_empty() && !default.contains('$'));
            self.globals.insert(
                name,
                GlobalArg {
                    value,
                    default: span_of_default,
                },
            );
        }
    }

    fn add_copy_from(&mut self, flag: &Flag<'_>, stages: &BTreeSet<String>) {
        if let Some(value) = &flag.value
            && !stages.contains(&value.value.to_lowercase())
        {
            self.images.push(value.span.clone());
        }
    }

    fn add_mount(&mut self, text: &str, flag: &Flag<'_>, stages: &BTreeSet<String>) {
        let Some(value) = &flag.value else { return };
        let raw = &text[value.span.clone()];
        let mut at = value.span.start;
        for part in raw.split(',') {
            if let Some(image) = part.strip_prefix("from=")
                && !stages.contains(&image.to_lowercase())
            {
                self.images.push(at + "from=".len()..at + part.len());
            }
            at += part.len() + 1;
        }
    }
}

/// Context lines around a change in a diff.
const CONTEXT_LINES: usize = 3;

/// Renders a unified diff for `git apply` and `patch -p1`; empty if the texts are equal. Both texts
/// must have the same number of lines.
pub(crate) fn unified_diff(path: &str, old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (
        old.split_inclusive('\n').collect(),
        new.split_inclusive('\n').collect(),
    );
    let changed: Vec<usize> = (0..old.len().min(new.len()))
        .filter(|at| old[*at] != new[*at])
        .collect();
    if changed.is_empty() {
        return String::new();
    }
    // Merges changes whose context lines touch.
    let mut hunks: Vec<Range<usize>> = Vec::new();
    for at in &changed {
        let around = at.saturating_sub(CONTEXT_LINES)..(at + CONTEXT_LINES + 1).min(old.len());
        match hunks.last_mut() {
            Some(last) if last.end >= around.start => last.end = around.end,
            _ => hunks.push(around),
        }
    }
    let mut out = format!("--- a/{path}\n+++ b/{path}\n");
    for hunk in hunks {
        let (start, count) = (hunk.start + 1, hunk.len());
        out += &format!("@@ -{start},{count} +{start},{count} @@\n");
        let mut at = hunk.start;
        while at < hunk.end {
            if old[at] == new[at] {
                push_line(&mut out, ' ', old[at]);
                at += 1;
                continue;
            }
            let end = (at..hunk.end)
                .find(|n| old[*n] == new[*n])
                .unwrap_or(hunk.end);
            old[at..end]
                .iter()
                .for_each(|line| push_line(&mut out, '-', line));
            new[at..end]
                .iter()
                .for_each(|line| push_line(&mut out, '+', line));
            at = end;
        }
    }
    out
}

fn push_line(out: &mut String, sign: char, line: &str) {
    out.push(sign);
    out.push_str(line);
    if !line.ends_with('\n') {
        out.push_str("\n\\ No newline at end of file\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alpine(used: &str, newest: &str) -> TagChange {
        TagChange {
            image: "docker.io/library/alpine".into(),
            used: used.into(),
            newest: newest.into(),
        }
    }

    fn diff(text: &str, changes: &[TagChange]) -> String {
        let rewritten = rewrite(text, changes).unwrap();
        let manual = rewritten
            .manual
            .iter()
            .map(|(line, why)| format!("{line}: {why}\n"));
        unified_diff("Dockerfile", text, &rewritten.text) + &manual.collect::<String>()
    }

    #[test]
    fn all_references_to_the_image_are_replaced() {
        let text = "\
# syntax=docker/dockerfile:1
FROM --platform=$BUILDPLATFORM alpine:3.20 AS build
RUN echo alpine:3.20
RUN --mount=type=bind,from=alpine:3.20,target=/x ls

FROM docker.io/library/alpine:3.20
COPY --from=build /a /a
COPY --from=alpine:3.20 \\
  /b /b
FROM alpine:3.20-slim
FROM r.io/alpine:3.20
FROM alpine:3.20@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
";
        insta::assert_snapshot!(diff(text, &[alpine("3.20", "3.21")]));
    }

    #[test]
    fn arg_default_that_sets_the_tag_is_replaced() {
        let text = "\
ARG VERSION=3.20 KIND=\"slim\"
ARG BASE=alpine:3.19
FROM alpine:${VERSION}-${KIND}
FROM $BASE
FROM alpine:${OTHER:-3.18}";
        let changes = [
            alpine("3.20-slim", "3.21-slim"),
            alpine("3.19", "3.19.1"),
            alpine("3.18", "3.19"),
        ];
        insta::assert_snapshot!(diff(text, &changes));
    }

    #[test]
    fn missing_tag_is_inserted_and_line_breaks_stay() {
        let text = "FROM alpine\r\nRUN true\r\n";
        let new = rewrite(text, &[alpine("latest", "3.21")]).unwrap();
        assert_eq!(new.text, "FROM alpine:3.21\r\nRUN true\r\n");
        let other = rewrite(text, &[alpine("3.20", "3.21")]).unwrap();
        assert_eq!((other.text.as_str(), other.manual.len()), (text, 0));
        assert!(rewrite("NOT A DOCKERFILE", &[]).is_err());
    }
}
