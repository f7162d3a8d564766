//! Arguments of `acrtask task timer` and `acrtask task trigger-url`.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    server::{OutputArgs, ServerArgs},
    task::{NameArgs, TaskNameArgs},
    values,
};

/// Subcommands of `acrtask task timer`.
#[derive(Debug, Subcommand)]
pub(crate) enum TimerCommand {
    /// Add a timer to a task
    #[command(after_long_help = ADD_EXAMPLES)]
    Add(AddTimerArgs),
    /// Change the given settings of a timer
    #[command(after_long_help = "\
Examples:
  acrtask task timer update app --timer-name night --schedule '30 2 * * *'
  acrtask task timer update app --timer-name night --enabled false

A timer with a new schedule or time zone, and a timer that you enable, starts from now. '' removes the
time zone or the jitter.")]
    Update(UpdateTimerArgs),
    /// List the timers of a task, with their last and next firing
    List(TimersArgs),
    /// Remove a timer
    Remove(RemoveTimerArgs),
}

const ADD_EXAMPLES: &str = "\
Examples:
  acrtask task timer add app --schedule '0 3 * * *'
  acrtask task timer add app --schedule '*/15 8-17 * * 1-5' --timezone Europe/Berlin
  acrtask task timer add app --timer-name night --schedule '0 3 * * *' --jitter 30m --missed skip

A time that a clock change skips fires right after it; a time that occurs twice fires once, the first
time. Each firing starts one run, regardless of the number of servers. A firing that no server could
handle within five minutes is missed: one run replaces all missed firings, or none starts.";

/// Arguments of `acrtask task timer add`.
#[derive(Debug, Args)]
pub(crate) struct AddTimerArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// Name the timer [default: t1, t2 ...]
    #[arg(long, value_name = "TIMER", help_heading = "Timer")]
    pub(crate) timer_name: Option<String>,

    /// Set the schedule, five fields of cron: minute, hour, day of the month, month, day of the
    /// week
    #[arg(long, value_name = "CRON", help_heading = "Timer")]
    pub(crate) schedule: String,

    #[command(flatten)]
    pub(crate) settings: TimerArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task timer update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateTimerArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// The timer's name
    #[arg(long, value_name = "TIMER", help_heading = "Timer")]
    pub(crate) timer_name: String,

    /// Set the schedule, five fields of cron: minute, hour, day of the month, month, day of the
    /// week
    #[arg(long, value_name = "CRON", help_heading = "Timer")]
    pub(crate) schedule: Option<String>,

    #[command(flatten)]
    pub(crate) settings: TimerArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Settings of a timer beside its schedule.
#[derive(Debug, Args)]
#[command(next_help_heading = "Timer")]
pub(crate) struct TimerArgs {
    /// Set the IANA time zone of the schedule: Europe/Berlin ... [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub(crate) timezone: Option<String>,

    /// Delay each run by a constant part of this time: 5m, 1h30m [default: no delay]
    #[arg(long, value_name = "TIME")]
    pub(crate) jitter: Option<String>,

    /// Choose the policy for missed firings [default: run-once]
    #[arg(long, value_enum, ignore_case = true, value_name = "WHAT")]
    pub(crate) missed: Option<MissedPolicy>,

    /// Enable the timer: true or false [default: true]
    #[arg(long, value_name = "BOOL", value_parser = values::parse_bool)]
    pub(crate) enabled: Option<bool>,
}

/// Values of `--missed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MissedPolicy {
    /// Start one run for all of them
    RunOnce,
    /// Start no run
    Skip,
}

/// Arguments of `acrtask task timer list`.
#[derive(Debug, Args)]
pub(crate) struct TimersArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task timer remove`.
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

/// Subcommands of `acrtask task trigger-url`.
#[derive(Debug, Subcommand)]
pub(crate) enum TriggerUrlCommand {
    /// Create the URL that starts runs of a task and can do nothing else; this invalidates the
    /// previous one
    #[command(after_long_help = "\
Examples:
  acrtask task trigger-url create app
  acrtask task trigger-url create app --allow-set tag
  curl -fsS -X POST \"$URL\"
  curl -fsS -X POST \"$URL\" -H \"Idempotency-Key: $JOB\" -d '{\"set\": {\"tag\": \"v2\"}}'

The server shows the URL only once: anyone who has it can start runs of the task. A call returns the
run's id. A repeated Idempotency-Key returns the run of the first call.")]
    Create(CreateUrlArgs),
    /// Show if a task has a URL, and its last use
    Show(ShowUrlArgs),
    /// Remove the URL of a task, which invalidates it
    Remove(TaskNameArgs),
}

/// Arguments of `acrtask task trigger-url create`.
#[derive(Debug, Args)]
pub(crate) struct CreateUrlArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,

    /// Allow calls to set this value; may be repeated; replaces the list in the task
    #[arg(long, value_name = "KEY")]
    pub(crate) allow_set: Vec<String>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Arguments of `acrtask task trigger-url show`.
#[derive(Debug, Args)]
pub(crate) struct ShowUrlArgs {
    #[command(flatten)]
    pub(crate) name: NameArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
