//! Parser of cmd lines.

use std::ops::Range;

use acrtask_model::ImageRef;

use super::{
    CmdLine, Command, CommandKind, ContainerLine, Joiner, Pipeline, Redirect, RunFlags, Word,
    acr::is_acr_command,
};
use crate::{
    flags::{self, Flag, FlagsEnd, GivenFlag, PlacedWord, switch, value},
    lexer::{self, Operator, Redirection, Token, TokenKind, refusal, single_quoted},
    plan::LineRefusal,
};

/// Builtins of the executor. Any command but the first may be one of them.
pub const BUILTINS: [&str; 8] = ["true", "false", "echo", "exit", "pwd", "ls", "cat", "date"];

/// Words that start a construct of a shell.
const SHELL_WORDS: [&str; 27] = [
    "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "{",
    "}", "!", "[[", "function", "select", "cd", "export", "set", "unset", "source", ".", "eval",
    "exec", "trap",
];

/// Programs that the helper image of the reference executor contains, and that are not names of
/// images.
const TOOLS: [&str; 30] = [
    "[", "test", "sh", "sleep", "grep", "sed", "awk", "tr", "head", "tail", "tee", "xargs",
    "mkdir", "rm", "cp", "mv", "touch", "chmod", "chown", "find", "sort", "uniq", "wc", "cut",
    "printf", "env", "tar", "gzip", "wget", "which",
];

/// Flags of `docker run`.
const RUN_FLAGS: [Flag; 95] = [
    value("add-host"),
    value("annotation"),
    value("attach").with_short('a'),
    value("blkio-weight"),
    value("blkio-weight-device"),
    value("cap-add"),
    value("cap-drop"),
    value("cgroup-parent"),
    value("cgroupns"),
    value("cidfile"),
    value("cpu-period"),
    value("cpu-quota"),
    value("cpu-rt-period"),
    value("cpu-rt-runtime"),
    value("cpu-shares").with_short('c'),
    value("cpus"),
    value("cpuset-cpus"),
    value("cpuset-mems"),
    switch("detach").with_short('d'),
    value("detach-keys"),
    value("device"),
    value("device-cgroup-rule"),
    value("device-read-bps"),
    value("device-read-iops"),
    value("device-write-bps"),
    value("device-write-iops"),
    switch("disable-content-trust"),
    value("dns"),
    value("dns-option"),
    value("dns-search"),
    value("domainname"),
    value("entrypoint"),
    value("env").with_short('e'),
    value("env-file"),
    value("expose"),
    value("gpus"),
    value("group-add"),
    value("health-cmd"),
    value("health-interval"),
    value("health-retries"),
    value("health-start-period"),
    value("health-timeout"),
    switch("help"),
    value("hostname").with_short('h'),
    switch("init"),
    switch("interactive").with_short('i'),
    value("ip"),
    value("ip6"),
    value("ipc"),
    value("isolation"),
    value("label").with_short('l'),
    value("label-file"),
    value("link"),
    value("link-local-ip"),
    value("log-driver"),
    value("log-opt"),
    value("mac-address"),
    value("memory").with_short('m'),
    value("memory-reservation"),
    value("memory-swap"),
    value("memory-swappiness"),
    value("mount"),
    value("name"),
    value("network"),
    value("net"),
    value("network-alias"),
    value("net-alias"),
    switch("no-healthcheck"),
    switch("oom-kill-disable"),
    value("oom-score-adj"),
    value("pid"),
    value("pids-limit"),
    value("platform"),
    switch("privileged"),
    value("publish").with_short('p'),
    switch("publish-all").with_short('P'),
    value("pull"),
    switch("quiet").with_short('q'),
    switch("read-only"),
    value("restart"),
    switch("rm"),
    value("runtime"),
    value("security-opt"),
    value("shm-size"),
    value("stop-signal"),
    value("stop-timeout"),
    switch("sig-proxy"),
    value("storage-opt"),
    value("sysctl"),
    value("tmpfs"),
    switch("tty").with_short('t'),
    value("ulimit"),
    value("user").with_short('u'),
    value("volume").with_short('v'),
    value("workdir").with_short('w'),
];

/// Parses `line`. `image_alias` returns the image for the first word of a later command. The caller
/// has already replaced the first word of the line.
///
/// # Errors
///
/// Returns what needs a shell or is not supported, its span, and what to write instead.
pub fn parse(
    line: &str,
    image_alias: &dyn Fn(&str) -> Option<String>,
) -> Result<CmdLine, LineRefusal> {
    parse_with(line, image_alias, Images::Checked)
}

/// Parses a line with placeholders. Images need not be valid references.
pub(crate) fn parse_unchecked(
    line: &str,
    image_alias: &dyn Fn(&str) -> Option<String>,
) -> Result<CmdLine, LineRefusal> {
    parse_with(line, image_alias, Images::Unchecked)
}

/// Rule for images: valid references, or any text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Images {
    Checked,
    Unchecked,
}

fn parse_with(
    line: &str,
    image_alias: &dyn Fn(&str) -> Option<String>,
    images: Images,
) -> Result<CmdLine, LineRefusal> {
    let tokens = lexer::tokenize(line).map_err(|refused| with_rewrite(line, refused))?;
    let mut parser = Parser {
        line,
        image_alias,
        tokens: &tokens,
        at: 0,
        images,
    };
    parser
        .parse_line()
        .map_err(|refused| with_rewrite(line, refused))
}

/// Parses the words of `docker run`: flags, image, arguments. Spans in a refusal are meaningless.
///
/// # Errors
///
/// Returns a refusal for an unknown flag, a missing value, a missing image, or an invalid image
/// reference.
pub fn container_from_words(words: &[Word]) -> Result<ContainerLine, LineRefusal> {
    let placed: Vec<PlacedWord> = words.iter().map(|word| (word.clone(), 0..0)).collect();
    parse_container(&placed, Images::Checked)
}

/// Parses words with placeholders. The image need not be a valid reference.
pub(crate) fn container_from_words_unchecked(words: &[Word]) -> Result<ContainerLine, LineRefusal> {
    let placed: Vec<PlacedWord> = words.iter().map(|word| (word.clone(), 0..0)).collect();
    parse_container(&placed, Images::Unchecked)
}

fn parse_container(words: &[PlacedWord], images: Images) -> Result<ContainerLine, LineRefusal> {
    let (given, mut others) =
        flags::split_flags("docker run", &RUN_FLAGS, words, FlagsEnd::AtFirstWord)?;
    if others.is_empty() {
        return Err(LineRefusal {
            message: "the command names no image".into(),
            span: words.last().map_or(0..0, |(_, span)| span.clone()),
            help: Some("write the image after the flags: `IMAGE ARGUMENTS`".into()),
        });
    }
    let (image, span) = others.remove(0);
    if let Some(text) = image.literal()
        && images == Images::Checked
    {
        check_image(&text, &span)?;
    }
    let mut flags = RunFlags::default();
    for flag in given {
        apply_flag(&mut flags, flag)?;
    }
    Ok(ContainerLine {
        flags,
        image,
        args: others.into_iter().map(|(word, _)| word).collect(),
    })
}

fn check_image(text: &str, span: &Range<usize>) -> Result<(), LineRefusal> {
    let Err(error) = text.parse::<ImageRef>() else {
        return Ok(());
    };
    let help = if text.contains(char::is_whitespace) {
        format!("remove the quotes around the whole command: `{text}`")
    } else if text != text.to_lowercase() && text.to_lowercase().parse::<ImageRef>().is_ok() {
        format!("write `{}`", text.to_lowercase())
    } else if text.contains('=') {
        "variables of a step are written as `env: [\"NAME=VALUE\"]`".to_owned()
    } else {
        "a cmd begins with an image, like `alpine:3` or `{{.Run.Registry}}/app`".to_owned()
    };
    Err(LineRefusal {
        message: format!("`{text}` is not an image: {}", error.reason),
        span: span.clone(),
        help: Some(help),
    })
}

fn apply_flag(flags: &mut RunFlags, flag: GivenFlag) -> Result<(), LineRefusal> {
    let GivenFlag {
        name, value, span, ..
    } = flag;
    let on = !matches!(value.literal().as_deref(), Some("false" | "0" | "f"));
    match name {
        "env" => flags.env.push(value),
        "volume" => flags.volumes.push(value),
        "workdir" => flags.workdir = Some(value),
        "entrypoint" => flags.entrypoint = Some(value),
        "name" => flags.name = Some(value),
        "user" => flags.user = Some(value),
        "publish" => flags.ports.push(value),
        "expose" => flags.expose.push(value),
        "network" | "net" => flags.network = Some(value),
        "network-alias" | "net-alias" => flags.network_aliases.push(value),
        "label" => flags.labels.push(value),
        "detach" => flags.detach = on,
        "privileged" => flags.privileged = on,
        // A step's container is removed at the end of the run in any case.
        "rm" => {}
        "help" => return Err(refusal("`--help` runs nothing", span)),
        _ => flags.other.push((name.to_owned(), value)),
    }
    Ok(())
}

struct Parser<'a> {
    line: &'a str,
    image_alias: &'a dyn Fn(&str) -> Option<String>,
    tokens: &'a [Token],
    at: usize,
    images: Images,
}

impl Parser<'_> {
    fn peek_operator(&self) -> Option<Operator> {
        match self.tokens.get(self.at)?.kind {
            TokenKind::Operator(operator) => Some(operator),
            _ => None,
        }
    }

    fn skip_newlines(&mut self) {
        while self.peek_operator() == Some(Operator::Newline) {
            self.at += 1;
        }
    }

    fn parse_line(&mut self) -> Result<CmdLine, LineRefusal> {
        self.skip_newlines();
        let first = self.parse_pipeline(true)?;
        let mut rest = Vec::new();
        while let Some(operator) = self.peek_operator() {
            self.at += 1;
            let joiner = match operator {
                Operator::And => Joiner::And,
                Operator::Or => Joiner::Or,
                // `parse_pipeline` consumes every `|`.
                Operator::Then | Operator::Newline | Operator::Pipe => Joiner::Then,
            };
            self.skip_newlines();
            // A line may end with `;`.
            if self.at == self.tokens.len() && joiner == Joiner::Then {
                break;
            }
            rest.push((joiner, self.parse_pipeline(false)?));
        }
        Ok(CmdLine { first, rest })
    }

    fn parse_pipeline(&mut self, first_of_line: bool) -> Result<Pipeline, LineRefusal> {
        let mut commands = vec![self.parse_command(first_of_line)?];
        while self.peek_operator() == Some(Operator::Pipe) {
            self.at += 1;
            self.skip_newlines();
            commands.push(self.parse_command(false)?);
        }
        Ok(Pipeline { commands })
    }

    fn parse_command(&mut self, first_of_line: bool) -> Result<Command, LineRefusal> {
        let mut words: Vec<PlacedWord> = Vec::new();
        let mut redirects = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            match &token.kind {
                TokenKind::Operator(_) => break,
                TokenKind::Word(word) => words.push((word.clone(), token.span.clone())),
                TokenKind::Duplicate { fd, onto } => {
                    redirects.push(Redirect::Duplicate {
                        fd: *fd,
                        onto: *onto,
                    });
                }
                TokenKind::Redirect { fd, redirection } => {
                    let Some(Token {
                        kind: TokenKind::Word(file),
                        ..
                    }) = self.tokens.get(self.at + 1)
                    else {
                        return Err(refusal(
                            "a file name is missing after this",
                            token.span.clone(),
                        ));
                    };
                    self.at += 1;
                    redirects.push(match redirection {
                        Redirection::Input => Redirect::Input { from: file.clone() },
                        redirection => Redirect::Output {
                            fd: fd.unwrap_or(1),
                            to: file.clone(),
                            append: *redirection == Redirection::Append,
                        },
                    });
                }
            }
            self.at += 1;
        }
        if words.is_empty() {
            let span = self
                .tokens
                .get(self.at)
                .map_or(self.line.len()..self.line.len(), |t| t.span.clone());
            return Err(LineRefusal {
                message: "a command is missing here".into(),
                span,
                help: Some(
                    "a cmd is `IMAGE ARGUMENTS`; commands are joined with `&&`, `||`, `;` or `|`"
                        .into(),
                ),
            });
        }
        Ok(Command {
            kind: self.parse_kind(words, first_of_line)?,
            redirects,
        })
    }

    fn parse_kind(
        &self,
        mut words: Vec<PlacedWord>,
        first_of_line: bool,
    ) -> Result<CommandKind, LineRefusal> {
        let head = words[0].0.literal().unwrap_or_default();
        let span = words[0].1.clone();
        if !first_of_line {
            if BUILTINS.contains(&head.as_str()) {
                return Ok(CommandKind::Builtin(
                    words.into_iter().map(|(word, _)| word).collect(),
                ));
            }
            self.refuse_shell_word(&head, &span)?;
            if let Some(image) = (self.image_alias)(&head) {
                words[0].0 = Word::text(image);
            }
        }
        if head == "docker" && words.len() > 1 {
            return Ok(CommandKind::Docker(
                words.into_iter().skip(1).map(|(word, _)| word).collect(),
            ));
        }
        let program = words[0].0.literal().unwrap_or_default();
        let arguments: Vec<Word> = words[1..].iter().map(|(word, _)| word.clone()).collect();
        if is_acr_command(&program, &arguments) {
            return Ok(CommandKind::Acr(arguments));
        }
        parse_container(&words, self.images)
            .map(|container| CommandKind::Container(Box::new(container)))
    }

    /// Refuses the first word of a later command if it is neither an image nor a builtin.
    fn refuse_shell_word(&self, head: &str, span: &Range<usize>) -> Result<(), LineRefusal> {
        if head.starts_with('-')
            && self.line[..span.start]
                .trim_end_matches([' ', '\t'])
                .ends_with('\n')
        {
            return Err(LineRefusal {
                message: "a line break ends the command, so this would be one of its own".into(),
                span: span.clone(),
                help: Some("end the line before with ` \\`, or write the text with `cmd: >`, which joins its lines".into()),
            });
        }
        if SHELL_WORDS.contains(&head) {
            return Err(refusal(
                format!("`{head}` belongs to a shell"),
                span.clone(),
            ));
        }
        if TOOLS.contains(&head) {
            return Err(refusal(
                format!("`{head}` is a program of the machine, and a step runs nothing there"),
                span.clone(),
            ));
        }
        if let Some((name, _)) = head.split_once('=')
            && !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return Err(LineRefusal {
                message: format!("`{name}=` sets a variable of a shell"),
                span: span.clone(),
                help: Some("variables of a step are written as `env: [\"NAME=VALUE\"]`".into()),
            });
        }
        Ok(())
    }
}

/// Adds help that passes the line to a shell inside the container, unless the refusal already has
/// help.
fn with_rewrite(line: &str, mut refused: LineRefusal) -> LineRefusal {
    if refused.help.is_some() {
        return refused;
    }
    let trimmed = line.trim();
    let offset = line.len() - line.trim_start().len();
    let image = trimmed.split_whitespace().next().unwrap_or_default();
    if image == "docker" {
        refused.help = Some(
            "acrtask runs one `docker` command after the other: write the names themselves; \
             a run removes what it created at its end"
                .to_owned(),
        );
        return refused;
    }
    // A script in double quotes needs single quotes.
    if let Some(quotes) = enclosing_quotes(line, refused.span.start)
        && is_script_flag(line[..quotes.start].split_whitespace().next_back())
    {
        let inner = &line[quotes.start + 1..quotes.end - 1];
        let mut plain = inner.to_owned();
        for c in ['"', '$', '`', '\\'] {
            plain = plain.replace(&format!("\\{c}"), &c.to_string());
        }
        let word = single_quoted(&plain);
        refused.help = Some(format!(
            "in single quotes it is left for the shell inside the container: `cmd: {}{word}{}`",
            &line[offset..quotes.start],
            line[quotes.end..].trim_end(),
        ));
        return refused;
    }
    let rest = trimmed[image.len()..].trim();
    // The rest is not a command that a shell inside the image could run.
    let nothing_of_its_own = rest.starts_with(['&', '|', ';', '<', '>']);
    if image.starts_with('-') || refused.span.start < offset + image.len() || nothing_of_its_own {
        refused.help = Some(
            "begin with the image, and give the line to a shell inside it: `IMAGE sh -c '...'`"
                .into(),
        );
        return refused;
    }
    refused.help = Some(format!(
        "give the line to a shell inside the container: `cmd: {image} sh -c {}`",
        single_quoted(rest)
    ));
    refused
}

/// Returns `true` for flags before a script: `-c`, `-ec`, `-Command`.
pub(crate) fn is_script_flag(word: Option<&str>) -> bool {
    word.is_some_and(|word| {
        word == "-Command"
            || (word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'))
    })
}

/// Returns the range of the double quotes around the byte at `at`, if there are any.
fn enclosing_quotes(line: &str, at: usize) -> Option<Range<usize>> {
    let mut start = None;
    let mut single = false;
    let mut escaped = false;
    for (i, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if !single => escaped = true,
            '\'' if start.is_none() => single = !single,
            '"' if !single => match start {
                None if i > at => return None,
                None => start = Some(i),
                Some(begin) if i > at => return Some(begin..i + 1),
                Some(_) => start = None,
            },
            _ => {}
        }
    }
    None
}
