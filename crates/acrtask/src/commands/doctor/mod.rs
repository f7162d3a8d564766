//! `acrtask doctor`: finds problems of a server, or of what a task needs there, and suggests fixes.
//!
//! Invariants: the command changes nothing. If something cannot be checked (a scope is missing, a
//! host is not reachable from here), the result is `unknown`, never `ok`. [`ServerState::collect`]
//! and [`host_checks`] gather the data; the checks in [`checks`] and [`probe_checks`] are pure.

mod checks;
mod host_checks;
mod probe_checks;

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
    webhook::newest_deliveries,
};
use crate::{
    args::{
        doctor::DoctorArgs,
        server::{ListOutput, PeriodArgs},
    },
    client::{ApiError, Client, retry::Retry},
    error::CliError,
    exit::Exit,
    render::style::Style,
};

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    Ok,
    /// Works, but has a problem that you should fix.
    Warning,
    /// Does not work.
    Wrong,
    /// Could not be checked.
    Unknown,
}

/// Check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    /// Subject of the check.
    name: &'static str,
    verdict: Verdict,
    /// Finding, in one sentence.
    message: String,
    /// Remedy; `None` if nothing needs to be done.
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

/// Response of the server, or the error message.
type ServerReply<T> = Result<T, String>;

/// Response time, clock and identity of the server.
#[derive(Debug)]
struct ServerInfo {
    me: Me,
    /// Response time of the request.
    response_time: Duration,
    /// Seconds that the server's clock is ahead of this machine's.
    ahead: Option<i64>,
}

/// State of the server that the checks examine.
#[derive(Debug)]
struct ServerState {
    url: Url,
    now: Timestamp,
    info: ServerInfo,
    runners: ServerReply<Vec<Runner>>,
    webhooks: ServerReply<Vec<Webhook>>,
    deliveries: ServerReply<Vec<Delivery>>,
    /// Number of deliveries without valid authentication since the server started.
    unauthenticated: ServerReply<u64>,
    task: Option<TaskState>,
}

/// State of the task that the checks examine.
#[derive(Debug)]
struct TaskState {
    task: Task,
    secrets: ServerReply<Vec<Secret>>,
    credentials: ServerReply<Vec<Credential>>,
    last_run: ServerReply<Option<RunSummary>>,
    /// Results of the server's probes of other hosts.
    probe: ServerReply<TaskProbe>,
}

/// Report of all checks.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

/// Runs the checks and prints the report.
pub(crate) fn doctor(args: &DoctorArgs, style: Style) -> Result<Exit, CliError> {
    // Retries would only delay the message that the server is unreachable.
    let client = client(&args.server)?.retrying(Retry {
        total: Duration::ZERO,
        first: Duration::ZERO,
    });
    let checks = block_on(async {
        let info = match fetch_info(&client).await {
            Ok(info) => info,
            Err(error) => return Ok(vec![unreachable_check(&client, error)]),
        };
        let state = ServerState::collect(&client, info, args.task.as_deref()).await?;
        let mut checks = checks::check_state(&state);
        if let Some(state) = &state.task {
            checks.extend(host_checks::check_hosts(state).await);
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
        super::print(render_report(&report, style).as_bytes())?;
    }
    Ok(if report.ok {
        Exit::Succeeded
    } else {
        Exit::Failed
    })
}

async fn fetch_info(client: &Client) -> Result<ServerInfo, ApiError> {
    let started = Instant::now();
    let sent = Timestamp::now();
    let response = client.stream(&["me"], &[]).await?;
    let response_time = started.elapsed();
    let date = response
        .headers()
        .get("date")
        .and_then(|value| value.to_str().ok());
    let server_time = date.and_then(|text| {
        jiff::fmt::rfc2822::DateTimeParser::new()
            .parse_timestamp(text)
            .ok()
    });
    // Adds half of the response time, and rounds like the header, which has whole seconds.
    let local_time = sent.as_second() + i64::try_from(response_time.as_secs() / 2).unwrap_or(0);
    let me = client.get(&["me"], &[]).await?;
    Ok(ServerInfo {
        me,
        response_time,
        ahead: server_time.map(|time| time.as_second() - local_time),
    })
}

fn unreachable_check(client: &Client, error: ApiError) -> Check {
    let url = crate::client::display_url(client.url());
    let refused = error.status().is_some_and(|status| status.as_u16() == 401);
    let (message, help) = CliError::from(error).into_message_and_help();
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

impl ServerState {
    async fn collect(
        client: &Client,
        info: ServerInfo,
        task: Option<&str>,
    ) -> Result<Self, CliError> {
        let task = match task {
            None => None,
            Some(name) => Some(TaskState::collect(client, name).await?),
        };
        Ok(Self {
            url: client.url().clone(),
            now: Timestamp::now(),
            info,
            runners: fetch(client, "runners", &[]).await,
            webhooks: fetch(client, "webhooks", &[]).await,
            deliveries: match newest_deliveries(client, None, &PeriodArgs::default(), 100).await {
                Ok(page) => Ok(page.items),
                Err(error) => Err(error.to_string()),
            },
            unauthenticated: match client.get_text("metrics").await {
                Ok(text) => Ok(count_unauthenticated(&text)),
                Err(error) => Err(error.to_string()),
            },
            task,
        })
    }
}

impl TaskState {
    async fn collect(client: &Client, name: &str) -> Result<Self, CliError> {
        let task = super::task::find_task(client, name).await?;
        let query = [("task", name.to_owned()), ("limit", "1".to_owned())];
        let runs: ServerReply<Page<RunSummary>> = fetch(client, "runs", &query).await;
        let at = ["tasks", name, "probe"];
        let probe: Result<TaskProbe, ApiError> = client.post(&at, &serde_json::json!({})).await;
        Ok(Self {
            task,
            secrets: fetch(client, "secrets", &[]).await,
            credentials: fetch(client, "credentials", &[]).await,
            last_run: runs.map(|page| page.items.into_iter().next()),
            probe: probe.map_err(|error| error.to_string()),
        })
    }

    fn name(&self) -> &str {
        &self.task.definition.name
    }

    /// Returns `true` if a login for `host` is stored that the task may use.
    fn has_login(&self, host: &str) -> ServerReply<bool> {
        let credentials = self.credentials.as_ref().map_err(Clone::clone)?;
        let host = acrtask_registry::credentials::canonical_host(host);
        Ok(credentials
            .iter()
            .any(|credential| credential.host == host && credential.applies_to(self.name())))
    }
}

async fn fetch<T: DeserializeOwned>(
    client: &Client,
    resource: &str,
    query: &[(&str, String)],
) -> ServerReply<T> {
    client
        .get(&[resource], query)
        .await
        .map_err(|error: ApiError| error.to_string())
}

/// Sums the deliveries without valid authentication in the server's Prometheus metrics.
fn count_unauthenticated(metrics: &str) -> u64 {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix("acrtask_webhook_deliveries_total{"))
        .filter(|rest| rest.contains("outcome=\"unproved\""))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn render_report(report: &Report, style: Style) -> String {
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
        let message = crate::render::text::plain_line(&check.message);
        out += &format!("{word}  {:width$}  {message}\n", check.name);
        if let Some(help) = &check.help {
            let indent = " ".repeat(9 + width + 2);
            let help = crate::render::text::plain_line(help);
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
