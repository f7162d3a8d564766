//! `acrtask registry copy` and `import`.

use acrtask_model::ImageRef;
use acrtask_upkeep::{Copy, CopyReport, Location, copy};

use super::{open_registry, with_output};
use crate::{
    args::{
        engine::RegistryLoginArgs,
        registry::{RegistryCopyArgs, RegistryImportArgs},
        server::ListOutput,
    },
    commands::remote::{block_on, print_json},
    error::CliError,
    exit::Exit,
    render::text::format_bytes,
};

/// Copies an image with everything that belongs to it.
pub(super) fn copy_image(args: &RegistryCopyArgs) -> Result<Exit, CliError> {
    let parse = |text: &str| text.parse::<Location>().map_err(CliError::usage);
    let request = Copy {
        source: parse(&args.source)?,
        target: parse(&args.target)?,
        platform: args.platform.clone(),
    };
    run_copy(&request, &args.login, args.output.output)
}

/// Copies an image into a registry under its own name, or under `--image`.
pub(super) fn import_image(args: &RegistryImportArgs) -> Result<Exit, CliError> {
    let source: Location = args.source.parse().map_err(CliError::usage)?;
    let name = match (&args.image, &source) {
        (Some(name), _) => name.clone(),
        (None, Location::Registry(image)) => {
            let tag = image.tag().map(|tag| format!(":{tag}"));
            format!("{}{}", image.repository(), tag.unwrap_or_default())
        }
        (None, Location::Layout { .. }) => {
            return Err(CliError::usage("a folder does not name a repository")
                .help("write --image REPOSITORY:TAG"));
        }
    };
    let target = format!("{}/{name}", args.registry);
    let parsed: Result<ImageRef, _> = target.parse();
    let target = parsed.map_err(|error| {
        CliError::usage(error.to_string()).help("write HOST or HOST:PORT, then the image")
    })?;
    let request = Copy {
        source,
        target: Location::Registry(target),
        platform: args.platform.clone(),
    };
    run_copy(&request, &args.login, args.output.output)
}

fn run_copy(
    request: &Copy,
    login: &RegistryLoginArgs,
    output: ListOutput,
) -> Result<Exit, CliError> {
    let registry = open_registry(login)?;
    let report = block_on(with_output(output, |lines| async move {
        copy::copy(&registry, request, &lines).await
    }))?;
    let report = report.map_err(CliError::unreachable)?;
    match output {
        ListOutput::Json => print_json(&report),
        ListOutput::Text => super::super::print(summarize(&report).as_bytes()),
    }
}

fn summarize(report: &CopyReport) -> String {
    let blobs = &report.blobs;
    let new = report.manifests.iter().filter(|one| !one.existed).count();
    let bytes = i64::try_from(blobs.copied_bytes).unwrap_or(i64::MAX);
    format!(
        "{}\n{} manifests ({new} new); blobs: {} copied ({}), {} mounted, {} existed\n",
        report.target,
        report.manifests.len(),
        blobs.copied,
        format_bytes(bytes),
        blobs.mounted,
        blobs.existing
    )
}
