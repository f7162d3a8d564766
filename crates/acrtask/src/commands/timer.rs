//! `acrtask task timer` and `acrtask task trigger-url`.

use acrtask_api::{
    task::{MissedFirings, Timer, UrlTrigger},
    timer::{NewTriggerUrl, TaskTimer, TriggerUrl},
};
use acrtask_trigger::timer::Schedule;
use jiff::Timestamp;

use super::{
    remote::{block_on, client, print_json, print_message},
    task,
};
use crate::{
    args::{
        server::ListOutput,
        timer::{
            AddTimerArgs, CreateUrlArgs, MissedPolicy, RemoveTimerArgs, ShowUrlArgs, TimerArgs,
            TimerCommand, TimersArgs, TriggerUrlCommand, UpdateTimerArgs,
        },
    },
    client::{Client, display_url},
    error::CliError,
    exit::Exit,
    render::{style::Style, timers},
};

/// Runs a subcommand of `acrtask task timer`.
pub(crate) fn timer(command: &TimerCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        TimerCommand::Add(args) => add(args),
        TimerCommand::Update(args) => update(args),
        TimerCommand::List(args) => list(args, style),
        TimerCommand::Remove(args) => remove(args),
    }
}

async fn list_timers(client: &Client, task: &str) -> Result<Vec<TaskTimer>, CliError> {
    Ok(client.get(&["tasks", task, "timers"], &[]).await?)
}

/// Applies the flags to a timer; an empty text clears a setting.
fn apply_flags(timer: &mut Timer, args: &TimerArgs) {
    let non_empty = |text: &String| (!text.is_empty()).then(|| text.clone());
    if let Some(zone) = &args.timezone {
        timer.timezone = non_empty(zone);
    }
    if let Some(jitter) = &args.jitter {
        timer.jitter = non_empty(jitter);
    }
    if let Some(missed) = args.missed {
        timer.missed = match missed {
            MissedPolicy::RunOnce => MissedFirings::RunOnce,
            MissedPolicy::Skip => MissedFirings::Skip,
        };
    }
    if let Some(enabled) = args.enabled {
        timer.enabled = enabled;
    }
}

fn add(args: &AddTimerArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let task = args.name.name();
    block_on(async {
        let existing = list_timers(&client, task).await?;
        let taken = |name: &str| existing.iter().any(|timer| timer.name == name);
        let name = match &args.timer_name {
            Some(name) if taken(name) => {
                return Err(
                    CliError::usage(format!("the task {task} already has a timer {name}")).help(
                        format!(
                            "change it: `acrtask task timer update {task} --timer-name {name}`"
                        ),
                    ),
                );
            }
            Some(name) => name.clone(),
            // Same names as in the cloud service.
            None => (1..)
                .map(|n| format!("t{n}"))
                .find(|name| !taken(name))
                .unwrap_or_default(),
        };
        let mut timer = Timer::new(&args.schedule);
        apply_flags(&mut timer, &args.settings);
        client
            .put(&["tasks", task, "timers", &name], None, &timer)
            .await?;
        print_message(&format!("added the timer {name} to the task {task}"));
        print_remark(task, &name, &timer);
        Ok(Exit::Succeeded)
    })
}

/// Prints how the server interprets the schedule if cron dialects differ.
fn print_remark(task: &str, name: &str, timer: &Timer) {
    let schedule = Schedule::new(task, name, timer).ok();
    if let Some(remark) = schedule.and_then(|schedule| schedule.remark()) {
        print_message(&format!("note: {remark}"));
    }
}

fn update(args: &UpdateTimerArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let (task, name) = (args.name.name(), args.timer_name.as_str());
    block_on(async {
        let existing = list_timers(&client, task).await?;
        let mut timer = existing
            .into_iter()
            .find(|timer| timer.name == name)
            .map(|found| found.timer)
            .ok_or_else(|| {
                CliError::usage(format!("the task {task} has no timer {name}")).help(format!(
                    "list its timers with `acrtask task timer list {task}`"
                ))
            })?;
        let before = timer.clone();
        if let Some(schedule) = &args.schedule {
            timer.schedule.clone_from(schedule);
        }
        apply_flags(&mut timer, &args.settings);
        if timer == before {
            print_message(&format!(
                "the timer {name} of the task {task} already has these settings"
            ));
            return Ok(Exit::Succeeded);
        }
        client
            .put(&["tasks", task, "timers", name], None, &timer)
            .await?;
        print_message(&format!("updated the timer {name} of the task {task}"));
        print_remark(task, name, &timer);
        Ok(Exit::Succeeded)
    })
}

fn list(args: &TimersArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let timers = block_on(list_timers(&client, args.name.name()))?;
    match args.output.output {
        ListOutput::Json => print_json(&timers),
        ListOutput::Text => {
            super::print(timers::render_timers(&timers, Timestamp::now(), style).as_bytes())
        }
    }
}

fn remove(args: &RemoveTimerArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let (task, name) = (args.name.name(), args.timer_name.as_str());
    block_on(async { Ok(client.delete(&["tasks", task, "timers", name], &[]).await?) })?;
    print_message(&format!("removed the timer {name} of the task {task}"));
    Ok(Exit::Succeeded)
}

/// Runs a subcommand of `acrtask task trigger-url`.
pub(crate) fn trigger_url(command: &TriggerUrlCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        TriggerUrlCommand::Create(args) => create_url(args),
        TriggerUrlCommand::Show(args) => show_url(args, style),
        TriggerUrlCommand::Remove(args) => {
            let client = client(&args.server)?;
            let task = args.name.name();
            block_on(async { Ok(client.delete(&["tasks", task, "trigger-url"], &[]).await?) })?;
            print_message(&format!("removed the URL of the task {task}"));
            Ok(Exit::Succeeded)
        }
    }
}

fn create_url(args: &CreateUrlArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let new: NewTriggerUrl = block_on(async {
        if !args.allow_set.is_empty() {
            let task = task::find_task(&client, name).await?;
            let mut definition = task.definition;
            definition.triggers.url = Some(UrlTrigger {
                allow_set: args.allow_set.clone(),
            });
            task::put_task(&client, name, &definition, task.generation).await?;
        }
        let body = serde_json::json!({});
        Ok(client.post(&["tasks", name, "trigger-url"], &body).await?)
    })?;
    let sets = match new.url.allow_set.as_slice() {
        [] => "calls set no values".to_owned(),
        keys => format!("calls may set {}", keys.join(", ")),
    };
    print_message(&format!(
        "created the URL of the task {name}; it is shown only once, and {sets}"
    ));
    let url = format!("{}{}\n", display_url(client.url()), new.path.0);
    super::print(url.as_bytes())
}

fn show_url(args: &ShowUrlArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let url: TriggerUrl =
        block_on(async { Ok(client.get(&["tasks", name, "trigger-url"], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&url),
        ListOutput::Text => {
            super::print(timers::render_trigger_url(name, &url, Timestamp::now(), style).as_bytes())
        }
    }
}
