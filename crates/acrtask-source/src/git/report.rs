//! Error messages of git, shortened for users.

/// Returns the most informative line of git's output.
pub(super) fn first_cause(stderr: &str) -> String {
    let lines = || {
        stderr
            .lines()
            .map(|line| line.trim_matches(|c: char| c == '@' || c.is_whitespace()))
            .filter(|line| !line.is_empty())
    };
    // The message of ssh precedes git's message, which only reports a closed connection.
    let of_ssh = lines().find(|line| {
        [
            "IDENTIFICATION HAS CHANGED",
            "host key is known for",
            "Permission denied",
        ]
        .iter()
        .any(|sign| line.contains(sign))
    });
    let of_git = lines().find(|line| {
        ["fatal:", "error:", "ERROR:", "remote:"]
            .iter()
            .any(|prefix| line.starts_with(prefix))
            || line.contains("Host key verification")
    });
    let line = of_ssh
        .or(of_git)
        .or_else(|| lines().next_back())
        .unwrap_or("git reported no reason");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Returns `true` if git, curl or ssh reported a failed connection.
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

/// Returns advice on common failures of git. `own_key` is `true` if the user gave an SSH key for
/// the host.
pub(super) fn find_advice(stderr: &str, own_key: bool) -> Option<String> {
    let of_keys = if own_key {
        [
            (
                "IDENTIFICATION HAS CHANGED",
                "the key of the host has changed: find out why, and only then change its known_hosts lines",
            ),
            (
                "Host key verification failed",
                "add the host's known_hosts lines to the key: run `ssh-keyscan HOST`, and compare the result with the keys that the host publishes",
            ),
            (
                "Permission denied (publickey",
                "the host refuses the SSH key: add its public key there",
            ),
        ]
    } else {
        [
            (
                "IDENTIFICATION HAS CHANGED",
                "the key of the host has changed: find out why, and only then change known_hosts",
            ),
            (
                "Host key verification failed",
                "connect once with ssh to add the host to known_hosts",
            ),
            (
                "Permission denied (publickey",
                "load a key that the host accepts into the SSH agent",
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
