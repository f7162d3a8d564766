//! Purges at registries, and with filters, that are made to take all time and memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use acrtask_registry::{
    Credentials, Registry, Settings,
    manifest::{OCI_INDEX, OCI_MANIFEST, sha256},
};
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

use super::*;
use crate::{AcrLine, Always, NoRecords, run_command};

/// Time that no test needs, even on a busy machine. The attacks need hours.
const LONG: Duration = Duration::from_secs(60);

/// Permission of a step that may be stopped.
#[derive(Debug, Default)]
struct Step(AtomicBool);

impl Permission for Step {
    fn check(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Runs a line at a registry. Returns its exit code and its output.
async fn run_at(
    registry: impl Respond + 'static,
    line: &str,
    permission: &dyn Permission,
) -> (u8, String) {
    acrtask_registry::install_crypto_provider();
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(registry)
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
        permission,
        records: &NoRecords,
        lines: &lines,
    };
    let code = run_command(context, &line.command).await;
    let mut text = String::new();
    while let Ok(Line::Out(line) | Line::Err(line)) = received.try_recv() {
        text += &format!("{line}\n");
    }
    (code, text)
}

fn page(tags: &[String], next: Option<usize>) -> ResponseTemplate {
    let page = ResponseTemplate::new(200).set_body_json(json!({"name": "a", "tags": tags}));
    match next {
        Some(next) => {
            page.insert_header("link", format!("</v2/a/tags/list?p={next}>; rel=\"next\""))
        }
        None => page,
    }
}

fn page_number(request: &Request) -> usize {
    let mut query = request.url.query_pairs();
    let number = query.find(|(name, _)| name == "p");
    number
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn endless_list_ends() {
    let pages = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pages);
    let endless = move |request: &Request| {
        if !request.url.path().ends_with("/tags/list") {
            return ResponseTemplate::new(404);
        }
        let number = page_number(request);
        count.fetch_max(number, Ordering::SeqCst);
        let tags: Vec<String> = (0..5000)
            .map(|n| format!("{number:0>100}-{n:0>26}"))
            .collect();
        page(&tags, Some(number + 1))
    };
    let line = "purge --dry-run --ago 1d --filter endless:x";
    let (code, text) = run_at(endless, line, &Always).await;
    assert_eq!(code, 1);
    assert!(text.contains("more than 32 MiB"), "{text}");
    assert!(pages.load(Ordering::SeqCst) < 70);
}

#[tokio::test]
async fn tags_that_are_no_tags_are_refused() {
    for bad in [
        "a\nDeleted r.io/prod:v9",
        &"a".repeat(84_000),
        "\u{1b}[31ma",
    ] {
        let tags = vec![bad.to_owned()];
        let list = move |request: &Request| match request.url.path().ends_with("/tags/list") {
            true => page(&tags, None),
            false => ResponseTemplate::new(404),
        };
        let (code, text) = run_at(list, "purge --dry-run --ago 1d --filter a:.*", &Always).await;
        assert_eq!(code, 1);
        assert!(text.contains("not valid"), "{text}");
        assert!(
            text.len() < 2000 && !text.contains("Deleted r.io"),
            "{text}"
        );
    }
}

/// A single thread, as the attack takes all threads.
#[tokio::test(flavor = "current_thread")]
async fn slow_filters_leave_the_runtime_free_and_end_with_the_step() {
    let tags: Vec<String> = (0..60_000)
        .map(|n| format!("{}-{n:0>5}", "a".repeat(18)))
        .collect();
    let list = move |request: &Request| match request.url.path().ends_with("/tags/list") {
        true => page(&tags, None),
        false => ResponseTemplate::new(404),
    };
    let step = Arc::new(Step::default());
    let stopping = Arc::clone(&step);
    let ticking = tokio::spawn(async move {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stopping.0.store(true, Ordering::SeqCst);
        Instant::now()
    });
    let start = Instant::now();
    let line = "purge --dry-run --ago 1d --filter a:^(?!x)((a|aa)+)$(?=y)";
    let (code, text) = run_at(list, line, step.as_ref()).await;
    assert_eq!(code, 1);
    assert!(text.contains("was stopped"), "{text}");
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert!(ticking.await.unwrap() - start < LONG);
}

/// Registry without the API of ACR.
#[derive(Clone, Default)]
struct Plain {
    /// Digests of tags, by repository.
    tags: BTreeMap<String, Vec<(String, String)>>,
    /// Manifests and blobs by digest: media type and content.
    contents: BTreeMap<String, (String, Vec<u8>)>,
    reads: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Plain {
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> String {
        let digest = sha256(&content).to_string();
        self.contents
            .insert(digest.clone(), (media_type.to_owned(), content));
        digest
    }

    /// Adds an image that was created in 2020. Returns its digest.
    fn add_image(&mut self, config_digest: Option<String>) -> String {
        let config = json!({"created": "2020-01-01T00:00:00Z"}).to_string();
        let config = self.add("application/json", config.into_bytes());
        let config = config_digest.unwrap_or(config);
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 1}});
        self.add(OCI_MANIFEST, manifest.to_string().into_bytes())
    }

    fn add_index(&mut self, children: impl IntoIterator<Item = String>) -> String {
        let children: Vec<Value> = children
            .into_iter()
            .map(|digest| {
                json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1,
                       "platform": {"os": "linux", "architecture": "amd64"}})
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children});
        self.add(OCI_INDEX, index.to_string().into_bytes())
    }

    fn tag(&mut self, repository: &str, tag: &str, digest: &str) {
        let tags = self.tags.entry(repository.into()).or_default();
        tags.push((tag.into(), digest.into()));
    }

    fn read_count(&self) -> usize {
        self.reads.lock().unwrap().values().sum()
    }
}

impl Respond for Plain {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let missing = ResponseTemplate::new(404);
        let path = request.url.path();
        if path == "/v2/_catalog" {
            let names: Vec<&String> = self.tags.keys().collect();
            return ResponseTemplate::new(200).set_body_json(json!({"repositories": names}));
        }
        let Some(path) = path.strip_prefix("/v2/") else {
            return missing;
        };
        let mut parts = path.splitn(3, '/');
        let (repository, kind) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        let name = parts.next().unwrap_or_default();
        let Some(tags) = self.tags.get(repository) else {
            return missing;
        };
        if kind == "tags" {
            let names: Vec<String> = tags.iter().map(|(tag, _)| tag.clone()).collect();
            return page(&names, None);
        }
        if kind == "referrers" {
            return missing;
        }
        let tagged = tags.iter().find(|(tag, _)| tag == name);
        let digest = tagged.map_or(name, |(_, digest)| digest.as_str());
        if request.method.as_str() == "GET" {
            let mut reads = self.reads.lock().unwrap();
            *reads.entry(digest.to_owned()).or_default() += 1;
        }
        match self.contents.get(digest) {
            Some((media_type, content)) => ResponseTemplate::new(200)
                .set_body_raw(content.clone(), media_type)
                .insert_header("docker-content-digest", digest),
            None => missing,
        }
    }
}

#[tokio::test]
async fn equal_entries_of_indexes_are_read_once() {
    let mut registry = Plain::default();
    let image = registry.add_image(None);
    // Without memory, these are four million requests.
    let inner = registry.add_index(vec![image; 2000]);
    let outer = registry.add_index(vec![inner; 2000]);
    registry.tag("loop", "v1", &outer);
    let reads = registry.clone();
    let line = "purge --dry-run --ago 1d --filter loop:.*";
    let (code, text) = run_at(registry, line, &Always).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("Number of tags to be deleted: 1"), "{text}");
    assert!(reads.read_count() < 20, "{}", reads.read_count());
}

#[tokio::test]
async fn age_of_a_tag_with_very_many_manifests_is_unknown() {
    let mut registry = Plain::default();
    let image = registry.add_image(None);
    // These manifests are missing, but each costs a request.
    let missing = (0..3000).map(|n| format!("sha256:{n:064x}"));
    let index = registry.add_index(std::iter::once(image.clone()).chain(missing));
    registry.tag("many", "v1", &index);
    registry.tag("many", "v2", &image);
    let reads = registry.clone();
    let line = "purge --dry-run --verbose --ago 1d --filter many:.*";
    let (code, text) = run_at(registry, line, &Always).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("many:v1 (unknown age: kept)"), "{text}");
    assert!(text.contains("Number of tags to be deleted: 1"), "{text}");
    assert!(reads.read_count() < 2100, "{}", reads.read_count());
}

#[tokio::test]
async fn error_of_one_repository_leaves_the_others() {
    let mut registry = Plain::default();
    let image = registry.add_image(None);
    registry.tag("good", "v1", &image);
    // A list that is refused ends its repository.
    registry.tag("bad", "a b", &image);
    // A configuration with another digest, and a manifest that is too large, only hide the age.
    let other = format!("sha256:{:064x}", 7);
    registry
        .contents
        .insert(other.clone(), ("application/json".into(), b"{}".to_vec()));
    let lying = registry.add_image(Some(other));
    registry.tag("lying", "v1", &lying);
    let huge = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [],
                      "annotations": {"a": "x".repeat(5 << 20)}});
    let huge = registry.add(OCI_INDEX, huge.to_string().into_bytes());
    registry.tag("large", "v1", &huge);
    let line = "purge --dry-run --verbose --ago 1d --filter .*:.*";
    let (code, text) = run_at(registry, line, &Always).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("Failed to purge bad: "), "{text}");
    for kept in [
        "lying:v1 (unknown age: kept)",
        "large:v1 (unknown age: kept)",
    ] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    assert!(text.contains("/good:v1 (last updated 2020"), "{text}");
    assert!(text.contains("Number of tags to be deleted: 1"), "{text}");
    assert!(text.contains("Failed to complete purge: bad: "), "{text}");
}
