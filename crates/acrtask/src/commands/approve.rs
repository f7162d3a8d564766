//! `acrtask runs approve`: a stranger's commit may have what the task has.

use acrtask_api::{
    run::{Approval, Run},
    spec::ContextSource,
};

use super::remote::{block_on, client, say};
use crate::{args::webhooks::ApproveArgs, error::CliError, exit::Exit};

/// Approves the commits of some runs.
pub(crate) fn approve(args: &ApproveArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        for id in &args.ids {
            let before: Run = client.get(&["runs", id.as_str()], &[]).await?;
            match before.approval {
                Some(Approval::Pending) => {}
                Some(Approval::Approved) => {
                    let by = before.approved_by.as_deref().unwrap_or("somebody");
                    say(&format!("run {id} is approved already, by {by}"));
                    continue;
                }
                None => {
                    return Err(CliError::usage(format!(
                        "run {id} needs no approval: it is not of a commit from another repository"
                    ))
                    .help(format!("`acrtask runs why {id}` says what it waits for")));
                }
            }
            say(&format!("run {id} is{}", of_commit(&before)));
            let run: Run = client
                .post(&["runs", id.as_str(), "approve"], &serde_json::json!({}))
                .await?;
            say(&format!("approved run {}", run.id));
        }
        Ok(Exit::Succeeded)
    })
}

/// What an approval is for: the commit, and the names that its author gave it.
fn of_commit(run: &Run) -> String {
    let mut of = match &run.spec.context {
        ContextSource::Url {
            commit: Some(commit),
            ..
        } => format!(" of the commit {commit}"),
        _ => " of a commit from another repository".to_owned(),
    };
    if let Some(revision) = run.spec.facts.revision() {
        of.push_str(&format!(", {revision}"));
    }
    of
}
