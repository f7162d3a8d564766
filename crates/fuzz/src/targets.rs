//! The targets: their parsers, the words of their languages, and the properties of every input.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use acrtask_api::{spec::RunSpec, task::Timer};
use acrtask_model::{
    Event, ImageRef, Masker, Secret,
    mask::{MASK, Patterns},
    printable::is_printable,
};
use acrtask_page::{Foreign, LogLine};
use acrtask_proto::runner::{FromRunner, ToRunner};
use acrtask_source::{ContextSpec, GitTransport};
use acrtask_spec::{
    Lookup, RunVariables, SecretDeclaration, TaskSource, plan_json, plan_text, render_diagnostics,
    resolve,
};
use acrtask_trigger::{
    Event as ForgeEvent, Provider, RegistrySource, RepositoryUrl, Schedule, registry,
    webhook::parse_verified,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{Timestamp, ToSpan as _};
use prost::Message as _;

use crate::archives::{archives, check_archive, repair_tar};
use crate::dictionary::{ARCHIVE, CRON, DOCKERFILE, JSON, LOG, REFERENCE, SPEC, TEMPLATE, URL};

/// A parser of untrusted data.
pub struct Target {
    /// Name on the command line and of the corpus folder.
    pub name: &'static str,
    /// Description of the parsed data.
    pub about: &'static str,
    /// Words of the language of its inputs.
    pub(crate) words: &'static [&'static str],
    /// Maximum length of an input, in bytes.
    pub(crate) max_len: usize,
    /// Generates inputs in addition to those in the corpus folder.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Repairs what every mutation breaks, such as a checksum.
    pub(crate) repair: Option<fn(&mut [u8])>,
    /// Runs the parser. Different numbers are different outcomes.
    pub(crate) check: fn(&[u8]) -> u64,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.name)
    }
}

/// Returns every target.
pub fn all() -> Vec<Target> {
    let target = |name, about, words, max_len, check| Target {
        name,
        about,
        words,
        max_len,
        seeds: Vec::new,
        repair: None,
        check,
    };
    vec![
        Target {
            seeds: examples,
            ..target("spec", "task files", SPEC, 64 << 10, check_spec)
        },
        target("template", "templates", TEMPLATE, 16 << 10, check_template),
        target(
            "dockerfile",
            "the bases that a Dockerfile names",
            DOCKERFILE,
            16 << 10,
            check_dockerfile,
        ),
        target(
            "reference",
            "names of images",
            REFERENCE,
            4 << 10,
            check_reference,
        ),
        Target {
            seeds: deliveries,
            ..target(
                "webhook",
                "deliveries of forges and registries",
                JSON,
                64 << 10,
                check_webhook,
            )
        },
        Target {
            seeds: archives,
            repair: Some(repair_tar),
            ..target(
                "archive",
                "packed contexts",
                ARCHIVE,
                64 << 10,
                check_archive,
            )
        },
        target(
            "log",
            "the output of steps, masked",
            LOG,
            16 << 10,
            check_log,
        ),
        target(
            "page",
            "lines of logs on the web page",
            LOG,
            16 << 10,
            check_page,
        ),
        Target {
            seeds: messages,
            ..target(
                "runner",
                "messages of runners, and events of runs",
                JSON,
                64 << 10,
                check_runner,
            )
        },
        target(
            "url",
            "contexts and the URLs of repositories",
            URL,
            4 << 10,
            check_url,
        ),
        target("cron", "schedules of timers", CRON, 1 << 10, check_cron),
    ]
}

/// Returns a number for an outcome.
pub(crate) fn outcome(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn text_of(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// Returns the task files of the examples.
fn examples() -> Vec<Vec<u8>> {
    let folder = checkout().join("examples");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let file = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("acr-task.yaml")).ok();
    entries.filter_map(file).collect()
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

struct NoFiles;

impl Lookup for NoFiles {
    fn alias_source(&self, location: &str) -> Result<String, String> {
        match location {
            "aliases.yaml" => Ok("registry: first.example.com\nfrom: file\n".into()),
            _ => Err("the file does not exist".into()),
        }
    }

    fn secret(&self, declared: &SecretDeclaration) -> Result<Option<Secret>, String> {
        Ok(Some(Secret::new(format!("secret-of-{}", declared.id))))
    }
}

fn run_facts() -> RunVariables {
    RunVariables {
        id: "ca7".into(),
        registry: "reg.example.com".into(),
        branch: "main".into(),
        set: vec![("a".into(), "1".into())],
        secrets: vec![("s".into(), Secret::new("secret-of-s"))],
        ..RunVariables::default()
    }
}

fn check_spec(input: &[u8]) -> u64 {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: text_of(input),
    };
    let resolution = resolve(&source, &run_facts(), &NoFiles);
    let diagnostics = resolution.for_run();
    for label in diagnostics.iter().flat_map(|diagnostic| &diagnostic.labels) {
        assert!(source.text.get(label.span.clone()).is_some(), "{label:?}");
    }
    render_diagnostics(&source, &diagnostics, false, 80);
    let codes: Vec<_> = diagnostics.iter().map(|found| found.code.clone()).collect();
    let plan = resolution.plan.as_ref();
    let shape = plan.map(|plan| {
        let json = Patterns::new(&plan.secrets).mask(&plan_json(plan).to_string());
        let shown = format!("{json}{}", plan_text(plan, true, 80));
        // A value that is a secret is masked in every output.
        assert!(!shown.contains("secret-of-s"), "a secret is shown");
        (plan.steps.len(), plan.secrets.len(), plan.volumes.len())
    });
    // A run spec is the JSON body of a request.
    let spec = serde_json::from_slice::<RunSpec>(input).is_ok();
    outcome((codes, shape, spec))
}

fn check_template(input: &[u8]) -> u64 {
    let text = text_of(input);
    let limits = acrtask_template::Limits {
        now: Some(Timestamp::UNIX_EPOCH),
        ..acrtask_template::Limits::default()
    };
    let data = serde_json::json!({"a": {"b": "text", "c": null}, "l": [1, "é", 2.5, [true]], "n": -3, "s": "héllo"});
    let parsed = acrtask_template::Template::parse("t", &text);
    match parsed.and_then(|template| template.render_mapped(&data, &limits)) {
        Ok(rendered) => {
            for byte in 0..rendered.text.len().min(4096) {
                assert!(rendered.map.source_of(byte) < text.len());
            }
            outcome(rendered.text.len().min(64))
        }
        Err(error) => {
            assert!(text.get(error.span.clone()).is_some(), "{error}");
            let words: Vec<_> = error
                .message
                .split(' ')
                .filter(|word| !word.contains(['"', '`']))
                .collect();
            outcome(
                words
                    .join(" ")
                    .chars()
                    .filter(|c| !c.is_ascii_digit())
                    .take(60)
                    .collect::<String>(),
            )
        }
    }
}

fn check_dockerfile(input: &[u8]) -> u64 {
    let base = acrtask_executor::runtime_base(&text_of(input));
    if let Some(base) = &base {
        assert!(base.len() <= 64 << 10, "a base of {} bytes", base.len());
    }
    outcome(base.map(|base| (base.len().min(40), base.contains('$'), base.contains('@'))))
}

fn check_reference(input: &[u8]) -> u64 {
    let text = text_of(input);
    let Ok(parsed) = text.parse::<ImageRef>() else {
        return outcome(text.len().min(8));
    };
    let shown = parsed.to_string();
    let again: ImageRef = shown
        .parse()
        .unwrap_or_else(|error| panic!("{shown:?}: {error}"));
    assert_eq!(again, parsed, "{text:?}");
    assert!(
        shown.chars().all(|c| is_printable(c) && !c.is_whitespace()),
        "{shown:?}"
    );
    let complete = parsed.or_latest().to_string();
    assert!(complete.parse::<ImageRef>().is_ok(), "{complete:?}");
    let kinds: BTreeMap<char, usize> =
        shown
            .chars()
            .filter(|c| !c.is_alphanumeric())
            .fold(BTreeMap::new(), |mut kinds, c| {
                *kinds.entry(c).or_default() += 1;
                kinds
            });
    outcome(kinds)
}

/// The sender of a recorded delivery, with its headers.
struct Sender {
    kind: SenderKind,
    headers: HeaderMap,
    body: Vec<u8>,
}

enum SenderKind {
    Forge(Provider),
    Registry(RegistrySource),
}

static SENDERS: LazyLock<Vec<Sender>> = LazyLock::new(|| {
    let fixtures = checkout().join("crates/acrtask-trigger/tests/fixtures");
    let mut senders = Vec::new();
    for provider in Provider::ALL {
        let folder = fixtures.join(provider.name());
        senders_in(&folder, || SenderKind::Forge(provider), &mut senders);
    }
    for source in RegistrySource::ALL {
        let folder = fixtures.join("registries").join(source.to_string());
        senders_in(&folder, || SenderKind::Registry(source), &mut senders);
    }
    senders
});

fn senders_in(folder: &Path, kind: impl Fn() -> SenderKind, senders: &mut Vec<Sender>) {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    for path in paths {
        let text = std::fs::read(&path).unwrap_or_default();
        let Ok(fixture) = serde_json::from_slice::<serde_json::Value>(&text) else {
            continue;
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fixture["headers"].as_object().into_iter().flatten() {
            let name = HeaderName::try_from(name);
            let value = HeaderValue::from_str(value.as_str().unwrap_or_default());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.insert(name, value);
            }
        }
        let body = fixture["body"].to_string().into_bytes();
        senders.push(Sender {
            kind: kind(),
            headers,
            body,
        });
    }
}

/// Returns the recorded deliveries: two bytes for the sender, then the body.
fn deliveries() -> Vec<Vec<u8>> {
    let number = |at: usize| u16::try_from(at).unwrap_or(0).to_le_bytes();
    let all = SENDERS.iter().enumerate();
    all.map(|(at, sender)| [&number(at)[..], &sender.body].concat())
        .collect()
}

fn check_webhook(input: &[u8]) -> u64 {
    let Some((number, body)) = input.split_first_chunk::<2>() else {
        return 0;
    };
    let at = usize::from(u16::from_le_bytes(*number)) % SENDERS.len().max(1);
    let Some(sender) = SENDERS.get(at) else {
        return 0;
    };
    let now = Timestamp::UNIX_EPOCH;
    let secret = [Secret::new("a secret that both sides know")];
    match &sender.kind {
        SenderKind::Forge(provider) => {
            // A delivery without a valid signature must be refused.
            let unproved =
                acrtask_trigger::verify_and_parse(*provider, &sender.headers, body, &secret, now);
            assert!(
                unproved.is_err(),
                "{provider} accepted an unsigned delivery"
            );
            match parse_verified(*provider, &sender.headers, body) {
                Ok(delivery) => {
                    delivery.events.iter().for_each(assert_harmless);
                    outcome((
                        at,
                        delivery.events.len().min(4),
                        std::mem::discriminant(&delivery.events[0]),
                    ))
                }
                Err(rejection) => {
                    assert!((400..500).contains(&rejection.status()));
                    let text = rejection.to_string();
                    assert!(!text.contains(char::is_control), "{text:?}");
                    outcome((at, rejection.status()))
                }
            }
        }
        SenderKind::Registry(source) => {
            let read = registry::verify_and_parse(*source, &sender.headers, None, body, &secret);
            outcome((at, read.is_ok()))
        }
    }
}

/// Asserts that the names in an event are harmless as arguments and in a terminal.
fn assert_harmless(event: &ForgeEvent) {
    let name = |name: &str| {
        let good =
            !name.starts_with('-') && !name.contains("..") && !name.contains(char::is_control);
        assert!(good, "{name:?}");
    };
    match event {
        ForgeEvent::Push(push) => name(&push.branch),
        ForgeEvent::Tag(tag) => name(&tag.tag),
        ForgeEvent::PullRequest(request) => {
            name(&request.base_branch);
            name(&request.head_branch);
        }
        ForgeEvent::Ping => {}
        ForgeEvent::Declined { reason } => {
            assert!(!reason.contains(char::is_control), "{reason:?}")
        }
    }
}

/// Checks that a page contains no markup of its texts and no hidden character.
fn check_page(input: &[u8]) -> u64 {
    let text = text_of(input);
    let visible = |shown: &str| shown.chars().all(|c| c == '\t' || is_printable(c));
    let mut styles = 0;
    for line in text.split('\n') {
        let shown = LogLine::new("build", 1, line).content().to_string();
        let spans = shown.matches("<span class=\"").count();
        let cuts = shown.matches("<i>").count();
        assert_eq!(spans, shown.matches("</span>").count(), "{shown:?}");
        assert_eq!(2 * (spans + cuts), shown.matches('<').count(), "{shown:?}");
        for span in shown.split("<span class=\"").skip(1) {
            let (class, _) = span.split_once("\">").expect("the attribute ends");
            let good = |c: char| c.is_ascii_alphanumeric() || c == ' ';
            assert!(class.chars().all(good), "{class:?}");
        }
        assert!(visible(&shown), "{shown:?}");
        styles = styles.max(spans.min(8));
    }
    let name = Foreign::line(text).to_string();
    assert_eq!(name.matches('<').count(), 2, "{name:?}");
    assert!(visible(&name) && !name.contains('\t'), "{name:?}");
    outcome((styles, name.len() > input.len() + 11))
}

fn check_log(input: &[u8]) -> u64 {
    let (secret, text) = match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (&b"hunter2/+"[..], input),
    };
    let secret = text_of(&secret[..secret.len().min(200)]);
    let patterns = Patterns::new([&Secret::new(secret.as_str())]);
    let masked = |piece: usize| {
        let mut masker = Masker::new(patterns.clone());
        let mut out = Vec::new();
        for chunk in text.chunks(piece) {
            out.extend(masker.push(chunk));
        }
        out.extend(masker.finish());
        out
    };
    let whole = masked(text.len().max(1));
    for piece in [1, 7] {
        assert!(
            whole == masked(piece),
            "chunks of {piece} bytes change the result"
        );
    }
    let line = secret.trim();
    let plain = line.len() >= acrtask_model::mask::MIN_LEN && !line.contains(['\n', '*']);
    let is_shown = plain
        && whole
            .windows(line.len())
            .any(|part| part == line.as_bytes());
    let shown = String::from_utf8_lossy(&whole);
    assert!(!is_shown, "{line:?} is shown in {shown:?}");
    outcome((shown.matches(MASK).count().min(9), text.len().min(32)))
}

/// Returns messages of each kind.
fn messages() -> Vec<Vec<u8>> {
    use acrtask_proto::runner::from_runner::Message;
    let kinds = [
        Message::Hello(Default::default()),
        Message::Heartbeat(Default::default()),
        Message::Accepted(Default::default()),
        Message::Started(Default::default()),
        Message::Log(Default::default()),
    ];
    let encoded = kinds.map(|message| {
        FromRunner {
            message: Some(message),
        }
        .encode_to_vec()
    });
    let event = br#"{"time":"2026-01-02T03:04:05Z","run":"ra","event":"output","step":"a","stream":"stdout","text":"x"}"#;
    encoded.into_iter().chain([event.to_vec()]).collect()
}

fn check_runner(input: &[u8]) -> u64 {
    let from = FromRunner::decode(input).ok();
    if let Some(message) = &from {
        let bytes = message.encode_to_vec();
        assert!(FromRunner::decode(&bytes[..]).is_ok_and(|again| again.encode_to_vec() == bytes));
    }
    let to = ToRunner::decode(input).is_ok();
    let event = serde_json::from_slice::<Event>(input).ok();
    if let Some(event) = &event {
        let text = serde_json::to_string(event).expect("an event can be written");
        let again: Event = serde_json::from_str(&text).expect("it can be read again");
        assert_eq!(&again, event);
    }
    let kind = from
        .and_then(|from| from.message)
        .map(|message| std::mem::discriminant(&message));
    outcome((
        kind,
        to,
        event.map(|event| std::mem::discriminant(&event.kind)),
    ))
}

fn check_url(input: &[u8]) -> u64 {
    let text = text_of(input);
    let repository = RepositoryUrl::parse(&text);
    if let Some(repository) = &repository {
        assert!(!repository.path().contains(char::is_control), "{text:?}");
    }
    let context = ContextSpec::parse(&text);
    match &context {
        Ok(ContextSpec::Git(git)) => {
            let arguments = [
                Some(&git.url),
                git.reference.as_ref(),
                git.folder.as_ref(),
                Some(&git.host),
            ];
            for argument in arguments.into_iter().flatten() {
                let harmless = !argument.starts_with('-') && !argument.contains(char::is_control);
                assert!(harmless, "{argument:?} of {text:?}");
            }
            let folder = git.folder.as_deref().unwrap_or_default();
            assert!(!folder.split('/').any(|part| part == ".."), "{folder:?}");
            // Git starts a helper program for `NAME::ADDRESS`.
            let after_name = git
                .url
                .trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c));
            assert!(!after_name.starts_with("::"), "{:?}", git.url);
            assert!(
                git.transport == GitTransport::File || !git.host.is_empty(),
                "{text:?}"
            );
            if let Some((_, password)) = &git.credential {
                // The path may repeat the password. Only the authority part is used for a login.
                let authority = git.url.split("://").nth(1).unwrap_or(&git.url);
                let authority = authority.split('/').next().unwrap_or_default();
                let password = password.expose();
                assert!(
                    password.len() < 4 || !authority.contains(&format!(":{password}@")),
                    "{text:?}"
                );
            }
            outcome((
                git.transport.name(),
                git.reference.is_some(),
                folder.is_empty(),
                git.credential.is_some(),
            ))
        }
        Ok(other) => outcome((std::mem::discriminant(other), repository.is_some())),
        Err(error) => {
            assert!(!error.reason.is_empty() && !error.help.is_empty());
            outcome((error.reason.split(' ').count(), repository.is_some()))
        }
    }
}

fn check_cron(input: &[u8]) -> u64 {
    let text = text_of(input);
    let mut parts = text.split('|');
    let mut timer = Timer::new(parts.next().unwrap_or_default());
    timer.timezone = parts.next().map(str::to_owned);
    timer.jitter = parts.next().map(str::to_owned);
    let schedule = match Schedule::new("task", "timer", &timer) {
        Ok(schedule) => schedule,
        Err(errors) => {
            assert!(!errors.is_empty());
            return outcome(errors.len());
        }
    };
    let after: Timestamp = "2026-03-01T00:00:00Z".parse().expect("a time");
    let until = after + (400 * 24).hours();
    let firings = schedule.firings(after, until, 50);
    assert!(
        firings.len() <= 50 && firings.is_sorted() && firings.iter().all(|firing| *firing > after)
    );
    for pair in firings.windows(2) {
        assert!(pair[0] < pair[1], "{text:?} fires twice at {}", pair[0]);
    }
    assert_eq!(
        schedule.next(after).filter(|firing| *firing <= until),
        firings.first().copied(),
        "{text:?}"
    );
    outcome((
        firings.len(),
        firings.first().map(|firing| firing.as_second() % 86_400),
    ))
}
