//! `acrtask quota`: lists, shows and sets the quotas of tasks and tokens.

use acrtask_api::quota::{Quota, SetQuota};

use super::remote::{block_on, client, print_json};
use crate::{
    args::{
        quota::{QuotaCommand, QuotaLimit},
        server::{ListOutput, OutputArgs},
    },
    error::CliError,
    exit::Exit,
    render::{style::Style, table, text},
};

/// Runs a subcommand of `acrtask quota`.
pub(crate) fn quota(command: &QuotaCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        QuotaCommand::List(args) => {
            let client = client(&args.server)?;
            let found = block_on(async { Ok(client.get(&["quotas"], &[]).await?) })?;
            print_quotas(found, "no quotas", args.output, style)
        }
        QuotaCommand::Show(args) => {
            let client = client(&args.server)?;
            let task = args.task.clone();
            let found = block_on(async { Ok(client.get(&["quotas"], &[("task", task)]).await?) })?;
            print_quotas(found, "no quotas", args.output, style)
        }
        QuotaCommand::Set(args) => {
            let client = client(&args.server)?;
            let body = SetQuota {
                subject: args.subject.clone(),
                kind: args.kind,
                limit: match args.limit {
                    QuotaLimit::Default => None,
                    QuotaLimit::Of(limit) => Some(limit),
                },
            };
            let found: Vec<Quota> =
                block_on(async { Ok(client.put_returning(&["quotas"], &body).await?) })?;
            print_quotas(found, "no quotas", args.output, style)
        }
    }
}

/// Prints quotas, or `if_empty` if there are none.
fn print_quotas(
    found: Vec<Quota>,
    if_empty: &str,
    output: OutputArgs,
    style: Style,
) -> Result<Exit, CliError> {
    if output.output == ListOutput::Json {
        return print_json(&found);
    }
    let rows = found.iter().map(|quota| {
        let amount = |value: u64| match (quota.kind.is_bytes(), i64::try_from(value)) {
            (true, Ok(bytes)) => text::format_bytes(bytes),
            _ => value.to_string(),
        };
        vec![
            quota.subject.to_string(),
            quota.kind.to_string(),
            quota.used.map_or("-".into(), amount),
            amount(quota.limit),
            if quota.set { "set" } else { "default" }.to_owned(),
        ]
    });
    let text = table::render_list(
        &["SUBJECT", "QUOTA", "USED", "LIMIT", "FROM"],
        rows.collect(),
        if_empty,
        style,
    );
    super::print(text.as_bytes())
}
