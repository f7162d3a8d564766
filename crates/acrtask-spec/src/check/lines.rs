//! What a step does: its one line, taken apart. A line that cannot be run does not stop the plan.

use std::ops::Range;

use acrtask_model::ImageRef;

use super::{
    Context,
    images::{check_tags, without_registry},
    line_of,
    order::Named,
    paths::{BuildPlace, check_paths},
};
use crate::{
    alias::{PREDEFINED, expand_image},
    build_line,
    cmd_line::{self, CmdLine, CommandKind, docker_word_supported},
    diagnostic::Diagnostic,
    facts::RunFacts,
    origin::align,
    plan::{BuildStep, CmdStep, LineRefusal, PushStep, StepCache, StepKind},
    read::{Report, Text, first_line, quoted},
    task::RawStep,
};

/// Takes the line of a step apart. `next` is the step after it, which may be the rest of this one.
pub(super) fn step_kind(
    raw: &RawStep,
    next: Option<&RawStep>,
    id: &Named,
    place: &BuildPlace<'_>,
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
            let span = raw.push_key.clone().unwrap_or_else(|| line_of(&raw.span));
            Diagnostic::error(
                "step-kind",
                format!("the step `{}` has nothing to do", id.text),
            )
            .at(span, "one of build, cmd and push is missing")
            .help(nothing_to_do(raw, next))
        } else {
            let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
            let (last, others) = names.split_last()?;
            let mut diagnostic = Diagnostic::error(
                "step-kind",
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
        let line = build_line::parse_at(&build.value, context.facts.date)
            .and_then(|line| check_tags(line, &build.value, context, written))
            .and_then(|line| check_paths(line, &build.value, place));
        let places = Places {
            text: build,
            shift: None,
            context,
        };
        match &line {
            Err(refused) => refusals.push(places.refusal(refused, report)),
            Ok(line) => {
                for (flag, sentence) in &line.ignored {
                    let at = places.find(flag);
                    report
                        .push(Diagnostic::warning("no-effect", sentence.clone()).at(at, "ignored"));
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
            .then(|| cache_ref(&tags, &id.text, context.facts))
            .flatten()
        {
            Some(Err(why)) => {
                report.push(
                    Diagnostic::warning("cache", format!("the step's cache has no place: {why}"))
                        .at(
                            first_line(build.span.clone(), context.source),
                            "the cache is kept beside the first tag",
                        )
                        .help("give the build a tag whose repository can also hold the cache"),
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
            without_registry(name, refused.span.clone(), context, written).unwrap_or(refused)
        });
        let places = Places {
            text: cmd,
            shift: shift.map(|word| (word, line_text.len())),
            context,
        };
        match &line {
            Err(refused) => refusals.push(places.refusal(refused, report)),
            Ok(line) => warn_of_docker(line, &places, report),
        }
        return Some(StepKind::Cmd(Box::new(CmdStep {
            raw: line_text,
            line,
        })));
    }
    Some(StepKind::Push(push(raw, context, report, refusals)))
}

/// What to write where a step has no build, cmd or push.
fn nothing_to_do(raw: &RawStep, next: Option<&RawStep>) -> &'static str {
    let rest_follows = next.is_some_and(|next| {
        next.id.is_none() && (next.cmd.is_some() || next.build.is_some() || !next.push.is_empty())
    });
    if raw.id.is_some() && raw.push_key.is_none() && rest_follows {
        "the `-` of the entry after it begins a new step: where both are one, write a space for it"
    } else {
        "add `build: ...`, `cmd: ...` or `push: [...]`; an empty one counts as missing"
    }
}

/// The words of `docker` that nobody carries out.
fn warn_of_docker(line: &CmdLine, places: &Places<'_>, report: &mut Report<'_>) {
    let pipelines =
        std::iter::once(&line.first).chain(line.rest.iter().map(|(_, pipeline)| pipeline));
    for command in pipelines.flat_map(|pipeline| &pipeline.commands) {
        if let CommandKind::Docker(words) = &command.kind
            && !docker_word_supported(words)
        {
            let name = cmd_line::docker_word_name(words);
            report.push(
                Diagnostic::warning("docker-word", format!("`docker {name}` is not carried out by acrtask"))
                    .at(first_line(places.text.span.clone(), places.context.source), "it needs the engine's socket")
                    .help("a run refuses it unless the operator allowed the socket; steps clean up after themselves"),
            );
        }
    }
}

fn push(
    raw: &RawStep,
    context: &Context<'_>,
    report: &Report<'_>,
    refusals: &mut Vec<Diagnostic>,
) -> PushStep {
    let mut step = PushStep {
        images: Vec::new(),
        raw: Vec::new(),
    };
    for image in &raw.push {
        let full = if image.value.contains(['@', ':']) {
            image.value.clone()
        } else {
            format!("{}:latest", image.value)
        };
        if step.raw.contains(&full) {
            continue;
        }
        let written = report.written_line(image.span.clone());
        let parsed = full.parse::<ImageRef>().map_err(|error| {
            let trimmed = full.trim();
            without_registry(&full, 0..image.value.len(), context, written).unwrap_or_else(|| {
                LineRefusal {
                    message: format!("`{}` is no image: {}", image.value, error.reason),
                    span: 0..full.len(),
                    help: Some(if image.value.trim().contains(char::is_whitespace) {
                        format!(
                            "write one entry for each image: `push: [{}]`",
                            image
                                .value
                                .split_whitespace()
                                .map(quoted)
                                .collect::<Vec<_>>()
                                .join(", ")
                        )
                    } else if trimmed.to_lowercase().parse::<ImageRef>().is_ok() {
                        format!("write `{}`", trimmed.to_lowercase())
                    } else {
                        "write for example `{{.Run.Registry}}/app:{{.Run.ID}}`".to_owned()
                    }),
                }
            })
        });
        if let Err(refused) = &parsed {
            let places = Places {
                text: image,
                shift: None,
                context,
            };
            refusals.push(places.refusal(refused, report));
        }
        step.images.push(parsed.map(ImageRef::or_latest));
        step.raw.push(full);
    }
    step
}

/// Where the cache of a build is kept: `<repository of the first tag>:cache_<task>_<step>`. The first tag
/// that names its registry counts; where none does, the run's registry is meant. Nothing without tags. What a tag
/// cannot hold of the task's name, like its `/`, becomes `-`.
fn cache_ref(tags: &[String], step: &str, facts: &RunFacts) -> Option<Result<ImageRef, String>> {
    let task = if facts.task_name.is_empty() {
        "quickrun".to_owned()
    } else {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = facts.task_name.chars();
        name.map(|c| if good(c) { c } else { '-' }).collect()
    };
    let first = tags.first()?;
    let names_registry = |tag: &&String| {
        tag.split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
    };
    let full = match tags.iter().find(names_registry) {
        Some(tag) => tag.clone(),
        None if facts.registry.is_empty() => first.clone(),
        None => format!("{}/{first}", facts.registry),
    };
    let tagged = full
        .parse::<ImageRef>()
        .and_then(|image| image.with_tag(&format!("cache_{task}_{step}")));
    Some(tagged.map_err(|error| error.to_string()))
}

/// From bytes of a line to the author's.
struct Places<'p> {
    text: &'p Text,
    /// Where an image alias was replaced: the bytes of its word, and the length of the whole line after.
    shift: Option<(Range<usize>, usize)>,
    context: &'p Context<'p>,
}

impl Places<'_> {
    /// The refusal of a line as an error.
    fn refusal(&self, refused: &LineRefusal, report: &Report<'_>) -> Diagnostic {
        let source = self
            .context
            .source
            .get(self.text.span.clone())
            .unwrap_or_default();
        let map = align(&self.text.value, source);
        let place = |at: usize| {
            let at = self.unshifted(at).min(map.len() - 1);
            self.text.span.start + map[at]
        };
        let start = place(refused.span.start);
        let end = place(refused.span.end.saturating_sub(1)).max(start) + 1;
        let diagnostic = Diagnostic {
            help: self
                .help_for_alias(&refused.span)
                .or_else(|| refused.help.clone()),
            ..Diagnostic::error("cannot-run", refused.message.clone())
        };
        report.placed(diagnostic.at(start..end, "here"))
    }

    /// What to write where `span` begins with the alias of a fact of the run although the file has aliases: it comes
    /// out of the value of another one.
    fn help_for_alias(&self, span: &Range<usize>) -> Option<String> {
        self.context.aliases?;
        let part = self.text.value.get(self.unshifted(span.start)..)?;
        let bare = part.strip_prefix("${").or(part.strip_prefix('$'))?;
        let end = bare.find(|c: char| !c.is_ascii_alphanumeric());
        let name = &bare[..end.unwrap_or(bare.len())];
        PREDEFINED.contains(&name).then(|| {
            format!(
                "write `{{{{.Run.{name}}}}}` instead of `${name}`: aliases in the value of another alias are not replaced"
            )
        })
    }

    fn unshifted(&self, at: usize) -> usize {
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

    /// Where a flag stands, or the first line of the text.
    fn find(&self, flag: &str) -> Range<usize> {
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
            None => first_line(span, self.context.source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_task_fits_the_tag_of_its_cache() {
        for (task, expected) in [
            ("", "reg.example.com/app:cache_quickrun_build"),
            ("nightly", "reg.example.com/app:cache_nightly_build"),
            ("team/app", "reg.example.com/app:cache_team-app_build"),
        ] {
            let facts = RunFacts {
                registry: "reg.example.com".into(),
                task_name: task.into(),
                ..RunFacts::default()
            };
            let cache = cache_ref(&["app:1".to_owned()], "build", &facts);
            assert_eq!(cache.unwrap().unwrap().to_string(), expected);
        }
    }
}
