use acrtask_api::task::PathFilter;
use proptest::prelude::*;

use super::*;
use crate::{Change, Commit};

const CONTEXT: &str = "https://git.example.com/team/app.git";
const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

fn to_strings(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|text| (*text).to_owned()).collect()
}

fn rules(trigger: &CommitTrigger) -> TriggerRules {
    TriggerRules::new(trigger, Some(CONTEXT)).unwrap()
}

fn repository() -> Repository {
    Repository::new("team/app")
        .with_urls([Some("git@git.example.com:team/app.git")])
        .with_default_branch(Some("main".into()))
}

fn commit(text: &str) -> CommitId {
    CommitId::parse_required(text).unwrap()
}

fn push(branch: &str, message: &str, paths: &[&str]) -> Push {
    Push {
        repository: repository(),
        branch: branch.into(),
        before: Some(commit("1111111")),
        after: Some(commit(SHA)),
        commits: vec![Commit {
            id: commit(SHA),
            message: message.into(),
            changes: paths
                .iter()
                .map(|path| ((*path).to_owned(), Change::Modified))
                .collect(),
        }],
        message: Some(message.into()),
        forced: false,
        incomplete: None,
        files: None,
    }
}

fn tag(name: &str) -> Event {
    Event::Tag(TagPush {
        repository: repository(),
        tag: name.into(),
        after: Some(commit(SHA)),
        moved: false,
        message: None,
    })
}

fn request(action: PullRequestAction, base: &str, from_fork: bool) -> Event {
    Event::PullRequest(Box::new(PullRequest {
        number: 12,
        action,
        title: "A fix".into(),
        base_repository: repository(),
        base_branch: base.into(),
        head_repository: (!from_fork).then(repository),
        head_branch: "fix".into(),
        head: Some(commit(SHA)),
        from_fork,
        files: None,
    }))
}

/// Describes the decision in one line.
fn describe_decision(trigger: &CommitTrigger, event: &Event) -> String {
    match decide(&rules(trigger), event) {
        Decision::Run {
            ref_key, reason, ..
        } => format!("run {ref_key}: {reason}"),
        Decision::CancelPullRequest { number, reason } => format!("cancel {number}: {reason}"),
        Decision::Suppressed { reason } => format!("no: {reason}"),
    }
}

fn runs(trigger: &CommitTrigger, event: &Event) -> bool {
    matches!(decide(&rules(trigger), event), Decision::Run { .. })
}

#[test]
fn path_with_class_characters_matches_literally() {
    let filtered = |include: &[&str]| CommitTrigger {
        paths: PathFilter {
            include: to_strings(include),
            ..PathFilter::default()
        },
        ..CommitTrigger::default()
    };
    for (pattern, path, starts) in [
        ("web/app/[slug]/page.tsx", "web/app/[slug]/page.tsx", true),
        ("web/app/[slug]", "web/app/[slug]/page.tsx", true),
        ("web/[...all]", "web/[...all]/x", true),
        ("web/[ab].ts", "web/a.ts", true),
        ("web/[ab].ts", "web/[ab].ts", true),
        ("web/[ab].ts", "web/c.ts", false),
    ] {
        let trigger = filtered(&[pattern]);
        let pushed = Event::Push(push("main", "A change", &[path]));
        assert_eq!(runs(&trigger, &pushed), starts, "{pattern} {path}");
    }
}

#[test]
fn reasons_are_sentences() {
    let plain = CommitTrigger::default();
    let filtered = CommitTrigger {
        branches: to_strings(&["main", "release/*", "!release/old*"]),
        tags: to_strings(&["v*"]),
        events: vec![
            CommitEvent::Push,
            CommitEvent::Tag,
            CommitEvent::PullRequest,
        ],
        paths: PathFilter {
            include: to_strings(&["services/api", "**/*.proto"]),
            exclude: to_strings(&["**/*.md"]),
        },
        newest_wins: true,
        ..plain.clone()
    };
    let off = CommitTrigger {
        enabled: false,
        ..plain.clone()
    };
    let main = |paths: &[&str]| Event::Push(push("main", "A change", paths));
    let deleted = Event::Push(Push {
        after: None,
        ..push("main", "", &[])
    });
    let forced = Event::Push(Push {
        forced: true,
        incomplete: Some("the forced push removed commits".into()),
        ..push("main", "", &["README.md"])
    });
    let elsewhere = Event::Push(Push {
        repository: Repository::new("x/y").with_urls([Some("https://other.example/x/y")]),
        ..push("main", "", &[])
    });
    let opened = PullRequestAction::Opened;
    let merged = PullRequestAction::Closed { merged: true };
    let cases = [
        describe_decision(&plain, &main(&["a"])),
        describe_decision(&plain, &Event::Push(push("next", "", &[]))),
        describe_decision(&plain, &Event::Push(push("main", "Docs [Skip CI]", &["a"]))),
        describe_decision(&plain, &deleted),
        describe_decision(&plain, &tag("v1")),
        describe_decision(&plain, &request(opened, "main", false)),
        describe_decision(&plain, &Event::Ping),
        describe_decision(&plain, &elsewhere),
        describe_decision(&off, &main(&["a"])),
        describe_decision(&filtered, &main(&["README.md", "services/api/src/main.rs"])),
        describe_decision(&filtered, &main(&["services/api/README.md", "web/a.ts"])),
        describe_decision(&filtered, &forced),
        describe_decision(
            &filtered,
            &Event::Push(push("release/2", "", &["x/y.proto"])),
        ),
        describe_decision(
            &filtered,
            &Event::Push(push("release/old1", "", &["x/y.proto"])),
        ),
        describe_decision(&filtered, &tag("v1.2")),
        describe_decision(&filtered, &tag("nightly")),
        describe_decision(&filtered, &request(opened, "main", true)),
        describe_decision(
            &filtered,
            &request(PullRequestAction::Updated, "other", false),
        ),
        describe_decision(&filtered, &request(merged, "other", false)),
    ];
    insta::assert_snapshot!(cases.join("\n"), @r##"
    run refs/heads/main: commit 0123456789ab was pushed to the branch `main`
    no: the default branch is `main`, not `next`
    no: the message of commit 0123456789ab contains `[skip ci]`
    no: the branch `main` was deleted
    no: the task ignores tags
    no: the task ignores pull requests
    no: the sender only tested the connection
    no: the task's repository is git.example.com/team/app
    no: the commit trigger of the task is off
    run refs/heads/main: commit 0123456789ab was pushed to the branch `main`, and `services/api/src/main.rs` changed
    no: none of the 2 changed files matches the task's paths (`services/api`, `**/*.proto`, not `**/*.md`)
    run refs/heads/main: commit 0123456789ab was pushed to the branch `main`; the path filters do not apply, because the list of changed files is incomplete: the forced push removed commits
    run refs/heads/release/2: commit 0123456789ab was pushed to the branch `release/2`, and `x/y.proto` changed
    no: the branch `release/old1` does not match the task's branches (`main`, `release/*`, `!release/old*`)
    run refs/tags/v1.2: the tag `v1.2` was created at commit 0123456789ab
    no: the tag `nightly` does not match the task's tags (`v*`)
    run pull/12: pull request 12 was opened with commit 0123456789ab; the path filters do not apply, because the list of changed files is incomplete: no sender lists the files of a pull request; it is from another repository, so it is not trusted
    no: pull request 12 has another target branch: the branch `other` does not match the task's branches (`main`, `release/*`, `!release/old*`)
    cancel 12: pull request 12 was merged
    "##);
}

/// Tests the form of a task's definition. Old definitions without rules keep their meaning.
#[test]
fn trigger_keeps_its_json_form() {
    let full = r#"{
        "enabled": true,
        "branches": ["main", "!wip/**"],
        "tags": ["v*"],
        "paths": {"include": ["services/api"], "exclude": ["**/*.md"]},
        "events": ["push", "tag", "pullRequest"],
        "skipMessages": [],
        "newestWins": true
    }"#;
    let trigger: CommitTrigger = serde_json::from_str(full).unwrap();
    assert!(rules(&trigger).newest_wins);
    let written: serde_json::Value = serde_json::to_value(&trigger).unwrap();
    assert_eq!(
        written,
        serde_json::from_str::<serde_json::Value>(full).unwrap()
    );
    for old in ["{}", r#"{"enabled": true}"#] {
        let old: CommitTrigger = serde_json::from_str(old).unwrap();
        assert_eq!(old, CommitTrigger::default());
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"enabled":true}"#);
    }
    assert!(serde_json::from_str::<CommitTrigger>(r#"{"branch": "main"}"#).is_err());
    assert!(serde_json::from_str::<CommitTrigger>(r#"{"events": ["pull_request"]}"#).is_err());
}

#[test]
fn all_mistakes_are_reported() {
    let trigger = CommitTrigger {
        branches: to_strings(&["release/[", ""]),
        tags: to_strings(&["v*"]),
        events: vec![CommitEvent::Push],
        paths: PathFilter {
            include: to_strings(&["!docs"]),
            exclude: to_strings(&["{a"]),
        },
        skip_messages: Some(to_strings(&[" "])),
        ..CommitTrigger::default()
    };
    let mistakes = |trigger, context| {
        let errors = TriggerRules::new(trigger, context).unwrap_err();
        errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    insta::assert_snapshot!(mistakes(&trigger, Some("oci://reg.example.com/x")), @r##"
    context: a commit trigger needs a git repository with a host; write https://HOST/PATH.git#BRANCH, or remove the commit trigger
    tags: `events` does not contain `tag`, so the tags have no effect; add `tag` to `events`, or remove `tags`
    branches: `release/[` is not a pattern: unclosed character class; missing ']'; `*`, `**`, `?`, `[ab]` and `{a,b}` are special; write `\` before one that is meant literally
    paths.include: `!docs` begins with `!`; write the excluded path into `exclude`
    paths.exclude: `{a` is not a pattern: unclosed alternate group; missing '}' (maybe escape '{' with '[{]'?); `*`, `**`, `?`, `[ab]` and `{a,b}` are special; write `\` before one that is meant literally
    skipMessages: an empty text matches every message; remove it; write `[]` to allow every message
    "##);
    let plain = CommitTrigger::default();
    insta::assert_snapshot!(mistakes(&plain, Some(&format!("{CONTEXT}#refs/tags/v1"))), @r##"
    branches: the context names `refs/tags/v1`, which is not a branch; list the branches in `branches`
    "##);
    assert!(TriggerRules::new(&plain, Some(&format!("{CONTEXT}#{SHA}"))).is_err());
    assert!(TriggerRules::new(&plain, None).is_err());
}

/// The attack stored 400 such patterns per task, each a regular expression of 48 KB.
#[test]
fn patterns_of_a_trigger_have_a_total_size() {
    let patterns = |count: usize| -> Vec<String> {
        (0..count)
            .map(|number| format!("{number:04}{}", "{a*,b?}".repeat(63)))
            .collect()
    };
    let trigger = |count: usize| CommitTrigger {
        events: vec![CommitEvent::Push, CommitEvent::Tag],
        branches: patterns(count),
        tags: patterns(count),
        ..CommitTrigger::default()
    };
    assert!(TriggerRules::new(&trigger(9), Some(CONTEXT)).is_ok());
    let errors = TriggerRules::new(&trigger(200), Some(CONTEXT)).unwrap_err();
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors,
        [
            "patterns: the patterns of the trigger have 178000 bytes; the limit is 8192; combine some with `*` and `**`"
        ]
    );
    let pushes = acrtask_api::task::RegistryPushTrigger {
        enabled: true,
        repositories: patterns(100),
        tags: patterns(100),
    };
    assert_eq!(ImageRules::new(&pushes).unwrap_err().len(), 1);
}

#[test]
fn costly_path_filters_start_a_run() {
    let pattern = format!("**/{}b", "*a".repeat(200));
    let trigger = CommitTrigger {
        paths: PathFilter {
            include: vec![pattern],
            exclude: Vec::new(),
        },
        ..CommitTrigger::default()
    };
    let long = "a".repeat(1000);
    let pushed = |count: usize| Event::Push(push("main", "", &vec![long.as_str(); count]));
    assert!(!runs(&trigger, &pushed(1)));
    let decision = describe_decision(&trigger, &pushed(1000));
    assert!(
        decision.ends_with("matching the 1000 changed files takes too long"),
        "{decision}"
    );
}

#[test]
fn full_file_list_decides_path_filters() {
    let trigger = CommitTrigger {
        events: vec![CommitEvent::Push, CommitEvent::PullRequest],
        paths: PathFilter {
            include: to_strings(&["services/api"]),
            exclude: Vec::new(),
        },
        ..CommitTrigger::default()
    };
    let forced = Event::Push(Push {
        incomplete: Some("the push was forced".into()),
        ..push("main", "", &["services/api/a"])
    });
    let opened = request(PullRequestAction::Opened, "main", false);
    for event in [forced, opened] {
        assert!(runs(&trigger, &event));
        assert!(runs(
            &trigger,
            &event
                .clone()
                .with_files(to_strings(&["x", "services/api/b"]))
        ));
        assert!(!runs(
            &trigger,
            &event.clone().with_files(to_strings(&["services/apix"]))
        ));
        assert!(!runs(&trigger, &event.with_files(Vec::new())));
    }
}

#[test]
fn branch_of_context_limits_pushes() {
    let of = |context: &str, branch: &str| {
        let rules = TriggerRules::new(&CommitTrigger::default(), Some(context)).unwrap();
        matches!(
            decide(&rules, &Event::Push(push(branch, "", &[]))),
            Decision::Run { .. }
        )
    };
    assert!(of(
        "https://git.example.com/team/app.git#next:services/api",
        "next"
    ));
    assert!(!of("https://git.example.com/team/app.git#next", "main"));
    assert!(of(
        "git@git.example.com:team/app.git#refs/heads/next",
        "next"
    ));
    assert!(of("https://git.example.com/team/app.git#:folder", "main"));
}

#[test]
fn unknown_default_branch_is_main_or_master() {
    let of = |branch: &str| {
        let mut push = push(branch, "", &[]);
        push.repository.default_branch = None;
        runs(&CommitTrigger::default(), &Event::Push(push))
    };
    assert!(of("main"));
    assert!(of("master"));
    assert!(!of("feature"));
}

#[test]
fn name_patterns_include_and_exclude() {
    let of = |patterns: &[&str], name: &str| {
        runs(
            &CommitTrigger {
                branches: to_strings(patterns),
                ..CommitTrigger::default()
            },
            &Event::Push(push(name, "", &[])),
        )
    };
    assert!(of(&["*"], "main"));
    assert!(!of(&["*"], "feature/a"));
    assert!(of(&["**"], "feature/a"));
    assert!(of(&["feature/**"], "feature/a/b"));
    assert!(of(&["!wip/**"], "main"));
    assert!(!of(&["!wip/**"], "wip/x"));
    assert!(of(&["**", "!wip/**", "wip/keep"], "wip/keep"));
    assert!(of(&["{main,next}"], "next"));
}

#[test]
fn skip_messages_can_be_replaced_or_disabled() {
    let with = |skip_messages: Option<&[&str]>, message: &str| {
        let trigger = CommitTrigger {
            skip_messages: skip_messages.map(to_strings),
            ..CommitTrigger::default()
        };
        runs(&trigger, &Event::Push(push("main", message, &[])))
    };
    assert!(!with(None, "x ***no_ci***"));
    assert!(with(Some(&[]), "x [skip ci]"));
    assert!(!with(Some(&["#NoBuild"]), "x #nobuild"));
    assert!(with(Some(&["#NoBuild"]), "x [skip ci]"));
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]{1,2}", 1..4).prop_map(|parts| parts.join("/"))
}

proptest! {
    /// A relevant or unknown changed file never fails to start a run.
    #[test]
    fn relevant_file_starts_a_run(
        paths in proptest::collection::vec(path(), 0..6),
        include in proptest::collection::vec(path(), 0..3),
        exclude in proptest::collection::vec(path(), 0..3),
        incomplete in any::<bool>(),
    ) {
        let trigger = CommitTrigger {
            paths: PathFilter { include: include.clone(), exclude: exclude.clone() },
            ..CommitTrigger::default()
        };
        let below = |path: &str, folder: &String| path == folder || path.starts_with(&format!("{folder}/"));
        let counts = |path: &String| {
            (include.is_empty() || include.iter().any(|folder| below(path, folder)))
                && !exclude.iter().any(|folder| below(path, folder))
        };
        let expected = (include.is_empty() && exclude.is_empty()) || incomplete || paths.iter().any(counts);
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let event = Event::Push(Push {
            incomplete: incomplete.then(|| "it is so".into()),
            ..push("main", "", &paths)
        });
        prop_assert_eq!(runs(&trigger, &event), expected);
    }

    #[test]
    fn patterns_never_panic(patterns in proptest::collection::vec("\\PC{0,12}", 0..4), name in "\\PC{0,20}") {
        let trigger = CommitTrigger {
            branches: patterns.clone(),
            tags: patterns.clone(),
            paths: PathFilter { include: patterns.clone(), exclude: patterns },
            ..CommitTrigger::default()
        };
        if let Ok(rules) = TriggerRules::new(&trigger, Some(CONTEXT)) {
            decide(&rules, &Event::Push(push(&name, &name, &[&name])));
        }
    }
}
