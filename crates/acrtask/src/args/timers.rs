//! `acrtask task timer` and `acrtask task trigger-url`: what starts runs of a task by the clock, and by a call.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    server::{OutputArgs, ServerArgs},
    stored::{NameArgs, NamedArgs},
    values,
};

/// `acrtask task timer ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum TimerCommand {
    /// Add a timer to a task
    #[command(after_long_help = ADD_EXAMPLES)]
    Add(AddTimerArgs),
    /// Change some of a timer; what is not named stays
    #[command(after_long_help = "\
Examples:
  acrtask task timer update app --timer-name night --schedule '30 2 * * *'
  acrtask task timer update app --timer-name night --enabled false

A timer with another schedule or time zone, and one that is turned on, begins now. '' takes away a
time zone or a jitter.")]
    Update(UpdateTimerArgs),
    /// List the timers of a task, with their last and their next tick
    List(TimersArgs),
    /// Remove a timer
    Remove(RemoveTimerArgs),
}

const ADD_EXAMPLES: &str = "\
Examples:
  acrtask task timer add app --schedule '0 3 * * *'
  acrtask task timer add app --schedule '*/15 8-17 * * 1-5' --timezone Europe/Berlin
  acrtask task timer add app --timer-name night --schedule '0 3 * * *' --jitter 30m --missed skip

A time that a change of the clocks leaves out ticks right after it; one that happens twice ticks
once, the first time. Each tick starts one run, whatever number of servers there is. Ticks that no
server could handle within five minutes were missed: one run stands for all of them, or none runs.";

/// `acrtask task timer add`.
#[derive(Debug, Args)]
pub(crate) struct AddTimerArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// The timer's name [default: t1, t2 ...]
    #[arg(long, value_name = "TIMER", help_heading = "Timer")]
    pub(crate) timer_name: Option<String>,

    /// Five fields of cron: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "CRON", help_heading = "Timer")]
    pub(crate) schedule: String,

    #[command(flatten)]
    pub(crate) how: TimerArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task timer update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateTimerArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// The timer's name
    #[arg(long, value_name = "TIMER", help_heading = "Timer")]
    pub(crate) timer_name: String,

    /// Five fields of cron: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "CRON", help_heading = "Timer")]
    pub(crate) schedule: Option<String>,

    #[command(flatten)]
    pub(crate) how: TimerArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// What a timer is beside its schedule.
#[derive(Debug, Args)]
#[command(next_help_heading = "Timer")]
pub(crate) struct TimerArgs {
    /// The IANA time zone of the schedule: Europe/Berlin ... [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub(crate) timezone: Option<String>,

    /// Start each run later by a part of this, always the same one: 5m, 1h30m [default: nothing]
    #[arg(long, value_name = "TIME")]
    pub(crate) jitter: Option<String>,

    /// What becomes of ticks that were missed [default: run-once]
    #[arg(long, value_enum, ignore_case = true, value_name = "WHAT")]
    pub(crate) missed: Option<Missed>,

    /// Whether it ticks: true or false [default: true]
    #[arg(long, value_name = "BOOL", value_parser = values::yes_or_no)]
    pub(crate) enabled: Option<bool>,
}

/// `--missed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Missed {
    /// One run stands for all of them
    RunOnce,
    /// None of them runs
    Skip,
}

/// `acrtask task timer list`.
#[derive(Debug, Args)]
pub(crate) struct TimersArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task timer remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveTimerArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// The timer's name
    #[arg(long, value_name = "TIMER")]
    pub(crate) timer_name: String,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task trigger-url ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum TriggerUrlCommand {
    /// Make the URL that starts runs of a task and can do nothing else; one that there was is worth nothing then
    #[command(after_long_help = "\
Examples:
  acrtask task trigger-url create app
  acrtask task trigger-url create app --allow-set tag
  curl -fsS -X POST \"$URL\"
  curl -fsS -X POST \"$URL\" -H \"Idempotency-Key: $JOB\" -d '{\"set\": {\"tag\": \"v2\"}}'

The URL is printed this once: whoever has it can start runs of the task. A call is answered with the
run's id. One with a key that came before is answered with that run.")]
    Create(CreateUrlArgs),
    /// Show whether a task has a URL, and when it was last used
    Show(ShowUrlArgs),
    /// Remove the URL of a task: it is worth nothing from then on
    Remove(NamedArgs),
}

/// `acrtask task trigger-url create`.
#[derive(Debug, Args)]
pub(crate) struct CreateUrlArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// A value that calls may set; may be repeated; takes the place of those that the task says
    #[arg(long, value_name = "KEY")]
    pub(crate) allow_set: Vec<String>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `acrtask task trigger-url show`.
#[derive(Debug, Args)]
pub(crate) struct ShowUrlArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
