//! `acrtask cascade`: what a new base image makes be built again, planned, followed and steered.

use std::{io::IsTerminal, time::Duration};

use acrtask_api::{
    cascade::{CascadeDetail, CascadeImageState, CascadeSettings, CascadeSummary, PlanRequest},
    run::Page,
};
use acrtask_cascade::show::{self, PlanView};
use acrtask_model::ImageRef;
use jiff::Timestamp;

use super::{
    interrupt::Interrupts,
    remote::{block_on, client, print_json, say},
    task::unusable,
};
use crate::{
    args::{
        PathOrStdin,
        cascades::{
            CascadeArgs, CascadeCommand, CascadePlanForm, ListCascadesArgs, PlanCascadeArgs,
            SetSettingsArgs, SettingsCommand, SettingsForm, ShowCascadeArgs, ShowSettingsArgs,
        },
        server::ListOutput,
    },
    client::{Client, retry::Retry},
    declare,
    error::CliError,
    exit::Exit,
    render::{cascades as show_as, style::Style, terminal_size, text},
};

/// Entries of one request.
const PAGE: u32 = 200;
/// How often a cascade that is followed is asked for.
const LOOK: Duration = Duration::from_secs(1);
/// Frames between two looks.
const FRAMES: u32 = 4;

/// One of the words about cascades.
pub(crate) fn cascade(command: &CascadeCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        CascadeCommand::Plan(args) => plan(args),
        CascadeCommand::List(args) => list(args, style),
        CascadeCommand::Show(args) => show(args, style),
        CascadeCommand::Pause(args) => order(args, "pause", |id| {
            format!(
                "cascade {id} is paused: nothing more of it is started, what runs goes on; `acrtask cascade resume {id}` \
                 goes on with it"
            )
        }),
        CascadeCommand::Resume(args) => order(args, "resume", |id| format!("cascade {id} goes on")),
        CascadeCommand::Approve(args) => {
            order(args, "approve", |id| format!("approved cascade {id}"))
        }
        CascadeCommand::Cancel(args) => order(args, "cancel", |id| {
            format!(
                "cascade {id} is canceled: its runs are stopped, and what it would have built stays stale; `acrtask \
                 cascade retry {id}` builds it after all"
            )
        }),
        CascadeCommand::Retry(args) => order(args, "retry", |id| {
            format!("what is left of cascade {id} is tried again: `acrtask cascade show {id}`")
        }),
        CascadeCommand::Promote(args) => tags(args, "promote", CascadeImageState::Moved, style),
        CascadeCommand::Rollback(args) => {
            tags(args, "rollback", CascadeImageState::RolledBack, style)
        }
        CascadeCommand::Settings(args) => match &args.command {
            None => show_settings(&args.show),
            Some(SettingsCommand::Show(args)) => show_settings(args),
            Some(SettingsCommand::Set(args)) => set_settings(args),
        },
    }
}

/// What is asked of the server: a tag, and the digest that it would have.
fn request(args: &PlanCascadeArgs) -> Result<PlanRequest, CliError> {
    let Some(text) = &args.reference else {
        return Ok(PlanRequest {
            all: true,
            ..PlanRequest::default()
        });
    };
    let help = "name a tag, and behind `@` the digest that it would have: alpine:3.20@sha256:...";
    let reference: ImageRef = text.parse().map_err(|error| {
        CliError::usage("the base cannot be read")
            .because(&error)
            .help(help)
    })?;
    let tag = reference
        .with_tag(reference.tag().unwrap_or("latest"))
        .map_err(|error| {
            CliError::usage("the base cannot be read")
                .because(&error)
                .help(help)
        })?;
    Ok(PlanRequest {
        reference: Some(tag.to_string()),
        digest: reference.digest().cloned(),
        all: args.all,
    })
}

fn plan(args: &PlanCascadeArgs) -> Result<Exit, CliError> {
    let request = request(args)?;
    let client = client(&args.server)?;
    let plan: PlanView =
        block_on(async { Ok(client.post(&["cascades", "plan"], &request).await?) })?;
    match args.output {
        CascadePlanForm::Json => print_json(&plan),
        CascadePlanForm::Dot => super::print(show::dot(&plan).as_bytes()),
        CascadePlanForm::Text => super::print(show::tree(&plan).as_bytes()),
    }
}

fn list(args: &ListCascadesArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Page<CascadeSummary> = block_on(async {
        let mut all = Page {
            items: Vec::new(),
            next: None,
        };
        loop {
            let have = u32::try_from(all.items.len()).unwrap_or(args.limit);
            let left = args.limit.saturating_sub(have);
            let mut query = vec![("limit", left.min(PAGE).to_string())];
            query.extend(args.task.iter().map(|task| ("task", task.clone())));
            if args.active {
                query.push(("active", "true".into()));
            }
            query.extend(all.next.take().map(|cursor| ("cursor", cursor)));
            let page: Page<CascadeSummary> = client.get(&["cascades"], &query).await?;
            all.items.extend(page.items);
            all.next = page.next;
            if all.next.is_none() || all.items.len() >= args.limit as usize {
                return Ok(all);
            }
        }
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = show_as::list(&found.items, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

async fn find(client: &Client, id: u64) -> Result<CascadeDetail, CliError> {
    Ok(client.get(&["cascades", &id.to_string()], &[]).await?)
}

fn show(args: &ShowCascadeArgs, style: Style) -> Result<Exit, CliError> {
    let terminal = std::io::stdout().is_terminal();
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let form = args.output.output;
    let follow = args.follow || terminal && form == ListOutput::Text && !args.no_follow;
    let client = client(&args.server)?;
    block_on(async {
        let detail = find(&client, args.id).await?;
        if !follow || show_as::is_over(&detail.summary) {
            print(&detail, form, style)?;
            return Ok(if follow {
                verdict(&detail)
            } else {
                Exit::Succeeded
            });
        }
        let patient = client.retrying(Retry::PATIENT);
        let followed = match form {
            ListOutput::Text if terminal && !dumb => live(&patient, detail, style).await?,
            ListOutput::Text => lines(&patient, detail, style).await?,
            ListOutput::Json => until_over(&patient, detail).await?,
        };
        let Some(detail) = followed else {
            return Ok(Exit::Interrupted);
        };
        print(&detail, form, style)?;
        Ok(verdict(&detail))
    })
}

fn print(detail: &CascadeDetail, form: ListOutput, style: Style) -> Result<Exit, CliError> {
    match form {
        ListOutput::Json => print_json(detail),
        ListOutput::Text => {
            super::print(show_as::cascade(detail, Timestamp::now(), style).as_bytes())
        }
    }
}

/// How a cascade that is over has ended.
fn verdict(detail: &CascadeDetail) -> Exit {
    let counts = &detail.summary.counts;
    if counts.failed > 0 {
        Exit::Failed
    } else if counts.canceled > 0 {
        Exit::Interrupted
    } else if counts.stale > 0 {
        Exit::Failed
    } else {
        Exit::Succeeded
    }
}

/// Waits; false where a signal came first.
async fn wait(time: Duration, interrupts: &Interrupts) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = interrupts.token.cancelled() => false,
    }
}

/// Asks for it again and again, and draws a frame over the one before; nothing where a signal ended that.
async fn live(
    client: &Client,
    mut detail: CascadeDetail,
    style: Style,
) -> Result<Option<CascadeDetail>, CliError> {
    let interrupts = Interrupts::listen()?;
    let mut screen = crate::render::screen::Screen::new(std::io::stdout());
    let id = detail.summary.id;
    while !show_as::is_over(&detail.summary) {
        for _ in 0..FRAMES {
            let size = terminal_size();
            let frame = show_as::frame(&detail, Timestamp::now(), size, style);
            if screen.draw("", &frame, size).is_err() || !wait(LOOK / FRAMES, &interrupts).await {
                return Ok(None);
            }
        }
        detail = tokio::select! {
            found = find(client, id) => found?,
            () = interrupts.token.cancelled() => return Ok(None),
        };
    }
    // The frame makes room for all of it.
    let _ = screen.draw("", &[], terminal_size());
    Ok(Some(detail))
}

/// Prints a line for each change.
async fn lines(
    client: &Client,
    mut detail: CascadeDetail,
    style: Style,
) -> Result<Option<CascadeDetail>, CliError> {
    let interrupts = Interrupts::listen()?;
    let id = detail.summary.id;
    let mut before: Option<CascadeDetail> = None;
    loop {
        let text = show_as::changes(before.as_ref(), &detail, Timestamp::now(), style);
        super::print(text.as_bytes())?;
        if show_as::is_over(&detail.summary) {
            super::print(b"\n")?;
            return Ok(Some(detail));
        }
        if !wait(LOOK, &interrupts).await {
            return Ok(None);
        }
        let found = find(client, id).await?;
        before = Some(std::mem::replace(&mut detail, found));
    }
}

async fn until_over(
    client: &Client,
    mut detail: CascadeDetail,
) -> Result<Option<CascadeDetail>, CliError> {
    let interrupts = Interrupts::listen()?;
    while !show_as::is_over(&detail.summary) {
        if !wait(LOOK, &interrupts).await {
            return Ok(None);
        }
        detail = find(client, detail.summary.id).await?;
    }
    Ok(Some(detail))
}

/// Tells the server `word` of a cascade.
async fn tell(client: &Client, id: u64, word: &str) -> Result<CascadeDetail, CliError> {
    let path = ["cascades", &id.to_string(), word];
    Ok(client.post(&path, &serde_json::json!({})).await?)
}

fn order(args: &CascadeArgs, word: &str, done: impl Fn(u64) -> String) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(tell(&client, args.id, word))?;
    say(&done(args.id));
    Ok(Exit::Succeeded)
}

/// Moves tags, and shows how they stand then.
fn tags(
    args: &CascadeArgs,
    word: &str,
    to: CascadeImageState,
    style: Style,
) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let id = args.id;
    let detail = block_on(tell(&client, id, word))?;
    let left = detail.images.iter().any(|image| image.state != to);
    say(&match (&detail.summary.promotion_note, to) {
        (Some(note), _) => format!(
            "cascade {id}: {}; `acrtask cascade show {id}` tells how they stand",
            text::plain(note)
        ),
        (None, CascadeImageState::Moved) if !left => format!("all tags of cascade {id} have moved"),
        (None, CascadeImageState::Moved) => {
            format!("tags of cascade {id} have moved, but not all of them")
        }
        (None, _) if !left => format!("all tags of cascade {id} hold what they held before it"),
        (None, _) => format!("tags of cascade {id} were put back, but not all of them"),
    });
    let shown = show_as::images(&detail.images, style);
    super::print(shown.trim_start().as_bytes())
}

fn show_settings(args: &ShowSettingsArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let settings: CascadeSettings =
        block_on(async { Ok(client.get(&["cascades", "settings"], &[]).await?) })?;
    match args.output {
        SettingsForm::Json => print_json(&settings),
        SettingsForm::Yaml => {
            let text = serde_yaml::to_string(&settings).map_err(|error| {
                CliError::unreachable("the settings cannot be written as YAML").because(&error)
            })?;
            super::print(text.as_bytes())
        }
    }
}

fn set_settings(args: &SetSettingsArgs) -> Result<Exit, CliError> {
    let (name, text) = match &args.file {
        PathOrStdin::Stdin => (
            "standard input".to_owned(),
            std::io::read_to_string(std::io::stdin()),
        ),
        PathOrStdin::Path(path) => (path.display().to_string(), std::fs::read_to_string(path)),
    };
    let text =
        text.map_err(|error| CliError::usage(format!("cannot read {name}")).because(&error))?;
    let settings = declare::cascade_settings(&text).map_err(|diagnostic| {
        unusable("settings", &name, &text, diagnostic).help(
            "`acrtask cascade settings` prints those of now; `acrtask cascade settings --help` explains them",
        )
    })?;
    let client = client(&args.server)?;
    block_on(async {
        Ok(client
            .put(&["cascades", "settings"], None, &settings)
            .await?)
    })?;
    say("the settings of cascades are as the file says, from now on");
    Ok(Exit::Succeeded)
}
