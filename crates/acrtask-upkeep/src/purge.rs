//! `acr purge`: the plan of every selected repository, its output, and its deletion.

use acrtask_model::{ImageRef, reference::DOCKER_HUB};
use acrtask_registry::Registry;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    Ago, Filter, Line, Lines, Permission, ago,
    carry_out::{Deleter, Done},
    describe_error,
    inventory::{Reader, RegistryKind, Scope},
    plan::{RepositoryPlan, Rules, Untagged, plan_repository},
};

/// Announcement of a dry run.
const DRY_RUN: &str = "DRY RUN: The following output shows what WOULD be deleted if the purge command was executed. Nothing is deleted.";

/// Settings of a purge.
#[derive(Debug, Clone)]
pub struct Purge {
    /// Selected repositories and tags.
    pub filters: Vec<Filter>,
    /// Minimum age of what goes.
    pub ago: Ago,
    /// Number of the newest selected tags of each repository that stay.
    pub keep: usize,
    /// Treatment of manifests without a tag.
    pub untagged: Untagged,
    /// `true` if nothing is deleted.
    pub dry_run: bool,
    /// `true` if locked tags and manifests go too.
    pub include_locked: bool,
    /// Maximum number of concurrent requests.
    pub concurrency: usize,
    /// `true` if each line has its reason, and kept lines are shown too.
    pub verbose: bool,
    /// Notes about the settings.
    pub notes: Vec<String>,
}

/// Result of a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeReport {
    /// Host of the registry.
    pub registry: String,
    /// `true` if nothing was deleted.
    pub dry_run: bool,
    /// Plan of each repository that exists. Empty if the caller did not request plans.
    pub repositories: Vec<RepositoryPlan>,
    /// Number of deleted tags. Of a dry run: of tags that would be deleted.
    pub deleted_tags: usize,
    /// Number of deleted manifests. Of a dry run: of manifests that would be deleted.
    pub deleted_manifests: usize,
    /// Reason why the purge is incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Context of the commands of one registry.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Client of the registry.
    pub registry: &'a Registry,
    /// Host of the registry, as references name it.
    pub host: &'a str,
    /// Current time.
    pub now: Timestamp,
    /// Permission to delete.
    pub permission: &'a dyn Permission,
    /// Receiver of the output.
    pub lines: &'a Lines,
}

impl Context<'_> {
    /// Prints a line on standard output. An error means that the reader has gone.
    pub(crate) fn print(&self, line: impl Into<String>) {
        let _ = self.lines.send(Line::Out(line.into()));
    }

    /// Prints a line on standard error.
    pub(crate) fn warn(&self, line: impl Into<String>) {
        let _ = self.lines.send(Line::Err(line.into()));
    }
}

/// Returns the reference of a repository at a registry.
///
/// # Errors
/// The name is not valid.
pub fn repository_reference(host: &str, name: &str) -> Result<ImageRef, String> {
    let text = match host {
        DOCKER_HUB => format!("{DOCKER_HUB}/{name}"),
        host => format!("{host}/{name}"),
    };
    let parsed: ImageRef = text
        .parse()
        .map_err(|error: acrtask_model::ReferenceError| error.to_string())?;
    match parsed.tag().is_none() && parsed.digest().is_none() {
        true => Ok(parsed),
        false => Err(format!("`{name}` is not the name of a repository")),
    }
}

/// Purges a registry, one repository after the other. Collects the plans if `with_plans` is set.
pub async fn run(context: Context<'_>, purge: &Purge, with_plans: bool) -> PurgeReport {
    let mut report = PurgeReport {
        registry: context.host.to_owned(),
        dry_run: purge.dry_run,
        repositories: Vec::new(),
        deleted_tags: 0,
        deleted_manifests: 0,
        error: None,
    };
    if purge.ago.is_capped {
        context.warn(ago::CAPPED);
    }
    if purge.dry_run {
        context.print(DRY_RUN);
    }
    for note in &purge.notes {
        context.warn(note);
    }
    if let Err(error) = run_repositories(context, purge, with_plans, &mut report).await {
        context.warn(format!("Failed to complete purge: {error}"));
        report.error = Some(error);
    }
    let verb = match purge.dry_run {
        true => ["tags to be deleted", "manifests to be deleted"],
        false => ["deleted tags", "deleted manifests"],
    };
    context.print("");
    context.print(format!("Number of {}: {}", verb[0], report.deleted_tags));
    context.print(format!(
        "Number of {}: {}",
        verb[1], report.deleted_manifests
    ));
    report
}

async fn run_repositories(
    context: Context<'_>,
    purge: &Purge,
    with_plans: bool,
    report: &mut PurgeReport,
) -> Result<(), String> {
    let kind = RegistryKind::detect(context.registry, context.host).await;
    let kind = kind.map_err(|error| describe_error(&error))?;
    let reader = Reader {
        registry: context.registry,
        kind,
        concurrency: purge.concurrency,
        now: context.now,
    };
    let mut deleter = Deleter::new(&context, kind);
    let names = reader.list_repositories(context.host, &purge.filters);
    for name in names.await? {
        let image = repository_reference(context.host, &name)?;
        let mut filters = Vec::new();
        for filter in &purge.filters {
            if filter.matches_repository(&name)? {
                filters.push(filter.clone());
            }
        }
        let scope = Scope {
            filters: &filters,
            with_manifests: purge.untagged != Untagged::Keep,
        };
        let repository = reader.read(&image, scope).await?;
        if !repository.exists {
            continue;
        }
        let rules = Rules {
            filters,
            cutoff: purge.ago.cutoff(context.now),
            keep: purge.keep,
            untagged: purge.untagged,
            include_locked: purge.include_locked,
        };
        let plan = plan_repository(&repository, &rules)?;
        let printer = Printer {
            context,
            purge,
            image: &image,
        };
        if purge.dry_run {
            printer.print_plan(&plan);
            report.deleted_tags += plan.deleted_tags().count();
            report.deleted_manifests += plan.deleted_manifests().count();
        } else {
            printer.print_tags_title();
            let mut on_done = |done: Done<'_>| {
                match done {
                    Done::DeletedTag(_) => report.deleted_tags += 1,
                    Done::DeletedManifest(_) => report.deleted_manifests += 1,
                    Done::UnlockedTag(_) | Done::UnlockedManifest(_) | Done::Manifests => {}
                }
                printer.print_done(done);
            };
            deleter.carry_out(&image, &plan, &mut on_done).await?;
            printer.print_kept(&plan);
        }
        if with_plans {
            report.repositories.push(plan);
        }
    }
    Ok(())
}

/// Output for one repository.
struct Printer<'a> {
    context: Context<'a>,
    purge: &'a Purge,
    image: &'a ImageRef,
}

impl Printer<'_> {
    fn print_tags_title(&self) {
        if self.purge.untagged != Untagged::Only {
            self.print_title("tags");
        }
    }

    fn print_title(&self, objects: &str) {
        let verb = match self.purge.dry_run {
            true => "Would delete",
            false => "Deleting",
        };
        let repository = self.image.repository();
        self.context
            .print(format!("{verb} {objects} for repository: {repository}"));
    }

    fn print_line(&self, verb: &str, object: &str, reason: Option<&dyn std::fmt::Display>) {
        let name = self.image.name();
        self.context.print(match reason {
            Some(reason) if self.purge.verbose => format!("{verb} {name}{object} ({reason})"),
            _ => format!("{verb} {name}{object}"),
        });
    }

    fn print_plan(&self, plan: &RepositoryPlan) {
        self.print_tags_title();
        for line in plan.deleted_tags() {
            self.print_line(
                "Would delete:",
                &format!(":{}", line.tag),
                Some(&line.reason),
            );
        }
        if self.purge.untagged != Untagged::Keep {
            self.print_title("manifests");
        }
        for line in plan.deleted_manifests() {
            let object = format!("@{}", line.digest);
            self.print_line("Would delete:", &object, Some(&line.reason));
        }
        self.print_kept(plan);
    }

    fn print_done(&self, done: Done<'_>) {
        match done {
            Done::UnlockedTag(line) => {
                self.print_line("Unlocked", &format!(":{}", line.tag), None);
            }
            Done::DeletedTag(line) => {
                self.print_line("Deleted", &format!(":{}", line.tag), Some(&line.reason));
            }
            Done::Manifests if self.purge.untagged != Untagged::Keep => {
                self.print_title("manifests");
            }
            Done::Manifests => {}
            Done::UnlockedManifest(line) => {
                self.print_line("Unlocked", &format!("@{}", line.digest), None);
            }
            Done::DeletedManifest(line) => {
                self.print_line("Deleted", &format!("@{}", line.digest), Some(&line.reason));
            }
        }
    }

    /// Prints the reasons of selected tags and of manifests that stay.
    fn print_kept(&self, plan: &RepositoryPlan) {
        if !self.purge.verbose {
            return;
        }
        for line in plan.tags.iter().filter(|line| !line.delete) {
            self.print_line("Kept", &format!(":{}", line.tag), Some(&line.reason));
        }
        for line in plan.manifests.iter().filter(|line| !line.delete) {
            self.print_line("Kept", &format!("@{}", line.digest), Some(&line.reason));
        }
    }
}

#[cfg(test)]
#[path = "purge_tests.rs"]
mod tests;
