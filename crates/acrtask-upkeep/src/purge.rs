//! `acr purge`: the plan of every selected repository, its output, and its deletion.

use std::sync::Arc;

use acrtask_model::{ImageRef, reference::DOCKER_HUB};
use acrtask_registry::Registry;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    Ago, Budget, Filter, Line, Lines, Permission, ago,
    carry_out::{Deleter, Done},
    describe_error,
    inventory::{Reader, RegistryKind, Scope},
    matching::{BudgetGuard, off_thread, watch},
    plan::{RepositoryPlan, plan_repository},
    record::{self, Records},
    rules::{NewestOf, Rules, TagRule, Untagged},
};

/// Announcement of a dry run.
const DRY_RUN: &str = "DRY RUN: The following output shows what WOULD be deleted if the purge command was executed. Nothing is deleted.";

/// Rule of a purge for the repositories that its filters select.
#[derive(Debug, Clone)]
pub struct PurgeRule {
    /// Selected repositories and tags.
    pub filters: Vec<Filter>,
    /// Tags that stay, with the repositories of this rule.
    pub keep: Vec<Filter>,
    /// Minimum age of what goes. `None`: every age.
    pub ago: Option<Ago>,
    /// Number of the newest tags of each repository that stay.
    pub newest: usize,
    /// Tags among which the newest are counted.
    pub newest_of: NewestOf,
}

/// Limits of the deletions of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Maximum number of tags that one purge deletes, and of manifests that had no tag. The rest
    /// stays for the next purge. `None`: no limit.
    pub deletions: Option<usize>,
    /// Maximum share of the tags of a repository that one purge deletes, in percent. A plan that
    /// deletes more is not carried out. `None`: no limit.
    pub share: Option<u8>,
}

/// Settings of a purge.
#[derive(Debug, Clone)]
pub struct Purge {
    /// Rules. A tag goes if a rule deletes it and no rule keeps it.
    pub rules: Vec<PurgeRule>,
    /// Minimum age of manifests without a tag.
    pub untagged_ago: Ago,
    /// Number of the newest manifests without a tag that stay in each repository.
    pub untagged_newest: usize,
    /// Limits of the deletions.
    pub limits: Limits,
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
    /// Records of the server.
    pub records: &'a dyn Records,
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
///
/// An error of one repository does not end the purge of the others.
pub async fn run(context: Context<'_>, purge: &Purge, with_plans: bool) -> PurgeReport {
    let mut report = PurgeReport {
        registry: context.host.to_owned(),
        dry_run: purge.dry_run,
        repositories: Vec::new(),
        deleted_tags: 0,
        deleted_manifests: 0,
        error: None,
    };
    if purge.is_capped() {
        context.warn(ago::CAPPED);
    }
    if purge.dry_run {
        context.print(DRY_RUN);
    }
    for note in &purge.notes {
        context.warn(note);
    }
    let guard = BudgetGuard::default();
    let purge = Arc::new(purge.with_budget(&guard.0));
    let work = run_repositories(context, &purge, &guard.0, with_plans, &mut report);
    // The future is boxed, because its type is large.
    let done = watch(&guard.0, context.permission, Box::pin(work)).await;
    if let Err(error) = done {
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

/// Purge in progress.
struct Progress<'a> {
    context: Context<'a>,
    purge: &'a Arc<Purge>,
    budget: &'a Budget,
    reader: Reader<'a>,
    deleter: Deleter<'a>,
    with_plans: bool,
    report: &'a mut PurgeReport,
    /// Rest of the limit of deletions.
    remaining: Option<usize>,
    /// Repositories whose plans delete more than the limit of the share.
    over_share: Vec<String>,
    /// Repositories that could not be purged, with their errors.
    failed: Vec<String>,
}

async fn run_repositories(
    context: Context<'_>,
    purge: &Arc<Purge>,
    budget: &Budget,
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
    let filters: Vec<Filter> = purge.filters().cloned().collect();
    let names = reader.list_repositories(context.host, &filters).await?;
    let mut progress = Progress {
        context,
        purge,
        budget,
        reader,
        deleter: Deleter::new(&context, kind),
        with_plans,
        report,
        remaining: purge.limits.deletions,
        over_share: Vec::new(),
        failed: Vec::new(),
    };
    for name in names {
        if progress.remaining == Some(0) {
            context.warn(format!(
                "The limit of this run is reached before {name}; the next run continues"
            ));
            break;
        }
        if let Err(error) = progress.purge_repository(&name).await {
            if progress.ends_with_error().await {
                return Err(error);
            }
            context.warn(format!("Failed to purge {name}: {error}"));
            progress.failed.push(format!("{name}: {error}"));
        }
    }
    progress.result()
}

impl Progress<'_> {
    /// Plans and purges one repository.
    async fn purge_repository(&mut self, name: &str) -> Result<(), String> {
        let (context, purge) = (self.context, self.purge);
        let image = repository_reference(context.host, name)?;
        let rules = {
            let (purge, name) = (Arc::clone(purge), name.to_owned());
            let (now, remaining) = (context.now, self.remaining);
            off_thread(move || purge.rules_of(&name, now, remaining)).await?
        };
        let filters: Vec<Filter> = rules
            .tags
            .iter()
            .flat_map(|rule| rule.filters.iter().cloned())
            .collect();
        let scope = Scope {
            filters: &filters,
            with_manifests: purge.untagged != Untagged::Keep,
        };
        let record = record::find(context.records, &image).await?;
        let mut repository = self.reader.read(&image, scope).await?;
        if !repository.exists {
            return Ok(());
        }
        record::apply(&mut repository, record);
        let plan = off_thread(move || plan_repository(&repository, &rules)).await?;
        if let Some(share) = plan.share_over(purge.limits.share) {
            context.warn(format!(
                "{}: the plan deletes {share} % of the tags, more than the limit of {} %, so nothing was deleted there",
                image.name(),
                purge.limits.share.unwrap_or(100)
            ));
            self.over_share.push(name.to_owned());
            return Ok(());
        }
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.saturating_sub(plan.limited_count());
        }
        let printer = Printer {
            context,
            purge,
            image: &image,
        };
        let report = &mut *self.report;
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
            self.deleter.carry_out(&image, &plan, &mut on_done).await?;
            printer.print_kept(&plan);
        }
        if self.with_plans {
            self.report.repositories.push(plan);
        }
        Ok(())
    }

    /// Returns `true` if the error of one repository concerns all: the purge was stopped, its budget
    /// is spent, or nothing may be deleted.
    async fn ends_with_error(&self) -> bool {
        self.budget.is_spent()
            || self.deleter.is_unsupported()
            || (!self.purge.dry_run && self.context.permission.check().await.is_err())
    }

    /// Returns the error for the repositories that were not purged.
    fn result(self) -> Result<(), String> {
        let mut errors = Vec::new();
        if !self.over_share.is_empty() {
            errors.push(format!(
                "the limit of the share was exceeded in {}",
                self.over_share.join(", ")
            ));
        }
        match self.failed.as_slice() {
            [] => {}
            [failed] => errors.push(failed.clone()),
            [first, others @ ..] => errors.push(format!(
                "{first}; and {} other repositories failed too",
                others.len()
            )),
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(errors.join("; ")),
        }
    }
}

impl Purge {
    /// Returns a copy whose filters share a budget.
    fn with_budget(&self, budget: &Arc<Budget>) -> Self {
        let mut purge = self.clone();
        for rule in &mut purge.rules {
            for filter in rule.filters.iter_mut().chain(&mut rule.keep) {
                filter.set_budget(budget);
            }
        }
        purge
    }

    /// Returns the filters of all rules.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.rules.iter().flat_map(|rule| &rule.filters)
    }

    fn is_capped(&self) -> bool {
        let ages = self.rules.iter().filter_map(|rule| rule.ago);
        ages.chain([self.untagged_ago]).any(|ago| ago.is_capped)
    }

    /// Returns the rules for the repository `name`. `limit` is the rest of the limit of deletions.
    ///
    /// # Errors
    /// An expression of a filter needs too many steps.
    pub fn rules_of(
        &self,
        name: &str,
        now: Timestamp,
        limit: Option<usize>,
    ) -> Result<Rules, String> {
        let select = |filters: &[Filter]| {
            let mut found = Vec::new();
            for filter in filters {
                if filter.matches_repository(name)? {
                    found.push(filter.clone());
                }
            }
            Ok::<_, String>(found)
        };
        let mut tags = Vec::new();
        for rule in &self.rules {
            let rule = TagRule {
                filters: select(&rule.filters)?,
                keep: select(&rule.keep)?,
                cutoff: rule.ago.map_or(Timestamp::MAX, |ago| ago.cutoff(now)),
                newest: rule.newest,
                newest_of: rule.newest_of,
            };
            if !rule.filters.is_empty() || !rule.keep.is_empty() {
                tags.push(rule);
            }
        }
        Ok(Rules {
            tags,
            untagged: self.untagged,
            cutoff: self.untagged_ago.cutoff(now),
            newest: self.untagged_newest,
            include_locked: self.include_locked,
            limit,
        })
    }
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
#[path = "hostile_tests.rs"]
mod hostile_tests;

#[cfg(test)]
#[path = "purge_tests.rs"]
mod tests;
