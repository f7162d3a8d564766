//! Execution of the commands of `acr`.

use std::pin::Pin;

use acrtask_model::Digest;

use crate::{
    AcrCommand,
    carry_out::{Deleter, Done},
    command_line::empty_plan,
    describe_error,
    inventory::{Reader, RegistryKind},
    plan::{Reason, TagLine},
    purge::{Context, repository_reference, run},
};

/// Number of concurrent requests of the small commands.
const CONCURRENCY: usize = 4;

/// Runs a command. Returns its exit code: 0 or 1.
///
/// The future is boxed, because its type is large.
pub fn run_command<'a>(
    context: Context<'a>,
    command: &'a AcrCommand,
) -> Pin<Box<dyn Future<Output = u8> + Send + 'a>> {
    Box::pin(execute(context, command))
}

async fn execute(context: Context<'_>, command: &AcrCommand) -> u8 {
    let done = match command {
        AcrCommand::Purge(purge) => {
            let report = run(context, purge, false).await;
            report.error.map_or(Ok(()), Err)
        }
        AcrCommand::Retention { .. } => Err("the caller reads the rules of `acr retention`".into()),
        AcrCommand::ListTags { repository } => list_tags(context, repository).await,
        AcrCommand::DeleteTags { repository, tags } => delete_tags(context, repository, tags).await,
        AcrCommand::ListManifests { repository } => list_manifests(context, repository).await,
        AcrCommand::DeleteManifests {
            repository,
            digests,
        } => delete_manifests(context, repository, digests).await,
        AcrCommand::Version => {
            context.print(format!("Version: acrtask {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            context.warn(format!("Error: {error}"));
            1
        }
    }
}

async fn open_reader(context: Context<'_>) -> Result<Reader<'_>, String> {
    let kind = RegistryKind::detect(context.registry, context.host).await;
    Ok(Reader {
        registry: context.registry,
        kind: kind.map_err(|error| describe_error(&error))?,
        concurrency: CONCURRENCY,
        now: context.now,
    })
}

async fn list_tags(context: Context<'_>, repository: &str) -> Result<(), String> {
    let image = repository_reference(context.host, repository)?;
    let reader = open_reader(context).await?;
    let tags = reader.list_tags(&image).await;
    let tags = tags.map_err(|error| describe_error(&error))?;
    context.print(format!("Listing tags for the {repository:?} repository:"));
    for tag in tags {
        context.print(format!("{}:{tag}", image.name()));
    }
    Ok(())
}

async fn delete_tags(
    context: Context<'_>,
    repository: &str,
    tags: &[String],
) -> Result<(), String> {
    let image = repository_reference(context.host, repository)?;
    let reader = open_reader(context).await?;
    let mut plan = empty_plan(repository);
    let names = reader.list_tags(&image).await;
    let names = names.map_err(|error| describe_error(&error))?;
    if let Some(missing) = tags.iter().find(|tag| !names.contains(tag)) {
        return Err(format!("{}:{missing} does not exist", image.name()));
    }
    let resolved = reader.resolve_tags(&image, names).await;
    for (tag, digest) in resolved.map_err(|error| describe_error(&error))? {
        plan.tags.push(TagLine {
            delete: tags.contains(&tag),
            tag,
            digest,
            unlock: false,
            reason: Reason::NotSelected,
        });
    }
    let mut deleter = Deleter::new(&context, reader.kind);
    let name = image.name();
    let mut report = |done: Done<'_>| {
        if let Done::DeletedTag(line) = done {
            context.print(format!("{name}:{}", line.tag));
        }
    };
    deleter.carry_out(&image, &plan, &mut report).await
}

async fn list_manifests(context: Context<'_>, repository: &str) -> Result<(), String> {
    let image = repository_reference(context.host, repository)?;
    let reader = open_reader(context).await?;
    let describe = |error| describe_error(&error);
    let digests: Vec<Digest> = match reader.kind {
        RegistryKind::Acr => {
            let listed = context.registry.acr_manifests(&image).await;
            let listed = listed.map_err(describe)?.into_iter();
            listed.map(|manifest| manifest.digest).collect()
        }
        RegistryKind::Plain => {
            let names = reader.list_tags(&image).await.map_err(describe)?;
            let resolved = reader.resolve_tags(&image, names).await;
            let mut found: Vec<Digest> = resolved
                .map_err(describe)?
                .into_iter()
                .map(|(_, digest)| digest)
                .collect();
            found.sort();
            found.dedup();
            context.warn(format!(
                "note: {} lists no untagged manifests",
                context.host
            ));
            found
        }
    };
    context.print(format!(
        "Listing manifests for the {repository:?} repository:"
    ));
    for digest in digests {
        context.print(format!("{}@{digest}", image.name()));
    }
    Ok(())
}

async fn delete_manifests(
    context: Context<'_>,
    repository: &str,
    digests: &[String],
) -> Result<(), String> {
    let image = repository_reference(context.host, repository)?;
    let parsed: Vec<Digest> = digests
        .iter()
        .map(|text| text.parse::<Digest>().map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    let reader = open_reader(context).await?;
    let mut deleter = Deleter::new(&context, reader.kind);
    for digest in parsed {
        let by_digest = image.at(digest.clone());
        let found = context.registry.resolve(&by_digest).await;
        found.map_err(|error| describe_error(&error))?;
        deleter.delete_manifest(&image, &digest).await?;
        context.print(by_digest.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carry_out::with_tag;

    #[test]
    fn repository_names_are_checked() {
        let name = |text| repository_reference("127.0.0.1:5000", text).map(|found| found.name());
        assert_eq!(name("a/b"), Ok("127.0.0.1:5000/a/b".into()));
        for bad in ["a:1", "", "A", "../x", "a@sha256:1"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_have_references_in_their_repository() {
        let image = repository_reference("127.0.0.1:5000", "a").unwrap();
        let tagged = with_tag(&image, "v1").map(|found| found.to_string());
        assert_eq!(tagged, Ok("127.0.0.1:5000/a:v1".into()));
        assert!(with_tag(&image, "../x").is_err());
    }
}
