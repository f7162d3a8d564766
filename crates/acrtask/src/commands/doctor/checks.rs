//! Checks of the collected server state. Pure functions.

use std::collections::BTreeSet;

use acrtask_api::{
    admin::{Runner, RunnerState, Scope},
    run::Approval,
    task::TaskDefinition,
    webhook::{DecisionAction, Webhook},
};
use acrtask_model::RunState;
use acrtask_trigger::{Provider, RepositoryUrl};
use url::Url;

use super::{Check, ServerState, TaskState, probe_checks};
use crate::{
    client::{display_url, is_loopback},
    commands::token::scope_name,
    render::run::format_age,
};

/// Clock difference in seconds above which the check warns.
pub(super) const SKEW: i64 = 5;
/// Clock difference in seconds above which signatures and tokens fail.
pub(super) const SKEW_TOO_MUCH: i64 = 60;
/// Minimum free disk of a runner in bytes, below which the check warns.
const DISK: u64 = 2 << 30;
/// Pool of tasks that name none.
const DEFAULT_POOL: &str = "default";

/// Returns the checks of the server, and of the task if one was named.
pub(super) fn check_state(state: &ServerState) -> Vec<Check> {
    let mut checks = vec![
        check_server(state),
        check_clock(state),
        check_token(state),
        check_runners(state),
    ];
    checks.extend(check_storage(state));
    checks.extend(check_sources(state));
    checks.extend(check_address(state));
    checks.extend(check_signatures(state));
    if let Some(task) = &state.task {
        checks.push(check_enabled(task));
        checks.extend(check_webhook(state, task));
        checks.push(check_secrets(task));
        checks.push(check_last_run(state, task));
        checks.extend(probe_checks::check_probes(&task.probe));
    } else {
        checks.push(check_deliveries(state));
        checks.extend(check_unmatched(state));
    }
    checks
}

fn check_server(state: &ServerState) -> Check {
    let me = &state.info.me;
    let own = env!("CARGO_PKG_VERSION");
    let message = format!(
        "{} has version {} and responds within {} ms",
        display_url(&state.url),
        me.server_version,
        state.info.response_time.as_millis()
    );
    if me.server_version == own {
        return Check::ok("server", message);
    }
    Check::warning("server", format!("{message}; this program is {own}"))
        .help("use the same version on both sides")
}

/// Shows the key and the blob store that the database's servers share. `None` for an older server,
/// which reports neither.
fn check_storage(state: &ServerState) -> Option<Check> {
    const NAME: &str = "storage";
    let me = &state.info.me;
    let key = me.key.as_ref()?;
    let message = format!("secrets are encrypted with the key {key}");
    Some(match &me.blobs {
        Some(blobs) => Check::ok(NAME, format!("{message}, logs are in the store {blobs}")),
        None => Check::warning(
            NAME,
            format!("{message}; the store of logs could not be reached when the server started"),
        )
        .help("check the server's log"),
    })
}

fn check_clock(state: &ServerState) -> Check {
    let Some(ahead) = state.info.ahead else {
        return Check::unknown("clock", "the server does not report its time");
    };
    let (seconds, way) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
    let message = format!("the server's clock is {seconds} s {way} this machine's");
    let help = "set both clocks by NTP: signatures of deliveries and timers depend on them";
    if seconds > SKEW_TOO_MUCH {
        Check::wrong("clock", message).help(help)
    } else if seconds > SKEW {
        Check::warning("clock", message).help(help)
    } else {
        Check::ok("clock", "the server's clock and this machine's agree")
    }
}

fn check_token(state: &ServerState) -> Check {
    let me = &state.info.me;
    let scopes: Vec<_> = me.scopes.iter().map(scope_name).collect();
    let message = format!("`{}` may {}", me.name, scopes.join(", "));
    if let (Some(pattern), Some(task)) = (&me.tasks, &state.task) {
        let name = task.name();
        let fits = match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        };
        if !fits {
            return Check::wrong(
                "token",
                format!("{message}, but only for the tasks {pattern}"),
            )
            .help("log in with a token for this task: `acrtask token create --tasks NAME`");
        }
    }
    let can_read = me.scopes.iter().any(|scope| scope.includes(Scope::Read));
    if can_read {
        Check::ok("token", message)
    } else {
        Check::warning("token", format!("{message}, but cannot read anything"))
            .help("log in with a token that has the scope `read`")
    }
}

/// Returns why a runner cannot execute runs of a task; `None` if it can.
fn unmet_requirement(runner: &Runner, task: &TaskDefinition) -> Option<String> {
    let queue = &task.queue;
    let pool = queue.pool.as_deref().unwrap_or(DEFAULT_POOL);
    if runner.pool != pool {
        return Some(format!(
            "{} is in the pool {}, not {pool}",
            runner.name, runner.pool
        ));
    }
    for (key, value) in &queue.labels {
        if runner.labels.get(key) != Some(value) {
            return Some(format!("{} lacks the label {key}={value}", runner.name));
        }
    }
    let platform = task.platform.as_deref()?;
    (!runner.platforms.iter().any(|own| own == platform))
        .then(|| format!("{} does not run {platform}", runner.name))
}

fn check_runners(state: &ServerState) -> Check {
    let all = match &state.runners {
        Ok(all) => all,
        Err(error) => return Check::unknown("runners", error.clone()),
    };
    let online: Vec<&Runner> = all
        .iter()
        .filter(|runner| runner.state == RunnerState::Online)
        .collect();
    if online.is_empty() {
        let message = if all.is_empty() {
            "no runner is registered, so every run waits".to_owned()
        } else {
            format!(
                "none of the {} runners is online, so every run waits",
                all.len()
            )
        };
        return Check::wrong("runners", message).help(
            "start a runner: `acrtask runner token > token`, and on its machine `acrtask runner start --server URL --token-file token`",
        );
    }
    let matching: Vec<&Runner> = match &state.task {
        None => online.clone(),
        Some(task) => {
            let definition = &task.task.definition;
            let unmet: Vec<String> = online
                .iter()
                .filter_map(|runner| unmet_requirement(runner, definition))
                .collect();
            if unmet.len() == online.len() {
                return Check::wrong(
                    "runners",
                    format!("no online runner matches the task: {}", unmet.join("; ")),
                )
                .help("start a runner with that pool, platform and labels, or change the task: `acrtask task update NAME --pool ... --runner-label ...`");
            }
            online
                .iter()
                .filter(|runner| unmet_requirement(runner, definition).is_none())
                .copied()
                .collect()
        }
    };
    let names: Vec<&str> = matching.iter().map(|runner| runner.name.as_str()).collect();
    let message = format!(
        "{} of {} online: {}",
        matching.len(),
        all.len(),
        names.join(", ")
    );
    if let Some(full) = matching.iter().find(|runner| runner.free_disk < DISK) {
        let free = full.free_disk >> 20;
        return Check::warning(
            "runners",
            format!("{message}; {} has {free} MiB of free disk", full.name),
        )
        .help("free disk space there: `docker system prune`, `docker buildx prune`");
    }
    Check::ok("runners", message)
}

/// Reports what builds on the runners may fetch; `None` if no runner reports it.
fn check_sources(state: &ServerState) -> Option<Check> {
    const NAME: &str = "sources";
    let runners = state.runners.as_ref().ok()?;
    let reports = runners.iter().filter_map(|runner| {
        let private = runner.features.get("private-addresses")?;
        Some((runner.name.as_str(), private == "yes"))
    });
    let (open, public): (Vec<_>, Vec<_>) = reports.partition(|(_, private)| *private);
    if open.is_empty() && public.is_empty() {
        return None;
    }
    if open.is_empty() {
        let message = "builds fetch only from public addresses, as far as they are written; BuildKit resolves names";
        return Some(Check::ok(NAME, message));
    }
    let names: Vec<&str> = open.iter().map(|(name, _)| *name).collect();
    let message = format!(
        "builds on {} may fetch from private addresses, including those of that machine",
        names.join(", ")
    );
    let help =
        "start these runners without --allow-private-addresses, unless you trust all their tasks";
    Some(Check::warning(NAME, message).help(help))
}

/// Checks the address that senders use for deliveries.
fn check_address(state: &ServerState) -> Option<Check> {
    const NAME: &str = "address";
    let webhooks = state.webhooks.as_ref().ok()?;
    let url = &webhooks.first()?.url;
    let public = "start the server with `acrtask serve --public-url https://HOST`";
    if url.starts_with('/') {
        return Some(
            Check::warning(NAME, "the server has no public address: links in statuses and addresses of webhooks are incomplete")
                .help(public),
        );
    }
    let parsed = Url::parse(url).ok()?;
    let mut host = parsed.clone();
    host.set_path("");
    let host = display_url(&host);
    Some(if is_loopback(&parsed) {
        Check::warning(
            NAME,
            format!("senders use {host}, which only this machine reaches"),
        )
        .help(public)
    } else if parsed.scheme() != "https" {
        Check::warning(
            NAME,
            format!("senders use {host}, and others can read the deliveries on their way"),
        )
        .help(public)
    } else {
        Check::ok(NAME, format!("senders use {host}"))
    })
}

/// Checks for rejected deliveries without valid authentication.
fn check_signatures(state: &ServerState) -> Option<Check> {
    const NAME: &str = "signatures";
    if state.webhooks.as_ref().is_ok_and(Vec::is_empty) {
        return None;
    }
    Some(match &state.unauthenticated {
        Err(error) => Check::unknown(NAME, error.clone()),
        Ok(0) => Check::ok(NAME, "the server has rejected no delivery for its signature since its start"),
        Ok(n) => Check::warning(
            NAME,
            format!("the server has rejected {n} deliveries without valid authentication since its start"),
        )
        .help("find the webhook in the server's log; if your forge sent them, set its secret again: `acrtask webhook setup TASK --new-secret`"),
    })
}

fn check_enabled(task: &TaskState) -> Check {
    let name = task.name();
    if task.task.definition.enabled {
        Check::ok("task", format!("{name} is enabled"))
    } else {
        Check::warning(
            "task",
            format!("{name} is disabled: no trigger starts runs of it"),
        )
        .help(format!("`acrtask task enable {name}`"))
    }
}

/// Returns the forge webhooks that accept events of the task's repository and may start the task.
fn webhooks_of_task<'a>(webhooks: &'a [Webhook], task: &TaskState) -> Vec<&'a Webhook> {
    let context = task.task.definition.context.as_deref().unwrap_or_default();
    let address = context.split('#').next().unwrap_or_default();
    let own = RepositoryUrl::parse(address);
    webhooks
        .iter()
        .filter(|webhook| {
            let definition = &webhook.definition;
            let forge = definition.provider.parse::<Provider>().is_ok();
            let starts = definition.may_start(task.name());
            let named = definition
                .repositories
                .iter()
                .any(|url| own.is_some() && RepositoryUrl::parse(url) == own);
            forge && starts && (named || definition.repositories.is_empty())
        })
        .collect()
}

fn check_webhook(state: &ServerState, task: &TaskState) -> Vec<Check> {
    const NAME: &str = "webhook";
    let name = task.name();
    let definition = &task.task.definition;
    let commit = definition.triggers.commit.as_ref();
    if !commit.is_some_and(|commit| commit.enabled) {
        return vec![Check::ok(NAME, "the task has no commit trigger")];
    }
    let setup = format!("`acrtask webhook setup {name}`");
    let webhooks = match &state.webhooks {
        Ok(all) => all,
        Err(error) => return vec![Check::unknown(NAME, error.clone())],
    };
    let matching = webhooks_of_task(webhooks, task);
    if matching.is_empty() && !state.info.me.scopes.contains(&Scope::Admin) {
        let message = "no webhook that the token manages starts the task; only a token with the scope `admin` shows the others";
        return vec![Check::unknown(NAME, message.to_owned())];
    }
    if matching.is_empty() {
        let message = "the task's repository has no webhook: the server receives no commits";
        return vec![Check::wrong(NAME, message).help(setup)];
    }
    let names: Vec<&str> = matching
        .iter()
        .map(|webhook| webhook.name.as_str())
        .collect();
    let mut checks = vec![Check::ok(
        NAME,
        format!("{} accepts its commits", names.join(", ")),
    )];
    let deliveries = match &state.deliveries {
        Ok(all) => all,
        Err(error) => {
            checks.push(Check::unknown("deliveries", error.clone()));
            return checks;
        }
    };
    let mut received = deliveries
        .iter()
        .filter(|delivery| names.contains(&delivery.webhook.as_str()));
    let Some(newest) = received.next() else {
        checks.push(
            Check::warning("deliveries", "the webhook has received no delivery yet")
                .help(format!("configure the forge: {setup}")),
        );
        return checks;
    };
    let of_task = std::iter::once(newest)
        .chain(received)
        .find_map(|delivery| {
            let decision = delivery
                .decisions
                .iter()
                .find(|decision| decision.task == name)?;
            Some((delivery, decision))
        });
    checks.push(match of_task {
        Some((delivery, decision)) => {
            let when = format_age(delivery.received_at, state.now);
            let led = match (decision.action, &decision.run) {
                (DecisionAction::RunStarted, Some(run)) => format!("led to run {run}"),
                (DecisionAction::ExistingRun, Some(run)) => format!("joined run {run}"),
                _ => format!("started no run: {}", decision.reason),
            };
            Check::ok(
                "deliveries",
                format!("the last delivery for the task, {when}, {led}"),
            )
        }
        None => Check::warning(
            "deliveries",
            format!(
                "the last delivery arrived {}, but none was about the task's repository; it was about {}",
                format_age(newest.received_at, state.now),
                newest.repository.as_deref().unwrap_or("no repository")
            ),
        )
        .help(format!(
            "list the deliveries: `acrtask webhook deliveries --webhook {}`",
            newest.webhook
        )),
    });
    checks
}

fn check_deliveries(state: &ServerState) -> Check {
    const NAME: &str = "deliveries";
    let webhooks = match &state.webhooks {
        Ok(all) => all,
        Err(error) => return Check::unknown(NAME, error.clone()),
    };
    if webhooks.is_empty() && !state.info.me.scopes.contains(&Scope::Admin) {
        let message =
            "the token manages no webhook; only a token with the scope `admin` shows the others";
        return Check::unknown(NAME, message.to_owned());
    }
    if webhooks.is_empty() {
        return Check::ok(NAME, "no webhook exists, so no deliveries are expected");
    }
    match &state.deliveries {
        Err(error) => Check::unknown(NAME, error.clone()),
        Ok(all) => match all.first() {
            None => Check::warning(NAME, "no webhook has received a delivery yet")
                .help("configure the forge with `acrtask webhook setup TASK`"),
            Some(newest) => Check::ok(
                NAME,
                format!(
                    "the last delivery arrived {}, at {}: {}",
                    format_age(newest.received_at, state.now),
                    newest.webhook,
                    newest.summary
                ),
            ),
        },
    }
}

/// Reports the repositories of deliveries that matched no task; `None` if all matched.
fn check_unmatched(state: &ServerState) -> Option<Check> {
    let all = state.deliveries.as_ref().ok()?;
    let unmatched = all.iter().filter(|delivery| {
        delivery.decisions.is_empty()
            && delivery.watches.is_empty()
            && !matches!(delivery.kind.as_str(), "ping" | "handshake" | "declined")
    });
    let mut repositories = BTreeSet::new();
    let mut count = 0;
    for delivery in unmatched {
        count += 1;
        repositories.insert(
            delivery
                .repository
                .as_deref()
                .unwrap_or("an unknown repository"),
        );
    }
    if count == 0 {
        return None;
    }
    let names: Vec<&str> = repositories.into_iter().take(5).collect();
    Some(
        Check::warning(
            "unmatched",
            format!(
                "{count} of the last {} deliveries matched no task: {}",
                all.len(),
                names.join(", ")
            ),
        )
        .help(
            "`acrtask webhook deliveries` shows why; the task's context must be a URL of that repository, \
             and its trigger must be enabled",
        ),
    )
}

fn check_secrets(task: &TaskState) -> Check {
    const NAME: &str = "secrets";
    let definition = &task.task.definition;
    let mut needed: BTreeSet<&str> = definition.secrets.values().map(String::as_str).collect();
    for notify in &definition.notify {
        needed.insert(&notify.url);
        needed.extend(notify.sign_with.as_deref());
    }
    if needed.is_empty() {
        return Check::ok(NAME, "the task needs none");
    }
    let stored = match &task.secrets {
        Ok(stored) => stored,
        Err(error) => return Check::unknown(NAME, error.clone()),
    };
    let name = task.name();
    let missing: Vec<&str> = needed
        .iter()
        .copied()
        .filter(|needed| {
            let stored = stored.iter().filter(|secret| secret.name == *needed);
            !stored.into_iter().any(|secret| secret.applies_to(name))
        })
        .collect();
    if missing.is_empty() {
        return Check::ok(
            NAME,
            format!("all {} secrets of the task are stored", needed.len()),
        );
    }
    Check::wrong(NAME, format!("not stored: {}", missing.join(", ")))
        .help(format!("`acrtask secret set NAME --task {name}`"))
}

fn check_last_run(state: &ServerState, task: &TaskState) -> Check {
    const NAME: &str = "last run";
    let run = match &task.last_run {
        Err(error) => return Check::unknown(NAME, error.clone()),
        Ok(None) => return Check::ok(NAME, "the task has no runs yet"),
        Ok(Some(run)) => run,
    };
    let when = format_age(run.created_at, state.now);
    let message = format!("{}, {when}: {}", run.id, run.state);
    let why = run.reason.as_deref().and_then(|why| why.lines().next());
    let message = match why {
        Some(why) => format!("{message}: {why}"),
        None => message,
    };
    match run.state {
        RunState::Failed | RunState::TimedOut | RunState::Error => {
            Check::warning(NAME, message).help(format!("`acrtask runs logs {}`", run.id))
        }
        RunState::Queued if run.approval == Some(Approval::Pending) => {
            Check::warning(NAME, format!("{message}: it waits for approval"))
                .help(format!("`acrtask runs approve {}`", run.id))
        }
        _ => Check::ok(NAME, message),
    }
}
