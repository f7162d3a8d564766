//! `acrtask task timer` and `acrtask task trigger-url`.

use acrtask_api::{
    task::{MissedTicks, Timer, UrlTrigger},
    timer::{NewTriggerUrl, TaskTimer, TriggerUrl},
};
use acrtask_trigger::timer::Schedule;
use jiff::Timestamp;

use super::{
    remote::{block_on, client, print_json, say},
    stored,
};
use crate::{
    args::{
        server::ListOutput,
        timers::{
            AddTimerArgs, CreateUrlArgs, Missed, RemoveTimerArgs, ShowUrlArgs, TimerArgs,
            TimerCommand, TimersArgs, TriggerUrlCommand, UpdateTimerArgs,
        },
    },
    client::{Client, shown},
    error::CliError,
    exit::Exit,
    render::{style::Style, timers as show_as},
};

/// One of the words about timers.
pub(crate) fn timer(command: &TimerCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        TimerCommand::Add(args) => add(args),
        TimerCommand::Update(args) => update(args),
        TimerCommand::List(args) => list(args, style),
        TimerCommand::Remove(args) => remove(args),
    }
}

async fn all(client: &Client, task: &str) -> Result<Vec<TaskTimer>, CliError> {
    Ok(client.get(&["tasks", task, "timers"], &[]).await?)
}

/// What the flags make of a timer. An empty text takes away.
fn with(timer: &mut Timer, args: &TimerArgs) {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    if let Some(zone) = &args.timezone {
        timer.timezone = text(zone);
    }
    if let Some(jitter) = &args.jitter {
        timer.jitter = text(jitter);
    }
    if let Some(missed) = args.missed {
        timer.missed = match missed {
            Missed::RunOnce => MissedTicks::RunOnce,
            Missed::Skip => MissedTicks::Skip,
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
        let there = all(&client, task).await?;
        let taken = |name: &str| there.iter().any(|timer| timer.name == name);
        let name = match &args.timer_name {
            Some(name) if taken(name) => {
                return Err(
                    CliError::usage(format!("the task {task} has a timer {name} already")).help(
                        format!(
                            "change it: `acrtask task timer update {task} --timer-name {name}`"
                        ),
                    ),
                );
            }
            Some(name) => name.clone(),
            // As the cloud service names them.
            None => (1..)
                .map(|n| format!("t{n}"))
                .find(|name| !taken(name))
                .unwrap_or_default(),
        };
        let mut timer = Timer::new(&args.schedule);
        with(&mut timer, &args.how);
        client
            .put(&["tasks", task, "timers", &name], None, &timer)
            .await?;
        say(&format!("added the timer {name} to the task {task}"));
        print_remark(task, &name, &timer);
        Ok(Exit::Succeeded)
    })
}

/// Prints how the server reads the schedule, where dialects of cron differ.
fn print_remark(task: &str, name: &str, timer: &Timer) {
    let schedule = Schedule::new(task, name, timer).ok();
    if let Some(remark) = schedule.and_then(|schedule| schedule.remark()) {
        say(&format!("note: {remark}"));
    }
}

fn update(args: &UpdateTimerArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let (task, name) = (args.name.name(), args.timer_name.as_str());
    block_on(async {
        let there = all(&client, task).await?;
        let mut timer = there
            .into_iter()
            .find(|timer| timer.name == name)
            .map(|found| found.timer)
            .ok_or_else(|| {
                CliError::usage(format!("the task {task} has no timer {name}")).help(format!(
                    "`acrtask task timer list {task}` shows those that it has"
                ))
            })?;
        let before = timer.clone();
        if let Some(schedule) = &args.schedule {
            timer.schedule.clone_from(schedule);
        }
        with(&mut timer, &args.how);
        if timer == before {
            say(&format!(
                "the timer {name} of the task {task} is so already"
            ));
            return Ok(Exit::Succeeded);
        }
        client
            .put(&["tasks", task, "timers", name], None, &timer)
            .await?;
        say(&format!("updated the timer {name} of the task {task}"));
        print_remark(task, name, &timer);
        Ok(Exit::Succeeded)
    })
}

fn list(args: &TimersArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let timers = block_on(all(&client, args.name.name()))?;
    match args.output.output {
        ListOutput::Json => print_json(&timers),
        ListOutput::Text => {
            super::print(show_as::timers(&timers, Timestamp::now(), style).as_bytes())
        }
    }
}

fn remove(args: &RemoveTimerArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let (task, name) = (args.name.name(), args.timer_name.as_str());
    block_on(async { Ok(client.delete(&["tasks", task, "timers", name], &[]).await?) })?;
    say(&format!("removed the timer {name} of the task {task}"));
    Ok(Exit::Succeeded)
}

/// One of the words about the URL of a task.
pub(crate) fn trigger_url(command: &TriggerUrlCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        TriggerUrlCommand::Create(args) => create_url(args),
        TriggerUrlCommand::Show(args) => show_url(args, style),
        TriggerUrlCommand::Remove(args) => {
            let client = client(&args.server)?;
            let task = args.name.name();
            block_on(async { Ok(client.delete(&["tasks", task, "trigger-url"], &[]).await?) })?;
            say(&format!("removed the URL of the task {task}"));
            Ok(Exit::Succeeded)
        }
    }
}

fn create_url(args: &CreateUrlArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let new: NewTriggerUrl = block_on(async {
        if !args.allow_set.is_empty() {
            let task = stored::find(&client, name).await?;
            let mut definition = task.definition;
            definition.triggers.url = Some(UrlTrigger {
                allow_set: args.allow_set.clone(),
            });
            stored::put(&client, name, &definition, task.generation).await?;
        }
        let nothing = serde_json::json!({});
        Ok(client
            .post(&["tasks", name, "trigger-url"], &nothing)
            .await?)
    })?;
    let sets = match new.url.allow_set.as_slice() {
        [] => "calls set no values".to_owned(),
        keys => format!("calls may set {}", keys.join(", ")),
    };
    say(&format!(
        "made the URL of the task {name}; it is shown this once, and {sets}"
    ));
    let url = format!("{}{}\n", shown(client.url()), new.path.0);
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
            super::print(show_as::trigger_url(name, &url, Timestamp::now(), style).as_bytes())
        }
    }
}
