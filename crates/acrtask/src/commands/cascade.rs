//! `acrtask cascade`: plans, follows and controls cascading rebuilds.

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
    remote::{block_on, client, print_json, print_message},
    task_file::invalid_file_error,
};
use crate::{
    args::{
        PathOrStdin,
        cascade::{
            CascadeCommand, CascadeIdArgs, CascadePlanForm, ListCascadesArgs, PlanCascadeArgs,
            SetSettingsArgs, SettingsCommand, SettingsForm, ShowCascadeArgs, ShowSettingsArgs,
        },
        server::ListOutput,
    },
    client::{Client, retry::Retry},
    error::CliError,
    exit::Exit,
    render::{cascades, style::Style, terminal_size, text},
    task_files,
};

/// Entries per request.
const PAGE: u32 = 200;
/// Interval between requests for a followed cascade.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Frames drawn between two requests.
const FRAMES: u32 = 4;

/// Runs a subcommand of `acrtask cascade`.
pub(crate) fn cascade(command: &CascadeCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        CascadeCommand::Plan(args) => plan(args),
        CascadeCommand::List(args) => list(args, style),
        CascadeCommand::Show(args) => show(args, style),
        CascadeCommand::Pause(args) => send_action(args, "pause", |id| {
            format!(
                "paused cascade {id}: it starts no more runs, running ones continue; `acrtask cascade resume {id}` \
                 resumes it"
            )
        }),
        CascadeCommand::Resume(args) => {
            send_action(args, "resume", |id| format!("resumed cascade {id}"))
        }
        CascadeCommand::Approve(args) => {
            send_action(args, "approve", |id| format!("approved cascade {id}"))
        }
        CascadeCommand::Cancel(args) => send_action(args, "cancel", |id| {
            format!(
                "canceled cascade {id} and its runs; its unbuilt images stay stale; `acrtask \
                 cascade retry {id}` builds them"
            )
        }),
        CascadeCommand::Retry(args) => send_action(args, "retry", |id| {
            format!("retrying the unfinished nodes of cascade {id}: `acrtask cascade show {id}`")
        }),
        CascadeCommand::Promote(args) => {
            set_tags(args, "promote", CascadeImageState::Promoted, style)
        }
        CascadeCommand::Rollback(args) => {
            set_tags(args, "rollback", CascadeImageState::RolledBack, style)
        }
        CascadeCommand::Settings(args) => match &args.command {
            None => show_settings(&args.show),
            Some(SettingsCommand::Show(args)) => show_settings(args),
            Some(SettingsCommand::Set(args)) => set_settings(args),
        },
    }
}

/// Builds the plan request from the tag and its optional digest.
fn plan_request(args: &PlanCascadeArgs) -> Result<PlanRequest, CliError> {
    let Some(text) = &args.reference else {
        return Ok(PlanRequest {
            all: true,
            ..PlanRequest::default()
        });
    };
    let help =
        "write a tag, optionally with `@` and the digest to plan for: alpine:3.20@sha256:...";
    let reference: ImageRef = text.parse().map_err(|error| {
        CliError::usage("the base is not a valid reference")
            .because(&error)
            .help(help)
    })?;
    let tag = reference
        .with_tag(reference.tag().unwrap_or("latest"))
        .map_err(|error| {
            CliError::usage("the base is not a valid reference")
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
    let request = plan_request(args)?;
    let client = client(&args.server)?;
    let plan: PlanView =
        block_on(async { Ok(client.post(&["cascades", "plan"], &request).await?) })?;
    match args.output {
        CascadePlanForm::Json => print_json(&plan),
        CascadePlanForm::Dot => super::print(show::render_dot(&plan).as_bytes()),
        CascadePlanForm::Text => super::print(show::render_tree(&plan).as_bytes()),
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
            let text = cascades::render_cascades(&found.items, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

async fn find_cascade(client: &Client, id: u64) -> Result<CascadeDetail, CliError> {
    Ok(client.get(&["cascades", &id.to_string()], &[]).await?)
}

fn show(args: &ShowCascadeArgs, style: Style) -> Result<Exit, CliError> {
    let terminal = std::io::stdout().is_terminal();
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let form = args.output.output;
    let follow = args.follow || terminal && form == ListOutput::Text && !args.no_follow;
    let client = client(&args.server)?;
    block_on(async {
        let detail = find_cascade(&client, args.id).await?;
        if !follow || cascades::is_finished(&detail.summary) {
            print_cascade(&detail, form, style)?;
            return Ok(if follow {
                exit_code(&detail)
            } else {
                Exit::Succeeded
            });
        }
        let patient = client.retrying(Retry::PATIENT);
        let followed = match form {
            ListOutput::Text if terminal && !dumb => follow_live(&patient, detail, style).await?,
            ListOutput::Text => follow_lines(&patient, detail, style).await?,
            ListOutput::Json => follow_silently(&patient, detail).await?,
        };
        let Some(detail) = followed else {
            return Ok(Exit::Interrupted);
        };
        print_cascade(&detail, form, style)?;
        Ok(exit_code(&detail))
    })
}

fn print_cascade(detail: &CascadeDetail, form: ListOutput, style: Style) -> Result<Exit, CliError> {
    match form {
        ListOutput::Json => print_json(detail),
        ListOutput::Text => {
            super::print(cascades::render_cascade(detail, Timestamp::now(), style).as_bytes())
        }
    }
}

/// Returns the exit code for a finished cascade.
fn exit_code(detail: &CascadeDetail) -> Exit {
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

/// Waits for `time`; returns `false` if a signal arrives first.
async fn sleep_unless_interrupted(time: Duration, interrupts: &Interrupts) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = interrupts.token.cancelled() => false,
    }
}

/// Redraws the cascade until it is finished; `None` if a signal interrupts it.
async fn follow_live(
    client: &Client,
    mut detail: CascadeDetail,
    style: Style,
) -> Result<Option<CascadeDetail>, CliError> {
    let interrupts = Interrupts::listen()?;
    let mut screen = crate::render::screen::Screen::new(std::io::stdout());
    let id = detail.summary.id;
    while !cascades::is_finished(&detail.summary) {
        for _ in 0..FRAMES {
            let size = terminal_size();
            let frame = cascades::render_frame(&detail, Timestamp::now(), size, style);
            if screen.draw("", &frame, size).is_err()
                || !sleep_unless_interrupted(POLL_INTERVAL / FRAMES, &interrupts).await
            {
                return Ok(None);
            }
        }
        detail = tokio::select! {
            found = find_cascade(client, id) => found?,
            () = interrupts.token.cancelled() => return Ok(None),
        };
    }
    // Clears the frame before the complete output.
    let _ = screen.draw("", &[], terminal_size());
    Ok(Some(detail))
}

/// Prints a line for each change until the cascade is finished; `None` if a signal interrupts it.
async fn follow_lines(
    client: &Client,
    mut detail: CascadeDetail,
    style: Style,
) -> Result<Option<CascadeDetail>, CliError> {
    let interrupts = Interrupts::listen()?;
    let id = detail.summary.id;
    let mut before: Option<CascadeDetail> = None;
    loop {
        let text = cascades::render_changes(before.as_ref(), &detail, Timestamp::now(), style);
        super::print(text.as_bytes())?;
        if cascades::is_finished(&detail.summary) {
            super::print(b"\n")?;
            return Ok(Some(detail));
        }
        if !sleep_unless_interrupted(POLL_INTERVAL, &interrupts).await {
            return Ok(None);
        }
        let found = find_cascade(client, id).await?;
        before = Some(std::mem::replace(&mut detail, found));
    }
}

async fn follow_silently(
    client: &Client,
    mut detail: CascadeDetail,
) -> Result<Option<CascadeDetail>, CliError> {
    let interrupts = Interrupts::listen()?;
    while !cascades::is_finished(&detail.summary) {
        if !sleep_unless_interrupted(POLL_INTERVAL, &interrupts).await {
            return Ok(None);
        }
        detail = find_cascade(client, detail.summary.id).await?;
    }
    Ok(Some(detail))
}

/// Sends an action on a cascade to the server.
async fn post_action(client: &Client, id: u64, action: &str) -> Result<CascadeDetail, CliError> {
    let path = ["cascades", &id.to_string(), action];
    Ok(client.post(&path, &serde_json::json!({})).await?)
}

fn send_action(
    args: &CascadeIdArgs,
    action: &str,
    message: impl Fn(u64) -> String,
) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(post_action(&client, args.id, action))?;
    print_message(&message(args.id));
    Ok(Exit::Succeeded)
}

/// Promotes or rolls back the tags of a cascade, and prints their states.
fn set_tags(
    args: &CascadeIdArgs,
    action: &str,
    to: CascadeImageState,
    style: Style,
) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let id = args.id;
    let detail = block_on(post_action(&client, id, action))?;
    let left = detail.images.iter().any(|image| image.state != to);
    print_message(&match (&detail.summary.promotion_note, to) {
        (Some(note), _) => format!(
            "cascade {id}: {}; `acrtask cascade show {id}` shows the state of its tags",
            text::plain_line(note)
        ),
        (None, CascadeImageState::Promoted) if !left => {
            format!("promoted all tags of cascade {id}")
        }
        (None, CascadeImageState::Promoted) => {
            format!("promoted some tags of cascade {id}, but not all")
        }
        (None, _) if !left => format!("rolled back all tags of cascade {id}"),
        (None, _) => format!("rolled back some tags of cascade {id}, but not all"),
    });
    let shown = cascades::render_images(&detail.images, style);
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
                CliError::unreachable("cannot convert the settings to YAML").because(&error)
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
    let settings = task_files::parse_cascade_settings(&text).map_err(|diagnostic| {
        invalid_file_error("settings", &name, &text, diagnostic).help(
            "`acrtask cascade settings` prints the current settings; `acrtask cascade settings --help` explains them",
        )
    })?;
    let client = client(&args.server)?;
    block_on(async {
        Ok(client
            .put(&["cascades", "settings"], None, &settings)
            .await?)
    })?;
    print_message("updated the settings of cascades");
    Ok(Exit::Succeeded)
}
