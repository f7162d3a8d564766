//! Output of a purge at a stand-in for the API of ACR, beside that of the original program.

use std::sync::{Arc, Mutex};

use acrtask_registry::{Credentials, Registry, Settings, manifest::OCI_MANIFEST};
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

use super::*;
use crate::{AcrLine, Always, NoRecords, run_command};

/// Tag: its name, the number of its manifest, its age in days, and its lock.
type TagEntry = (&'static str, usize, i64, bool);

/// Repository `platform/api` of the original's cases, without signatures.
#[derive(Clone)]
struct FakeAcr {
    tags: Arc<Mutex<Vec<TagEntry>>>,
    /// Ages of the manifests, in days.
    manifests: Arc<Mutex<Vec<(usize, i64)>>>,
    deletions: Arc<Mutex<Vec<String>>>,
}

fn content(n: usize) -> String {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "annotations": {"n": n.to_string()},
           "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{n:064x}"), "size": 1}, "layers": []})
    .to_string()
}

fn digest(n: usize) -> String {
    acrtask_registry::manifest::sha256(content(n).as_bytes()).to_string()
}

fn time(age: i64) -> String {
    (Timestamp::now() - jiff::SignedDuration::from_hours(24 * age)).to_string()
}

fn attributes(is_locked: bool) -> Value {
    json!({"deleteEnabled": !is_locked, "writeEnabled": true})
}

impl FakeAcr {
    fn new() -> Self {
        Self {
            tags: Arc::new(Mutex::new(vec![
                ("v3", 3, 10, false),
                ("v2", 2, 100, false),
                ("v2-alias", 2, 100, false),
                ("locked", 7, 150, true),
                ("v1", 1, 200, false),
            ])),
            manifests: Arc::new(Mutex::new(vec![
                (1, 200),
                (2, 100),
                (3, 10),
                (4, 150),
                (5, 5),
                (7, 150),
            ])),
            deletions: Arc::default(),
        }
    }
}

impl Respond for FakeAcr {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let path = request.url.path();
        let is_first = !request.url.query_pairs().any(|(name, _)| name == "last");
        let ok = |body: Value| ResponseTemplate::new(200).set_body_json(body);
        let mut tags = self.tags.lock().unwrap();
        let mut manifests = self.manifests.lock().unwrap();
        if request.method.as_str() == "DELETE" {
            let name = path.rsplit('/').next().unwrap_or_default();
            tags.retain(|(tag, ..)| *tag != name);
            manifests.retain(|(n, _)| digest(*n) != name);
            self.deletions.lock().unwrap().push(name.to_owned());
            return ResponseTemplate::new(202);
        }
        match path.rsplit_once('/').unwrap_or_default() {
            (_, "_catalog") => ok(json!({"repositories": ["platform/api"]})),
            (_, "_tags") if is_first => {
                let entries = tags.iter().map(|(name, n, age, is_locked)| {
                    json!({"name": name, "digest": digest(*n), "lastUpdateTime": time(*age),
                           "changeableAttributes": attributes(*is_locked)})
                });
                ok(json!({"tags": entries.collect::<Vec<_>>()}))
            }
            (_, "_manifests") if is_first => {
                let entries = manifests.iter().map(|(n, age)| {
                    json!({"digest": digest(*n), "mediaType": OCI_MANIFEST, "lastUpdateTime": time(*age),
                           "changeableAttributes": attributes(false)})
                });
                ok(json!({"manifests": entries.collect::<Vec<_>>()}))
            }
            (_, "_tags" | "_manifests") => ok(json!({})),
            (start, name) if start.ends_with("/manifests") => {
                match manifests.iter().find(|(n, _)| digest(*n) == name) {
                    Some((n, _)) => {
                        ResponseTemplate::new(200).set_body_raw(content(*n), OCI_MANIFEST)
                    }
                    None => ResponseTemplate::new(404),
                }
            }
            _ => ResponseTemplate::new(404),
        }
    }
}

/// Runs a line. Returns its exit code and its output, with `HOST` and `DIGEST-N`.
async fn run_line(fake: &FakeAcr, line: &str) -> (u8, String) {
    acrtask_registry::install_crypto_provider();
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(fake.clone())
        .mount(&server)
        .await;
    let host = server.address().to_string();
    let registry = Registry::new(Credentials::new(), Settings::default()).unwrap();
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let line = AcrLine::parse(&words).unwrap();
    let (lines, mut received) = tokio::sync::mpsc::unbounded_channel();
    let context = Context {
        registry: &registry,
        host: &host,
        now: Timestamp::now(),
        permission: &Always,
        records: &NoRecords,
        lines: &lines,
    };
    let code = run_command(context, &line.command).await;
    let mut text = String::new();
    while let Ok(Line::Out(line) | Line::Err(line)) = received.try_recv() {
        text += &format!("{line}\n");
    }
    for n in 1..8 {
        text = text.replace(&digest(n), &format!("DIGEST-{n}"));
    }
    (code, text.replace(&host, "HOST"))
}

/// Returns the order in which digests are deleted.
fn sorted(numbers: &[usize]) -> Vec<usize> {
    let mut numbers = numbers.to_vec();
    numbers.sort_by_key(|n| digest(*n));
    numbers
}

#[tokio::test]
async fn output_at_acr_is_that_of_the_original() {
    let fake = FakeAcr::new();
    let line = "purge --filter platform/.*:.* --ago 90d --untagged";
    let (code, text) = run_line(&fake, &format!("{line} --dry-run --concurrency 99")).await;
    let lines = |verb: &str| -> String {
        let all = sorted(&[1, 2, 4]);
        let all = all
            .iter()
            .map(|n| format!("{verb} HOST/platform/api@DIGEST-{n}\n"));
        all.collect()
    };
    let expected = format!(
        "{DRY_RUN}\n\
         Specified concurrency value too large. Set to maximum value: 32 \n\
         Would delete tags for repository: platform/api\n\
         Would delete: HOST/platform/api:v2\n\
         Would delete: HOST/platform/api:v2-alias\n\
         Would delete: HOST/platform/api:v1\n\
         Would delete manifests for repository: platform/api\n{}\n\
         Number of tags to be deleted: 3\n\
         Number of manifests to be deleted: 3\n",
        lines("Would delete:")
    );
    assert_eq!((code, text), (0, expected));
    assert!(fake.deletions.lock().unwrap().is_empty());

    let (code, text) = run_line(&fake, line).await;
    let expected = format!(
        "Deleting tags for repository: platform/api\n\
         Deleted HOST/platform/api:v2\n\
         Deleted HOST/platform/api:v2-alias\n\
         Deleted HOST/platform/api:v1\n\
         Deleting manifests for repository: platform/api\n{}\n\
         Number of deleted tags: 3\n\
         Number of deleted manifests: 3\n",
        lines("Deleted")
    );
    assert_eq!((code, text), (0, expected));
    let mut deletions = vec!["v2".to_owned(), "v2-alias".into(), "v1".into()];
    deletions.extend(sorted(&[1, 2, 4]).into_iter().map(digest));
    assert_eq!(*fake.deletions.lock().unwrap(), deletions);
}

#[tokio::test]
async fn purge_of_a_missing_repository_deletes_nothing() {
    let fake = FakeAcr::new();
    let (code, text) = run_line(&fake, "purge --filter nosuch/.*:.* --ago 1d").await;
    let expected = "\nNumber of deleted tags: 0\nNumber of deleted manifests: 0\n";
    assert_eq!((code, text.as_str()), (0, expected));
}

/// Permission that is refused.
struct Never;

impl Permission for Never {
    fn check(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(std::future::ready(Err("the lease has expired".into())))
    }
}

#[tokio::test]
async fn refused_permission_stops_every_deletion() {
    let fake = FakeAcr::new();
    acrtask_registry::install_crypto_provider();
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(fake.clone())
        .mount(&server)
        .await;
    let registry = Registry::new(Credentials::new(), Settings::default()).unwrap();
    let (lines, _received) = tokio::sync::mpsc::unbounded_channel();
    let words = ["purge", "--untagged-only"].map(str::to_owned);
    let AcrLine {
        command: crate::AcrCommand::Purge(purge),
        ..
    } = AcrLine::parse(&words).unwrap()
    else {
        panic!("a purge")
    };
    let context = Context {
        registry: &registry,
        host: &server.address().to_string(),
        now: Timestamp::now(),
        permission: &Never,
        records: &NoRecords,
        lines: &lines,
    };
    let report = run(context, &purge, true).await;
    assert_eq!(report.error.as_deref(), Some("the lease has expired"));
    assert_eq!(report.deleted_manifests, 0);
    assert!(fake.deletions.lock().unwrap().is_empty());
}
