//! Tests of valid and invalid contexts.

use proptest::prelude::*;

use super::*;

/// Describes the kind and the text of a context, and the parts of a git URL.
fn shown(text: &str) -> String {
    match ContextSpec::parse(text) {
        Err(error) => format!("refused: {} | {}", error.reason, error.help),
        Ok(spec) => match &spec {
            ContextSpec::Folder(_) => format!("folder {spec}"),
            ContextSpec::TarballFile(_) => format!("archive {spec}"),
            ContextSpec::HttpTarball(_) => format!("download {spec}"),
            ContextSpec::Oci(_) => format!("artifact {spec}"),
            ContextSpec::Stdin => "stdin".into(),
            ContextSpec::None => "none".into(),
            ContextSpec::Git(git) => format!(
                "git {} host={} url={} ref={} folder={}{}",
                git.transport.name(),
                git.host,
                git.url,
                git.reference.as_deref().unwrap_or("-"),
                git.folder.as_deref().unwrap_or("-"),
                git.credential
                    .as_ref()
                    .map(|(user, password)| format!(" as {user}:{}", password.expose()))
                    .unwrap_or_default(),
            ),
        },
    }
}

#[test]
fn parse_accepts_all_kinds_of_contexts() {
    for (text, expected) in [
        (".", "folder ."),
        ("sub/folder", "folder sub/folder"),
        ("/abs", "folder /abs"),
        ("./-odd", "folder ./-odd"),
        ("a:b", "folder a:b"),
        ("context.tar.gz", "archive context.tar.gz"),
        ("/x/Y.TGZ", "archive /x/Y.TGZ"),
        ("x.tar.zst", "archive x.tar.zst"),
        ("-", "stdin"),
        ("/dev/null", "none"),
        (
            "https://example.com/context.tar.gz",
            "download https://example.com/context.tar.gz",
        ),
        (
            "https://example.com/Dockerfile",
            "download https://example.com/Dockerfile",
        ),
        (
            "https://u:p@example.com/c.tar?sig=secret",
            "download https://example.com/c.tar?...",
        ),
        (
            "https://github.com/a/b/raw/main/Dockerfile",
            "download https://github.com/a/b/raw/main/Dockerfile",
        ),
        ("oci://r.example/a/b", "artifact oci://r.example/a/b:latest"),
        ("oci://r.example/a/b:v1", "artifact oci://r.example/a/b:v1"),
        (
            "https://github.com/a/b.git",
            "git https host=github.com url=https://github.com/a/b.git ref=- folder=-",
        ),
        (
            "https://github.com/a/b.git#main:sub/x",
            "git https host=github.com url=https://github.com/a/b.git ref=main folder=sub/x",
        ),
        (
            "https://github.com/a/b.git#:sub",
            "git https host=github.com url=https://github.com/a/b.git ref=- folder=sub",
        ),
        (
            "https://github.com/a/b.git#refs/pull/1/head",
            "git https host=github.com url=https://github.com/a/b.git ref=refs/pull/1/head folder=-",
        ),
        (
            "https://github.com/a/b.git#feature/x:/sub/./y/",
            "git https host=github.com url=https://github.com/a/b.git ref=feature/x folder=sub/y",
        ),
        (
            "https://me:s%40crt@example.com/b.git",
            "git https host=example.com url=https://example.com/b.git ref=- folder=- as me:s@crt",
        ),
        (
            "https://ghp_token@github.com/a/b.git",
            "git https host=github.com url=https://github.com/a/b.git ref=- folder=- as x-access-token:ghp_token",
        ),
        (
            "https://dev.azure.com/org/project/_git/repo#main:src",
            "git https host=dev.azure.com url=https://dev.azure.com/org/project/_git/repo ref=main folder=src",
        ),
        (
            "github.com/a/b",
            "git https host=github.com url=https://github.com/a/b ref=- folder=-",
        ),
        (
            "github.com/a/b.git#v1",
            "git https host=github.com url=https://github.com/a/b.git ref=v1 folder=-",
        ),
        (
            "git://example.com/b",
            "git git host=example.com url=git://example.com/b ref=- folder=-",
        ),
        (
            "git@github.com:a/b.git#v1",
            "git ssh host=github.com url=git@github.com:a/b.git ref=v1 folder=-",
        ),
        (
            "ssh://git@example.com:22/b.git",
            "git ssh host=example.com url=ssh://git@example.com:22/b.git ref=- folder=-",
        ),
        (
            "file:///srv/b.git#main",
            "git file host= url=file:///srv/b.git ref=main folder=-",
        ),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
}

#[test]
fn parse_errors_give_advice() {
    let texts = [
        "",
        "https://github.com/a/b",
        "https://github.com/a/b?tab=readme",
        "https://example.com/b.git?ref=main",
        "https://example.com/context.tar#main",
        "ftp://example.com/a",
        "https://",
        "oci://",
        "oci://r.example/Upper",
        "https://example.com/.git#a..b",
        "https://example.com/a.git#main:../x",
        "ssh://me:pw@example.com/a.git",
        "git://example.com",
        "-C/tmp",
    ];
    let all: Vec<String> = texts
        .iter()
        .map(|text| format!("{text:?}\n    {}", shown(text)))
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

/// Every text here has made a program that passes URLs to git or ssh run a command.
#[test]
fn parse_refuses_options_and_commands_of_git_and_ssh() {
    for text in [
        "--upload-pack=touch /tmp/x",
        "-oProxyCommand=touch /tmp/x",
        "ext::sh -c touch% /tmp/x",
        "fd::17/foo",
        "transport::https://example.com/a.git",
        "ssh://-oProxyCommand=touch$IFS/tmp/x/a.git",
        "ssh://%2doProxyCommand=x/a.git",
        "ssh://git@-oProxyCommand=x/a.git",
        "ssh://-x@example.com/a.git",
        "ssh://example.com;touch/a.git",
        "ssh://$(touch)/a.git",
        "ssh://`touch`/a.git",
        "ssh://a'b/a.git",
        "-oProxyCommand=x@example.com:a.git",
        "git@-oProxyCommand=x:a.git",
        "git@example.com:-x",
        "git@exam ple.com:a",
        "https://example.com/a.git#--upload-pack=touch",
        "https://example.com/a.git#-x:folder",
        "https://example.com/a.git#main^{/x}",
        "https://example.com/a.git#:/x:y/..",
        "https://example.com/a.git#a b",
        "https://example.com/a.git#refs/heads/*",
        "https://example.com/a.git#@{upstream}",
        "https://example.com/a.git#main\n--x",
        "https://example.com/a.git\n#main",
        "https://example.com/a.git#ma\0in",
        "git@example.com:a\nb",
        "file://host/a.git",
        "git+ext::sh",
    ] {
        let parsed = ContextSpec::parse(text);
        assert!(parsed.is_err(), "{text:?} became {parsed:?}");
    }
}

#[test]
fn errors_and_texts_contain_no_password() {
    for text in [
        "https://me:hunter2@example.com/a.git#bad..ref",
        "https://me:hunter2@example.com/a.git",
        "https://me:hunter2@example.com/a.tar#x",
        "ssh://me:hunter2@example.com/a.git",
        "ftp://me:hunter2@example.com/a",
        "https://example.com/a.tar?sig=hunter2",
        "https://example.com/a.tar?sig=hunter2#x",
        "https://example.com/a.git?token=hunter2",
    ] {
        let all = match ContextSpec::parse(text) {
            Ok(spec) => format!("{spec} {spec:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!all.contains("hunter2"), "{text}: {all}");
    }
}

proptest! {
    /// An accepted URL is one line, and is safe after `--` in git's arguments.
    #[test]
    fn accepted_git_urls_are_harmless(text in "\\PC{0,40}|(https|ssh|git|ext|file)(://|::|@)[-a-z$%@:./']{0,20}(\\.git)?(#[-a-z.:/^*~@{}]{0,12})?") {
        if let Ok(ContextSpec::Git(git)) = ContextSpec::parse(&text) {
            // Git detects a remote helper in this way.
            let scheme_end = git.url.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).unwrap_or(0);
            prop_assert!(!git.url.starts_with('-') && !git.url[scheme_end..].starts_with("::"), "{}", git.url);
            prop_assert!(!git.host.starts_with('-'));
            prop_assert!(git.host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:+[]".contains(&b)), "{}", git.host);
            if let Some(reference) = &git.reference {
                prop_assert!(!reference.starts_with('-') && !reference.contains([':', ' ', '*', '^', '\n']), "{reference}");
            }
            if let Some(folder) = &git.folder {
                prop_assert!(!folder.starts_with('/') && !folder.split('/').any(|part| part == ".." || part.is_empty()), "{folder}");
            }
        }
    }

    /// Parsing the text of a context returns the same context.
    #[test]
    fn display_and_parse_round_trip(text in "https://example\\.com/[a-z]{1,8}\\.git(#[a-z]{1,5}(/[a-z]{1,3})?(:[a-z]{1,4})?)?") {
        let spec = ContextSpec::parse(&text).unwrap();
        prop_assert_eq!(spec.to_string(), text);
    }
}
