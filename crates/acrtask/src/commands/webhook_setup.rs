//! `acrtask webhook setup`: from a task to a forge that tells of its commits.
//!
//! The forge is asked whether it knows the token; then the server's side is made, so that the forge's first delivery
//! finds it.

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
    remote::{block_on, client, print_json, say, secret},
    stored,
    webhooks::{all, find, new_secret, newest, put, statuses_of},
};
use crate::{
    args::{
        PathOrStdin,
        server::{ListOutput, PeriodArgs},
        values::PasswordFrom,
        webhooks::SetupArgs,
    },
    client::{Client, is_loopback, shown},
    error::CliError,
    exit::Exit,
    forge::{
        Guide, Repository, Wanted,
        api::{Did, Forge},
        guide,
    },
};

/// How long a ping may take.
const PING: Duration = Duration::from_secs(20);

/// What was done, and what is left to do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Setup {
    webhook: Webhook,
    /// It was made now.
    created: bool,
    /// What the forge sends to.
    url: String,
    /// Only where it was made now.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// What to enter where.
    guide: Guide,
    /// It was entered through the forge's API.
    entered: bool,
    /// It was there before, and was changed.
    changed: bool,
    /// It was there before, and nothing had to be changed.
    #[serde(skip)]
    left: bool,
    /// What came of the forge's ping; nothing where there was none to wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    ping: Option<Ping>,
    /// What may be wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What came of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Ping {
    /// It arrived, and proved who sent it.
    Arrived,
    /// The forge was answered with this status.
    Refused(u16),
    /// Nobody has heard of it.
    Lost,
}

/// Sets a webhook up.
pub(crate) fn setup(args: &SetupArgs) -> Result<Exit, CliError> {
    let token = match &args.token_file {
        None => None,
        Some(from) => {
            let from = match from {
                PathOrStdin::Path(path) => PasswordFrom::File(path.clone()),
                PathOrStdin::Stdin => PasswordFrom::Stdin,
            };
            Some(secret(&from, "the forge's token")?)
        }
    };
    let client = client(&args.server)?;
    let done = block_on(async {
        let task = stored::find(&client, &args.task).await?;
        let context = task.definition.context.as_deref();
        let repository = Repository::of(context, args.provider)?;
        let forge = match token {
            Some(token) => Some(Forge::new(
                &repository,
                token,
                args.api.as_ref(),
                args.forge_ca.as_deref(),
            )?),
            None => None,
        };
        // A secret that reaches no forge would be of no use.
        if let Some(forge) = &forge {
            forge.check().await?;
        }
        let (webhook, created, made) = server_side(&client, args, &repository).await?;
        let (url, mut warnings) = address(&client, &webhook, &repository);
        warnings.extend(no_trigger(&task));
        let wanted = wanted(&task);
        let mut setup = Setup {
            guide: guide(&repository, &url, made.as_deref(), wanted),
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
            let known = known_pings(&client, &setup.webhook.name).await?;
            let secret = setup.secret.as_deref().map(Secret::new);
            let entered = forge.enter(&setup.url, secret.as_ref(), wanted).await?;
            setup.entered = true;
            setup.changed = entered.did == Did::Changed;
            setup.left = entered.did == Did::Left;
            if forge.has_ping() {
                let sent = forge.pings(&entered.id).await;
                forge.ping(&entered.id).await?;
                let heard = heard(&client, &setup.webhook.name, &known, async || {
                    let now = forge.pings(&entered.id).await;
                    let new = now.into_iter().find(|ping| !sent.contains(ping));
                    new.map(|(_, status)| status)
                });
                setup.ping = Some(heard.await?);
            }
        }
        Ok(setup)
    })?;
    let exit = match done.ping {
        None | Some(Ping::Arrived) => Exit::Succeeded,
        Some(Ping::Refused(_) | Ping::Lost) => Exit::Failed,
    };
    if args.output.output == ListOutput::Json {
        print_json(&done)?;
    } else {
        tell(&done, &args.task)?;
    }
    Ok(exit)
}

/// What the task asks for; without a trigger, what most will.
fn wanted(task: &Task) -> Wanted {
    let commit = task.definition.triggers.commit.as_ref();
    Wanted {
        tags: commit.is_some_and(|commit| {
            !commit.tags.is_empty() || commit.events.contains(&CommitEvent::Tag)
        }),
        pull_requests: commit
            .is_none_or(|commit| commit.events.contains(&CommitEvent::PullRequest)),
    }
}

fn no_trigger(task: &Task) -> Option<String> {
    let name = &task.definition.name;
    let commit = task.definition.triggers.commit.as_ref();
    if commit.is_some_and(|commit| commit.enabled) {
        return None;
    }
    Some(format!(
        "commits do not start runs of {name} yet: `acrtask task update {name} --commit-trigger-enabled true`"
    ))
}

/// The webhook of the repository at the server; whether it was made now, and its secret where that is new.
async fn server_side(
    client: &Client,
    args: &SetupArgs,
    repository: &Repository,
) -> Result<(Webhook, bool, Option<String>), CliError> {
    let provider = repository.provider.name();
    let there = match &args.webhook {
        Some(name) => find(client, name).await?,
        None => all(client).await?.into_iter().find(|webhook| {
            let definition = &webhook.definition;
            definition.provider == provider
                && definition.repositories.iter().any(|url| repository.is(url))
        }),
    };
    let Some(there) = there else {
        let name = args.webhook.clone().unwrap_or_else(|| repository.name());
        if find(client, &name).await?.is_some() {
            return Err(CliError::usage(format!(
                "there is a webhook {name} already, for other repositories"
            ))
            .help("choose a name: `--webhook NAME`"));
        }
        let secret = new_secret(provider);
        let body = PutWebhook {
            provider: provider.into(),
            secrets: vec![SecretText(secret.clone())],
            repositories: vec![repository.url.clone()],
            statuses: statuses_of(provider, None, &args.statuses)?,
        };
        return Ok((put(client, &name, &body).await?, true, Some(secret)));
    };
    let definition = there.definition.clone();
    if definition.provider != provider {
        return Err(CliError::usage(format!(
            "the webhook {} is for {}, not for {provider}",
            there.name, definition.provider
        ))
        .help("choose another name: `--webhook NAME`"));
    }
    let mut repositories = definition.repositories.clone();
    if !repositories.is_empty() && !repositories.iter().any(|url| repository.is(url)) {
        repositories.push(repository.url.clone());
    }
    let secret = args.new_secret.then(|| new_secret(provider));
    let body = PutWebhook {
        provider: provider.into(),
        secrets: secret.iter().cloned().map(SecretText).collect(),
        statuses: statuses_of(provider, definition.statuses.clone(), &args.statuses)?,
        repositories,
    };
    let same = body.repositories == definition.repositories && body.statuses == definition.statuses;
    if same && secret.is_none() {
        return Ok((there, false, None));
    }
    Ok((put(client, &there.name, &body).await?, false, secret))
}

/// What the forge sends to, and what may keep it from there.
fn address(client: &Client, webhook: &Webhook, repository: &Repository) -> (String, Vec<String>) {
    let mut warnings = Vec::new();
    let url = if webhook.url.starts_with('/') {
        warnings.push(
            "the server does not know its public address, so the one of your login stands here; \
             start it with `acrtask serve --public-url https://HOST`"
                .into(),
        );
        format!("{}{}", shown(client.url()), webhook.url)
    } else {
        webhook.url.clone()
    };
    if let Ok(parsed) = Url::parse(&url)
        && !is_loopback(&repository.web)
    {
        if is_loopback(&parsed) {
            warnings.push(format!(
                "{url} is an address of one machine alone, which the forge does not reach"
            ));
        } else if parsed.scheme() != "https" {
            warnings.push(format!(
                "{url} is not https: what is sent can be read on the way"
            ));
        }
    }
    (url, warnings)
}

async fn known_pings(client: &Client, webhook: &str) -> Result<Vec<String>, CliError> {
    let page = newest(client, Some(webhook), &PeriodArgs::default(), 100).await?;
    Ok(page.items.into_iter().map(|one| one.id).collect())
}

/// Waits until a ping has arrived that was not there before. One whose body came before is not kept; of that the forge
/// knows, whom `answered` asks, how it was answered.
async fn heard(
    client: &Client,
    webhook: &str,
    known: &[String],
    answered: impl AsyncFn() -> Option<u16>,
) -> Result<Ping, CliError> {
    let begun = Instant::now();
    loop {
        let page = newest(client, Some(webhook), &PeriodArgs::default(), 20).await?;
        let new = |one: &Delivery| one.kind == "ping" && !known.contains(&one.id);
        if page.items.iter().any(new) {
            return Ok(Ping::Arrived);
        }
        match answered().await {
            Some(200..300) => return Ok(Ping::Arrived),
            Some(status) => return Ok(Ping::Refused(status)),
            None if begun.elapsed() > PING => return Ok(Ping::Lost),
            None => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

fn tell(done: &Setup, task: &str) -> Result<(), CliError> {
    let name = &done.webhook.name;
    say(&format!(
        "{} the webhook {name} at the server",
        if done.created { "made" } else { "there is" }
    ));
    for warning in &done.warnings {
        say(&format!("warning: {warning}"));
    }
    if done.entered {
        say(&match (done.changed, done.left) {
            (_, true) => format!("{} is entered at the forge already", done.url),
            (true, _) => format!("changed {} at the forge", done.url),
            _ => format!("entered {} at the forge", done.url),
        });
        say(&match done.ping {
            Some(Ping::Arrived) => "the forge's ping has arrived: it works".to_owned(),
            Some(Ping::Refused(401)) => format!(
                "error: the forge's ping was answered 401: the forge has another secret; give both a new one: `acrtask webhook setup {task} --new-secret`"
            ),
            Some(Ping::Refused(status)) => format!(
                "error: the forge's ping was answered {status}; see whether {} leads to the server",
                done.url
            ),
            Some(Ping::Lost) => format!(
                "error: no ping of the forge has arrived within {} s; see whether the forge reaches {}",
                PING.as_secs(),
                done.url
            ),
            None => {
                format!("push a commit, then look: `acrtask webhook deliveries --webhook {name}`")
            }
        });
        return Ok(());
    }
    let guide = &done.guide;
    let width = guide.fields.iter().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or_default();
    let mut text = format!("Enter this at {} ({}):\n\n", guide.page, guide.way);
    for (name, value) in &guide.fields {
        text += &format!("  {name:width$}  {value}\n");
    }
    if done.secret.is_some() {
        text += "\nThe secret is shown this once.\n";
    }
    text += &format!("\nThen look: acrtask webhook deliveries --webhook {name}\n");
    super::print(text.as_bytes())?;
    Ok(())
}
