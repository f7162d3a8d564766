//! The whole way from the text of a task file to a [`Plan`].

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
    diagnostic::{Diagnostic, Severity},
    facts::{Lookup, RunFacts},
    origin::{Origin, Patched},
    plan::Plan,
    read::Report,
    task::{self, RawTask},
    untrusted::{self, Names, Rendering},
    version, yaml,
};

/// Largest task file, in bytes: as written, with its aliases replaced, and rendered. The largest real one has
/// 8,000; one of this size is read within 50 ms.
pub const MAX_FILE: usize = 128 << 10;

/// Longest text of a diagnostic, in characters.
const MAX_TEXT: usize = 2000;

/// What became of a task file.
#[derive(Debug)]
pub struct Resolution {
    /// The plan; nothing where a diagnostic is an error.
    pub plan: Option<Plan>,
    /// Errors and warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Lines that the plan holds and no run can carry out: errors for `acrtask run`.
    pub refusals: Vec<Diagnostic>,
}

impl Resolution {
    /// What `acrtask plan` shows: refused lines are warnings there.
    pub fn for_plan(&self) -> Vec<Diagnostic> {
        let refused = self.refusals.iter().cloned().map(|diagnostic| Diagnostic {
            severity: Severity::Warning,
            message: format!("{}; a run is refused", diagnostic.message),
            ..diagnostic
        });
        in_order(self.diagnostics.iter().cloned().chain(refused).collect())
    }

    /// What `acrtask run` shows; with an error among them nothing is started.
    pub fn for_run(&self) -> Vec<Diagnostic> {
        in_order(
            self.diagnostics
                .iter()
                .chain(&self.refusals)
                .cloned()
                .collect(),
        )
    }
}

/// Reads `source` for a run with these facts. All problems that can be told apart are in the result: those of
/// the version, of YAML and of the checks together; a template that cannot be rendered, or text that is no
/// YAML, hides what would come after it.
///
/// Does no I/O but through `lookup`.
pub fn resolve(source: &TaskSource, facts: &RunFacts, lookup: &dyn Lookup) -> Resolution {
    let mut secrets = Secrets {
        known: facts.secrets.iter().cloned().collect(),
        missing: Vec::new(),
        order: facts.secrets.iter().map(|(id, _)| id.clone()).collect(),
    };
    let mut problems = Vec::new();
    let done = run(source, facts, lookup, &mut secrets, &mut problems);
    let (plan, refusals) = done.unwrap_or_default();
    let patterns = Patterns::new(secrets.known.values());
    let masked = |diagnostics: Vec<Diagnostic>| {
        in_order(
            diagnostics
                .into_iter()
                .map(|diagnostic| {
                    diagnostic.within(&source.text).map_texts(|text| {
                        shortened(hidden(&patterns, secrets.known.values(), text))
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

/// A text of a diagnostic without secrets. It may quote them in pieces, as YAML was read up to an error.
fn hidden<'s>(
    patterns: &Patterns,
    secrets: impl Iterator<Item = &'s Secret>,
    text: &str,
) -> String {
    mask_fragments(&patterns.mask(text), secrets)
}

/// A text of a diagnostic, cut where it quotes more of the file than anybody reads.
fn shortened(mut text: String) -> String {
    if let Some((cut, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(cut);
        text += "...";
    }
    text
}

fn in_order(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort_by_key(Diagnostic::start);
    diagnostics.dedup();
    diagnostics
}

/// The values of secrets, as they become known.
struct Secrets {
    known: BTreeMap<String, Secret>,
    /// Ids that are declared and have no value. Something stands in for them, so that a line that needs one
    /// is not refused a second time for being empty.
    missing: Vec<String>,
    order: Vec<String>,
}

impl Secrets {
    fn values(&self) -> Vec<Secret> {
        self.order
            .iter()
            .filter_map(|id| self.known.get(id))
            .cloned()
            .collect()
    }

    fn data(&self, facts: &RunFacts) -> serde_json::Value {
        let stand_in = Secret::new("unknown");
        let missing = self.missing.iter().map(|id| (id.as_str(), &stand_in));
        let known = self.known.iter().map(|(id, secret)| (id.as_str(), secret));
        facts.template_data(known.chain(missing))
    }
}

type Planned = (Option<Plan>, Vec<Diagnostic>);

/// The steps of the way; nothing where one of them ends it. What is wrong goes to `problems`.
fn run(
    source: &TaskSource,
    facts: &RunFacts,
    lookup: &dyn Lookup,
    secrets: &mut Secrets,
    problems: &mut Vec<Diagnostic>,
) -> Option<Planned> {
    if source.text.len() > MAX_FILE {
        problems.push(
            Diagnostic::error(
                "too-large",
                format!("the file has more than {} KiB", MAX_FILE >> 10),
            )
            .help("a task file holds steps; data belongs into the context"),
        );
        return None;
    }
    // A byte order mark is no part of the text.
    let mut whole = Patched::default();
    let mark = if source.text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    whole.copy(&source.text, mark..source.text.len());
    let origin = Origin::of(&source.text).patched(&whole);

    if !version::find(&whole.text).is_some_and(version::has_aliases) {
        let task = Task {
            template: &whole.text,
            untrusted: &whole.untrusted,
            origin: &origin,
            aliases: None,
            author: &source.text,
        };
        return task.resolve(facts, lookup, secrets, problems);
    }
    let separated = alias::separate(&whole.text);
    let block_origin = origin.patched(&separated.block);
    let aliases = {
        let input = Input::new(facts, secrets, Vec::new());
        let rendered = rendered(
            &separated.block.text,
            &input,
            &limits(facts),
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
        let mut aliases = alias::read(&rendered.text, facts, lookup, &mut report);
        aliases.untrusted = untrusted;
        problems.append(&mut report.diagnostics);
        aliases
    };
    let rest_origin = origin.patched(&separated.rest);
    let replaced = match alias::replace(&separated.rest.text, &aliases) {
        Ok(replaced) => replaced,
        Err(diagnostic) => {
            problems.push(Report::new(rest_origin).placed(diagnostic));
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
    task.resolve(facts, lookup, secrets, problems)
}

/// Renders the name of an image that stands in no task file, such as the image of a stored task, with the
/// templates and predefined aliases of task files.
///
/// # Errors
///
/// What is wrong with its template, or with an untrusted value in it.
pub fn render_image(text: &str, facts: &RunFacts) -> Result<String, Diagnostic> {
    let secrets = Secrets {
        known: facts.secrets.iter().cloned().collect(),
        missing: Vec::new(),
        order: Vec::new(),
    };
    let replaced = alias::replace(text, &Aliases::predefined(facts))?;
    let input = Input::new(facts, &secrets, Vec::new());
    let mut problems = Vec::new();
    let origin = Origin::of(text);
    let rendered = rendered(
        &replaced.text,
        &input,
        &limits(facts),
        &origin,
        &mut problems,
    );
    if let Some(rendered) = &rendered {
        problems.extend(untrusted::check_image(&input.rendering(rendered)));
    }
    match (rendered, problems.pop()) {
        (Some(rendered), None) => Ok(rendered.text),
        (_, problem) => {
            let patterns = Patterns::new(secrets.known.values());
            let problem =
                problem.unwrap_or_else(|| Diagnostic::error("template", "it cannot be rendered"));
            Err(Diagnostic {
                labels: Vec::new(),
                ..problem
            }
            .map_texts(|text| shortened(hidden(&patterns, secrets.known.values(), text))))
        }
    }
}

fn limits(facts: &RunFacts) -> Limits {
    Limits {
        now: Some(facts.date),
        output_bytes: MAX_FILE,
        ..Limits::default()
    }
}

/// The text of a task once its aliases are replaced.
struct Task<'t> {
    template: &'t str,
    /// The ranges of `template` that came from untrusted values of aliases.
    untrusted: &'t [(Range<usize>, Sources)],
    origin: &'t Origin<'t>,
    aliases: Option<&'t Aliases>,
    author: &'t str,
}

impl Task<'_> {
    fn resolve(
        &self,
        facts: &RunFacts,
        lookup: &dyn Lookup,
        secrets: &mut Secrets,
        problems: &mut Vec<Diagnostic>,
    ) -> Option<Planned> {
        let limits = limits(facts);
        // A file that declares secrets is rendered once to find them, and again with their values.
        if self.template.contains("secrets") {
            let input = Input::new(facts, secrets, self.untrusted.to_vec());
            let rendered = rendered(self.template, &input, &limits, self.origin, problems)?;
            let mut report = Report::new(self.origin.rendered(self.template, &rendered.map));
            untrusted::check_task(&input.rendering(&rendered), self.aliases, &mut report);
            if report.has_errors() {
                problems.append(&mut report.diagnostics);
                return None;
            }
            let found = read(&rendered.text, &mut report);
            let Some(found) = found else {
                problems.append(&mut report.diagnostics);
                return None;
            };
            // Everything but the secrets is read again below; its problems would be noted twice.
            report.diagnostics.clear();
            check::secrets(&found.secrets, &mut report);
            if !report.has_errors() {
                ask(&found, lookup, secrets, &mut report);
            }
            problems.append(&mut report.diagnostics);
        }
        let input = Input::new(facts, secrets, self.untrusted.to_vec());
        let rendered = rendered(self.template, &input, &limits, self.origin, problems)?;
        let text = &rendered.text;
        let mut report = Report::new(self.origin.rendered(self.template, &rendered.map));
        if text.is_empty() && !self.template.is_empty() {
            problems.push(
                Diagnostic::error(
                    "template",
                    "nothing is left of the file once it is rendered",
                )
                .at(self.origin.span(0..1), "this template")
                .help("look at the conditions around the steps"),
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
            facts,
            aliases: self.aliases,
            source: text,
            line_breaks: &line_breaks,
            secrets: &values,
        };
        let planned = read(text, &mut report).map(|task| check::plan(&task, &context, &mut report));
        problems.append(&mut report.diagnostics);
        planned
    }
}

/// Gets the values of the secrets that nobody set.
fn ask(task: &RawTask, lookup: &dyn Lookup, secrets: &mut Secrets, report: &mut Report<'_>) {
    let (declared, ids): (Vec<_>, Vec<_>) = task
        .secrets
        .iter()
        .filter_map(|raw| Some((raw.declaration()?, raw.id.as_ref()?)))
        .filter(|(declared, _)| !secrets.known.contains_key(&declared.id))
        .unzip();
    let values = lookup.secrets(&declared);
    for ((declared, id), value) in declared.into_iter().zip(ids).zip(values) {
        let why = match value {
            Ok(Some(value)) => {
                secrets.order.push(declared.id.clone());
                secrets.known.insert(declared.id, value);
                continue;
            }
            Ok(None) => "nothing here reads its source".to_owned(),
            Err(why) => why,
        };
        secrets.missing.push(declared.id.clone());
        report.push(
            Diagnostic::error(
                "secret-unresolved",
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

/// What a template is rendered over.
struct Input {
    data: serde_json::Value,
    untrusted: Untrusted,
    names: Names,
}

impl Input {
    /// `template`: the untrusted ranges of the template itself.
    fn new(facts: &RunFacts, secrets: &Secrets, template: Vec<(Range<usize>, Sources)>) -> Self {
        let (mut untrusted, names) = facts.untrusted_data();
        untrusted.template = template;
        Self {
            data: secrets.data(facts),
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

/// Renders `template`; `origin` is the way from it to the author's text.
fn rendered(
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
                ..Diagnostic::error("template", error.message)
            };
            let report = Report::new(origin.clone());
            problems.push(report.placed(diagnostic.at(error.span, "in this template")));
            None
        }
    }
}

/// Reads a rendered task; nothing where it is no YAML.
fn read(text: &str, report: &mut Report<'_>) -> Option<RawTask> {
    let document = match yaml::parse(text) {
        Ok(document) => document,
        Err(diagnostic) => {
            report.push(diagnostic);
            return None;
        }
    };
    if let Some(span) = document.second {
        report.push(
            Diagnostic::warning("no-effect", "only the first document of the file is read")
                .at(span, "from here on nothing is read")
                .help("take the line `---` away, or make two files"),
        );
    }
    let Some(root) = document.root else {
        report.push(
            Diagnostic::warning("no-steps", "the file is empty, so there is nothing to do")
                .help("write for example:\nsteps:\n  - cmd: alpine echo hello"),
        );
        return Some(RawTask::default());
    };
    Some(task::read(&root, text, report))
}
