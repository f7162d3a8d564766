//! What the server's answers mean. Pure.

use std::collections::BTreeSet;

use acrtask_api::{
    admin::{Runner, RunnerState, Scope},
    run::Approval,
    task::TaskDefinition,
    webhook::{OutcomeKind, Webhook},
};
use acrtask_model::RunState;
use acrtask_trigger::{Provider, RepositoryUrl};
use url::Url;

use super::{Check, Seen, SeenTask, probed};
use crate::{
    client::{is_loopback, shown},
    commands::tokens::scope_name,
    render::run::ago,
};

/// Seconds that clocks may differ before somebody should look, and before signatures and tokens fail.
pub(super) const SKEW: i64 = 5;
pub(super) const SKEW_TOO_MUCH: i64 = 60;
/// Free disk that a runner should have.
const DISK: u64 = 2 << 30;
/// The pool of those that name none.
const DEFAULT_POOL: &str = "default";

/// Everything that can be said of what the server answered.
pub(super) fn of(seen: &Seen) -> Vec<Check> {
    let mut checks = vec![server(seen), clock(seen), token(seen), runners(seen)];
    checks.extend(storage(seen));
    checks.extend(sources(seen));
    checks.extend(address(seen));
    checks.extend(signatures(seen));
    if let Some(task) = &seen.task {
        checks.push(enabled(task));
        checks.extend(webhook(seen, task));
        checks.push(secrets(task));
        checks.push(last_run(seen, task));
        checks.extend(probed::of(&task.probe));
    } else {
        checks.push(deliveries(seen));
        checks.extend(unmatched(seen));
    }
    checks
}

fn server(seen: &Seen) -> Check {
    let me = &seen.greeting.me;
    let own = env!("CARGO_PKG_VERSION");
    let message = format!(
        "{} has version {} and answers within {} ms",
        shown(&seen.url),
        me.server_version,
        seen.greeting.took.as_millis()
    );
    if me.server_version == own {
        return Check::ok("server", message);
    }
    Check::warning("server", format!("{message}; this program is {own}"))
        .help("use the same version on both sides")
}

/// Names the key and the blobs that the servers of the database share. `None`: an older server does not.
fn storage(seen: &Seen) -> Option<Check> {
    const NAME: &str = "storage";
    let me = &seen.greeting.me;
    let key = me.key.as_ref()?;
    let message = format!("secrets are encrypted with the key {key}");
    Some(match &me.blobs {
        Some(blobs) => Check::ok(NAME, format!("{message}, logs are in the store {blobs}")),
        None => Check::warning(
            NAME,
            format!("{message}; the store of logs could not be reached when the server started"),
        )
        .help("look into the server's log"),
    })
}

fn clock(seen: &Seen) -> Check {
    let Some(ahead) = seen.greeting.ahead else {
        return Check::unknown("clock", "the server does not say what time it has");
    };
    let (seconds, way) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
    let message = format!("the server's clock is {seconds} s {way} this machine's");
    let help = "set both clocks, by NTP: signatures of deliveries and timers go by them";
    if seconds > SKEW_TOO_MUCH {
        Check::wrong("clock", message).help(help)
    } else if seconds > SKEW {
        Check::warning("clock", message).help(help)
    } else {
        Check::ok("clock", "the server's clock and this machine's agree")
    }
}

fn token(seen: &Seen) -> Check {
    let me = &seen.greeting.me;
    let scopes: Vec<_> = me.scopes.iter().map(scope_name).collect();
    let message = format!("`{}` may {}", me.name, scopes.join(", "));
    if let (Some(pattern), Some(task)) = (&me.tasks, &seen.task) {
        let name = task.name();
        let fits = match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        };
        if !fits {
            return Check::wrong(
                "token",
                format!("{message}, of tasks called {pattern} alone"),
            )
            .help("log in with a token for this task: `acrtask token create --tasks NAME`");
        }
    }
    let sees = me.scopes.iter().any(|scope| scope.includes(Scope::Read));
    if sees {
        Check::ok("token", message)
    } else {
        Check::warning("token", format!("{message}, and sees nothing"))
            .help("log in with a token that has the scope `read`")
    }
}

/// Why a runner does not take runs of a task; nothing: it does.
fn lacks(runner: &Runner, task: &TaskDefinition) -> Option<String> {
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

fn runners(seen: &Seen) -> Check {
    let all = match &seen.runners {
        Ok(all) => all,
        Err(error) => return Check::unknown("runners", error.clone()),
    };
    let online: Vec<&Runner> = all
        .iter()
        .filter(|runner| runner.state == RunnerState::Online)
        .collect();
    if online.is_empty() {
        let message = if all.is_empty() {
            "there is no runner, so every run waits".to_owned()
        } else {
            format!(
                "none of the {} runners is online, so every run waits",
                all.len()
            )
        };
        return Check::wrong("runners", message).help(
            "start one: `acrtask runner token > token`, and on its machine `acrtask runner start --server URL --token-file token`",
        );
    }
    let fitting: Vec<&Runner> = match &seen.task {
        None => online.clone(),
        Some(task) => {
            let definition = &task.task.definition;
            let lacking: Vec<String> = online
                .iter()
                .filter_map(|runner| lacks(runner, definition))
                .collect();
            if lacking.len() == online.len() {
                return Check::wrong(
                    "runners",
                    format!("no runner that is online takes runs of the task: {}", lacking.join("; ")),
                )
                .help("start a runner with that pool, platform and labels, or change the task: `acrtask task update NAME --pool ... --runner-label ...`");
            }
            online
                .iter()
                .filter(|runner| lacks(runner, definition).is_none())
                .copied()
                .collect()
        }
    };
    let names: Vec<&str> = fitting.iter().map(|runner| runner.name.as_str()).collect();
    let message = format!(
        "{} of {} online: {}",
        fitting.len(),
        all.len(),
        names.join(", ")
    );
    if let Some(full) = fitting.iter().find(|runner| runner.free_disk < DISK) {
        let free = full.free_disk >> 20;
        return Check::warning(
            "runners",
            format!("{message}; {} has {free} MiB of free disk", full.name),
        )
        .help("make room there: `docker system prune`, `docker buildx prune`");
    }
    Check::ok("runners", message)
}

/// Says what builds on the runners may fetch. `None`: no runner reports it.
fn sources(seen: &Seen) -> Option<Check> {
    const NAME: &str = "sources";
    let runners = seen.runners.as_ref().ok()?;
    let reports = runners.iter().filter_map(|runner| {
        let private = runner.features.get("private-addresses")?;
        Some((runner.name.as_str(), private == "yes"))
    });
    let (open, public): (Vec<_>, Vec<_>) = reports.partition(|(_, private)| *private);
    if open.is_empty() && public.is_empty() {
        return None;
    }
    if open.is_empty() {
        let message = "builds fetch from public addresses alone, as far as they are written; BuildKit resolves names";
        return Some(Check::ok(NAME, message));
    }
    let names: Vec<&str> = open.iter().map(|(name, _)| *name).collect();
    let message = format!(
        "builds on {} may fetch from private addresses, those of that machine included",
        names.join(", ")
    );
    let help = "start these runners without --allow-private-addresses, unless all their tasks are trusted with that";
    Some(Check::warning(NAME, message).help(help))
}

/// What senders are told to send to.
fn address(seen: &Seen) -> Option<Check> {
    const NAME: &str = "address";
    let webhooks = seen.webhooks.as_ref().ok()?;
    let url = &webhooks.first()?.url;
    let public = "start the server with `acrtask serve --public-url https://HOST`";
    if url.starts_with('/') {
        return Some(
            Check::warning(NAME, "the server does not know its public address: links in statuses and addresses for webhooks lack it")
                .help(public),
        );
    }
    let parsed = Url::parse(url).ok()?;
    let mut host = parsed.clone();
    host.set_path("");
    let host = shown(&host);
    Some(if is_loopback(&parsed) {
        Check::warning(
            NAME,
            format!("senders are told {host}, which only this machine reaches"),
        )
        .help(public)
    } else if parsed.scheme() != "https" {
        Check::warning(
            NAME,
            format!("senders are told {host}, and what they send can be read on the way"),
        )
        .help(public)
    } else {
        Check::ok(NAME, format!("senders are told {host}"))
    })
}

/// Whether senders prove who they are.
fn signatures(seen: &Seen) -> Option<Check> {
    const NAME: &str = "signatures";
    if seen.webhooks.as_ref().is_ok_and(Vec::is_empty) {
        return None;
    }
    Some(match &seen.unproved {
        Err(error) => Check::unknown(NAME, error.clone()),
        Ok(0) => Check::ok(NAME, "no delivery was refused for its signature since the server started"),
        Ok(n) => Check::warning(
            NAME,
            format!("{n} deliveries were refused since the server started, because they did not prove who sent them"),
        )
        .help("the server's log names the webhook; if it is your forge, enter the secret there again: `acrtask webhook setup TASK --new-secret`"),
    })
}

fn enabled(task: &SeenTask) -> Check {
    let name = task.name();
    if task.task.definition.enabled {
        Check::ok("task", format!("{name} is enabled"))
    } else {
        Check::warning(
            "task",
            format!("{name} is disabled: nothing starts runs of it"),
        )
        .help(format!("`acrtask task enable {name}`"))
    }
}

/// The webhooks that may tell of the task's repository.
fn of_repository<'a>(webhooks: &'a [Webhook], context: &str) -> Vec<&'a Webhook> {
    let address = context.split('#').next().unwrap_or_default();
    let own = RepositoryUrl::parse(address);
    webhooks
        .iter()
        .filter(|webhook| {
            let definition = &webhook.definition;
            let forge = definition.provider.parse::<Provider>().is_ok();
            let named = definition
                .repositories
                .iter()
                .any(|url| own.is_some() && RepositoryUrl::parse(url) == own);
            forge && (named || definition.repositories.is_empty())
        })
        .collect()
}

fn webhook(seen: &Seen, task: &SeenTask) -> Vec<Check> {
    const NAME: &str = "webhook";
    let name = task.name();
    let definition = &task.task.definition;
    let commit = definition.triggers.commit.as_ref();
    if !commit.is_some_and(|commit| commit.enabled) {
        return vec![Check::ok(NAME, "the task does not run at commits")];
    }
    let setup = format!("`acrtask webhook setup {name}`");
    let webhooks = match &seen.webhooks {
        Ok(all) => all,
        Err(error) => return vec![Check::unknown(NAME, error.clone())],
    };
    let ours = of_repository(webhooks, definition.context.as_deref().unwrap_or_default());
    if ours.is_empty() {
        let message =
            "there is no webhook for the task's repository: the server hears of no commit";
        return vec![Check::wrong(NAME, message).help(setup)];
    }
    let names: Vec<&str> = ours.iter().map(|webhook| webhook.name.as_str()).collect();
    let mut checks = vec![Check::ok(
        NAME,
        format!("{} may tell of commits", names.join(", ")),
    )];
    let deliveries = match &seen.deliveries {
        Ok(all) => all,
        Err(error) => {
            checks.push(Check::unknown("deliveries", error.clone()));
            return checks;
        }
    };
    let mut came = deliveries
        .iter()
        .filter(|one| names.contains(&one.webhook.as_str()));
    let Some(newest) = came.next() else {
        checks.push(
            Check::warning("deliveries", "nothing has come to it yet")
                .help(format!("enter it at the forge: {setup}")),
        );
        return checks;
    };
    let of_task = std::iter::once(newest).chain(came).find_map(|one| {
        let outcome = one.outcomes.iter().find(|outcome| outcome.task == name)?;
        Some((one, outcome))
    });
    checks.push(match of_task {
        Some((one, outcome)) => {
            let when = ago(one.received_at, seen.now);
            let led = match (outcome.what, &outcome.run) {
                (OutcomeKind::Run, Some(run)) => format!("led to run {run}"),
                (OutcomeKind::Joined, Some(run)) => format!("joined run {run}"),
                _ => format!("led to nothing: {}", outcome.reason),
            };
            Check::ok(
                "deliveries",
                format!("the last one for the task, {when}, {led}"),
            )
        }
        None => Check::warning(
            "deliveries",
            format!(
                "the last one came {}, but none has spoken of the task's repository; it was of {}",
                ago(newest.received_at, seen.now),
                newest.repository.as_deref().unwrap_or("none")
            ),
        )
        .help(format!(
            "see what came: `acrtask webhook deliveries --webhook {}`",
            newest.webhook
        )),
    });
    checks
}

fn deliveries(seen: &Seen) -> Check {
    const NAME: &str = "deliveries";
    let webhooks = match &seen.webhooks {
        Ok(all) => all,
        Err(error) => return Check::unknown(NAME, error.clone()),
    };
    if webhooks.is_empty() {
        return Check::ok(NAME, "there is no webhook, and nothing is waited for");
    }
    match &seen.deliveries {
        Err(error) => Check::unknown(NAME, error.clone()),
        Ok(all) => match all.first() {
            None => Check::warning(NAME, "nothing has come to any webhook yet")
                .help("`acrtask webhook setup TASK` says what to enter at the forge"),
            Some(newest) => Check::ok(
                NAME,
                format!(
                    "the last one came {}, to {}: {}",
                    ago(newest.received_at, seen.now),
                    newest.webhook,
                    newest.summary
                ),
            ),
        },
    }
}

/// Names the repositories of deliveries that no task matched. `None`: there are none.
fn unmatched(seen: &Seen) -> Option<Check> {
    let all = seen.deliveries.as_ref().ok()?;
    let unmatched = all.iter().filter(|delivery| {
        delivery.outcomes.is_empty()
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
            "`acrtask webhook deliveries` says why; the context of a task has to be a URL of that repository, \
             and its trigger on",
        ),
    )
}

fn secrets(task: &SeenTask) -> Check {
    const NAME: &str = "secrets";
    let definition = &task.task.definition;
    let mut needed: BTreeSet<&str> = definition.secrets.values().map(String::as_str).collect();
    for notify in &definition.notify {
        needed.insert(&notify.url);
        needed.extend(notify.sign_with.as_deref());
    }
    if needed.is_empty() {
        return Check::ok(NAME, "the task names none");
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
            !stored.iter().any(|secret| {
                secret.name == *needed && secret.task.as_deref().is_none_or(|task| task == name)
            })
        })
        .collect();
    if missing.is_empty() {
        return Check::ok(
            NAME,
            format!("all {} that the task names are stored", needed.len()),
        );
    }
    Check::wrong(NAME, format!("not stored: {}", missing.join(", ")))
        .help(format!("`acrtask secret set NAME --task {name}`"))
}

fn last_run(seen: &Seen, task: &SeenTask) -> Check {
    const NAME: &str = "last run";
    let run = match &task.last {
        Err(error) => return Check::unknown(NAME, error.clone()),
        Ok(None) => return Check::ok(NAME, "there has been none"),
        Ok(Some(run)) => run,
    };
    let when = ago(run.created_at, seen.now);
    let message = format!("{} of {when}: {}", run.id, run.state);
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
