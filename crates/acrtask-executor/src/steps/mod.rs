//! Execution of one step: `startDelay`, then `repeat` rounds of attempts. Each attempt has a
//! `timeout`. A failed attempt is retried as the step defines it.

pub(crate) mod build;
pub(crate) mod push;

use std::time::Duration;

use acrtask_model::EventKind;
use acrtask_spec::plan::StepKind;
use tokio_util::sync::CancellationToken;

use crate::{
    cmd,
    context::StepContext,
    graph::End,
    policy::{Attempt, retry::Retry, timeout::run_with_timeout},
};

/// Additional data for the last event of a step.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// For a failed build: the lines of the Dockerfile.
    pub(crate) excerpt: Option<String>,
}

/// Runs a step to its end.
pub(crate) async fn run(ctx: &StepContext) -> (End, Trace) {
    let step = &ctx.step;
    let mut trace = Trace::default();
    if !wait(step.start_delay, &ctx.cancel).await {
        return (End::Stopped, trace);
    }
    let retry = Retry {
        retries: step.retries,
        delay: step.retry_delay,
        only_on_match: !step.retry_on_errors.is_empty(),
    };
    // A detached step runs as long as its run.
    let limit = (!step.container.detach && !step.timeout.is_zero()).then_some(step.timeout);
    let mut number = 0;
    for _round in 0..=step.repeat {
        let mut attempt_of_round = 0;
        let ended = loop {
            number += 1;
            attempt_of_round += 1;
            ctx.output.begin_attempt();
            let started = EventKind::StepStarted {
                step: step.id.clone(),
                attempt: number,
            };
            ctx.run.events.send(started).await;
            let ended = run_with_timeout(limit, &ctx.cancel, |cancel| {
                run_attempt(ctx, cancel, &mut trace)
            })
            .await;
            let Some(delay) =
                retry.next_delay(attempt_of_round, &ended, ctx.output.found_retry_text())
            else {
                break ended;
            };
            let retrying = EventKind::StepRetrying {
                step: step.id.clone(),
                attempt: number,
                delay_secs: delay.as_secs(),
                reason: ended.reason().unwrap_or_default(),
            };
            ctx.run.events.send(retrying).await;
            if !wait(delay, &ctx.cancel).await {
                return (End::Stopped, trace);
            }
        };
        match ended {
            Attempt::Succeeded => {}
            Attempt::Failed { reason, exit_code } => {
                let reason = ctx.output.mask(&reason);
                return (End::Failed { reason, exit_code }, trace);
            }
            Attempt::TimedOut { after_secs } => return (End::TimedOut { after_secs }, trace),
            Attempt::Stopped => return (End::Stopped, trace),
        }
    }
    (End::Succeeded, trace)
}

async fn run_attempt(ctx: &StepContext, cancel: CancellationToken, trace: &mut Trace) -> Attempt {
    let ctx = StepContext {
        cancel,
        ..ctx.clone()
    };
    match &ctx.step.kind {
        StepKind::Cmd(step) => match &step.line {
            Ok(line) => cmd::run(&ctx, line).await,
            Err(refusal) => Attempt::failed(refusal.message.clone()),
        },
        StepKind::Build(step) => match &step.line {
            Ok(line) => build::run(&ctx, step, line, trace).await,
            Err(refusal) => Attempt::failed(refusal.message.clone()),
        },
        StepKind::Push(step) => push::run(&ctx, step).await,
    }
}

/// Waits for `time`. Returns `false` if the step must end.
pub(crate) async fn wait(time: Duration, cancel: &CancellationToken) -> bool {
    if time.is_zero() {
        return !cancel.is_cancelled();
    }
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = cancel.cancelled() => false,
    }
}
