//! `acrtask runner list|drain|resume|remove|token`: manages the runners of a server.

use acrtask_api::admin::{CreateRunnerToken, Runner, RunnerToken};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, print_message};
use crate::{
    args::{
        runner::{RunnerNameArgs, RunnerTokenArgs},
        server::ListArgs,
        server::ListOutput,
    },
    error::CliError,
    exit::Exit,
    render::{self, style::Style},
};

/// Lists the runners.
pub(crate) fn list_runners(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Runner> = block_on(async { Ok(client.get(&["runners"], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = render::run::render_runners(&found, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

/// Starts or ends the draining of a runner.
pub(crate) fn set_draining(args: &RunnerNameArgs, draining: bool) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let action = if draining { "drain" } else { "resume" };
    block_on(async {
        Ok(client
            .post_discarding(&["runners", &args.name, action], &serde_json::json!({}))
            .await?)
    })?;
    print_message(&if draining {
        format!("{} finishes its runs and leases no new ones", args.name)
    } else {
        format!("{} leases runs again", args.name)
    });
    Ok(Exit::Succeeded)
}

/// Deletes a runner and invalidates its key.
pub(crate) fn remove_runner(args: &RunnerNameArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async { Ok(client.delete(&["runners", &args.name], &[]).await?) })?;
    print_message(&format!("removed the runner {}", args.name));
    Ok(Exit::Succeeded)
}

/// Creates a token that registers one runner.
pub(crate) fn create_token(args: &RunnerTokenArgs) -> Result<Exit, CliError> {
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
    print_message(&format!(
        "this token registers one runner until {}; it is shown only once",
        new.expires_at
    ));
    super::print(format!("{}\n", new.secret.0).as_bytes())
}
