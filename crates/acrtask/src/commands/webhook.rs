//! `acrtask webhook`: manages webhooks and shows their deliveries.

use acrtask_api::{
    run::{Page, SecretText},
    webhook::{CommitStatuses, Delivery, PutWebhook, Receipt, Refusal, Webhook},
};
use acrtask_trigger::{Provider, RegistrySource};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, print_message, read_secret};
use crate::{
    args::{
        PathOrStdin,
        server::ListArgs,
        server::{ListOutput, PeriodArgs},
        values::PasswordSource,
        webhook::{
            CreateWebhookArgs, DeliveriesArgs, RedeliverArgs, SecretSources, Sender,
            ShowWebhookArgs, StatusArgs, UpdateWebhookArgs, WebhookCommand, WebhookNameArgs,
        },
    },
    client::Client,
    error::CliError,
    exit::Exit,
    render::{style::Style, webhooks},
};

/// Deliveries per page, at most.
const PAGE: u32 = 100;

/// Runs a subcommand of `acrtask webhook`.
pub(crate) fn webhook(command: &WebhookCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        WebhookCommand::Setup(args) => super::webhook_setup::setup(args),
        WebhookCommand::Create(args) => create(args, style),
        WebhookCommand::Update(args) => update(args),
        WebhookCommand::List(args) => list(args, style),
        WebhookCommand::Show(args) => show(args, style),
        WebhookCommand::Delete(args) => delete(args),
        WebhookCommand::Deliveries(args) => deliveries(args, style),
        WebhookCommand::Redeliver(args) => redeliver(args, style),
    }
}

/// Fetches all webhooks.
pub(super) async fn list_webhooks(client: &Client) -> Result<Vec<Webhook>, CliError> {
    Ok(client.get(&["webhooks"], &[]).await?)
}

/// Fetches the webhook `name`; `None` if it does not exist.
pub(super) async fn find_webhook(client: &Client, name: &str) -> Result<Option<Webhook>, CliError> {
    match client.get(&["webhooks", name], &[]).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn require_webhook(client: &Client, name: &str) -> Result<Webhook, CliError> {
    Ok(client.get(&["webhooks", name], &[]).await?)
}

/// Creates or replaces a webhook, and returns its new state.
pub(super) async fn put_webhook(
    client: &Client,
    name: &str,
    body: &PutWebhook,
) -> Result<Webhook, CliError> {
    client.put(&["webhooks", name], None, body).await?;
    require_webhook(client, name).await
}

/// Generates a random secret in the form that the sender accepts.
pub(super) fn new_secret(provider: &str) -> String {
    let bytes: [u8; 32] = rand::random();
    if provider == Provider::Generic.name() {
        return format!("whsec_{}", STANDARD.encode(bytes));
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_secrets(from: &SecretSources) -> Result<Vec<SecretText>, CliError> {
    let files = from.secret_file.iter().map(|file| match file {
        PathOrStdin::Path(path) => PasswordSource::File(path.clone()),
        PathOrStdin::Stdin => PasswordSource::Stdin,
    });
    let variables = from
        .secret_env
        .iter()
        .map(|name| PasswordSource::Env(name.clone()));
    files
        .chain(variables)
        .map(|from| {
            let secret = read_secret(&from, "the secret of the webhook")?;
            Ok(SecretText(secret.expose().to_owned()))
        })
        .collect()
}

/// Applies the flags to the settings for commit statuses.
fn apply_status_flags(before: Option<CommitStatuses>, args: &StatusArgs) -> Option<CommitStatuses> {
    if !args.any_given() {
        return before;
    }
    let before = before.unwrap_or_default();
    let api = args.status_api.as_ref();
    let api = api.map(|url| url.as_str().trim_end_matches('/').to_owned());
    Some(CommitStatuses {
        api: api.or(before.api),
        token: args.status_token.clone().or(before.token),
    })
}

/// Applies the flags to the settings for commit statuses, if the sender supports them.
pub(super) fn supported_statuses(
    provider: &str,
    before: Option<CommitStatuses>,
    args: &StatusArgs,
) -> Result<Option<CommitStatuses>, CliError> {
    let supported = provider
        .parse::<Provider>()
        .is_ok_and(|it| it != Provider::Generic);
    if args.any_given() && !supported {
        return Err(
            CliError::usage(format!("{provider} has no API for commit statuses")).help(
                "remove the status flags, or let the task send notifications: `notify` in its file",
            ),
        );
    }
    Ok(apply_status_flags(before, args))
}

fn create(args: &CreateWebhookArgs, style: Style) -> Result<Exit, CliError> {
    let provider = args.provider.name();
    let mut body = PutWebhook {
        provider: provider.into(),
        secrets: read_secrets(&args.secrets)?,
        repositories: args.repository.clone(),
        tasks: args.prefix.as_ref().map(ToString::to_string),
        statuses: supported_statuses(provider, None, &args.statuses)?,
    };
    let made = body.secrets.is_empty().then(|| new_secret(provider));
    body.secrets
        .extend(made.iter().map(|text| SecretText(text.clone())));
    let client = client(&args.server)?;
    let webhook = block_on(async {
        if find_webhook(&client, &args.name).await?.is_some() {
            return Err(
                CliError::usage(format!("the webhook {} already exists", args.name))
                    .help("change it with `acrtask webhook update`, or choose another name"),
            );
        }
        put_webhook(&client, &args.name, &body).await
    })?;
    if args.output.output == ListOutput::Json {
        let mut value = serde_json::to_value(&webhook).unwrap_or_default();
        value["secret"] = made.into();
        return print_json(&value);
    }
    let mut text = webhooks::render_webhook(&webhook, Timestamp::now(), style);
    if let Some(secret) = made {
        text += &format!("\nthe secret, shown only once: {secret}\n");
        if sends_secret_in_url(args.provider) {
            text += "the sender sends it in the address: add `?token=SECRET` to the URL there\n";
        }
    }
    super::print(text.as_bytes())
}

/// Returns `true` if the sender can send the secret only as part of the URL.
fn sends_secret_in_url(sender: Sender) -> bool {
    matches!(
        sender,
        Sender::Registry(RegistrySource::DockerHub | RegistrySource::Quay)
    )
}

fn update(args: &UpdateWebhookArgs) -> Result<Exit, CliError> {
    let secrets = read_secrets(&args.secrets)?;
    let client = client(&args.server)?;
    block_on(async {
        let before = require_webhook(&client, &args.name).await?.definition;
        let repositories = if args.repository.is_empty() {
            before.repositories
        } else {
            let given = args.repository.iter();
            given.filter(|url| !url.is_empty()).cloned().collect()
        };
        let statuses = if args.no_statuses {
            None
        } else {
            supported_statuses(&before.provider, before.statuses, &args.statuses)?
        };
        let body = PutWebhook {
            provider: before.provider,
            secrets,
            repositories,
            tasks: before.tasks,
            statuses,
        };
        let after = put_webhook(&client, &args.name, &body).await?;
        let count = after.secrets;
        let secrets = if count == 1 { "secret" } else { "secrets" };
        print_message(&format!(
            "updated the webhook {}: it accepts {count} {secrets}",
            args.name
        ));
        Ok(Exit::Succeeded)
    })
}

fn list(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found = block_on(list_webhooks(&client))?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => super::print(webhooks::render_webhooks(&found, style).as_bytes()),
    }
}

fn show(args: &ShowWebhookArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found = block_on(require_webhook(&client, &args.name))?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            super::print(webhooks::render_webhook(&found, Timestamp::now(), style).as_bytes())
        }
    }
}

fn delete(args: &WebhookNameArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async { Ok(client.delete(&["webhooks", &args.name], &[]).await?) })?;
    print_message(&format!("deleted the webhook {}", args.name));
    Ok(Exit::Succeeded)
}

/// Fetches the newest deliveries, at most `limit`.
pub(super) async fn newest_deliveries(
    client: &Client,
    webhook: Option<&str>,
    period: &PeriodArgs,
    limit: u32,
) -> Result<Page<Delivery>, CliError> {
    let mut found: Vec<Delivery> = Vec::new();
    let mut cursor = None;
    loop {
        let left = limit - u32::try_from(found.len()).unwrap_or(limit);
        let mut query = vec![("limit", left.min(PAGE).to_string())];
        query.extend(webhook.map(|name| ("webhook", name.to_owned())));
        query.extend(period.query());
        query.extend(cursor.map(|cursor: String| ("cursor", cursor)));
        let page: Page<Delivery> = client.get(&["deliveries"], &query).await?;
        found.extend(page.items);
        cursor = page.next;
        if cursor.is_none() || found.len() >= limit as usize {
            return Ok(Page {
                items: found,
                next: cursor,
            });
        }
    }
}

/// Fetches the rejected deliveries of all webhooks, or of one.
async fn refusals(client: &Client, webhook: Option<&str>) -> Result<Vec<Refusal>, CliError> {
    let query: Vec<(&str, String)> = webhook
        .map(|name| ("webhook", name.to_owned()))
        .into_iter()
        .collect();
    Ok(client.get(&["deliveries", "refused"], &query).await?)
}

fn deliveries(args: &DeliveriesArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let json = args.output.output == ListOutput::Json;
    let now = Timestamp::now();
    if let Some(id) = &args.id {
        let found: Delivery = block_on(async { Ok(client.get(&["deliveries", id], &[]).await?) })?;
        if json {
            return print_json(&found);
        }
        return super::print(webhooks::render_delivery(&found, now, style).as_bytes());
    }
    let webhook = args.webhook.as_deref();
    if args.refused {
        let found = block_on(refusals(&client, webhook))?;
        if json {
            return print_json(&found);
        }
        return super::print(webhooks::render_refusals(&found, now, style).as_bytes());
    }
    let found = block_on(newest_deliveries(
        &client,
        webhook,
        &args.period,
        args.limit,
    ))?;
    if json {
        return print_json(&found);
    }
    let mut text = webhooks::render_deliveries(&found.items, now, style);
    // Older servers do not have this endpoint.
    let refused = block_on(refusals(&client, webhook)).unwrap_or_default();
    if !refused.is_empty() {
        text.push_str("\nRefused\n");
        text.push_str(&webhooks::render_refusals(&refused, now, style));
    }
    super::print(text.as_bytes())
}

fn redeliver(args: &RedeliverArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found = block_on(async {
        let receipt: Receipt = client
            .post(
                &["deliveries", &args.id, "redeliver"],
                &serde_json::json!({}),
            )
            .await?;
        let new: Delivery = client.get(&["deliveries", &receipt.delivery], &[]).await?;
        Ok(new)
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            super::print(webhooks::render_delivery(&found, Timestamp::now(), style).as_bytes())
        }
    }
}
