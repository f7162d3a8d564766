//! `acrtask registry retention` and `acrtask image why-kept`.

use std::pin::Pin;

use acrtask_api::registry_record::RegistryRecord;
use acrtask_model::{ImageRef, error_chain};
use acrtask_registry::credentials::canonical_host;
use acrtask_upkeep::{
    Always, Context, NoRecords, Records, inventory,
    plan::Reason,
    purge,
    retention::{self, Retention},
    why::{self, Explanation},
};
use jiff::Timestamp;

use super::{finish_purge, open_registry, registry_error, with_output};
use crate::{
    args::{
        image::WhyKeptArgs,
        registry::RegistryRetentionArgs,
        server::{ListOutput, ServerArgs},
    },
    client::Client,
    commands::remote::{block_on, client, print_json},
    error::CliError,
    exit::Exit,
};

/// Number of concurrent requests.
const CONCURRENCY: usize = 8;
/// Maximum size of a file of rules, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Records that the server's API returns.
#[derive(Debug)]
struct ServerRecords {
    client: Client,
}

impl Records for ServerRecords {
    fn find<'a>(
        &'a self,
        repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<RegistryRecord, String>> + Send + 'a>> {
        Box::pin(async move {
            let path = ["images", repository, "record"];
            let found = self.client.get(&path, &[]).await;
            found.map_err(|error| error_chain(&error))
        })
    }
}

/// Returns the records of the server, if one is required or named.
fn open_records(args: &ServerArgs, is_required: bool) -> Result<Box<dyn Records>, CliError> {
    match is_required || args.server.is_some() {
        true => Ok(Box::new(ServerRecords {
            client: client(args)?,
        })),
        false => Ok(Box::new(NoRecords)),
    }
}

fn read_rules(file: &std::path::Path) -> Result<Retention, CliError> {
    let shown = file.display();
    let size = std::fs::metadata(file).map(|found| found.len());
    let size =
        size.map_err(|error| CliError::usage(format!("cannot read {shown}")).because(&error))?;
    if size > MAX_FILE {
        return Err(CliError::usage(format!(
            "{shown} is larger than {MAX_FILE} bytes"
        )));
    }
    let text = std::fs::read_to_string(file)
        .map_err(|error| CliError::usage(format!("cannot read {shown}")).because(&error))?;
    retention::parse(&text).map_err(|error| CliError::usage(format!("{shown}: {error}")))
}

/// Deletes what the rules of a file do not keep.
pub(super) fn apply_retention(args: &RegistryRetentionArgs) -> Result<Exit, CliError> {
    let mut rules = read_rules(&args.file)?;
    rules.purge.dry_run = args.dry_run;
    let host = super::check_host(&args.registry)?;
    let registry = open_registry(&args.login)?;
    let records = open_records(&args.server, rules.needs_records)?;
    let as_json = args.output.output == ListOutput::Json;
    let report = block_on(with_output(args.output.output, |lines| async move {
        let context = Context {
            registry: &registry,
            host: &host,
            now: Timestamp::now(),
            permission: &Always,
            records: records.as_ref(),
            lines: &lines,
        };
        purge::run(context, &rules.purge, as_json).await
    }))?;
    finish_purge(&report, args.output.output)
}

/// Explains why an image stays.
pub(crate) fn why_kept(args: &WhyKeptArgs) -> Result<Exit, CliError> {
    let image: ImageRef = args
        .image
        .parse()
        .map_err(|error: acrtask_model::ReferenceError| CliError::usage(error.to_string()))?;
    let image = image.or_latest();
    let rules = args.file.as_deref().map(read_rules).transpose()?;
    let is_required = rules.as_ref().is_some_and(|rules| rules.needs_records);
    let registry = open_registry(&args.login)?;
    let records = open_records(&args.server, is_required)?;
    let now = Timestamp::now();
    let explanation = block_on(async {
        let resolved = registry.resolve(&image).await;
        let digest = resolved.map_err(|error| registry_error(&error))?.digest;
        let host = canonical_host(image.registry());
        let kind = inventory::RegistryKind::detect(&registry, &host).await;
        let reader = inventory::Reader {
            registry: &registry,
            kind: kind.map_err(|error| registry_error(&error))?,
            concurrency: CONCURRENCY,
            now,
        };
        let repository = reader.read_all(&image, records.as_ref()).await;
        let repository = repository.map_err(CliError::unreachable)?;
        let name = image.repository();
        let rules = rules.map(|rules| rules.purge.rules_of(name, now, None));
        let rules = rules.transpose().map_err(CliError::usage)?;
        why::explain(&repository, &digest, rules.as_ref()).map_err(CliError::usage)
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&explanation),
        ListOutput::Text => crate::commands::print(render(&image, &explanation).as_bytes()),
    }
}

fn render(image: &ImageRef, explanation: &Explanation) -> String {
    let mut text = format!("{image} is {}\n", explanation.digest);
    if explanation.reasons.is_empty() {
        text += "  no tag, index, subject or image needs it\n";
    }
    for reason in &explanation.reasons {
        text += &match reason {
            Reason::ReferrerOfKept(subject) => {
                format!("  it stays as long as its subject {subject}\n")
            }
            other => format!("  {}\n", other.to_string().trim_end_matches(": kept")),
        };
    }
    for decision in &explanation.decisions {
        let verb = match decision.delete {
            true => "goes",
            false => "stays",
        };
        text += &format!("the tag {} {verb}: {}\n", decision.tag, decision.reason);
    }
    match explanation.goes {
        Some(true) => text += "the rules delete it\n",
        Some(false) => text += "the rules keep it\n",
        None => {}
    }
    text
}
