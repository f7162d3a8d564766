//! Contexts other than git: folders, archives, URLs, standard input, artifacts.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

use std::path::Path;

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{
    Credentials, Registry, Settings,
    manifest::{OCI_MANIFEST, sha256},
};
use acrtask_source::{
    ContextSpec, Limits, Options, Origin, Progress, SourceError, Workspace, fetch, fetch_with_input,
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{any, path},
};

fn scratch() -> (TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        scratch_dir: folder.path().to_owned(),
        ..Options::default()
    };
    (folder, options)
}

fn spec(text: &str) -> ContextSpec {
    ContextSpec::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

async fn tar_gz(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tokio_tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tokio_tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .await
            .unwrap();
    }
    let tar = builder.into_inner().await.unwrap();
    let mut encoder = async_compression::tokio::write::GzipEncoder::new(Vec::new());
    encoder.write_all(&tar).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

fn names(workspace: &Workspace) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(&workspace.root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Formats the error with its causes.
fn chain(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn local_folder_is_used_in_place_with_its_git_variables() {
    let folder = tempfile::tempdir().unwrap();
    let (scratch_folder, options) = scratch();
    let context = spec(folder.path().to_str().unwrap());
    let workspace = fetch(&context, &options).await.unwrap();
    assert_eq!(workspace.root, folder.path().canonicalize().unwrap());
    assert!(workspace.borrowed);
    assert_eq!(workspace.variables, acrtask_source::GitVariables::default());
    drop(workspace);
    assert!(folder.path().is_dir() && is_empty(scratch_folder.path()));

    let repository = git2::Repository::init_opts(
        folder.path(),
        git2::RepositoryInitOptions::new().initial_head("trunk"),
    )
    .unwrap();
    repository
        .remote("origin", "https://me:hunter2@example.com/a.git")
        .unwrap();
    let variables = fetch(&context, &options).await.unwrap().variables;
    assert_eq!(
        variables.repository.as_deref(),
        Some("https://example.com/a.git")
    );
    assert_eq!(variables.commit, None);

    let author = git2::Signature::now("A", "a@example.com").unwrap();
    let tree = repository
        .find_tree(repository.index().unwrap().write_tree().unwrap())
        .unwrap();
    let commit = repository
        .commit(Some("HEAD"), &author, &author, "one", &tree, &[])
        .unwrap();
    let object = repository.find_object(commit, None).unwrap();
    repository.tag("v1", &object, &author, "v1", false).unwrap();
    let sub = folder.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    let variables = fetch(&spec(sub.to_str().unwrap()), &options)
        .await
        .unwrap()
        .variables;
    assert_eq!(variables.commit, Some(commit.to_string()));
    assert_eq!(variables.branch.as_deref(), Some("trunk"));
    assert_eq!(variables.tag.as_deref(), Some("v1"));
}

#[tokio::test]
async fn workspace_path_refuses_links_that_lead_out() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("Dockerfile")).unwrap();
    let (_scratch, options) = scratch();
    let workspace = fetch(&spec(folder.path().to_str().unwrap()), &options)
        .await
        .unwrap();
    let error = workspace.path(Path::new("Dockerfile")).unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
    assert_eq!(
        workspace.path(Path::new("./a/../new")).unwrap(),
        workspace.root.join("new")
    );
}

#[tokio::test]
async fn fetch_accepts_archives_dockerfiles_and_empty_contexts() {
    let (folder, options) = scratch();
    let bytes = tar_gz(&[("Dockerfile", "FROM scratch\n"), ("src/a", "a")]).await;
    let archive = tempfile::tempdir().unwrap();
    let file = archive.path().join("context.tar.gz");
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(
        names(
            &fetch(&spec(file.to_str().unwrap()), &options)
                .await
                .unwrap()
        ),
        ["Dockerfile", "src"]
    );
    assert!(
        !fetch(&spec(file.to_str().unwrap()), &options)
            .await
            .unwrap()
            .borrowed
    );
    // The content of a file decides its kind, not its ending.
    let odd = archive.path().join("context");
    std::fs::write(&odd, &bytes).unwrap();
    assert_eq!(
        names(&fetch(&spec(odd.to_str().unwrap()), &options).await.unwrap()),
        ["Dockerfile", "src"]
    );

    assert_eq!(
        names(
            &fetch_with_input(&ContextSpec::Stdin, &options, &bytes[..])
                .await
                .unwrap()
        ),
        ["Dockerfile", "src"]
    );
    assert_eq!(
        names(
            &fetch_with_input(&ContextSpec::Stdin, &options, &b"FROM scratch\n"[..])
                .await
                .unwrap()
        ),
        ["Dockerfile"]
    );
    let error = fetch_with_input(&ContextSpec::Stdin, &options, &b""[..])
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot unpack -: it is empty");
    let workspace = fetch(&ContextSpec::None, &options).await.unwrap();
    assert!(names(&workspace).is_empty());
    drop(workspace);
    let error = fetch(&spec("/no/such/folder"), &options).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot read the context /no/such/folder");
    assert!(is_empty(folder.path()));
}

#[tokio::test]
async fn fetch_downloads_archives_and_dockerfiles() {
    let server = MockServer::start().await;
    let bytes = tar_gz(&[("Dockerfile", "FROM scratch\n"), ("a", "a")]).await;
    let respond = |body: &[u8], media_type: &str| {
        ResponseTemplate::new(200).set_body_raw(body.to_vec(), media_type)
    };
    for (at, response) in [
        ("/c.tar.gz", respond(&bytes, "application/octet-stream")),
        // The content decides its kind, not the media type of the server.
        ("/odd", respond(&bytes, "text/plain")),
        ("/Dockerfile", respond(b"FROM scratch\n", "text/plain")),
        ("/page", respond(b"<html>", "text/html; charset=utf-8")),
        (
            "/moved",
            ResponseTemplate::new(302).insert_header("Location", "/c.tar.gz"),
        ),
        (
            "/out",
            ResponseTemplate::new(302).insert_header("Location", "file:///etc/passwd"),
        ),
    ] {
        Mock::given(path(at))
            .respond_with(response)
            .mount(&server)
            .await;
    }
    let (folder, mut options) = scratch();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = seen.clone();
    options.progress = Some(std::sync::Arc::new(move |progress| {
        sink.lock().unwrap().push(progress)
    }));
    for (at, expected) in [
        ("/c.tar.gz", Ok(vec!["Dockerfile", "a"])),
        ("/odd", Ok(vec!["Dockerfile", "a"])),
        ("/moved", Ok(vec!["Dockerfile", "a"])),
        ("/Dockerfile", Ok(vec!["Dockerfile"])),
        ("/page", Err("it is a web page")),
        ("/none", Err("the server responded with 404")),
        ("/out", Err("the server responded with 302")),
    ] {
        let url = format!("http://{}{at}", server.address());
        match (fetch(&spec(&url), &options).await, expected) {
            (Ok(workspace), Ok(expected)) => assert_eq!(names(&workspace), expected, "{at}"),
            (Err(error), Err(expected)) => {
                assert!(chain(&error).contains(expected), "{at}: {}", chain(&error))
            }
            (got, _) => panic!("{at}: {got:?}"),
        }
    }
    assert!(is_empty(folder.path()));
    let seen = seen.lock().unwrap();
    assert!(matches!(&seen[0], Progress::Started(text) if text.starts_with("fetching http://")));
    let all = Progress::Received {
        bytes: bytes.len() as u64,
        total: Some(bytes.len() as u64),
    };
    assert!(seen.contains(&all), "{seen:?}");
}

#[tokio::test]
async fn download_keeps_secrets_and_enforces_its_limits() {
    let storage = MockServer::start().await;
    let bytes = tar_gz(&[("a", "a")]).await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(200).set_body_bytes(bytes.clone()))
        .mount(&storage)
        .await;
    let server = MockServer::start().await;
    let location = format!("http://{}/stored", storage.address());
    Mock::given(any())
        .respond_with(ResponseTemplate::new(302).insert_header("Location", location.as_str()))
        .mount(&server)
        .await;
    let url = format!("http://me:hunter2@{}/c.tar?sig=hunter2", server.address());
    let (_folder, mut options) = scratch();
    fetch(&spec(&url), &options).await.unwrap();
    let initial: &Request = &server.received_requests().await.unwrap()[0];
    assert!(initial.headers.contains_key("authorization"));
    let followed: &Request = &storage.received_requests().await.unwrap()[0];
    assert!(
        !followed.headers.contains_key("authorization")
            && !followed.headers.contains_key("referer")
    );

    options.limits = Limits {
        download_bytes: 10,
        ..Limits::default()
    };
    let error = fetch(&spec(&url), &options).await.unwrap_err();
    assert!(
        matches!(error, SourceError::TooLarge { limit: 10, .. }),
        "{error:?}"
    );
    assert!(!format!("{error:?}").contains("hunter2"));

    for (url, expected) in [
        (url.as_str(), "not a public address"),
        ("http://example.com/c.tar", "neither encryption"),
        ("https://localhost/c.tar", "on this machine"),
        ("https://10.0.0.1/c.tar", "not a public address"),
        ("https://[fd00::1]/c.tar", "not a public address"),
        (
            "https://169.254.169.254/latest/meta-data",
            "not a public address",
        ),
        (".", "cannot name a path of this machine"),
        ("oci://127.0.0.1:1/a", "not a public address"),
    ] {
        let (_folder, mut options) = scratch();
        options.origin = Origin::TaskFile;
        let error = fetch(&spec(url), &options).await.unwrap_err();
        assert!(chain(&error).contains(expected), "{url}: {}", chain(&error));
        assert!(!chain(&error).contains("hunter2"), "{}", chain(&error));
    }
}

/// Returns the value of the variable. `None` only if `ACRTASK_TEST_SKIP_ENGINE` allows to skip the
/// test.
fn setting(name: &str) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => Some(value),
        Err(_) if std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok_and(|value| value == "1") => {
            eprintln!("skipped: {name} is not set");
            None
        }
        Err(_) => panic!(
            "{name} is not set: run the tests with `cargo xtask test`, or set it to a registry's HOST:PORT; ACRTASK_TEST_SKIP_ENGINE=1 skips this test"
        ),
    }
}

/// Pushes an artifact of `layers`: content, title, and `true` for a folder that ORAS packed.
async fn push_artifact(host: &str, layers: &[(&[u8], Option<&str>, bool)]) -> ImageRef {
    let reference: ImageRef = format!("{host}/test-source/artifact:{}", &uuid())
        .parse()
        .unwrap();
    let registry = Registry::new(Credentials::new(), Settings::default()).unwrap();
    let config = b"{}";
    registry
        .put_blob(&reference, config.as_slice().into())
        .await
        .unwrap();
    let mut descriptors = Vec::new();
    for (content, title, unpack) in layers {
        let digest: Digest = registry
            .put_blob(&reference, content.to_vec().into())
            .await
            .unwrap();
        let title = title.map(|title| format!(r#""org.opencontainers.image.title":"{title}""#));
        let unpack = unpack.then(|| r#""io.deis.oras.content.unpack":"true""#.to_owned());
        let annotations: Vec<String> = title.into_iter().chain(unpack).collect();
        descriptors.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{},"annotations":{{{}}}}}"#,
            content.len(),
            annotations.join(",")
        ));
    }
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},"layers":[{}]}}"#,
        sha256(config),
        descriptors.join(",")
    );
    registry
        .put_manifest(&reference, OCI_MANIFEST, manifest.into())
        .await
        .unwrap();
    reference
}

/// Returns a tag that no other test uses.
fn uuid() -> String {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!("t{}-{nanos:x}", std::process::id())
}

#[tokio::test]
async fn fetch_unpacks_artifacts() {
    let Some(host) = setting("ACRTASK_TEST_REGISTRY") else {
        return;
    };
    let archive = tar_gz(&[("Dockerfile", "FROM scratch\n"), ("a", "a")]).await;
    let file = b"FROM scratch\n".as_slice();
    type Layers<'a> = Vec<(&'a [u8], Option<&'a str>, bool)>;
    let cases: Vec<(Layers<'_>, Result<Vec<&str>, &str>)> = vec![
        (vec![(&archive, None, false)], Ok(vec!["Dockerfile", "a"])),
        (
            vec![(&archive, Some("context.tar.gz"), false)],
            Ok(vec!["Dockerfile", "a"]),
        ),
        (
            vec![(file, Some("Dockerfile"), false)],
            Ok(vec!["Dockerfile"]),
        ),
        (
            vec![
                (&archive, Some("vendor.tar.gz"), false),
                (file, Some("x/Dockerfile"), false),
            ],
            Ok(vec!["vendor.tar.gz", "x"]),
        ),
        (
            vec![
                (&archive, Some("folder"), true),
                (file, Some("other"), false),
            ],
            Ok(vec!["Dockerfile", "a", "other"]),
        ),
        (vec![(file, Some("../outside"), false)], Err("leads out")),
        (vec![(file, Some("/etc/outside"), false)], Err("leads out")),
        (vec![], Err("no layers")),
    ];
    for (layers, expected) in cases {
        let reference = push_artifact(&host, &layers).await;
        let (folder, mut options) = scratch();
        // The operator names the registry, so it may be on this machine.
        options.origin = Origin::TaskFile;
        options.operator_registries.push(host.clone());
        match (
            fetch(&spec(&format!("oci://{reference}")), &options).await,
            &expected,
        ) {
            (Ok(workspace), Ok(expected)) => assert_eq!(&names(&workspace), expected),
            (Err(error), Err(expected)) => {
                assert!(chain(&error).contains(expected), "{}", chain(&error))
            }
            (got, _) => panic!("{expected:?}: {got:?}"),
        }
        assert!(is_empty(folder.path()));
    }
}

#[tokio::test]
async fn artifact_with_another_digest_is_refused() {
    let server = MockServer::start().await;
    let archive = tar_gz(&[("a", "a")]).await;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"x","digest":"{0}","size":2}},"layers":[{{"mediaType":"x","digest":"{0}","size":{1}}}]}}"#,
        sha256(b"something else"),
        archive.len()
    );
    Mock::given(path("/v2/a/manifests/1"))
        .respond_with(ResponseTemplate::new(200).set_body_raw(manifest, OCI_MANIFEST))
        .mount(&server)
        .await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(200).set_body_bytes(archive))
        .mount(&server)
        .await;
    let (folder, options) = scratch();
    let error = fetch(&spec(&format!("oci://{}/a:1", server.address())), &options)
        .await
        .unwrap_err();
    assert!(
        chain(&error).contains("its digest should be"),
        "{}",
        chain(&error)
    );
    assert!(is_empty(folder.path()));
}
