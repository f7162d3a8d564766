//! Misbehaving registries and token servers at public addresses of the isolated network. The tests
//! check which data the client sends, which redirects it follows and how much it reads. Each row of
//! the table is a scenario.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use acrtask_model::{Digest, ImageRef, Secret};
use acrtask_registry::{
    AddressPolicy, Credentials, Registry, RegistryError, Settings, manifest::sha256,
};
use acrtask_source::{ContextSpec, Origin};
use acrtask_tests::{
    TestEnvironment,
    misbehaving::{Misbehaving, ReceivedRequest, Reply},
    service::TestServer,
};

use crate::{
    INSIDE, network, run_in_namespaces,
    scenarios::{INDEX, Operation, Scenario, bearer_challenge, scenarios},
};

/// Longest time that a scenario may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Memory that all scenarios may add to this process, in KiB.
const MEMORY: u64 = 160 << 10;
/// `me:hunter2`, the login for the misbehaving registry.
const OWN: &str = "Basic bWU6aHVudGVyMg==";

/// Returns the response of a host on the simulated internet.
fn respond(seen: &ReceivedRequest) -> Reply {
    let path = seen.request.path.as_str();
    match (seen.host.as_str(), path) {
        ("reg.hosts.test", _) => {
            let rest = path.trim_start_matches("/v2/");
            let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let scenario = scenarios().into_iter().find(|row| row.name == name);
            scenario.map_or(Reply::status(404, &[]), |row| (row.answer)(seen, rest))
        }
        // A registry that requests the token which the token server of another registry issues.
        ("thief.hosts.test", _) => bearer_challenge("https://victim.hosts.test/token"),
        ("victim.hosts.test", "/token") => match seen.authorization() {
            Some(_) => Reply::body("application/json", r#"{"token":"stolen"}"#),
            None => Reply::body("application/json", r#"{"token":"anonymous"}"#),
        },
        ("flip-blob.hosts.test", _) => Reply::redirect("https://flip-blob.hosts.test/blob"),
        (_, "/token") => Reply::body("application/json", r#"{"token":"worthless"}"#),
        (_, "/asks") => Reply::status(401, &[("WWW-Authenticate", "Basic")]),
        (_, "/up") => Reply::status(201, &[]),
        _ => Reply::body("application/octet-stream", "a blob"),
    }
}

fn create_client() -> Registry {
    let credentials = Credentials::new()
        .with("reg.hosts.test", "me", Secret::new("hunter2"))
        .with("victim.hosts.test", "me", Secret::new("another"));
    Registry::new(credentials, Settings::default()).unwrap()
}

async fn run_scenario(scenario: &Scenario) -> Result<(), String> {
    let registry = create_client();
    let name = format!("reg.hosts.test/{}:1", scenario.name);
    let reference: ImageRef = name.parse().unwrap();
    let blob = sha256(b"a blob");
    let shown = |error: RegistryError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    };
    match scenario.operation {
        Operation::Resolve => registry.resolve(&reference).await.map(drop).map_err(shown),
        Operation::Manifest => {
            let found = match scenario.name {
                "head-is-not-get" => registry.resolve(&reference).await.map(|found| found.digest),
                _ => Ok(sha256(INDEX.as_bytes())),
            };
            let reference = match (found, scenario.name) {
                (Ok(digest), "head-is-not-get") => reference.at(digest),
                (Ok(_), _) => reference,
                (Err(error), _) => return Err(shown(error)),
            };
            registry.manifest(&reference).await.map(drop).map_err(shown)
        }
        Operation::Blob => {
            let read = registry.blob_bytes(&reference, &blob, 1 << 20).await;
            read.map(drop).map_err(shown)
        }
        Operation::Push => registry
            .put_blob(&reference, "a blob".into())
            .await
            .map(|_: Digest| ())
            .map_err(shown),
        Operation::Tags => {
            let mut next = None;
            for _ in 0..10 {
                let page = registry.tags(&reference, next.as_ref()).await;
                next = page.map_err(shown)?.next;
                if next.is_none() {
                    return Ok(());
                }
            }
            Err("the pages never end".into())
        }
        Operation::Context => {
            let spec = ContextSpec::parse(&format!("oci://{name}")).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            let options = acrtask_source::Options {
                origin: Origin::TaskFile,
                scratch_dir: scratch.path().join("contexts"),
                ..acrtask_source::Options::default()
            };
            std::fs::create_dir(&options.scratch_dir).unwrap();
            let fetched = acrtask_source::fetch(&spec, &options).await;
            let files = std::fs::read_dir(scratch.path()).unwrap().count();
            assert_eq!(files, 1, "{}: a file left its folder", scenario.name);
            fetched.map(drop).map_err(|error| {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    text = format!("{text}: {error}");
                    cause = error.source();
                }
                text
            })
        }
    }
}

/// Returns the anonymous memory of this process, in KiB.
fn used_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

#[test]
fn misbehaving_registries_are_refused() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    run_in_namespaces(
        "registries::registries_in_namespaces",
        folder.path(),
        environment.program(),
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other test runs it in namespaces of its own"]
async fn registries_in_namespaces() {
    let (Some(environment), Some(folder)) = (TestEnvironment::find(), std::env::var_os(INSIDE))
    else {
        return;
    };
    let folder = PathBuf::from(folder);
    let (config, authority) = network::create_certificates();
    network::set_up(&folder, &authority);
    network::start_name_server();
    let trapped = network::start_traps();
    let listener = TcpListener::bind(network::public_address()).unwrap();
    let server = Misbehaving::start(listener, Some(Arc::clone(&config)), respond);

    let before = used_memory();
    let mut wrong = Vec::new();
    for scenario in scenarios() {
        let begun = Instant::now();
        let done = tokio::time::timeout(LIMIT, run_scenario(&scenario)).await;
        let fine = match (&done, scenario.error) {
            (Ok(Ok(())), None) => true,
            (Ok(Err(error)), Some(expected)) => {
                error.contains(expected) && !error.contains("hunter2")
            }
            _ => false,
        };
        let trap = trapped.swap(0, Ordering::SeqCst);
        if !fine || trap > 0 {
            wrong.push(format!(
                "{}: {done:?} after {:?}, {trap} connections to private addresses",
                scenario.name,
                begun.elapsed()
            ));
        }
    }
    let grown = used_memory().saturating_sub(before);
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(grown < MEMORY, "{grown} KiB were kept");
    check_logins(&server);
    check_no_token_of_another_registry(&environment, &server);
    check_rebinding().await;
    assert_eq!(
        trapped.load(Ordering::SeqCst),
        0,
        "a private address received a connection"
    );
}

/// Asserts that the registry's login was sent only to that registry, and the login of the other one
/// nowhere.
fn check_logins(server: &Misbehaving) {
    let seen = server.requests();
    let with_login: Vec<(&str, &str)> = seen
        .iter()
        .filter_map(|seen| Some((seen.host.as_str(), seen.authorization()?)))
        .collect();
    assert!(
        with_login.contains(&("reg.hosts.test", OWN)),
        "the registry received no login"
    );
    for (host, authorization) in with_login {
        assert_eq!(host, "reg.hosts.test", "{authorization}");
        let expected = [OWN, "Bearer t", "Bearer worthless", "Bearer anonymous"];
        assert!(expected.contains(&authorization), "{authorization}");
    }
    assert!(
        seen.iter().any(|seen| seen.host == "victim.hosts.test"),
        "the token server of the other registry received no request"
    );
    let uploads = seen.iter().filter(|seen| seen.request.path == "/up");
    let bodies: Vec<_> = uploads.map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, [b"a blob".to_vec()]);
}

/// A server that checks the logins of a task must not send the token of one registry to another.
fn check_no_token_of_another_registry(environment: &TestEnvironment, server: &Misbehaving) {
    let control = TestServer::start(environment, &["--no-runner"]);
    let files = acrtask_tests::project::create_folder(&[
        (
            "app.yaml",
            r#"{"name": "app", "cmd": "alpine true", "registry": "thief.hosts.test"}"#,
        ),
        ("password", "hunter3"),
        ("other", "hunter4"),
    ]);
    let run = |args: &[&str]| control.start_client(files.path(), args).wait();
    let applied = run(&["task", "apply", "--file", "app.yaml"]);
    assert_eq!(applied.code, Some(0), "{}", applied.transcript());
    let set = |host: &str, file: &str| {
        let args = [
            "credential",
            "set",
            host,
            "--username",
            "me",
            "--from-file",
            file,
        ];
        let set = run(&args);
        assert_eq!(set.code, Some(0), "{}", set.transcript());
    };
    set("thief.hosts.test", "password");
    set("victim.hosts.test", "other");
    let probed = run(&["doctor", "app"]);
    let of = |host: &str| {
        let seen = server.requests().into_iter();
        let logins = seen.filter(|seen| seen.host == host);
        logins
            .filter_map(|seen| seen.authorization().map(str::to_owned))
            .collect::<Vec<String>>()
    };
    let thief = server
        .requests()
        .iter()
        .filter(|seen| seen.host == "thief.hosts.test")
        .count();
    assert!(
        thief > 0,
        "the registry received no request: {}",
        probed.transcript()
    );
    let stolen = of("thief.hosts.test");
    assert!(!stolen.contains(&"Bearer stolen".to_owned()), "{stolen:?}");
    assert_eq!(of("victim.hosts.test"), Vec::<String>::new());
    assert!(
        !probed.transcript().contains("hunter"),
        "{}",
        probed.transcript()
    );

    // If both hosts have the same login, the registry gains nothing. Then the token server is used.
    set("victim.hosts.test", "password");
    run(&["doctor", "app"]);
    assert_eq!(of("victim.hosts.test").len(), 1);
}

/// Names that resolve to private addresses after the check, before the connection.
async fn check_rebinding() {
    for url in [
        "oci://flip-oci.hosts.test/app:1",
        "https://flip-archive.hosts.test/nothing.tar",
        "https://flip-refs.hosts.test/app.git#main",
    ] {
        let spec = ContextSpec::parse(url).unwrap();
        let options = acrtask_source::Options {
            origin: Origin::TaskFile,
            ..acrtask_source::Options::default()
        };
        // The first resolution is public, and all later ones are private.
        for attempt in 0..3 {
            let fetched = acrtask_source::fetch(&spec, &options).await;
            assert!(attempt == 0 || fetched.is_err(), "{url}: {attempt}");
        }
    }
    // Address policy of a server that polls base images of tasks.
    let settings = Settings {
        addresses: AddressPolicy::NoMetadata,
        ..Settings::default()
    };
    let registry = Registry::new(Credentials::new(), settings).unwrap();
    let metadata: ImageRef = "private-2.hosts.test/app:1".parse().unwrap();
    let error = registry.resolve(&metadata).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Unreachable { .. }),
        "{error:?}"
    );
}
