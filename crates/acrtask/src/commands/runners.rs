//! `acrtask runner list|drain|resume|remove|token`: looking after the runners of a server.

use acrtask_api::admin::{CreateRunnerToken, Runner, RunnerToken};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, say};
use crate::{
    args::{
        control::{ListArgs, RunnerNameArgs, RunnerTokenArgs},
        server::ListOutput,
    },
    error::CliError,
    exit::Exit,
    render::{self, style::Style},
};

/// Lists them.
pub(crate) fn list(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Runner> = block_on(async { Ok(client.get(&["runners"], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = render::run::runners(&found, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

/// Lets one take nothing new, or take runs again.
pub(crate) fn set_draining(args: &RunnerNameArgs, draining: bool) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let word = if draining { "drain" } else { "resume" };
    block_on(async {
        Ok(client
            .tell(&["runners", &args.name, word], &serde_json::json!({}))
            .await?)
    })?;
    say(&if draining {
        format!("{} finishes what it holds and takes nothing new", args.name)
    } else {
        format!("{} takes runs again", args.name)
    });
    Ok(Exit::Succeeded)
}

/// Forgets one.
pub(crate) fn remove(args: &RunnerNameArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async { Ok(client.delete(&["runners", &args.name], &[]).await?) })?;
    say(&format!("removed the runner {}", args.name));
    Ok(Exit::Succeeded)
}

/// Makes a token that registers one.
pub(crate) fn token(args: &RunnerTokenArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let body = CreateRunnerToken {
        pool: args.pool.clone(),
        labels: args
            .label
            .iter()
            .map(|label| (label.key.clone(), label.value.clone()))
            .collect(),
        max_slots: args.max_slots,
        tasks: args.tasks.clone(),
        ttl_secs: args.ttl,
    };
    let new: RunnerToken = block_on(async { Ok(client.post(&["runner-tokens"], &body).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&new);
    }
    say(&format!(
        "it registers one runner until {}, and is shown this once",
        new.expires_at
    ));
    super::print(format!("{}\n", new.secret.0).as_bytes())
}
