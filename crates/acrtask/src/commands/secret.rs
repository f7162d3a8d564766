//! `acrtask secret` and `acrtask credential`: values that a server stores for tasks and never shows
//! again.

use std::{collections::BTreeMap, path::Path};

use acrtask_api::{
    admin::{Credential, PutCredential, PutSecret, Secret},
    run::SecretText,
};
use jiff::Timestamp;

use super::{
    remote::{block_on, client, print_json, print_message, read_value},
    spec::warn_of_short_secrets,
};
use crate::{
    args::{
        credential::CredentialCommand,
        secret::{SecretCommand, SecretNameArgs},
        server::ListArgs,
        server::ListOutput,
        values::TaskPrefix,
    },
    error::CliError,
    exit::Exit,
    render::{run::format_age, style::Style, table},
};

/// Runs a subcommand of `acrtask secret`.
pub(crate) fn secret(command: &SecretCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        SecretCommand::Set(args) => {
            let client = client(&args.server)?;
            let value = read_value(&args.from, &format!("the value of {}", args.name))?;
            let body = PutSecret {
                value: SecretText(value.expose().to_owned()),
                task: args.task.clone(),
                tasks: args.prefix.as_ref().map(ToString::to_string),
            };
            block_on(async { Ok(client.put(&["secrets", &args.name], None, &body).await?) })?;
            print_message(&format!(
                "set the secret {}{}",
                args.name,
                scope_suffix(args.task.as_deref(), args.prefix.as_ref())
            ));
            Ok(Exit::Succeeded)
        }
        SecretCommand::List(args) => list_secrets(args, style),
        SecretCommand::Delete(args) => delete(args, "secrets", "the secret"),
    }
}

/// Runs a subcommand of `acrtask credential`.
pub(crate) fn credential(command: &CredentialCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        CredentialCommand::Set(args) => {
            let client = client(&args.server)?;
            let value = read_value(&args.from, &format!("the password for {}", args.host))?;
            warn_of_short_secrets(&BTreeMap::from([(args.host.clone(), value.clone())]));
            let known_hosts = args.known_hosts.as_deref().map(read_host_keys);
            let body = PutCredential {
                username: args.username.clone(),
                password: SecretText(value.expose().to_owned()),
                known_hosts: known_hosts.transpose()?,
                task: args.task.clone(),
                tasks: args.prefix.as_ref().map(ToString::to_string),
            };
            block_on(async {
                Ok(client
                    .put(&["credentials", &args.host], None, &body)
                    .await?)
            })?;
            print_message(&format!(
                "set the login for {}{}",
                args.host,
                scope_suffix(args.task.as_deref(), args.prefix.as_ref())
            ));
            Ok(Exit::Succeeded)
        }
        CredentialCommand::List(args) => list_credentials(args, style),
        CredentialCommand::Delete(args) => delete(args, "credentials", "the login for"),
    }
}

fn read_host_keys(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file)
        .map_err(|error| CliError::usage(format!("cannot read {}", file.display())).because(&error))
}

fn scope_suffix(task: Option<&str>, prefix: Option<&TaskPrefix>) -> String {
    match (task, prefix) {
        (Some(task), _) => format!(" of the task {task}"),
        (None, Some(prefix)) => format!(" of the tasks {prefix}"),
        (None, None) => String::new(),
    }
}

/// Returns the tasks that may use a secret or login, as a table shows them.
fn scope_column(task: Option<&String>, tasks: Option<&String>) -> String {
    task.or(tasks).cloned().unwrap_or_else(|| "*".into())
}

fn delete(args: &SecretNameArgs, kind: &str, what: &str) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let task = args.task.iter().map(|task| ("task", task.clone()));
    let prefix = args.prefix.iter();
    let prefix = prefix.map(|prefix| ("tasks", prefix.to_string()));
    let query: Vec<_> = task.chain(prefix).collect();
    block_on(async { Ok(client.delete(&[kind, &args.name], &query).await?) })?;
    print_message(&format!(
        "deleted {what} {}{}",
        args.name,
        scope_suffix(args.task.as_deref(), args.prefix.as_ref())
    ));
    Ok(Exit::Succeeded)
}

fn list_secrets(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Secret> = block_on(async { Ok(client.get(&["secrets"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let now = Timestamp::now();
    let rows = found.iter().map(|secret| {
        vec![
            secret.name.clone(),
            scope_column(secret.task.as_ref(), secret.tasks.as_ref()),
            format_age(secret.updated_at, now),
        ]
    });
    let text = table::render_list(
        &["NAME", "TASKS", "SET"],
        rows.collect(),
        "no secrets",
        style,
    );
    super::print(text.as_bytes())
}

fn list_credentials(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Credential> = block_on(async { Ok(client.get(&["credentials"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let now = Timestamp::now();
    let rows = found.iter().map(|credential| {
        vec![
            credential.host.clone(),
            credential.username.clone(),
            scope_column(credential.task.as_ref(), credential.tasks.as_ref()),
            format_age(credential.updated_at, now),
        ]
    });
    let text = table::render_list(
        &["HOST", "USER", "TASKS", "SET"],
        rows.collect(),
        "no logins",
        style,
    );
    super::print(text.as_bytes())
}
