//! Checks of the server's own probes of the task's hosts. Pure functions.

use acrtask_api::probe::{Probe, ProbeLogin, ProbeOutcome, TaskProbe};

use super::{
    Check, ServerReply, Verdict,
    checks::{SKEW, SKEW_TOO_MUCH},
};

/// Returns the checks of the probes.
pub(super) fn check_probes(found: &ServerReply<TaskProbe>) -> Vec<Check> {
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            return vec![Check::unknown(
                "repository",
                format!("the server did not probe the task's hosts: {error}"),
            )];
        }
    };
    let source = found.source.iter().map(|probe| {
        // Runners fetch the files, and may reach hosts that the server cannot reach.
        let verdict = match probe.outcome {
            ProbeOutcome::NoLogin => Verdict::Wrong,
            ProbeOutcome::Unreachable => Verdict::Warning,
            // The repository is readable, but its address has changed.
            ProbeOutcome::Works | ProbeOutcome::Open if probe.help.is_some() => Verdict::Warning,
            other => default_verdict(other),
        };
        probe_check("repository", verdict, probe)
    });
    let logins = found.logins.iter().map(|probe| {
        let verdict = match probe.outcome {
            // Runners may have their own logins.
            ProbeOutcome::NoLogin => Verdict::Warning,
            // A host with a login that is not a registry may be a forge's API; the task's own
            // registry has no login here.
            ProbeOutcome::NoRegistry if probe.login.is_some() => Verdict::Ok,
            other => default_verdict(other),
        };
        probe_check("login", verdict, probe)
    });
    source.chain(logins).chain(check_clocks(found)).collect()
}

fn default_verdict(outcome: ProbeOutcome) -> Verdict {
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

fn probe_check(name: &'static str, verdict: Verdict, probe: &Probe) -> Check {
    let whose = match probe.login {
        Some(ProbeLogin::Task) => " (the task's own login)",
        Some(ProbeLogin::Prefix) => " (the login of a prefix of tasks)",
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

/// Combines the clocks of all hosts in one check, which lists the hosts that differ.
fn check_clocks(found: &TaskProbe) -> Option<Check> {
    const NAME: &str = "clocks";
    let probes = found.source.iter().chain(&found.logins);
    let clocks: Vec<(&str, i64)> = probes
        .filter_map(|probe| Some((probe.host.as_str(), probe.clock_ahead_secs?)))
        .collect();
    let (_, worst) = clocks.iter().max_by_key(|(_, ahead)| ahead.abs())?;
    if worst.abs() <= SKEW {
        let hosts: Vec<&str> = clocks.iter().map(|(host, _)| *host).collect();
        return Some(Check::ok(
            NAME,
            format!("the server's clock agrees with {}", hosts.join(", ")),
        ));
    }
    let differ: Vec<String> = clocks
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
            .help("set the server's clock by NTP; if it is already correct, the host's clock is wrong: tokens and signatures depend on them"),
    )
}
