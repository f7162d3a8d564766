//! `acrtask secret` and `acrtask credential`: what a server keeps for tasks and shows to nobody again.

use std::{collections::BTreeMap, path::Path};

use acrtask_api::{
    admin::{Credential, PutCredential, PutSecret, Secret},
    run::SecretText,
};
use jiff::Timestamp;

use super::{
    remote::{block_on, client, print_json, say, value},
    spec::warn_of_short_secrets,
};
use crate::{
    args::{
        control::{CredentialCommand, ListArgs, SecretCommand, SecretNameArgs},
        server::ListOutput,
    },
    error::CliError,
    exit::Exit,
    render::{run::ago, style::Style, table},
};

/// One of the words about secrets.
pub(crate) fn secret(command: &SecretCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        SecretCommand::Set(args) => {
            let client = client(&args.server)?;
            let value = value(&args.from, &format!("the value of {}", args.name))?;
            let body = PutSecret {
                value: SecretText(value.expose().to_owned()),
                task: args.task.clone(),
            };
            block_on(async { Ok(client.put(&["secrets", &args.name], None, &body).await?) })?;
            say(&format!(
                "set the secret {}{}",
                args.name,
                of_task(args.task.as_deref())
            ));
            Ok(Exit::Succeeded)
        }
        SecretCommand::List(args) => secrets(args, style),
        SecretCommand::Delete(args) => delete(args, "secrets", "the secret"),
    }
}

/// One of the words about credentials.
pub(crate) fn credential(command: &CredentialCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        CredentialCommand::Set(args) => {
            let client = client(&args.server)?;
            let value = value(&args.from, &format!("the password for {}", args.host))?;
            warn_of_short_secrets(&BTreeMap::from([(args.host.clone(), value.clone())]));
            let known_hosts = args.known_hosts.as_deref().map(read_known_hosts);
            let body = PutCredential {
                username: args.username.clone(),
                password: SecretText(value.expose().to_owned()),
                known_hosts: known_hosts.transpose()?,
                task: args.task.clone(),
            };
            block_on(async {
                Ok(client
                    .put(&["credentials", &args.host], None, &body)
                    .await?)
            })?;
            say(&format!(
                "set the login for {}{}",
                args.host,
                of_task(args.task.as_deref())
            ));
            Ok(Exit::Succeeded)
        }
        CredentialCommand::List(args) => credentials(args, style),
        CredentialCommand::Delete(args) => delete(args, "credentials", "the login for"),
    }
}

fn read_known_hosts(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file)
        .map_err(|error| CliError::usage(format!("cannot read {}", file.display())).because(&error))
}

fn of_task(task: Option<&str>) -> String {
    task.map(|task| format!(" of the task {task}"))
        .unwrap_or_default()
}

fn delete(args: &SecretNameArgs, kind: &str, what: &str) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let query: Vec<_> = args
        .task
        .iter()
        .map(|task| ("task", task.clone()))
        .collect();
    block_on(async { Ok(client.delete(&[kind, &args.name], &query).await?) })?;
    say(&format!(
        "deleted {what} {}{}",
        args.name,
        of_task(args.task.as_deref())
    ));
    Ok(Exit::Succeeded)
}

fn secrets(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Secret> = block_on(async { Ok(client.get(&["secrets"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let now = Timestamp::now();
    let rows = found.iter().map(|secret| {
        vec![
            secret.name.clone(),
            secret.task.clone().unwrap_or_else(|| "*".into()),
            ago(secret.updated_at, now),
        ]
    });
    let text = table::list(
        &["NAME", "TASK", "SET"],
        rows.collect(),
        "there are no secrets",
        style,
    );
    super::print(text.as_bytes())
}

fn credentials(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Credential> = block_on(async { Ok(client.get(&["credentials"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let now = Timestamp::now();
    let rows = found.iter().map(|one| {
        vec![
            one.host.clone(),
            one.username.clone(),
            one.task.clone().unwrap_or_else(|| "*".into()),
            ago(one.updated_at, now),
        ]
    });
    let text = table::list(
        &["HOST", "USER", "TASK", "SET"],
        rows.collect(),
        "there are no logins",
        style,
    );
    super::print(text.as_bytes())
}
