//! Detection of command positions in scripts, for shells and for programs that they start.
//!
//! The lists group programs by their use of arguments. A program that is in none of them gets its
//! arguments as data, as the author of the script intends.

use crate::cmd_line::is_script_flag;

/// Words directly before a command. After one of their options, any word may be the command.
const PREFIXES: [&str; 29] = [
    "if",
    "then",
    "elif",
    "else",
    "while",
    "until",
    "do",
    "exec",
    "eval",
    "command",
    "builtin",
    "env",
    "sudo",
    "doas",
    "time",
    "nohup",
    "xargs",
    "source",
    ".",
    "coproc",
    "setsid",
    "trap",
    "setarch",
    "linux64",
    "linux32",
    "catchsegv",
    "fakeroot",
    "strace",
    "ltrace",
];
/// Programs that run some of their arguments as a command.
const RUNNERS: [&str; 44] = [
    "timeout",
    "nice",
    "ionice",
    "chrt",
    "taskset",
    "stdbuf",
    "unbuffer",
    "chroot",
    "unshare",
    "nsenter",
    "flock",
    "watch",
    "parallel",
    "su",
    "runuser",
    "setpriv",
    "capsh",
    "gosu",
    "su-exec",
    "chpst",
    "start-stop-daemon",
    "systemd-run",
    "prlimit",
    "busybox",
    "toybox",
    "script",
    "expect",
    "ssh",
    "entr",
    "runcon",
    "dbus-run-session",
    "xvfb-run",
    "tini",
    "dumb-init",
    "firejail",
    "bwrap",
    "at",
    "npx",
    "pnpx",
    "bunx",
    "uvx",
    "pipx",
    "lxc-attach",
    "corepack",
];
/// Programs that run a command after one of [`CONTAINER_VERBS`].
const CONTAINER_PROGRAMS: [&str; 11] = [
    "docker", "podman", "nerdctl", "kubectl", "oc", "crictl", "ctr", "lxc", "buildah", "npm",
    "pnpm",
];
const CONTAINER_VERBS: [&str; 6] = ["exec", "run", "create", "debug", "dlx", "x"];
/// Programs whose first argument is a program or a file with one.
const INTERPRETERS: [&str; 20] = [
    "sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "csh", "tcsh", "pwsh", "python",
    "python2", "python3", "perl", "ruby", "node", "php", "awk", "gawk",
];
/// Options of `find` before a command.
const FIND_OPTIONS: [&str; 4] = ["-exec", "-execdir", "-ok", "-okdir"];

/// Returns `true` if a word after `before` may be run as a command, or decide which command runs.
pub(super) fn begins_command(before: &str) -> bool {
    let quoted = before.trim_end_matches(['"', '\'']);
    let text = quoted.trim_end_matches([' ', '\t', '"', '\'']);
    let in_word = quoted.len() == text.len()
        && text
            .chars()
            .next_back()
            .is_some_and(|last| !is_separator(last) && last != ')');
    if in_word {
        // The author wrote the start of the word, such as `eval"`.
        let mut words = text.rsplit(|c: char| c.is_whitespace() || is_separator(c));
        return words
            .next()
            .is_some_and(|word| PREFIXES.contains(&word) && word != ".");
    }
    let Some(command) = last_command(quoted) else {
        return false;
    };
    let words = command
        .split_whitespace()
        .map(|word| word.trim_matches(['"', '\'']));
    takes_command(words)
}

/// Returns the command at the end of `script`, without redirections.
///
/// `None` if the script ends in the target of a redirection.
fn last_command(script: &str) -> Option<String> {
    let mut outer = Vec::new();
    let mut command = String::new();
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '<' | '>' => skip_redirection(&mut command, &mut chars)?,
            '&' if chars.peek() == Some(&'>') => {}
            '(' => outer.push(std::mem::take(&mut command)),
            // A word of the outer command, or the end of a `case` pattern.
            ')' => match outer.pop() {
                Some(around) if !ends_in_pattern(&around) => command = around + "_",
                _ => command.clear(),
            },
            c if is_separator(c) => command.clear(),
            c => command.push(c),
        }
    }
    Some(command)
}

/// Returns `true` if brackets after `before` belong to a `case` pattern.
fn ends_in_pattern(before: &str) -> bool {
    before
        .split_whitespace()
        .next_back()
        .is_none_or(|word| word == "in")
}

/// Skips a redirection and its target, and removes the number before it.
///
/// `None` if the script ends before the target does. A process substitution `<(...)` is not a
/// redirection.
fn skip_redirection(
    command: &mut String,
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
) -> Option<()> {
    if chars.peek() == Some(&'(') {
        return Some(());
    }
    let number = command.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let is_number = number == 0 || command[..number].ends_with(char::is_whitespace);
    if is_number {
        command.truncate(number);
    }
    while chars
        .next_if(|c| matches!(c, '<' | '>' | '&' | '|'))
        .is_some()
    {}
    while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
    while chars
        .next_if(|&c| !c.is_whitespace() && !is_separator(c))
        .is_some()
    {}
    chars.peek().map(|_| command.push(' '))
}

fn is_separator(c: char) -> bool {
    matches!(c, ';' | '&' | '|' | '(' | '{' | '!' | '`' | '\n' | '\r')
}

/// Returns `true` if a command may follow these words of one command.
fn takes_command<'w>(words: impl Iterator<Item = &'w str>) -> bool {
    let mut words = words.peekable();
    loop {
        let Some(word) = words.next() else {
            return true;
        };
        let program = word.rsplit('/').next().unwrap_or(word);
        // An option of a prefix may have an argument.
        if word.starts_with('-') || RUNNERS.contains(&program) {
            return true;
        }
        if is_assignment(word) || PREFIXES.contains(&program) {
            continue;
        }
        if program == "find" {
            return words.any(|word| FIND_OPTIONS.contains(&word));
        }
        if CONTAINER_PROGRAMS.contains(&program) {
            return words.any(|word| CONTAINER_VERBS.contains(&word));
        }
        if !INTERPRETERS.contains(&program) {
            return false;
        }
        let mut is_script = false;
        while let Some(option) = words.next_if(|word| word.starts_with('-')) {
            is_script |= is_script_flag(Some(option));
        }
        // Read the words of a nested script as those of its first command.
        if !is_script {
            return words.next().is_none();
        }
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        let name = name.strip_suffix('+').unwrap_or(name);
        let name = name.split('[').next().unwrap_or(name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_command_position_are_commands() {
        for (before, expected) in [
            ("", true),
            ("echo ", false),
            ("echo a; ", true),
            ("echo a && ", true),
            ("cat a | ", true),
            ("x=$(", true),
            ("if ", true),
            ("if test -f ", false),
            (". ", true),
            ("source ", true),
            ("A=1 B=2 ", true),
            ("A=", false),
            ("A=1 app ", false),
            ("exec ", true),
            ("exec app ", false),
            ("exec -a ", true),
            ("exec -a name ", true),
            ("eval \"", true),
            ("eval\"", true),
            ("/usr/bin/env ", true),
            ("env A=1 ", true),
            ("env A=1 app ", false),
            ("env -i ", true),
            ("sudo app ", false),
            ("sudo -u me ", true),
            ("timeout 5 ", true),
            ("timeout -s KILL 5 ", true),
            ("/usr/bin/timeout 5 ", true),
            ("nice -n 5 ", true),
            ("setsid ", true),
            ("ionice -c 3 ", true),
            ("stdbuf -oL ", true),
            ("nohup ", true),
            ("time ", true),
            ("time app ", false),
            ("command ", true),
            ("builtin ", true),
            ("doas ", true),
            ("chroot /x ", true),
            ("unshare -r ", true),
            ("flock /lock ", true),
            ("watch ", true),
            ("parallel ", true),
            ("su -c ", true),
            ("runuser -u me -- ", true),
            ("start-stop-daemon -S -x ", true),
            ("busybox ", true),
            ("ssh host ", true),
            ("xargs ", true),
            ("xargs -n 1 ", true),
            ("xargs echo ", false),
            ("find . -name ", false),
            ("find . -exec ", true),
            ("sh ", true),
            ("sh -x ", true),
            ("sh run.sh ", false),
            ("bash -c \"", true),
            ("bash -c \"timeout 5 ", true),
            ("bash -c \"echo ", false),
            ("python3 -m ", true),
            ("python3 app.py ", false),
            ("app --tag ", false),
            ("app --tag=", false),
            ("app \"", false),
            ("app-", false),
            ("A+=1 ", true),
            ("A[0]=1 ", true),
            ("A=$(date) ", true),
            ("echo $(date) ", false),
            ("echo $(date; ", true),
            ("case x in a) ", true),
            ("case x in (a) ", true),
            ("> /tmp/log ", true),
            (">/tmp/log ", true),
            ("2>&1 ", true),
            ("2>&1 app ", false),
            ("&>/tmp/log ", true),
            ("< /dev/null app ", false),
            ("app 2>&1 ", false),
            ("app > ", false),
            ("app >>", false),
            ("app 2>&1; ", true),
            ("app <(", true),
            ("app <<< ", false),
            ("npx ", true),
            ("docker exec app ", true),
            ("docker push ", false),
            ("kubectl exec pod -- ", true),
            ("kubectl apply -f ", false),
            ("npm run ", true),
            ("npm install ", false),
        ] {
            assert_eq!(begins_command(before), expected, "{before:?}");
        }
    }
}
