//! The line of a step, parsed by the kind of the step. A line that cannot run does not prevent the
//! plan.

use std::{collections::HashSet, ops::Range};

use acrtask_model::{ImageRef, reference::cache_tag_start};

use super::{
    Context, first_byte,
    images::{check_tags, refuse_empty_registry},
    order::StepName,
    paths::{BuildInputs, check_paths},
    purge::warn_of_purges,
};
use crate::{
    alias::{PREDEFINED, expand_image},
    build_line,
    cmd_line::{self, CmdLine, CommandKind, docker_word_supported},
    code::Code,
    diagnostic::Diagnostic,
    origin::align,
    plan::{BuildStep, CmdStep, LineRefusal, PushStep, StepCache, StepKind},
    read::{Report, Text, first_line_span, quote_yaml},
    run_variables::RunVariables,
    task::RawStep,
};

/// Parses the line of a step. `next` is the following step, which may be a detached part of this
/// one.
pub(super) fn read_step_kind(
    raw: &RawStep,
    next: Option<&RawStep>,
    id: &StepName,
    inputs: &BuildInputs<'_>,
    context: &Context<'_>,
    report: &mut Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> Option<StepKind> {
    let given = [
        raw.build.as_ref().map(|text| ("build", &text.span)),
        raw.cmd.as_ref().map(|text| ("cmd", &text.span)),
        raw.push.first().map(|text| ("push", &text.span)),
    ];
    let given: Vec<_> = given.into_iter().flatten().collect();
    if given.is_empty() && raw.unread {
        return None;
    }
    if given.len() != 1 {
        let diagnostic = if given.is_empty() {
            let span = raw
                .push_key
                .clone()
                .unwrap_or_else(|| first_byte(&raw.span));
            Diagnostic::error(
                Code::StepKind,
                format!("the step `{}` has nothing to do", id.text),
            )
            .at(span, "one of build, cmd and push is missing")
            .help(missing_kind_help(raw, next))
        } else {
            let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
            let (last, others) = names.split_last()?;
            let mut diagnostic = Diagnostic::error(
                Code::StepKind,
                format!(
                    "the step `{}` has {} and {last}, and a step is one of them",
                    id.text,
                    others.join(", ")
                ),
            );
            for (name, span) in &given {
                diagnostic = diagnostic.at((*span).clone(), format!("{name} here"));
            }
            diagnostic.help(format!("begin a new step with `- {last}:`"))
        };
        report.push(diagnostic);
        return None;
    }
    if let Some(build) = &raw.build {
        let written = report.written_line(build.span.clone());
        let line = build_line::parse_at(&build.value, context.variables.date)
            .and_then(|line| check_tags(line, &build.value, context, written))
            .and_then(|line| check_paths(line, &build.value, inputs));
        let positions = LinePositions {
            text: build,
            shift: None,
            context,
        };
        match &line {
            Err(refused) => refusals.push(positions.to_diagnostic(refused, report)),
            Ok(line) => {
                for (flag, sentence) in &line.ignored {
                    let at = positions.find_flag(flag);
                    report.push(
                        Diagnostic::warning(Code::NoEffect, sentence.clone()).at(at, "ignored"),
                    );
                }
            }
        }
        let cache = raw
            .cache
            .as_ref()
            .is_some_and(|cache| cache.value.eq_ignore_ascii_case("enabled"));
        let tags = line
            .as_ref()
            .map(|line| line.tags.clone())
            .unwrap_or_default();
        let cache = match cache
            .then(|| build_cache_reference(&tags, &id.text, context.variables))
            .flatten()
        {
            Some(Err(why)) => {
                report.push(
                    Diagnostic::warning(
                        Code::Cache,
                        format!("the step's cache cannot be stored: {why}"),
                    )
                    .at(
                        first_line_span(build.span.clone(), context.source),
                        "the cache is stored beside the first tag",
                    )
                    .help("give the build a tag whose repository can also store the cache"),
                );
                None
            }
            Some(Ok(reference)) => Some(StepCache {
                reference,
                export: true,
            }),
            None => None,
        };
        return Some(StepKind::Build(Box::new(BuildStep {
            raw: build.value.clone(),
            line,
            cache,
        })));
    }
    if let Some(cmd) = &raw.cmd {
        let expanded = context
            .aliases
            .and_then(|aliases| expand_image(&cmd.value, aliases));
        let (line_text, shift) = match expanded {
            Some((line, word)) => (line, Some(word)),
            None => (cmd.value.clone(), None),
        };
        let image_alias = |word: &str| {
            context
                .aliases
                .and_then(|aliases| aliases.image(word))
                .map(str::to_owned)
        };
        let written = report.written_line(cmd.span.clone());
        let line = cmd_line::parse(&line_text, &image_alias).map_err(|refused| {
            let word = line_text.get(refused.span.clone()).unwrap_or_default();
            let name = word.trim_matches(['"', '\'']);
            refuse_empty_registry(name, refused.span.clone(), context, written).unwrap_or(refused)
        });
        let positions = LinePositions {
            text: cmd,
            shift: shift.map(|word| (word, line_text.len())),
            context,
        };
        match &line {
            Err(refused) => refusals.push(positions.to_diagnostic(refused, report)),
            Ok(line) => {
                warn_of_unsupported_docker_words(line, &positions, report);
                warn_of_purges(line, &positions, report);
            }
        }
        return Some(StepKind::Cmd(Box::new(CmdStep {
            raw: line_text,
            line,
        })));
    }
    Some(StepKind::Push(read_push(raw, context, report, refusals)))
}

/// Returns the help for a step without build, cmd and push.
fn missing_kind_help(raw: &RawStep, next: Option<&RawStep>) -> &'static str {
    let rest_follows = next.is_some_and(|next| {
        next.id.is_none() && (next.cmd.is_some() || next.build.is_some() || !next.push.is_empty())
    });
    if raw.id.is_some() && raw.push_key.is_none() && rest_follows {
        "the `-` of the entry after it begins a new step: where both are one, write a space for it"
    } else {
        "add `build: ...`, `cmd: ...` or `push: [...]`; an empty one counts as missing"
    }
}

/// Warns of `docker` commands that no run executes.
fn warn_of_unsupported_docker_words(
    line: &CmdLine,
    positions: &LinePositions<'_>,
    report: &mut Report<'_>,
) {
    let pipelines =
        std::iter::once(&line.first).chain(line.rest.iter().map(|(_, pipeline)| pipeline));
    for command in pipelines.flat_map(|pipeline| &pipeline.commands) {
        if let CommandKind::Docker(words) = &command.kind
            && !docker_word_supported(words)
        {
            let name = cmd_line::docker_word_name(words);
            report.push(
                Diagnostic::warning(Code::DockerWord, format!("acrtask does not run `docker {name}`"))
                    .at(first_line_span(positions.text.span.clone(), positions.context.source), "it needs the engine's socket")
                    .help("a run refuses it unless the operator allows the socket; steps clean up after themselves"),
            );
        }
    }
}

fn read_push(
    raw: &RawStep,
    context: &Context<'_>,
    report: &Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> PushStep {
    let mut step = PushStep {
        images: Vec::new(),
        raw: Vec::new(),
    };
    let mut seen = HashSet::new();
    for image in &raw.push {
        let full = if image.value.contains(['@', ':']) {
            image.value.clone()
        } else {
            format!("{}:latest", image.value)
        };
        if !seen.insert(full.clone()) {
            continue;
        }
        let written = report.written_line(image.span.clone());
        let parsed = full.parse::<ImageRef>().map_err(|error| {
            let trimmed = full.trim();
            refuse_empty_registry(&full, 0..image.value.len(), context, written).unwrap_or_else(
                || LineRefusal {
                    message: format!("`{}` is not an image: {}", image.value, error.reason),
                    span: 0..full.len(),
                    help: Some(if image.value.trim().contains(char::is_whitespace) {
                        format!(
                            "write one entry for each image: `push: [{}]`",
                            image
                                .value
                                .split_whitespace()
                                .map(quote_yaml)
                                .collect::<Vec<_>>()
                                .join(", ")
                        )
                    } else if trimmed.to_lowercase().parse::<ImageRef>().is_ok() {
                        format!("write `{}`", trimmed.to_lowercase())
                    } else {
                        "write for example `{{.Run.Registry}}/app:{{.Run.ID}}`".to_owned()
                    }),
                },
            )
        });
        if let Err(refused) = &parsed {
            let positions = LinePositions {
                text: image,
                shift: None,
                context,
            };
            refusals.push(positions.to_diagnostic(refused, report));
        }
        step.images.push(parsed.map(ImageRef::or_latest));
        step.raw.push(full);
    }
    step
}

/// Returns the reference of a build's cache: `<repository of the first tag>:cache_<task>_<step>`.
///
/// Uses the first tag that names a registry. If none does, the first tag is taken in the run's
/// registry. Characters of the task name that a tag cannot contain, such as `/`, become `-`. `None`
/// if the build has no tags.
fn build_cache_reference(
    tags: &[String],
    step: &str,
    variables: &RunVariables,
) -> Option<Result<ImageRef, String>> {
    let task = match variables.task_name.as_str() {
        "" => "quickrun",
        name => name,
    };
    let start = cache_tag_start(task);
    let first = tags.first()?;
    let names_registry = |tag: &&String| {
        tag.split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
    };
    let full = match tags.iter().find(names_registry) {
        Some(tag) => tag.clone(),
        None if variables.registry.is_empty() => first.clone(),
        None => format!("{}/{first}", variables.registry),
    };
    let tagged = full
        .parse::<ImageRef>()
        .and_then(|image| image.with_tag(&format!("{start}_{step}")));
    Some(tagged.map_err(|error| error.to_string()))
}

/// Mapping from bytes of a line to bytes of the author's text.
pub(super) struct LinePositions<'p> {
    text: &'p Text,
    /// Range of the word that an image alias replaced, and the length of the whole line afterwards.
    shift: Option<(Range<usize>, usize)>,
    context: &'p Context<'p>,
}

impl LinePositions<'_> {
    /// Converts the refusal of a line to an error.
    fn to_diagnostic(&self, refused: &LineRefusal, report: &Report<'_>) -> Diagnostic {
        let source = self
            .context
            .source
            .get(self.text.span.clone())
            .unwrap_or_default();
        let map = align(&self.text.value, source);
        let place = |at: usize| {
            let at = self.unexpand_offset(at).min(map.len() - 1);
            self.text.span.start + map[at]
        };
        let start = place(refused.span.start);
        let end = place(refused.span.end.saturating_sub(1)).max(start) + 1;
        let diagnostic = Diagnostic {
            help: self
                .help_for_alias(&refused.span)
                .or_else(|| refused.help.clone()),
            ..Diagnostic::error(Code::CannotRun, refused.message.clone())
        };
        report.with_author_spans(diagnostic.at(start..end, "here"))
    }

    /// Returns help if `span` begins with a predefined alias although the file has aliases. Such an
    /// alias comes from the value of another alias.
    fn help_for_alias(&self, span: &Range<usize>) -> Option<String> {
        self.context.aliases?;
        let part = self.text.value.get(self.unexpand_offset(span.start)..)?;
        let bare = part.strip_prefix("${").or(part.strip_prefix('$'))?;
        let end = bare.find(|c: char| !c.is_ascii_alphanumeric());
        let name = &bare[..end.unwrap_or(bare.len())];
        PREDEFINED.contains(&name).then(|| {
            format!(
                "write `{{{{.Run.{name}}}}}` instead of `${name}`: aliases in the value of another alias are not replaced"
            )
        })
    }

    fn unexpand_offset(&self, at: usize) -> usize {
        let Some((word, expanded)) = &self.shift else {
            return at;
        };
        let after_word = self.text.value[word.end..].trim_end().len();
        let image = expanded - after_word;
        if at < image {
            word.start
        } else {
            word.end + (at - image)
        }
    }

    /// Returns the range of a flag, or of the first line of the text.
    fn find_flag(&self, flag: &str) -> Range<usize> {
        let span = self.text.span.clone();
        let source = self.context.source.get(span.clone()).unwrap_or_default();
        let is_flag = |at: usize| {
            let before = source[..at].chars().next_back();
            let after = source[at + flag.len()..].chars().next();
            before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
                && (!flag.starts_with("--") || after.is_none_or(|c| c == '=' || c.is_whitespace()))
        };
        match source.match_indices(flag).find(|(at, _)| is_flag(*at)) {
            Some((at, _)) => span.start + at..span.start + at + flag.len(),
            None => first_line_span(span, self.context.source),
        }
    }

    /// Returns the range of the first occurrence of `wanted`, or of the first line of the text.
    pub(super) fn find_text(&self, wanted: &str) -> Range<usize> {
        let span = self.text.span.clone();
        let source = self.context.source.get(span.clone()).unwrap_or_default();
        match source.find(wanted) {
            Some(at) => span.start + at..span.start + at + wanted.len(),
            None => first_line_span(span, self.context.source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_tag_contains_the_sanitized_task_name() {
        for (task, expected) in [
            ("", "reg.example.com/app:cache_quickrun_build"),
            ("nightly", "reg.example.com/app:cache_nightly_build"),
            ("team/app", "reg.example.com/app:cache_team-app_build"),
        ] {
            let variables = RunVariables {
                registry: "reg.example.com".into(),
                task_name: task.into(),
                ..RunVariables::default()
            };
            let cache = build_cache_reference(&["app:1".to_owned()], "build", &variables);
            assert_eq!(cache.unwrap().unwrap().to_string(), expected);
        }
    }
}
