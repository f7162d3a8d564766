//! Parser of the words of `docker build`.

use std::ops::Range;

use jiff::Timestamp;

use super::{BuildLine, CacheSpec, ContextRef, SecretSpec};
use crate::{
    cmd_line::Word,
    flags::{self, Flag, FlagsEnd, GivenFlag, PlacedWord, switch, value},
    lexer::{self, TokenKind, refusal},
    plan::LineRefusal,
};

/// Flags of `docker build` and of `docker buildx build`.
const FLAGS: [Flag; 56] = [
    value("add-host"),
    value("allow"),
    value("annotation"),
    value("attest"),
    value("build-arg"),
    value("build-context"),
    value("builder"),
    value("cache-from"),
    value("cache-to"),
    value("call"),
    value("cgroup-parent"),
    switch("check"),
    switch("compress"),
    value("cpu-period"),
    value("cpu-quota"),
    value("cpu-shares").with_short('c'),
    value("cpuset-cpus"),
    value("cpuset-mems"),
    switch("debug").with_short('D'),
    switch("disable-content-trust"),
    value("file").with_short('f'),
    switch("force-rm"),
    value("iidfile"),
    value("isolation"),
    value("label"),
    switch("load"),
    value("memory").with_short('m'),
    value("memory-swap"),
    value("metadata-file"),
    value("network"),
    switch("no-cache"),
    value("no-cache-filter"),
    value("output").with_short('o'),
    value("platform"),
    value("policy"),
    value("print"),
    value("progress"),
    value("provenance"),
    switch("pull"),
    switch("push"),
    switch("quiet").with_short('q'),
    switch("rm"),
    value("root"),
    value("sbom"),
    value("secret"),
    value("security-opt"),
    value("server-config"),
    value("shm-size"),
    switch("squash"),
    value("ssh"),
    switch("stream"),
    value("tag").with_short('t'),
    value("target"),
    value("ulimit"),
    switch("use-config"),
    switch("help").with_short('h'),
];

/// Parses `line`, the words after `docker build`.
///
/// # Errors
///
/// Returns which word is refused, its span, and what to write instead.
pub fn parse(line: &str) -> Result<BuildLine, LineRefusal> {
    parse_tokens(line, |word, _| Ok(word))
}

/// Parses `line` and replaces its dates by the time `now`, in UTC.
///
/// # Errors
///
/// Same as [`parse`].
pub fn parse_at(line: &str, now: Timestamp) -> Result<BuildLine, LineRefusal> {
    parse_tokens(line, |word, span| {
        let dated = word.with_dates(now);
        dated.map_err(|message| refusal(message, span.clone()))
    })
}

fn parse_tokens(
    line: &str,
    read: impl Fn(Word, &Range<usize>) -> Result<Word, LineRefusal>,
) -> Result<BuildLine, LineRefusal> {
    let mut placed = Vec::new();
    for token in lexer::tokenize(line).map_err(with_default_help)? {
        match token.kind {
            TokenKind::Word(word) => placed.push((read(word, &token.span)?, token.span)),
            // A line break at the end of the text is allowed.
            TokenKind::Operator(lexer::Operator::Newline)
                if line[token.span.end..].trim().is_empty() => {}
            TokenKind::Operator(lexer::Operator::Newline) => {
                let mut refused = refusal("the line ends here, but the build goes on", token.span);
                refused.help = Some("end the line with ` \\`, or write the text with `build: >`, which joins its lines".into());
                return Err(refused);
            }
            _ => {
                let mut refused = refusal(
                    "a build step is one `docker build`, without a shell around it",
                    token.span,
                );
                refused.help =
                    Some("move the commands before or after it to a separate step".into());
                return Err(refused);
            }
        }
    }
    parse_words(&placed, line.len())
}

/// Parses words that are already split, as for `docker build WORDS` in a cmd. Spans in a refusal
/// are meaningless.
///
/// # Errors
///
/// Same as [`parse`].
pub fn from_words(words: &[Word]) -> Result<BuildLine, LineRefusal> {
    let placed: Vec<PlacedWord> = words.iter().map(|word| (word.clone(), 0..0)).collect();
    parse_words(&placed, 0)
}

/// Parses the words of a line. `end` is the length of the line.
fn parse_words(words: &[PlacedWord], end: usize) -> Result<BuildLine, LineRefusal> {
    if let Some((_, span)) = words.iter().find(|(word, _)| word.literal().is_none()) {
        return Err(with_default_help(refusal(
            "this is known only while a container runs",
            span.clone(),
        )));
    }
    let (given, others) = split_flags(words)?;
    let mut line = BuildLine {
        context: parse_context(
            &others,
            words.last().map_or(0..end, |(_, span)| span.clone()),
        )?,
        ..empty_line()
    };
    for flag in given {
        apply_flag(&mut line, flag)?;
    }
    Ok(line)
}

/// Separates the flags of `docker build` from the other words.
pub(crate) fn split_flags(
    words: &[PlacedWord],
) -> Result<(Vec<GivenFlag>, Vec<PlacedWord>), LineRefusal> {
    flags::split_flags("docker build", &FLAGS, words, FlagsEnd::Anywhere)
}

fn with_default_help(mut refused: LineRefusal) -> LineRefusal {
    refused.help.get_or_insert_with(|| {
        "write the value itself, a template like `{{.Run.ID}}` or `{{.Values.name}}`, or put the text in single quotes"
            .to_owned()
    });
    refused
}

fn empty_line() -> BuildLine {
    BuildLine {
        context: ContextRef::Stdin,
        file: None,
        tags: Vec::new(),
        build_args: Vec::new(),
        labels: Vec::new(),
        target: None,
        platforms: Vec::new(),
        no_cache: false,
        no_cache_filter: Vec::new(),
        pull: false,
        push: false,
        secrets: Vec::new(),
        ssh: Vec::new(),
        cache_from: Vec::new(),
        cache_to: Vec::new(),
        network: None,
        add_hosts: Vec::new(),
        shm_size: None,
        ulimits: Vec::new(),
        build_contexts: Vec::new(),
        provenance: None,
        sbom: None,
        outputs: Vec::new(),
        iidfile: None,
        metadata_file: None,
        quiet: false,
        ignored: Vec::new(),
        timeout: None,
    }
}

fn parse_context(others: &[PlacedWord], place: Range<usize>) -> Result<ContextRef, LineRefusal> {
    let (word, span) = match others {
        [only] => only,
        [] => {
            let mut refused = refusal("the build has no context", place);
            refused.help =
                Some("end the line with the folder to build: ` .` for the whole context".into());
            return Err(refused);
        }
        [(first, span), rest @ ..] => {
            let first = first.literal().unwrap_or_default();
            let as_flag = FLAGS.iter().find(|flag| {
                flag.long == first || flag.short.is_some_and(|c| first.chars().eq([c]))
            });
            let (span, help) = match as_flag {
                Some(_) if first.len() == 1 => (span.clone(), format!("write `-{first}`")),
                Some(_) => (span.clone(), format!("write `--{first}`")),
                None => {
                    let (extra, span) = &rest[0];
                    let extra = extra.literal().unwrap_or_default();
                    (
                        span.clone(),
                        format!("remove `{extra}`, or write the flag that it belongs to before it"),
                    )
                }
            };
            return Err(LineRefusal {
                message: format!(
                    "`docker build` takes one context, and this line names {}",
                    others.len()
                ),
                span,
                help: Some(help),
            });
        }
    };
    let text = word.literal().unwrap_or_default();
    if text.is_empty() {
        return Err(refusal("the context is an empty text", span.clone()));
    }
    Ok(context_ref(text))
}

/// Classifies a context by the rules of `docker build`.
pub(crate) fn context_ref(text: String) -> ContextRef {
    let lower = text.to_lowercase();
    let is_http = lower.starts_with("http://") || lower.starts_with("https://");
    let before_fragment = lower.split('#').next().unwrap_or_default();
    let is_git_host = is_http
        && before_fragment.contains("/_git/")
        && (before_fragment.contains("dev.azure.com")
            || before_fragment.contains(".visualstudio.com"));
    let is_git = ["git://", "git@", "ssh://", "github.com/"]
        .iter()
        .any(|prefix| lower.starts_with(prefix))
        || (is_http && before_fragment.ends_with(".git"))
        || is_git_host;
    if text == "-" {
        ContextRef::Stdin
    } else if lower.starts_with("oci://") {
        ContextRef::Oci(text)
    } else if is_git {
        ContextRef::Git(text)
    } else if is_http {
        ContextRef::Http(text)
    } else {
        ContextRef::Path(text)
    }
}

fn apply_flag(line: &mut BuildLine, flag: GivenFlag) -> Result<(), LineRefusal> {
    let GivenFlag {
        name,
        written,
        value,
        span,
    } = flag;
    let text = value.literal().unwrap_or_default();
    let commas = || {
        text.split(',')
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
    };
    match name {
        "file" => line.file = Some(text),
        "tag" => line.tags.push(text),
        "build-arg" => line.build_args.push(match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text, None),
        }),
        "label" => {
            let (name, value) = text.split_once('=').unwrap_or((&text, ""));
            line.labels.push((name.to_owned(), value.to_owned()));
        }
        "target" => line.target = Some(text),
        "platform" => line.platforms.extend(commas()),
        "no-cache" => line.no_cache = parse_bool(name, &text, &span)?,
        "no-cache-filter" => line.no_cache_filter.extend(commas()),
        "pull" => line.pull = parse_bool(name, &text, &span)?,
        "push" => line.push = parse_bool(name, &text, &span)?,
        "quiet" => line.quiet = parse_bool(name, &text, &span)?,
        "secret" => line.secrets.push(parse_secret(&text, &span)?),
        "ssh" => line.ssh.push(text),
        "cache-from" => line.cache_from.extend(parse_cache(&text)),
        "cache-to" => line.cache_to.extend(parse_cache(&text)),
        "network" => line.network = Some(text),
        "add-host" => line.add_hosts.push(text),
        "shm-size" => line.shm_size = Some(parse_size(&text, &span)?),
        "ulimit" => line.ulimits.push(text),
        "build-context" => {
            let (name, place) = text.split_once('=').ok_or_else(|| LineRefusal {
                message: format!("`{text}` is not a named context"),
                span: span.clone(),
                help: Some("write `--build-context NAME=PLACE`".into()),
            })?;
            line.build_contexts
                .push((name.to_owned(), place.to_owned()));
        }
        "provenance" => line.provenance = Some(text),
        "sbom" => line.sbom = Some(sbom_attributes(text, &span)?),
        "attest" => apply_attest(line, &text, &span)?,
        "output" => line.outputs.push(text),
        "iidfile" => line.iidfile = Some(text),
        "metadata-file" => line.metadata_file = Some(text),
        "call" | "print" | "check" => {
            return Err(LineRefusal {
                message: format!("`--{name}` makes `docker build` build nothing"),
                span,
                help: Some("remove it".into()),
            });
        }
        "help" => return Err(refusal("`--help` builds nothing", span)),
        _ => {
            if let Some(why) = ignored_reason(name) {
                let sentence = format!("`{written}` is ignored: {why}");
                line.ignored.push((written, sentence));
            }
        }
    }
    Ok(())
}

/// Returns why a flag has no effect. `None` if the run does what the flag requests anyway.
fn ignored_reason(name: &str) -> Option<&'static str> {
    Some(match name {
        // The run shows progress itself and keeps images where later steps find them. BuildKit
        // leaves no intermediate containers behind.
        "progress" | "load" | "rm" | "force-rm" | "debug" => return None,
        "squash" => "BuildKit does not squash layers",
        "isolation" => "there is one kind of isolation on Linux",
        "memory" | "memory-swap" | "cpu-period" | "cpu-quota" | "cpu-shares" | "cpuset-cpus"
        | "cpuset-mems" | "cgroup-parent" => "BuildKit has no such limit for one build",
        "security-opt" => "BuildKit takes no such option",
        "compress" | "stream" => "BuildKit sends only the files that a build needs",
        "disable-content-trust" => "images are trusted by digest",
        "builder" | "root" | "server-config" | "use-config" => "the run's own endpoint builds",
        "allow" => "the operator of the endpoint decides about that",
        "annotation" => "annotations are not written yet",
        _ => "it has no effect here",
    })
}

fn parse_bool(name: &str, text: &str, span: &Range<usize>) -> Result<bool, LineRefusal> {
    match text {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
        _ => Err(LineRefusal {
            message: format!("`--{name}` is on or off, not `{text}`"),
            span: span.clone(),
            help: Some(format!("write `--{name}`")),
        }),
    }
}

/// Splits `KEY=VALUE` pairs at commas. Double quotes protect a comma in a value, as in CSV.
fn parse_pairs(text: &str) -> Vec<(String, Option<String>)> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => {
                if let Some(last) = fields.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    fields
        .into_iter()
        .filter(|field| !field.trim().is_empty())
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.trim().to_lowercase(), Some(value.to_owned())),
            None => (field, None),
        })
        .collect()
}

fn parse_secret(text: &str, span: &Range<usize>) -> Result<SecretSpec, LineRefusal> {
    let mut spec = SecretSpec {
        id: String::new(),
        src: None,
        env: None,
    };
    let refuse = |message: String| LineRefusal {
        message,
        span: span.clone(),
        help: Some("write `--secret id=NAME,src=FILE` or `--secret id=NAME,env=VARIABLE`".into()),
    };
    let mut kind = String::new();
    for (key, value) in parse_pairs(text) {
        let value = value.ok_or_else(|| refuse(format!("`{key}` has no value")))?;
        match key.as_str() {
            "id" => spec.id = value,
            "src" | "source" => spec.src = Some(value),
            "env" => spec.env = Some(value),
            "type" => kind = value,
            _ => return Err(refuse(format!("a secret has no `{key}`"))),
        }
    }
    if spec.id.is_empty() {
        return Err(refuse("the secret has no id".into()));
    }
    // With `type=env`, `src` is the name of a variable.
    if kind == "env" && spec.env.is_none() {
        spec.env = spec.src.take().or_else(|| Some(spec.id.clone()));
    }
    Ok(spec)
}

/// Parses the value of a cache flag. Without `type` it may name several images.
fn parse_cache(text: &str) -> Vec<CacheSpec> {
    let fields = parse_pairs(text);
    if fields.iter().all(|(_, value)| value.is_none()) {
        return fields
            .into_iter()
            .map(|(reference, _)| CacheSpec {
                kind: "registry".into(),
                attrs: vec![("ref".into(), reference)],
            })
            .collect();
    }
    let mut spec = CacheSpec {
        kind: "registry".into(),
        attrs: Vec::new(),
    };
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("type", Some(value)) => spec.kind = value,
            (_, value) => spec.attrs.push((key, value.unwrap_or_default())),
        }
    }
    vec![spec]
}

fn apply_attest(line: &mut BuildLine, text: &str, span: &Range<usize>) -> Result<(), LineRefusal> {
    let fields = parse_pairs(text);
    let disabled = fields
        .iter()
        .any(|(key, value)| key == "disabled" && value.as_deref() != Some("false"));
    let kind = fields
        .iter()
        .find(|(key, _)| key == "type")
        .and_then(|(_, value)| value.clone());
    let rest: Vec<String> = fields
        .iter()
        .filter(|(key, _)| key != "type" && key != "disabled")
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        })
        .collect();
    let attributes = match (disabled, rest.is_empty()) {
        (true, _) => "false".to_owned(),
        (false, true) => "true".to_owned(),
        (false, false) => rest.join(","),
    };
    match kind.as_deref() {
        Some("provenance") => line.provenance = Some(attributes),
        Some("sbom") => line.sbom = Some(sbom_attributes(attributes, span)?),
        _ => {
            return Err(LineRefusal {
                message: format!("`{text}` names no attestation"),
                span: span.clone(),
                help: Some(
                    "write `--attest type=provenance,mode=max` or `--attest type=sbom`".into(),
                ),
            });
        }
    }
    Ok(())
}

/// Checks the attributes of an SBOM. BuildKit reads them as CSV and uses the last generator, so
/// quotes and a second generator could hide the scanner's image from a check.
fn sbom_attributes(text: String, span: &Range<usize>) -> Result<String, LineRefusal> {
    let generators = text
        .split(',')
        .filter(|pair| pair.trim().starts_with("generator="))
        .count();
    if generators > 1 || text.contains('"') {
        return Err(LineRefusal {
            message: format!("`{text}` does not name one scanner"),
            span: span.clone(),
            help: Some(
                "write one scanner, without quotes: `--sbom generator=REGISTRY/IMAGE`".into(),
            ),
        });
    }
    Ok(text)
}

/// Parses a size as Docker writes it: `64m`, `1.5g`, `1048576`. Units are powers of 1024.
fn parse_size(text: &str, span: &Range<usize>) -> Result<u64, LineRefusal> {
    let lower = text.trim().to_lowercase();
    let split = lower
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(lower.len());
    let factor: Option<u64> = match lower[split..]
        .trim()
        .trim_end_matches("ib")
        .trim_end_matches('b')
    {
        "" => Some(1),
        "k" => Some(1 << 10),
        "m" => Some(1 << 20),
        "g" => Some(1 << 30),
        "t" => Some(1 << 40),
        _ => None,
    };
    let number = lower[..split].parse::<f64>().ok();
    match (number, factor) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a size: never negative, and whole bytes are near enough"
        )]
        (Some(number), Some(factor)) => Ok((number * factor as f64) as u64),
        _ => Err(LineRefusal {
            message: format!("`{text}` is not a size"),
            span: span.clone(),
            help: Some("write for example `--shm-size 64m`".into()),
        }),
    }
}
