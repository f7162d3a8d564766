//! `acrtask image` and `acrtask base`: images, the bases they were built from, and the watched base
//! tags.

use acrtask_api::{
    image::{Base, BlastRadius, CheckBases, Image, ImageDetail, ImageTree},
    run::Page,
};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, print_message};
use crate::{
    args::{
        base::{BaseCommand, BaseNameArgs, CheckArgs},
        image::{ImageCommand, ImageRefArgs, ListImagesArgs, TreeArgs},
        server::{ListOutput, ServerArgs},
    },
    client::Client,
    error::CliError,
    exit::Exit,
    render::{images, style::Style},
};

/// Entries per request.
const PAGE: u32 = 200;
/// Maximum wait of `base check` for the server, in seconds.
const CHECK_WAIT_SECS: u64 = 60;

/// Runs a subcommand of `acrtask image`.
pub(crate) fn image(command: &ImageCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        ImageCommand::List(args) => list(args, style),
        ImageCommand::Show(args) => {
            show_image(args, |image, now| images::render_image(image, now, style))
        }
        ImageCommand::Why(args) => show_image(args, |image, now| {
            images::render_staleness(image, now, style)
        }),
        ImageCommand::Tree(args) => tree(args, style),
        ImageCommand::WhyKept(args) => super::registry::why_kept(args),
    }
}

/// Runs a subcommand of `acrtask base`.
pub(crate) fn base(command: &BaseCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        BaseCommand::List(args) => {
            let client = client(&args.server)?;
            let found: Page<Base> = block_on(fetch_pages(&client, "bases", &[], u32::MAX))?;
            match args.output.output {
                ListOutput::Json => print_json(&found),
                ListOutput::Text => {
                    let text = images::render_bases(&found.items, Timestamp::now(), style);
                    super::print(text.as_bytes())
                }
            }
        }
        BaseCommand::Show(args) => {
            let client = client(&args.server)?;
            let found: Vec<Base> =
                block_on(async { Ok(client.get(&["bases", &args.image], &[]).await?) })?;
            match args.output.output {
                ListOutput::Json => print_json(&found),
                ListOutput::Text => {
                    let text = images::render_base(&found, Timestamp::now(), style);
                    super::print(text.as_bytes())
                }
            }
        }
        BaseCommand::Check(args) => check(args, style),
        BaseCommand::Proposals(args) => super::proposals::proposals(args, style),
        BaseCommand::Pause(args) => set_paused(args, true),
        BaseCommand::Resume(args) => set_paused(args, false),
        BaseCommand::BlastRadius(args) => {
            let client = client(&args.server)?;
            let found: BlastRadius = block_on(async {
                let path = ["bases", &args.image, "blast-radius"];
                Ok(client.get(&path, &[]).await?)
            })?;
            match args.output.output {
                ListOutput::Json => print_json(&found),
                ListOutput::Text => {
                    super::print(images::render_blast_radius(&found, style).as_bytes())
                }
            }
        }
    }
}

/// Fetches the first `limit` entries of a list.
async fn fetch_pages<T: serde::de::DeserializeOwned>(
    client: &Client,
    kind: &str,
    query: &[(&str, String)],
    limit: u32,
) -> Result<Page<T>, CliError> {
    let mut all = Page {
        items: Vec::new(),
        next: None,
    };
    loop {
        let left = limit - u32::try_from(all.items.len()).unwrap_or(limit).min(limit);
        let mut query = query.to_vec();
        query.push(("limit", left.min(PAGE).to_string()));
        query.extend(all.next.take().map(|cursor| ("cursor", cursor)));
        let page: Page<T> = client.get(&[kind], &query).await?;
        all.items.extend(page.items);
        all.next = page.next;
        if all.next.is_none() || all.items.len() >= limit as usize {
            return Ok(all);
        }
    }
}

fn list(args: &ListImagesArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let flag = |name, set: bool| set.then(|| (name, "true".to_owned()));
    let query: Vec<(&str, String)> = [
        args.task.clone().map(|task| ("task", task)),
        args.prefix.clone().map(|prefix| ("prefix", prefix)),
        flag("stale", args.stale),
        flag("newest", args.newest),
    ]
    .into_iter()
    .flatten()
    .collect();
    let found: Page<Image> = block_on(fetch_pages(&client, "images", &query, args.limit))?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = images::render_images(&found.items, args.stale, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn show_image(
    args: &ImageRefArgs,
    text: impl Fn(&ImageDetail, Timestamp) -> String,
) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: ImageDetail =
        block_on(async { Ok(client.get(&["images", &args.image], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => super::print(text(&found, Timestamp::now()).as_bytes()),
    }
}

fn tree(args: &TreeArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let mut query: Vec<(&str, String)> = Vec::new();
    query.extend(args.root.clone().map(|root| ("root", root)));
    if args.all {
        query.push(("all", "true".into()));
    }
    let found: Page<ImageTree> =
        block_on(async { Ok(client.get(&["images", "tree"], &query).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => super::print(images::render_trees(&found.items, style).as_bytes()),
    }
}

fn check(args: &CheckArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let body = CheckBases {
        name: args.image.clone(),
        wait_secs: CHECK_WAIT_SECS,
    };
    let found: Vec<Base> = block_on(async { Ok(client.post(&["bases", "check"], &body).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = images::render_bases(&found, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn set_paused(args: &BaseNameArgs, paused: bool) -> Result<Exit, CliError> {
    let action = if paused { "pause" } else { "resume" };
    post_action(&args.server, &["bases", &args.image, action])?;
    print_message(&if paused {
        format!("paused the checks of {}", args.image)
    } else {
        format!("resumed the checks of {}", args.image)
    });
    Ok(Exit::Succeeded)
}

fn post_action(server: &ServerArgs, path: &[&str]) -> Result<(), CliError> {
    let client = client(server)?;
    block_on(async { Ok(client.post_discarding(path, &serde_json::json!({})).await?) })
}
