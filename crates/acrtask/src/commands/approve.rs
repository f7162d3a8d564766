//! `acrtask runs approve`: approves the commits of pull requests from forks.

use acrtask_api::{
    run::{Approval, Run},
    spec::ContextSource,
};

use super::remote::{block_on, client, print_message};
use crate::{args::runs::ApproveArgs, error::CliError, exit::Exit};

/// Approves the commits of the given runs.
pub(crate) fn approve(args: &ApproveArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        for id in &args.ids {
            let before: Run = client.get(&["runs", id.as_str()], &[]).await?;
            match before.approval {
                Some(Approval::Pending) => {}
                Some(Approval::Approved) => {
                    let by = before.approved_by.as_deref().unwrap_or("an unknown user");
                    print_message(&format!("run {id} is already approved, by {by}"));
                    continue;
                }
                None => {
                    return Err(CliError::usage(format!(
                        "run {id} needs no approval: its commit is not from a fork"
                    ))
                    .help(format!(
                        "see what it waits for with `acrtask runs why {id}`"
                    )));
                }
            }
            print_message(&format!("run {id} is{}", describe_commit(&before)));
            let run: Run = client
                .post(&["runs", id.as_str(), "approve"], &serde_json::json!({}))
                .await?;
            print_message(&format!("approved run {}", run.id));
        }
        Ok(Exit::Succeeded)
    })
}

/// Describes the commit of an approval, with the names that its author chose.
fn describe_commit(run: &Run) -> String {
    let mut text = match &run.spec.context {
        ContextSource::Url {
            commit: Some(commit),
            ..
        } => format!(" of the commit {commit}"),
        _ => " of a commit from a fork".to_owned(),
    };
    if let Some(revision) = run.spec.variables.revision() {
        text.push_str(&format!(", {revision}"));
    }
    text
}
