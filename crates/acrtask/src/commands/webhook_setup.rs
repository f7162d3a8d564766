//! `acrtask webhook setup`: connects a task's repository with the server.
//!
//! The command first checks the token at the forge. It then creates the webhook on the server, so
//! that the server already accepts the forge's first delivery.

use std::time::{Duration, Instant};

use acrtask_api::{
    run::SecretText,
    task::{CommitEvent, Task},
    webhook::{Delivery, PutWebhook, Webhook},
};
use acrtask_model::Secret;
use serde::Serialize;
use url::Url;

use super::{
    remote::{block_on, client, print_json, print_message, read_secret},
    task,
    webhook::{
        find_webhook, list_webhooks, new_secret, newest_deliveries, put_webhook, supported_statuses,
    },
};
use crate::{
    args::{
        PathOrStdin,
        server::{ListOutput, PeriodArgs},
        values::PasswordSource,
        webhook::SetupArgs,
    },
    client::{Client, display_url, is_loopback},
    error::CliError,
    exit::Exit,
    forge::{
        Guide, Repository, WebhookEvents,
        api::{Change, Forge},
        setup_guide,
    },
};

/// Maximum wait for the forge's ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Result of the setup, and the remaining manual steps.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Setup {
    webhook: Webhook,
    /// Set if the webhook was created on the server.
    created: bool,
    /// Address that the forge sends deliveries to.
    url: String,
    /// New secret; `None` if the webhook keeps its secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// Settings to enter at the forge.
    guide: Guide,
    /// Set if the forge was configured through its API.
    entered: bool,
    /// Set if an existing webhook of the forge was changed.
    changed: bool,
    /// Set if an existing webhook of the forge needed no change.
    #[serde(skip)]
    left: bool,
    /// Result of the forge's ping; `None` if the forge sends no ping.
    #[serde(skip_serializing_if = "Option::is_none")]
    ping: Option<PingResult>,
    /// Possible problems with the setup.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Result of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum PingResult {
    /// The server accepted the ping and its authentication.
    Arrived,
    /// The server answered the ping with this status.
    Refused(u16),
    /// The ping did not arrive within [`PING_TIMEOUT`].
    Lost,
}

/// Connects the repository of a task with a webhook.
pub(crate) fn setup(args: &SetupArgs) -> Result<Exit, CliError> {
    let token = match &args.token_file {
        None => None,
        Some(from) => {
            let from = match from {
                PathOrStdin::Path(path) => PasswordSource::File(path.clone()),
                PathOrStdin::Stdin => PasswordSource::Stdin,
            };
            Some(read_secret(&from, "the forge's token")?)
        }
    };
    let client = client(&args.server)?;
    let setup = block_on(async {
        let task = task::find_task(&client, &args.task).await?;
        let context = task.definition.context.as_deref();
        let repository = Repository::from_context(context, args.provider)?;
        let forge = match token {
            Some(token) => Some(Forge::new(
                &repository,
                token,
                args.api.as_ref(),
                args.forge_ca.as_deref(),
            )?),
            None => None,
        };
        // Checks the token first, so that no unused webhook is created on the server.
        if let Some(forge) = &forge {
            forge.check().await?;
        }
        let (webhook, created, made) = prepare_webhook(&client, args, &repository).await?;
        let (url, mut warnings) = delivery_address(&client, &webhook, &repository);
        warnings.extend(missing_trigger_warning(&task));
        let events = wanted_events(&task);
        let mut setup = Setup {
            guide: setup_guide(&repository, &url, made.as_deref(), events),
            webhook,
            created,
            url,
            secret: made,
            entered: false,
            changed: false,
            left: false,
            ping: None,
            warnings,
        };
        if let Some(forge) = forge {
            let previous = ping_ids(&client, &setup.webhook.name).await?;
            let secret = setup.secret.as_deref().map(Secret::new);
            let entry = forge
                .put_webhook(&setup.url, secret.as_ref(), events)
                .await?;
            setup.entered = true;
            setup.changed = entry.change == Change::Updated;
            setup.left = entry.change == Change::Unchanged;
            if forge.has_ping() {
                let sent = forge.sent_pings(&entry.id).await;
                forge.send_ping(&entry.id).await?;
                let result = wait_for_ping(&client, &setup.webhook.name, &previous, async || {
                    let now = forge.sent_pings(&entry.id).await;
                    let new = now.into_iter().find(|ping| !sent.contains(ping));
                    new.map(|(_, status)| status)
                });
                setup.ping = Some(result.await?);
            }
        }
        Ok(setup)
    })?;
    let exit = match setup.ping {
        None | Some(PingResult::Arrived) => Exit::Succeeded,
        Some(PingResult::Refused(_) | PingResult::Lost) => Exit::Failed,
    };
    if args.output.output == ListOutput::Json {
        print_json(&setup)?;
    } else {
        print_setup(&setup, &args.task)?;
    }
    Ok(exit)
}

/// Returns the events that the task's trigger needs; pushes and pull requests if it has none.
fn wanted_events(task: &Task) -> WebhookEvents {
    let commit = task.definition.triggers.commit.as_ref();
    WebhookEvents {
        tags: commit.is_some_and(|commit| {
            !commit.tags.is_empty() || commit.events.contains(&CommitEvent::Tag)
        }),
        pull_requests: commit
            .is_none_or(|commit| commit.events.contains(&CommitEvent::PullRequest)),
    }
}

fn missing_trigger_warning(task: &Task) -> Option<String> {
    let name = &task.definition.name;
    let commit = task.definition.triggers.commit.as_ref();
    if commit.is_some_and(|commit| commit.enabled) {
        return None;
    }
    Some(format!(
        "commits do not start runs of {name} yet: `acrtask task update {name} --commit-trigger-enabled true`"
    ))
}

/// Finds or creates the webhook of the repository on the server. Returns the webhook, `true` if it
/// was created, and its secret if that is new.
async fn prepare_webhook(
    client: &Client,
    args: &SetupArgs,
    repository: &Repository,
) -> Result<(Webhook, bool, Option<String>), CliError> {
    let provider = repository.provider.name();
    let tasks = args.prefix.as_ref().map(ToString::to_string);
    let existing = match &args.webhook {
        Some(name) => find_webhook(client, name).await?,
        None => list_webhooks(client).await?.into_iter().find(|webhook| {
            let definition = &webhook.definition;
            definition.provider == provider
                && definition.tasks == tasks
                && definition
                    .repositories
                    .iter()
                    .any(|url| repository.matches_url(url))
        }),
    };
    let Some(existing) = existing else {
        let name = args
            .webhook
            .clone()
            .unwrap_or_else(|| repository.webhook_name());
        if find_webhook(client, &name).await?.is_some() {
            return Err(CliError::usage(format!(
                "the webhook {name} already exists, for other repositories"
            ))
            .help("choose a name: `--webhook NAME`"));
        }
        let secret = new_secret(provider);
        let body = PutWebhook {
            provider: provider.into(),
            secrets: vec![SecretText(secret.clone())],
            repositories: vec![repository.url.clone()],
            tasks,
            statuses: supported_statuses(provider, None, &args.statuses)?,
        };
        return Ok((put_webhook(client, &name, &body).await?, true, Some(secret)));
    };
    let definition = existing.definition.clone();
    if definition.provider != provider {
        return Err(CliError::usage(format!(
            "the webhook {} is for {}, not for {provider}",
            existing.name, definition.provider
        ))
        .help("choose another name: `--webhook NAME`"));
    }
    let mut repositories = definition.repositories.clone();
    if !repositories.is_empty() && !repositories.iter().any(|url| repository.matches_url(url)) {
        repositories.push(repository.url.clone());
    }
    let secret = args.new_secret.then(|| new_secret(provider));
    let body = PutWebhook {
        provider: provider.into(),
        secrets: secret.iter().cloned().map(SecretText).collect(),
        statuses: supported_statuses(provider, definition.statuses.clone(), &args.statuses)?,
        repositories,
        tasks: definition.tasks.clone(),
    };
    let unchanged =
        body.repositories == definition.repositories && body.statuses == definition.statuses;
    if unchanged && secret.is_none() {
        return Ok((existing, false, None));
    }
    Ok((
        put_webhook(client, &existing.name, &body).await?,
        false,
        secret,
    ))
}

/// Returns the address for the forge's deliveries, and warnings about it.
fn delivery_address(
    client: &Client,
    webhook: &Webhook,
    repository: &Repository,
) -> (String, Vec<String>) {
    let mut warnings = Vec::new();
    let url = if webhook.url.starts_with('/') {
        warnings.push(
            "the server has no public address, so this is the address of your login; \
             start it with `acrtask serve --public-url https://HOST`"
                .into(),
        );
        format!("{}{}", display_url(client.url()), webhook.url)
    } else {
        webhook.url.clone()
    };
    if let Ok(parsed) = Url::parse(&url)
        && !is_loopback(&repository.web)
    {
        if is_loopback(&parsed) {
            warnings.push(format!(
                "{url} is a loopback address, which the forge cannot reach"
            ));
        } else if parsed.scheme() != "https" {
            warnings.push(format!(
                "{url} is not https: others can read the deliveries on their way"
            ));
        }
    }
    (url, warnings)
}

async fn ping_ids(client: &Client, webhook: &str) -> Result<Vec<String>, CliError> {
    let page = newest_deliveries(client, Some(webhook), &PeriodArgs::default(), 100).await?;
    Ok(page.items.into_iter().map(|delivery| delivery.id).collect())
}

/// Waits for a ping that is not in `previous`. The server does not store a ping with a repeated
/// body; `forge_status` returns the status that the forge recorded for it.
async fn wait_for_ping(
    client: &Client,
    webhook: &str,
    previous: &[String],
    forge_status: impl AsyncFn() -> Option<u16>,
) -> Result<PingResult, CliError> {
    let started = Instant::now();
    loop {
        let page = newest_deliveries(client, Some(webhook), &PeriodArgs::default(), 20).await?;
        let new = |delivery: &Delivery| delivery.kind == "ping" && !previous.contains(&delivery.id);
        if page.items.iter().any(new) {
            return Ok(PingResult::Arrived);
        }
        match forge_status().await {
            Some(200..300) => return Ok(PingResult::Arrived),
            Some(status) => return Ok(PingResult::Refused(status)),
            None if started.elapsed() > PING_TIMEOUT => return Ok(PingResult::Lost),
            None => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

fn print_setup(setup: &Setup, task: &str) -> Result<(), CliError> {
    let name = &setup.webhook.name;
    print_message(&format!(
        "{} the webhook {name} on the server",
        if setup.created { "created" } else { "found" }
    ));
    for warning in &setup.warnings {
        print_message(&format!("warning: {warning}"));
    }
    if setup.entered {
        print_message(&match (setup.changed, setup.left) {
            (_, true) => format!("the forge already has {}", setup.url),
            (true, _) => format!("changed {} at the forge", setup.url),
            _ => format!("added {} at the forge", setup.url),
        });
        print_message(&match setup.ping {
            Some(PingResult::Arrived) => "received the forge's ping: the webhook works".to_owned(),
            Some(PingResult::Refused(401)) => format!(
                "error: the server answered the forge's ping with 401: the forge has another secret; set a new one on both sides: `acrtask webhook setup {task} --new-secret`"
            ),
            Some(PingResult::Refused(status)) => format!(
                "error: the forge's ping was answered with {status}; check that {} leads to the server",
                setup.url
            ),
            Some(PingResult::Lost) => format!(
                "error: no ping of the forge arrived within {} s; check that the forge reaches {}",
                PING_TIMEOUT.as_secs(),
                setup.url
            ),
            None => {
                format!(
                    "push a commit, then check its delivery: `acrtask webhook deliveries --webhook {name}`"
                )
            }
        });
        return Ok(());
    }
    let guide = &setup.guide;
    let width = guide.fields.iter().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or_default();
    let mut text = format!("Enter this at {} ({}):\n\n", guide.page, guide.way);
    for (name, value) in &guide.fields {
        text += &format!("  {name:width$}  {value}\n");
    }
    if setup.secret.is_some() {
        text += "\nThis secret is shown only once.\n";
    }
    text += &format!(
        "\nThen push a commit and check its delivery: acrtask webhook deliveries --webhook {name}\n"
    );
    super::print(text.as_bytes())?;
    Ok(())
}
