//! What the server found where the task's files and images are. Pure.

use acrtask_api::probe::{Probe, ProbeLogin, ProbeOutcome, TaskProbe};

use super::{
    Asked, Check, Verdict,
    checks::{SKEW, SKEW_TOO_MUCH},
};

/// What is said of it.
pub(super) fn of(found: &Asked<TaskProbe>) -> Vec<Check> {
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            return vec![Check::unknown(
                "repository",
                format!("the server did not look at the task's hosts: {error}"),
            )];
        }
    };
    let source = found.source.iter().map(|probe| {
        // Runners fetch the files, and may reach what the server does not.
        let verdict = match probe.outcome {
            ProbeOutcome::NoLogin => Verdict::Wrong,
            ProbeOutcome::Unreachable => Verdict::Warning,
            // It is read, and has moved.
            ProbeOutcome::Works | ProbeOutcome::Open if probe.help.is_some() => Verdict::Warning,
            other => usual(other),
        };
        check("repository", verdict, probe)
    });
    let logins = found.logins.iter().map(|probe| {
        let verdict = match probe.outcome {
            // Runners may have logins of their own.
            ProbeOutcome::NoLogin => Verdict::Warning,
            // What has a login and is no registry may be the API of a forge; a task's own registry is one.
            ProbeOutcome::NoRegistry if probe.login.is_some() => Verdict::Ok,
            other => usual(other),
        };
        check("login", verdict, probe)
    });
    source.chain(logins).chain(clocks(found)).collect()
}

fn usual(outcome: ProbeOutcome) -> Verdict {
    match outcome {
        ProbeOutcome::Works | ProbeOutcome::Open => Verdict::Ok,
        ProbeOutcome::NotTried | ProbeOutcome::PrivateAddress => Verdict::Unknown,
        ProbeOutcome::NoLogin
        | ProbeOutcome::Denied
        | ProbeOutcome::Missing
        | ProbeOutcome::Unreachable
        | ProbeOutcome::Refused
        | ProbeOutcome::NoRegistry => Verdict::Wrong,
    }
}

fn check(name: &'static str, verdict: Verdict, probe: &Probe) -> Check {
    let whose = match probe.login {
        Some(ProbeLogin::Task) => " (the task's own login)",
        Some(ProbeLogin::All) => " (the login of all tasks)",
        None => "",
    };
    let check = Check::new(
        name,
        verdict,
        format!("from the server: {}{whose}", probe.message),
    );
    match &probe.help {
        Some(help) if verdict != Verdict::Ok => check.help(help),
        _ => check,
    }
}

/// The clocks of all hosts, in one check: where one differs it is named.
fn clocks(found: &TaskProbe) -> Option<Check> {
    const NAME: &str = "clocks";
    let told = found.source.iter().chain(&found.logins);
    let told: Vec<(&str, i64)> = told
        .filter_map(|probe| Some((probe.host.as_str(), probe.clock_ahead?)))
        .collect();
    let (_, worst) = told.iter().max_by_key(|(_, ahead)| ahead.abs())?;
    if worst.abs() <= SKEW {
        let hosts: Vec<&str> = told.iter().map(|(host, _)| *host).collect();
        return Some(Check::ok(
            NAME,
            format!("the server's clock agrees with {}", hosts.join(", ")),
        ));
    }
    let differ: Vec<String> = told
        .iter()
        .filter(|(_, ahead)| ahead.abs() > SKEW)
        .map(|(host, ahead)| {
            let way = if *ahead > 0 { "ahead of" } else { "behind" };
            format!("{host} is {} s {way} the server's clock", ahead.abs())
        })
        .collect();
    let verdict = if worst.abs() > SKEW_TOO_MUCH {
        Verdict::Wrong
    } else {
        Verdict::Warning
    };
    Some(
        Check::new(NAME, verdict, differ.join(", "))
            .help("set the server's clock by NTP; where that is right, the host's is wrong: tokens and signatures go by them"),
    )
}
