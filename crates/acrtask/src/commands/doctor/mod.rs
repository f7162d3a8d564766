//! `acrtask doctor`: what is wrong with a server or with what a task needs there, and what to do about it.
//!
//! Invariants: it changes nothing. What cannot be looked at (a scope is missing, a host is not reached from here) is
//! said as not known, never as well. Looking is in [`Seen::look`] and [`outside`]; the judgements in [`checks`] and
//! [`probed`] are pure.

mod checks;
mod outside;
mod probed;

use std::time::{Duration, Instant};

use acrtask_api::{
    admin::{Credential, Me, Runner, Secret},
    probe::TaskProbe,
    run::{Page, RunSummary},
    task::Task,
    webhook::{Delivery, Webhook},
};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use super::{
    remote::{block_on, client, print_json},
    webhooks::newest,
};
use crate::{
    args::{
        server::{ListOutput, PeriodArgs},
        webhooks::DoctorArgs,
    },
    client::{ApiError, Client, retry::Retry},
    error::CliError,
    exit::Exit,
    render::style::Style,
};

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    Ok,
    /// It works, or may; somebody should look at it.
    Warning,
    /// It does not work.
    Wrong,
    /// It could not be looked at.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    /// What was looked at.
    name: &'static str,
    verdict: Verdict,
    /// What was seen, in one sentence.
    message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            message: message.into(),
            help: None,
        }
    }

    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, message)
    }

    fn warning(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warning, message)
    }

    fn wrong(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Wrong, message)
    }

    fn unknown(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Unknown, message)
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// What the server answered, or why it did not.
type Asked<T> = Result<T, String>;

/// How the server itself answers.
#[derive(Debug)]
struct Greeting {
    me: Me,
    /// How long the answer took.
    took: Duration,
    /// Seconds that the server's clock is before ours.
    ahead: Option<i64>,
}

/// All that the server says.
#[derive(Debug)]
struct Seen {
    url: Url,
    now: Timestamp,
    greeting: Greeting,
    runners: Asked<Vec<Runner>>,
    webhooks: Asked<Vec<Webhook>>,
    deliveries: Asked<Vec<Delivery>>,
    /// Deliveries that did not prove who sent them, since the server started.
    unproved: Asked<u64>,
    task: Option<SeenTask>,
}

/// What it says of the task.
#[derive(Debug)]
struct SeenTask {
    task: Task,
    secrets: Asked<Vec<Secret>>,
    credentials: Asked<Vec<Credential>>,
    last: Asked<Option<RunSummary>>,
    /// What the server finds at other hosts.
    probe: Asked<TaskProbe>,
}

/// All that was found out.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

/// Looks, and says what is wrong.
pub(crate) fn doctor(args: &DoctorArgs, style: Style) -> Result<Exit, CliError> {
    // Nobody waits for a server to come back in order to hear that it is away.
    let client = client(&args.server)?.retrying(Retry {
        total: Duration::ZERO,
        first: Duration::ZERO,
    });
    let checks = block_on(async {
        let greeting = match greet(&client).await {
            Ok(greeting) => greeting,
            Err(error) => return Ok(vec![away(&client, error)]),
        };
        let seen = Seen::look(&client, greeting, args.task.as_deref()).await?;
        let mut checks = checks::of(&seen);
        if let Some(seen) = &seen.task {
            checks.extend(outside::look(seen).await);
        }
        Ok(checks)
    })?;
    let report = Report {
        ok: checks.iter().all(|check| check.verdict != Verdict::Wrong),
        checks,
    };
    if args.output.output == ListOutput::Json {
        print_json(&report)?;
    } else {
        super::print(text(&report, style).as_bytes())?;
    }
    Ok(if report.ok {
        Exit::Succeeded
    } else {
        Exit::Failed
    })
}

async fn greet(client: &Client) -> Result<Greeting, ApiError> {
    let begun = Instant::now();
    let sent = Timestamp::now();
    let answer = client.stream(&["me"], &[]).await?;
    let took = begun.elapsed();
    let date = answer
        .headers()
        .get("date")
        .and_then(|value| value.to_str().ok());
    let theirs = date.and_then(|text| {
        jiff::fmt::rfc2822::DateTimeParser::new()
            .parse_timestamp(text)
            .ok()
    });
    // Half of the time on the way, and half of the second that the header leaves out.
    let ours = sent.as_second() + i64::try_from(took.as_secs() / 2).unwrap_or(0);
    let me = client.get(&["me"], &[]).await?;
    Ok(Greeting {
        me,
        took,
        ahead: theirs.map(|theirs| theirs.as_second() - ours),
    })
}

fn away(client: &Client, error: ApiError) -> Check {
    let url = crate::client::shown(client.url());
    let refused = error.status().is_some_and(|status| status.as_u16() == 401);
    let (message, help) = CliError::from(error).told();
    let message = if message.contains(url) {
        message
    } else {
        format!("{url}: {message}")
    };
    let check = Check::wrong(if refused { "token" } else { "server" }, message);
    match help {
        Some(help) => check.help(help),
        None => check,
    }
}

impl Seen {
    async fn look(
        client: &Client,
        greeting: Greeting,
        task: Option<&str>,
    ) -> Result<Self, CliError> {
        let task = match task {
            None => None,
            Some(name) => Some(SeenTask::look(client, name).await?),
        };
        Ok(Self {
            url: client.url().clone(),
            now: Timestamp::now(),
            greeting,
            runners: ask(client, "runners", &[]).await,
            webhooks: ask(client, "webhooks", &[]).await,
            deliveries: match newest(client, None, &PeriodArgs::default(), 100).await {
                Ok(page) => Ok(page.items),
                Err(error) => Err(error.to_string()),
            },
            unproved: match client.beside("metrics").await {
                Ok(text) => Ok(unproved(&text)),
                Err(error) => Err(error.to_string()),
            },
            task,
        })
    }
}

impl SeenTask {
    async fn look(client: &Client, name: &str) -> Result<Self, CliError> {
        let task = super::stored::find(client, name).await?;
        let query = [("task", name.to_owned()), ("limit", "1".to_owned())];
        let runs: Asked<Page<RunSummary>> = ask(client, "runs", &query).await;
        let at = ["tasks", name, "probe"];
        let probe: Result<TaskProbe, ApiError> = client.post(&at, &serde_json::json!({})).await;
        Ok(Self {
            task,
            secrets: ask(client, "secrets", &[]).await,
            credentials: ask(client, "credentials", &[]).await,
            last: runs.map(|page| page.items.into_iter().next()),
            probe: probe.map_err(|error| error.to_string()),
        })
    }

    fn name(&self) -> &str {
        &self.task.definition.name
    }

    /// Whether a login for `host` is stored that the task may use.
    fn has_login(&self, host: &str) -> Asked<bool> {
        let credentials = self.credentials.as_ref().map_err(Clone::clone)?;
        let host = acrtask_registry::credentials::canonical_host(host);
        Ok(credentials.iter().any(|one| {
            one.host == host && one.task.as_deref().is_none_or(|task| task == self.name())
        }))
    }
}

async fn ask<T: DeserializeOwned>(
    client: &Client,
    what: &str,
    query: &[(&str, String)],
) -> Asked<T> {
    client
        .get(&[what], query)
        .await
        .map_err(|error: ApiError| error.to_string())
}

/// The count of deliveries without a proof, in a text for Prometheus.
fn unproved(metrics: &str) -> u64 {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix("acrtask_webhook_deliveries_total{"))
        .filter(|rest| rest.contains("outcome=\"unproved\""))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn text(report: &Report, style: Style) -> String {
    let mut out = String::new();
    let width = report.checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or_default();
    for check in &report.checks {
        let word = match check.verdict {
            Verdict::Ok => style.good("ok     "),
            Verdict::Warning => style.warn("warning"),
            Verdict::Wrong => style.bad("wrong  "),
            Verdict::Unknown => style.dim("unknown"),
        };
        let message = crate::render::text::plain(&check.message);
        out += &format!("{word}  {:width$}  {message}\n", check.name);
        if let Some(help) = &check.help {
            let indent = " ".repeat(9 + width + 2);
            let help = crate::render::text::plain(help);
            out += &format!("{indent}{} {help}\n", style.bold("do:"));
        }
    }
    let wrong = report
        .checks
        .iter()
        .filter(|check| check.verdict == Verdict::Wrong);
    out += &match wrong.count() {
        0 => format!("\n{}\n", style.good("nothing is wrong")),
        1 => format!("\n{}\n", style.bad("1 thing is wrong")),
        n => format!("\n{}\n", style.bad(&format!("{n} things are wrong"))),
    };
    out
}

#[cfg(test)]
mod tests;
