//! A newer tag in the text of a Dockerfile: which words change, and which cannot be changed by themselves. Pure.
//!
//! Looked at are `FROM`, `COPY --from`, `RUN --mount=from` and `# syntax`; where a tag comes from an `ARG` before the first
//! stage, its default is what changes. Invariant: nothing else changes, neither spaces nor line ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use acrtask_executor::dockerfile::{declared, expand};
use acrtask_model::ImageRef;
use parse_dockerfile::{Flag, Instruction};

/// A tag that takes the place of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Registry and repository.
    pub(crate) image: String,
    /// The tag in use.
    pub(crate) used: String,
    /// The one in its place.
    pub(crate) newest: String,
}

impl Change {
    fn is_about(&self, reference: &str) -> bool {
        let Ok(image) = reference.parse::<ImageRef>() else {
            return false;
        };
        let image = image.or_latest();
        image.digest().is_none()
            && image.name() == self.image
            && image.tag() == Some(self.used.as_str())
    }

    fn is_done(&self, reference: &str) -> bool {
        let image = reference.parse::<ImageRef>();
        image.is_ok_and(|image| {
            image.name() == self.image && image.tag() == Some(self.newest.as_str())
        })
    }
}

/// What became of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// The text with the newer tags.
    pub(crate) text: String,
    /// Lines that a person has to change, and why.
    pub(crate) left: Vec<(usize, String)>,
}

/// An argument before the first stage.
#[derive(Debug, Clone)]
struct Global {
    value: String,
    /// Where its default stands, if that holds no variable.
    default: Option<Range<usize>>,
}

/// The text with newer tags in place of those in use.
///
/// # Errors
/// Why the text is no Dockerfile.
pub(crate) fn rewrite(text: &str, changes: &[Change]) -> Result<Rewritten, String> {
    let found = Found::in_text(text)?;
    let mut edits: BTreeMap<(usize, usize), String> = BTreeMap::new();
    let mut left = Vec::new();
    let values: BTreeMap<String, String> = found
        .globals
        .iter()
        .map(|(name, global)| (name.clone(), global.value.clone()))
        .collect();
    for span in found.images {
        let raw = &text[span.clone()];
        let whole = expand(raw, &values);
        let Some(change) = changes.iter().find(|change| change.is_about(&whole)) else {
            continue;
        };
        if !raw.contains('$') {
            let (at, tag) = tagged(raw, change);
            edits.insert((span.start + at.start, span.start + at.end), tag);
            continue;
        }
        match by_argument(raw, &whole, &values, &found.globals, change, text) {
            Some((at, default)) => {
                edits.insert((at.start, at.end), default);
            }
            None => {
                let line = text[..span.start].matches('\n').count() + 1;
                left.push((
                    line,
                    format!(
                        "`{raw}` is {whole} here, and should become {}:{}; no default before the first FROM gives its tag",
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
    Ok(Rewritten { text: new, left })
}

/// Where the tag stands in a reference, and the newer one. One without a tag gets it at its end.
fn tagged(raw: &str, change: &Change) -> (Range<usize>, String) {
    let slash = raw.rfind('/').map_or(0, |at| at + 1);
    match raw[slash..].rfind(':') {
        Some(colon) => (slash + colon + 1..raw.len(), change.newest.clone()),
        None => (raw.len()..raw.len(), format!(":{}", change.newest)),
    }
}

/// The default of an argument that gives a reference its tag, and what it has to be.
fn by_argument(
    raw: &str,
    whole: &str,
    values: &BTreeMap<String, String>,
    globals: &BTreeMap<String, Global>,
    change: &Change,
    text: &str,
) -> Option<(Range<usize>, String)> {
    globals.iter().find_map(|(name, global)| {
        let span = global.default.clone()?;
        let default = &text[span.clone()];
        let with = |value: String| {
            let mut values = values.clone();
            values.insert(name.clone(), value.clone());
            let new = expand(raw, &values);
            (new != whole && change.is_done(&new)).then(|| (span.clone(), value))
        };
        // The tag, with what stands around it in the reference; or the whole reference.
        let cut = change
            .used
            .find(default)
            .filter(|_| !default.is_empty())
            .and_then(|at| {
                let (before, after) = (&change.used[..at], &change.used[at + default.len()..]);
                change.newest.strip_prefix(before)?.strip_suffix(after)
            });
        if let Some(found) = cut.and_then(|tag| with(tag.to_owned())) {
            return Some(found);
        }
        if !change.is_about(default) {
            return None;
        }
        let (at, tag) = tagged(default, change);
        with(format!("{}{tag}", &default[..at.start]))
    })
}

/// Where a Dockerfile names images, and its arguments.
#[derive(Debug, Default)]
struct Found {
    images: Vec<Range<usize>>,
    globals: BTreeMap<String, Global>,
}

impl Found {
    fn in_text(text: &str) -> Result<Self, String> {
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
                Instruction::Arg(arg) if first => found.declare(text, &arg.arguments.span),
                Instruction::From(from) => {
                    first = false;
                    if !stages.contains(&from.image.value.to_lowercase()) {
                        found.images.push(from.image.span.clone());
                    }
                    stages.extend(from.as_.iter().map(|(_, name)| name.value.to_lowercase()));
                }
                Instruction::Copy(copy) => {
                    for flag in copy.options.iter().filter(|flag| flag.name.value == "from") {
                        found.image(flag, &stages);
                    }
                }
                Instruction::Run(run) => {
                    for flag in run.options.iter().filter(|flag| flag.name.value == "mount") {
                        found.mount(text, flag, &stages);
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn declare(&mut self, text: &str, span: &Range<usize>) {
        let raw = &text[span.clone()];
        for (name, default) in declared(raw) {
            let Some(default) = default else { continue };
            let known = self
                .globals
                .iter()
                .map(|(name, global)| (name.clone(), global.value.clone()))
                .collect();
            let value = expand(&default, &known);
            let place = raw
                .find(&format!("{name}="))
                .map(|at| at + name.len() + 1)
                .and_then(|at| Some(at + raw[at..].find(default.as_str())?))
                .map(|at| span.start + at..span.start + at + default.len())
                .filter(|_| !default.is_empty() && !default.contains('$'));
            self.globals.insert(
                name,
                Global {
                    value,
                    default: place,
                },
            );
        }
    }

    fn image(&mut self, flag: &Flag<'_>, stages: &BTreeSet<String>) {
        if let Some(value) = &flag.value
            && !stages.contains(&value.value.to_lowercase())
        {
            self.images.push(value.span.clone());
        }
    }

    fn mount(&mut self, text: &str, flag: &Flag<'_>, stages: &BTreeSet<String>) {
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

/// Lines around a change that a diff shows.
const AROUND: usize = 3;

/// A unified diff, as `git apply` and `patch -p1` take it; empty where nothing differs. Both texts have as many lines.
pub(crate) fn unified(path: &str, old: &str, new: &str) -> String {
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
    // Changes whose surroundings meet are shown together.
    let mut hunks: Vec<Range<usize>> = Vec::new();
    for at in &changed {
        let around = at.saturating_sub(AROUND)..(at + AROUND + 1).min(old.len());
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
                push(&mut out, ' ', old[at]);
                at += 1;
                continue;
            }
            let end = (at..hunk.end)
                .find(|n| old[*n] == new[*n])
                .unwrap_or(hunk.end);
            old[at..end]
                .iter()
                .for_each(|line| push(&mut out, '-', line));
            new[at..end]
                .iter()
                .for_each(|line| push(&mut out, '+', line));
            at = end;
        }
    }
    out
}

fn push(out: &mut String, sign: char, line: &str) {
    out.push(sign);
    out.push_str(line);
    if !line.ends_with('\n') {
        out.push_str("\n\\ No newline at end of file\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alpine(used: &str, newest: &str) -> Change {
        Change {
            image: "docker.io/library/alpine".into(),
            used: used.into(),
            newest: newest.into(),
        }
    }

    fn diff(text: &str, changes: &[Change]) -> String {
        let rewritten = rewrite(text, changes).unwrap();
        let left = rewritten
            .left
            .iter()
            .map(|(line, why)| format!("{line}: {why}\n"));
        unified("Dockerfile", text, &rewritten.text) + &left.collect::<String>()
    }

    #[test]
    fn every_place_that_names_the_image_changes() {
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
    fn a_default_changes_where_it_gives_the_tag() {
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
    fn what_has_no_tag_gets_one_and_line_ends_stay() {
        let text = "FROM alpine\r\nRUN true\r\n";
        let new = rewrite(text, &[alpine("latest", "3.21")]).unwrap();
        assert_eq!(new.text, "FROM alpine:3.21\r\nRUN true\r\n");
        let other = rewrite(text, &[alpine("3.20", "3.21")]).unwrap();
        assert_eq!((other.text.as_str(), other.left.len()), (text, 0));
        assert!(rewrite("NOT A DOCKERFILE", &[]).is_err());
    }
}
