//! `acrtask webhook`: where forges and registries send deliveries to, and what became of each delivery.

use acrtask_api::{
    run::{Page, SecretText},
    webhook::{CommitStatuses, Delivery, PutWebhook, Receipt, Refusal, Webhook},
};
use acrtask_trigger::{Provider, RegistrySource};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, say, secret};
use crate::{
    args::{
        PathOrStdin,
        control::ListArgs,
        server::{ListOutput, PeriodArgs},
        values::PasswordFrom,
        webhooks::{
            CreateWebhookArgs, DeliveriesArgs, RedeliverArgs, SecretsFrom, Sender, ShowWebhookArgs,
            StatusArgs, UpdateWebhookArgs, WebhookCommand, WebhookNameArgs,
        },
    },
    client::Client,
    error::CliError,
    exit::Exit,
    render::{style::Style, webhooks as show_as},
};

/// Deliveries that one page holds at most.
const PAGE: u32 = 100;

/// One of the words about webhooks.
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

/// All webhooks.
pub(super) async fn all(client: &Client) -> Result<Vec<Webhook>, CliError> {
    Ok(client.get(&["webhooks"], &[]).await?)
}

/// The webhook `name`; nothing where there is none.
pub(super) async fn find(client: &Client, name: &str) -> Result<Option<Webhook>, CliError> {
    match client.get(&["webhooks", name], &[]).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn need(client: &Client, name: &str) -> Result<Webhook, CliError> {
    Ok(client.get(&["webhooks", name], &[]).await?)
}

/// Makes or changes a webhook; as it is then.
pub(super) async fn put(
    client: &Client,
    name: &str,
    body: &PutWebhook,
) -> Result<Webhook, CliError> {
    client.put(&["webhooks", name], None, body).await?;
    need(client, name).await
}

/// A secret that nobody can guess, in the form that the sender's side takes.
pub(super) fn new_secret(provider: &str) -> String {
    let bytes: [u8; 32] = rand::random();
    if provider == Provider::Generic.name() {
        return format!("whsec_{}", STANDARD.encode(bytes));
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn given_secrets(from: &SecretsFrom) -> Result<Vec<SecretText>, CliError> {
    let files = from.secret_file.iter().map(|file| match file {
        PathOrStdin::Path(path) => PasswordFrom::File(path.clone()),
        PathOrStdin::Stdin => PasswordFrom::Stdin,
    });
    let variables = from
        .secret_env
        .iter()
        .map(|name| PasswordFrom::Env(name.clone()));
    files
        .chain(variables)
        .map(|from| {
            let secret = secret(&from, "the secret of the webhook")?;
            Ok(SecretText(secret.expose().to_owned()))
        })
        .collect()
}

/// What the flags make of how a forge is told.
pub(super) fn statuses(
    before: Option<CommitStatuses>,
    args: &StatusArgs,
) -> Option<CommitStatuses> {
    if !args.given() {
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

/// The same, where the sender is one that can be told.
pub(super) fn statuses_of(
    provider: &str,
    before: Option<CommitStatuses>,
    args: &StatusArgs,
) -> Result<Option<CommitStatuses>, CliError> {
    let told = provider
        .parse::<Provider>()
        .is_ok_and(|it| it != Provider::Generic);
    if args.given() && !told {
        return Err(CliError::usage(format!(
            "{provider} has no API that is told where runs stand"
        ))
        .help("leave the flags about statuses out, or let the task tell somebody: `notify` in its file"));
    }
    Ok(statuses(before, args))
}

fn create(args: &CreateWebhookArgs, style: Style) -> Result<Exit, CliError> {
    let provider = args.provider.name();
    let mut body = PutWebhook {
        provider: provider.into(),
        secrets: given_secrets(&args.secrets)?,
        repositories: args.repository.clone(),
        statuses: statuses_of(provider, None, &args.statuses)?,
    };
    let made = body.secrets.is_empty().then(|| new_secret(provider));
    body.secrets
        .extend(made.iter().map(|text| SecretText(text.clone())));
    let client = client(&args.server)?;
    let webhook = block_on(async {
        if find(&client, &args.name).await?.is_some() {
            return Err(
                CliError::usage(format!("there is a webhook {} already", args.name))
                    .help("change it with `acrtask webhook update`, or choose another name"),
            );
        }
        put(&client, &args.name, &body).await
    })?;
    if args.output.output == ListOutput::Json {
        let mut value = serde_json::to_value(&webhook).unwrap_or_default();
        value["secret"] = made.into();
        return print_json(&value);
    }
    let mut text = show_as::webhook(&webhook, Timestamp::now(), style);
    if let Some(secret) = made {
        text += &format!("\nthe secret, shown this once: {secret}\n");
        if in_the_url(args.provider) {
            text += "the sender gives it in the address: add `?token=SECRET` to the URL there\n";
        }
    }
    super::print(text.as_bytes())
}

/// Whether the sender can give what proves it only as a part of the URL.
fn in_the_url(sender: Sender) -> bool {
    matches!(
        sender,
        Sender::Registry(RegistrySource::DockerHub | RegistrySource::Quay)
    )
}

fn update(args: &UpdateWebhookArgs) -> Result<Exit, CliError> {
    let secrets = given_secrets(&args.secrets)?;
    let client = client(&args.server)?;
    block_on(async {
        let before = need(&client, &args.name).await?.definition;
        let repositories = if args.repository.is_empty() {
            before.repositories
        } else {
            let given = args.repository.iter();
            given.filter(|url| !url.is_empty()).cloned().collect()
        };
        let statuses = if args.no_statuses {
            None
        } else {
            statuses_of(&before.provider, before.statuses, &args.statuses)?
        };
        let body = PutWebhook {
            provider: before.provider,
            secrets,
            repositories,
            statuses,
        };
        let after = put(&client, &args.name, &body).await?;
        let count = after.secrets;
        let secrets = if count == 1 { "secret" } else { "secrets" };
        say(&format!(
            "updated the webhook {}: it takes {count} {secrets}",
            args.name
        ));
        Ok(Exit::Succeeded)
    })
}

fn list(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found = block_on(all(&client))?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => super::print(show_as::webhooks(&found, style).as_bytes()),
    }
}

fn show(args: &ShowWebhookArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found = block_on(need(&client, &args.name))?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            super::print(show_as::webhook(&found, Timestamp::now(), style).as_bytes())
        }
    }
}

fn delete(args: &WebhookNameArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async { Ok(client.delete(&["webhooks", &args.name], &[]).await?) })?;
    say(&format!("deleted the webhook {}", args.name));
    Ok(Exit::Succeeded)
}

/// The newest deliveries.
pub(super) async fn newest(
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

/// Fetches the refused deliveries of all webhooks, or of one.
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
        return super::print(show_as::delivery(&found, now, style).as_bytes());
    }
    let webhook = args.webhook.as_deref();
    if args.refused {
        let found = block_on(refusals(&client, webhook))?;
        if json {
            return print_json(&found);
        }
        return super::print(show_as::refusals(&found, now, style).as_bytes());
    }
    let found = block_on(newest(&client, webhook, &args.period, args.limit))?;
    if json {
        return print_json(&found);
    }
    let mut text = show_as::deliveries(&found.items, now, style);
    // An older server has no list of them.
    let refused = block_on(refusals(&client, webhook)).unwrap_or_default();
    if !refused.is_empty() {
        text.push_str("\nRefused\n");
        text.push_str(&show_as::refusals(&refused, now, style));
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
            super::print(show_as::delivery(&found, Timestamp::now(), style).as_bytes())
        }
    }
}
