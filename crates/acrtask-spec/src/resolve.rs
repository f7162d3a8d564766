//! Resolution of a task file: from its text to a [`Plan`].

use std::{collections::BTreeMap, ops::Range};

use acrtask_model::{
    Secret,
    mask::{Patterns, mask_fragments},
};
use acrtask_template::{Limits, Rendered, Sources, Template, Untrusted};

use crate::{
    TaskSource,
    alias::{self, Aliases},
    check,
    code::Code,
    diagnostic::{Diagnostic, Severity},
    origin::{Origin, Patched},
    plan::Plan,
    read::Report,
    run_variables::{Lookup, RunVariables},
    task::{self, RawTask},
    untrusted::{self, Names, Rendering},
    version, yaml,
};

/// Maximum size of a task file in bytes: as written, with its aliases replaced, and rendered. The
/// largest known file has 8,000 bytes. A file of this size is read within 50 ms.
pub const MAX_FILE: usize = 128 << 10;

/// Maximum length of a text in a diagnostic, in characters.
const MAX_TEXT: usize = 2000;

/// The result of resolving a task file.
#[derive(Debug)]
pub struct Resolution {
    /// Plan of the task. `None` if a diagnostic is an error.
    pub plan: Option<Plan>,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Refusals of lines in the plan that no run can execute. Errors for `acrtask run`.
    pub refusals: Vec<Diagnostic>,
}

impl Resolution {
    /// Returns the diagnostics for `acrtask plan`, where refused lines are warnings.
    pub fn for_plan(&self) -> Vec<Diagnostic> {
        let refused = self.refusals.iter().cloned().map(|diagnostic| Diagnostic {
            severity: Severity::Warning,
            message: format!("{}; a run is refused", diagnostic.message),
            ..diagnostic
        });
        sort_diagnostics(self.diagnostics.iter().cloned().chain(refused).collect())
    }

    /// Returns the diagnostics for `acrtask run`. Nothing is started if one of them is an error.
    pub fn for_run(&self) -> Vec<Diagnostic> {
        sort_diagnostics(
            self.diagnostics
                .iter()
                .chain(&self.refusals)
                .cloned()
                .collect(),
        )
    }
}

/// Resolves `source` for a run with `variables`.
///
/// Reports all problems of the version, of YAML and of the checks. A template that cannot be
/// rendered hides the problems after it, and so does invalid YAML.
///
/// Performs no I/O except through `lookup`.
pub fn resolve(source: &TaskSource, variables: &RunVariables, lookup: &dyn Lookup) -> Resolution {
    let mut secrets = Secrets {
        resolved: variables.secrets.iter().cloned().collect(),
        missing: Vec::new(),
        order: variables.secrets.iter().map(|(id, _)| id.clone()).collect(),
    };
    let mut problems = Vec::new();
    let done = resolve_file(source, variables, lookup, &mut secrets, &mut problems);
    let (plan, refusals) = done.unwrap_or_default();
    let patterns = Patterns::new(secrets.resolved.values());
    let masked = |diagnostics: Vec<Diagnostic>| {
        sort_diagnostics(
            diagnostics
                .into_iter()
                .map(|diagnostic| {
                    diagnostic.clamped_to(&source.text).map_texts(|text| {
                        truncate_text(mask_secrets(&patterns, secrets.resolved.values(), text))
                    })
                })
                .collect(),
        )
    };
    let diagnostics = masked(problems);
    Resolution {
        plan: plan.filter(|_| !diagnostics.iter().any(Diagnostic::is_error)),
        diagnostics,
        refusals: masked(refusals),
    }
}

/// Masks secrets in a text of a diagnostic. The text may quote fragments of a secret, for example
/// up to a YAML error.
fn mask_secrets<'s>(
    patterns: &Patterns,
    secrets: impl Iterator<Item = &'s Secret>,
    text: &str,
) -> String {
    mask_fragments(&patterns.mask(text), secrets)
}

/// Truncates a text of a diagnostic that quotes too much of the file.
fn truncate_text(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(cut);
        text += "...";
    }
    text
}

fn sort_diagnostics(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort_by_key(Diagnostic::start);
    diagnostics.dedup();
    diagnostics
}

/// The values of the secrets that are resolved so far.
struct Secrets {
    resolved: BTreeMap<String, Secret>,
    /// Ids of declared secrets without a value. A placeholder replaces the value, so that a line
    /// with it is not refused for being empty.
    missing: Vec<String>,
    order: Vec<String>,
}

impl Secrets {
    fn values(&self) -> Vec<Secret> {
        self.order
            .iter()
            .filter_map(|id| self.resolved.get(id))
            .cloned()
            .collect()
    }

    fn data(&self, variables: &RunVariables) -> serde_json::Value {
        let stand_in = Secret::new("unknown");
        let missing = self.missing.iter().map(|id| (id.as_str(), &stand_in));
        let resolved = self
            .resolved
            .iter()
            .map(|(id, secret)| (id.as_str(), secret));
        variables.template_data(resolved.chain(missing))
    }
}

type Planned = (Option<Plan>, Vec<Diagnostic>);

/// Resolves a file step by step, and adds its problems to `problems`. `None` if one of the steps
/// fails.
fn resolve_file(
    source: &TaskSource,
    variables: &RunVariables,
    lookup: &dyn Lookup,
    secrets: &mut Secrets,
    problems: &mut Vec<Diagnostic>,
) -> Option<Planned> {
    if source.text.len() > MAX_FILE {
        problems.push(
            Diagnostic::error(
                Code::TooLarge,
                format!("the file has more than {} KiB", MAX_FILE >> 10),
            )
            .help("a task file contains steps; put data into the context"),
        );
        return None;
    }
    // A byte order mark is not part of the text.
    let mut whole = Patched::default();
    let mark = if source.text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    whole.copy(&source.text, mark..source.text.len());
    let origin = Origin::of(&source.text).patched(&whole);

    if !version::find_version(&whole.text).is_some_and(version::has_aliases) {
        let task = Task {
            template: &whole.text,
            untrusted: &whole.untrusted,
            origin: &origin,
            aliases: None,
            author: &source.text,
        };
        return task.resolve(variables, lookup, secrets, problems);
    }
    let separated = alias::split_alias_block(&whole.text);
    let block_origin = origin.patched(&separated.block);
    let aliases = {
        let input = Input::new(variables, secrets, Vec::new());
        let rendered = render_template(
            &separated.block.text,
            &input,
            &limits(variables),
            &block_origin,
            problems,
        )?;
        let origin = block_origin.rendered(&separated.block.text, &rendered.map);
        let mut report = Report::new(origin);
        let untrusted = untrusted::check_aliases(&input.rendering(&rendered), &mut report);
        if report.has_errors() {
            problems.append(&mut report.diagnostics);
            return None;
        }
        let mut aliases = alias::read_block(&rendered.text, variables, lookup, &mut report);
        aliases.untrusted = untrusted;
        problems.append(&mut report.diagnostics);
        aliases
    };
    let rest_origin = origin.patched(&separated.rest);
    let replaced = match alias::replace_aliases(&separated.rest.text, &aliases) {
        Ok(replaced) => replaced,
        Err(diagnostic) => {
            problems.push(Report::new(rest_origin).with_author_spans(diagnostic));
            return None;
        }
    };
    let origin = rest_origin.patched(&replaced);
    let task = Task {
        template: &replaced.text,
        untrusted: &replaced.untrusted,
        origin: &origin,
        aliases: Some(&aliases),
        author: &source.text,
    };
    task.resolve(variables, lookup, secrets, problems)
}

/// Renders an image name from outside of a task file, such as the image of a stored task. Supports
/// the templates and predefined aliases of task files.
///
/// # Errors
///
/// Returns a problem of its template, or of an untrusted value in it.
pub fn render_image(text: &str, variables: &RunVariables) -> Result<String, Diagnostic> {
    let secrets = Secrets {
        resolved: variables.secrets.iter().cloned().collect(),
        missing: Vec::new(),
        order: Vec::new(),
    };
    let replaced = alias::replace_aliases(text, &Aliases::predefined(variables))?;
    let input = Input::new(variables, &secrets, Vec::new());
    let mut problems = Vec::new();
    let origin = Origin::of(text);
    let rendered = render_template(
        &replaced.text,
        &input,
        &limits(variables),
        &origin,
        &mut problems,
    );
    if let Some(rendered) = &rendered {
        problems.extend(untrusted::check_image(&input.rendering(rendered)));
    }
    match (rendered, problems.pop()) {
        (Some(rendered), None) => Ok(rendered.text),
        (_, problem) => {
            let patterns = Patterns::new(secrets.resolved.values());
            let problem = problem
                .unwrap_or_else(|| Diagnostic::error(Code::Template, "it cannot be rendered"));
            Err(Diagnostic {
                labels: Vec::new(),
                ..problem
            }
            .map_texts(|text| {
                truncate_text(mask_secrets(&patterns, secrets.resolved.values(), text))
            }))
        }
    }
}

fn limits(variables: &RunVariables) -> Limits {
    Limits {
        now: Some(variables.date),
        output_bytes: MAX_FILE,
        ..Limits::default()
    }
}

/// The text of a task with its aliases replaced.
struct Task<'t> {
    template: &'t str,
    /// Ranges of `template` that come from untrusted values of aliases.
    untrusted: &'t [(Range<usize>, Sources)],
    origin: &'t Origin<'t>,
    aliases: Option<&'t Aliases>,
    author: &'t str,
}

impl Task<'_> {
    fn resolve(
        &self,
        variables: &RunVariables,
        lookup: &dyn Lookup,
        secrets: &mut Secrets,
        problems: &mut Vec<Diagnostic>,
    ) -> Option<Planned> {
        let limits = limits(variables);
        // A file with secrets is rendered twice: to find the declarations, and with their values.
        if self.template.contains("secrets") {
            let input = Input::new(variables, secrets, self.untrusted.to_vec());
            let rendered = render_template(self.template, &input, &limits, self.origin, problems)?;
            let mut report = Report::new(self.origin.rendered(self.template, &rendered.map));
            untrusted::check_task(&input.rendering(&rendered), self.aliases, &mut report);
            if report.has_errors() {
                problems.append(&mut report.diagnostics);
                return None;
            }
            let found = read_task(&rendered.text, &mut report);
            let Some(found) = found else {
                problems.append(&mut report.diagnostics);
                return None;
            };
            // The second reading reports all other problems again.
            report.diagnostics.clear();
            check::check_secrets(&found.secrets, &mut report);
            if !report.has_errors() {
                read_secrets(&found, lookup, secrets, &mut report);
            }
            problems.append(&mut report.diagnostics);
        }
        let input = Input::new(variables, secrets, self.untrusted.to_vec());
        let rendered = render_template(self.template, &input, &limits, self.origin, problems)?;
        let text = &rendered.text;
        let mut report = Report::new(self.origin.rendered(self.template, &rendered.map));
        if text.is_empty() && !self.template.is_empty() {
            problems.push(
                Diagnostic::error(
                    Code::Template,
                    "the file is empty after its template is rendered",
                )
                .at(self.origin.span(0..1), "this template")
                .help("check the conditions around the steps"),
            );
            return None;
        }
        untrusted::check_task(&input.rendering(&rendered), self.aliases, &mut report);
        if report.has_errors() {
            problems.append(&mut report.diagnostics);
            return None;
        }
        let values = secrets.values();
        let line_breaks: Vec<usize> = self.author.match_indices('\n').map(|(at, _)| at).collect();
        let context = check::Context {
            variables,
            aliases: self.aliases,
            source: text,
            line_breaks: &line_breaks,
            secrets: &values,
        };
        let planned =
            read_task(text, &mut report).map(|task| check::make_plan(&task, &context, &mut report));
        problems.append(&mut report.diagnostics);
        planned
    }
}

/// Reads the values of the secrets that the run does not set.
fn read_secrets(
    task: &RawTask,
    lookup: &dyn Lookup,
    secrets: &mut Secrets,
    report: &mut Report<'_>,
) {
    let (declared, ids): (Vec<_>, Vec<_>) = task
        .secrets
        .iter()
        .filter_map(|raw| Some((raw.declaration()?, raw.id.as_ref()?)))
        .filter(|(declared, _)| !secrets.resolved.contains_key(&declared.id))
        .unzip();
    let values = lookup.secrets(&declared);
    for ((declared, id), value) in declared.into_iter().zip(ids).zip(values) {
        let why = match value {
            Ok(Some(value)) => {
                secrets.order.push(declared.id.clone());
                secrets.resolved.insert(declared.id, value);
                continue;
            }
            Ok(None) => "its source cannot be read here".to_owned(),
            Err(why) => why,
        };
        secrets.missing.push(declared.id.clone());
        report.push(
            Diagnostic::error(
                Code::SecretUnresolved,
                format!("the secret `{}` has no value: {why}", declared.id),
            )
            .at(id.span.clone(), "declared here")
            .help(format!(
                "give its value: `--set-secret {0}=VALUE` or `--secret-file {0}=PATH`",
                declared.id
            )),
        );
    }
}

/// Inputs of a rendering.
struct Input {
    data: serde_json::Value,
    untrusted: Untrusted,
    names: Names,
}

impl Input {
    /// Collects the inputs. `template` contains the untrusted ranges of the template itself.
    fn new(
        variables: &RunVariables,
        secrets: &Secrets,
        template: Vec<(Range<usize>, Sources)>,
    ) -> Self {
        let (mut untrusted, names) = variables.untrusted_data();
        untrusted.template = template;
        Self {
            data: secrets.data(variables),
            untrusted,
            names,
        }
    }

    fn rendering<'r>(&'r self, rendered: &'r Rendered) -> Rendering<'r> {
        Rendering {
            text: &rendered.text,
            untrusted: &rendered.untrusted,
            names: &self.names,
        }
    }
}

/// Renders `template`. `origin` maps it to the author's text.
fn render_template(
    template: &str,
    input: &Input,
    limits: &Limits,
    origin: &Origin<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<Rendered> {
    let result = Template::parse("task", template)
        .and_then(|parsed| parsed.render_untrusted(&input.data, &input.untrusted, limits));
    match result {
        Ok(rendered) => Some(rendered),
        Err(error) => {
            let diagnostic = Diagnostic {
                help: error.help,
                ..Diagnostic::error(Code::Template, error.message)
            };
            let report = Report::new(origin.clone());
            problems.push(report.with_author_spans(diagnostic.at(error.span, "in this template")));
            None
        }
    }
}

/// Reads a rendered task. `None` if it is not YAML.
fn read_task(text: &str, report: &mut Report<'_>) -> Option<RawTask> {
    let document = match yaml::parse(text) {
        Ok(document) => document,
        Err(diagnostic) => {
            report.push(diagnostic);
            return None;
        }
    };
    if let Some(span) = document.second {
        report.push(
            Diagnostic::warning(
                Code::NoEffect,
                "only the first document of the file is read",
            )
            .at(span, "from here on nothing is read")
            .help("remove the line `---`, or make two files"),
        );
    }
    let Some(root) = document.root else {
        report.push(
            Diagnostic::warning(
                Code::NoSteps,
                "the file is empty, so there is nothing to do",
            )
            .help("write for example:\nsteps:\n  - cmd: alpine echo hello"),
        );
        return Some(RawTask::default());
    };
    Some(task::read_task(&root, text, report))
}
