//! What git's error stream says, for people.

/// The line of git's output that says most.
pub(super) fn first_cause(stderr: &str) -> String {
    let lines = || {
        stderr
            .lines()
            .map(|line| line.trim_matches(|c: char| c == '@' || c.is_whitespace()))
            .filter(|line| !line.is_empty())
    };
    // What ssh says comes before git's own words on it, which only say that the connection ended.
    let of_ssh = lines().find(|line| {
        [
            "IDENTIFICATION HAS CHANGED",
            "host key is known for",
            "Permission denied",
        ]
        .iter()
        .any(|sign| line.contains(sign))
    });
    let telling = lines().find(|line| {
        ["fatal:", "error:", "ERROR:", "remote:"]
            .iter()
            .any(|prefix| line.starts_with(prefix))
            || line.contains("Host key verification")
    });
    let line = of_ssh
        .or(telling)
        .or_else(|| lines().next_back())
        .unwrap_or("git says nothing");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Whether git, or the curl or ssh that it uses, says that there was no connection.
pub(super) fn is_unreachable(stderr: &str) -> bool {
    [
        "Could not resolve host",
        "Failed to connect",
        "Couldn't connect to server",
        "Connection refused",
        "Connection timed out",
        "Connection reset",
        "No route to host",
        "Network is unreachable",
        "unable to connect to",
        "unable to look up",
    ]
    .iter()
    .any(|sign| stderr.contains(sign))
}

/// What to do about git's commonest failures. `own_key`: ssh had a key that was given for the host.
pub(super) fn advice(stderr: &str, own_key: bool) -> Option<String> {
    let of_keys = if own_key {
        [
            (
                "IDENTIFICATION HAS CHANGED",
                "the host shows another key than the known one: find out why, and only then change its known hosts",
            ),
            (
                "Host key verification failed",
                "give the host's lines of known_hosts with the key: `ssh-keyscan HOST`, compared with what the host publishes",
            ),
            (
                "Permission denied (publickey",
                "the host does not take the SSH key that was given for it: add its public half there",
            ),
        ]
    } else {
        [
            (
                "IDENTIFICATION HAS CHANGED",
                "the host shows another key than the known one: find out why, and only then change known_hosts",
            ),
            (
                "Host key verification failed",
                "connect once with ssh to make the host known",
            ),
            (
                "Permission denied (publickey",
                "load a key that the host knows into the SSH agent",
            ),
        ]
    };
    let others = [
        (
            "could not read Username",
            "the repository does not exist, or is private: give a credential for its host",
        ),
        (
            "Authentication failed",
            "check the credential for this host: it is wrong or expired",
        ),
        (
            "The requested URL returned error: 403",
            "the credential for this host does not allow this",
        ),
        (
            "not found",
            "check the URL; a private repository needs a credential for its host",
        ),
        (
            "Repository not found",
            "check the URL; a private repository needs a credential for its host",
        ),
        (
            "Could not resolve host",
            "check the host's name and the network",
        ),
        (
            "dubious ownership",
            "the repository belongs to another user of this machine",
        ),
        (
            "unable to update url base from redirection",
            "write the URL that the server redirects to",
        ),
    ];
    of_keys
        .iter()
        .chain(&others)
        .find(|(sign, _)| stderr.contains(sign))
        .map(|(_, help)| (*help).to_owned())
}
