//! `acrtask registry tags`, `manifests` and `referrers`.

use acrtask_model::ImageRef;
use acrtask_registry::Registry;
use acrtask_upkeep::{
    inventory::{Reader, RegistryKind},
    listing::{self, ListedManifest, ListedReferrer, ManifestKind, Via},
};
use jiff::Timestamp;
use serde::Serialize;

use super::{open_registry, registry_error};
use crate::{
    args::{registry::RegistryListArgs, server::ListOutput},
    commands::remote::{block_on, print_json},
    error::CliError,
    exit::Exit,
    render::{style::Style, table::render_list, text::format_bytes},
};

/// Number of concurrent requests for tags.
const CONCURRENCY: usize = 8;

/// Tags of a repository as JSON.
#[derive(Debug, Serialize)]
struct TagList {
    repository: String,
    tags: Vec<String>,
}

/// Manifests of a repository as JSON.
#[derive(Debug, Serialize)]
struct ManifestList {
    repository: String,
    manifests: Vec<ListedManifest>,
}

/// Referrers of an image as JSON.
#[derive(Debug, Serialize)]
struct ReferrerList {
    image: String,
    referrers: Vec<ListedReferrer>,
}

fn parse_image(text: &str) -> Result<ImageRef, CliError> {
    text.parse()
        .map_err(|error: acrtask_model::ReferenceError| CliError::usage(error.to_string()))
}

fn parse_repository(text: &str) -> Result<ImageRef, CliError> {
    let image = parse_image(text)?;
    if image.tag().is_some() || image.digest().is_some() {
        return Err(CliError::usage(format!(
            "`{text}` names one image; name its repository: {}",
            image.name()
        )));
    }
    Ok(image)
}

fn reader(registry: &Registry, kind: RegistryKind) -> Reader<'_> {
    Reader {
        registry,
        kind,
        concurrency: CONCURRENCY,
        now: Timestamp::now(),
    }
}

/// Lists the tags of a repository.
pub(super) fn list_tags(args: &RegistryListArgs) -> Result<Exit, CliError> {
    let image = parse_repository(&args.name)?;
    let registry = open_registry(&args.login)?;
    let reader = reader(&registry, RegistryKind::Plain);
    let tags = block_on(async {
        let found = reader.list_tags(&image).await;
        found.map_err(|error| registry_error(&error))
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&TagList {
            repository: image.name(),
            tags,
        }),
        ListOutput::Text => {
            let text: String = tags.iter().map(|tag| format!("{tag}\n")).collect();
            super::super::print(text.as_bytes())
        }
    }
}

/// Lists the manifests of a repository.
pub(super) fn list_manifests(args: &RegistryListArgs, style: Style) -> Result<Exit, CliError> {
    let image = parse_repository(&args.name)?;
    let registry = open_registry(&args.login)?;
    let manifests = block_on(async {
        let kind = RegistryKind::detect(&registry, image.registry()).await;
        let kind = kind.map_err(|error| registry_error(&error))?;
        let found = listing::list_manifests(&reader(&registry, kind), &image).await;
        found.map_err(CliError::unreachable)
    })?;
    if args.output.output == ListOutput::Json {
        let repository = image.name();
        return print_json(&ManifestList {
            repository,
            manifests,
        });
    }
    let rows = manifests.iter().map(|one| {
        let kind = match (&one.artifact_type, one.kind) {
            (Some(kind), _) => kind.clone(),
            (None, ManifestKind::Index) => "index".into(),
            (None, ManifestKind::Image) => "image".into(),
            (None, ManifestKind::Artifact) => "artifact".into(),
        };
        let belongs_to = match (&one.subject, one.indexes.first()) {
            (Some(subject), _) => format!("refers to {}", subject.short()),
            (None, Some(index)) => format!("part of {}", index.short()),
            (None, None) => String::new(),
        };
        let size = match one.kind {
            ManifestKind::Index => String::new(),
            _ => format_bytes(i64::try_from(one.size).unwrap_or(i64::MAX)),
        };
        vec![
            one.digest.to_string(),
            kind,
            one.platform.clone().unwrap_or_default(),
            size,
            belongs_to,
            one.tags.join(", "),
        ]
    });
    let columns = ["DIGEST", "KIND", "PLATFORM", "SIZE", "BELONGS TO", "TAGS"];
    let text = render_list(&columns, rows.collect(), "no manifests", style);
    super::super::print(text.as_bytes())
}

/// Lists the referrers of an image.
pub(super) fn list_referrers(args: &RegistryListArgs, style: Style) -> Result<Exit, CliError> {
    let image = parse_image(&args.name)?.or_latest();
    let registry = open_registry(&args.login)?;
    let referrers = block_on(async {
        let found = listing::list_referrers(&registry, &image).await;
        found.map_err(CliError::unreachable)
    })?;
    if args.output.output == ListOutput::Json {
        let image = image.to_string();
        return print_json(&ReferrerList { image, referrers });
    }
    let rows = referrers.iter().map(|one| {
        let via = match one.via {
            Via::Api => "referrers API".to_owned(),
            Via::FallbackTag => "fallback tag".to_owned(),
            Via::Tag => {
                let tag = one.tag.as_deref().unwrap_or_default();
                let ending = tag.rsplit_once('.').map_or("", |(_, ending)| ending);
                format!("tag .{ending}")
            }
        };
        let platform = one.platform.clone().unwrap_or_default();
        vec![
            one.digest.to_string(),
            one.artifact_type.clone().unwrap_or_default(),
            one.subject.short().to_owned(),
            platform,
            via,
        ]
    });
    let columns = ["DIGEST", "TYPE", "SUBJECT", "PLATFORM", "FOUND IN"];
    let text = render_list(&columns, rows.collect(), "no referrers", style);
    super::super::print(text.as_bytes())
}
