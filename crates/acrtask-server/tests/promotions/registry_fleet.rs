//! Two tasks, one built on the other, whose images are manifests in a real registry.

use std::collections::BTreeMap;

use acrtask_api::{
    cascade::{CascadeDetail, CascadeImage},
    run::{BaseResult, BuiltResult, ImageResult, RunResult},
};
use acrtask_model::{
    Digest, ImageRef, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_registry::{
    Credentials, Registry, Settings,
    manifest::{OCI_MANIFEST, sha256},
};
use acrtask_server::cascades;
use acrtask_store::{AttemptReport, Report, Verdict};
use serde_json::{Value, json};

use crate::{
    test_db::TestDb,
    test_fleet::{SECOND, TestFleet},
};

/// The names of the tasks, from base to dependent.
pub(crate) const NAMES: [&str; 2] = ["mid", "app"];
/// The base image of `mid`. Its tag is never set.
const BASE: &str = "r.io/base:1";
const CONFIG: &str = "{}";

/// Returns the address of the registry. `None` if the tests run without an engine.
pub(crate) fn registry_address() -> Option<String> {
    match std::env::var("ACRTASK_TEST_REGISTRY") {
        Ok(registry) => Some(registry),
        Err(_) if std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok_and(|value| value == "1") => {
            eprintln!("skipped: ACRTASK_TEST_REGISTRY is not set");
            None
        }
        Err(_) => panic!(
            "ACRTASK_TEST_REGISTRY is not set: run the tests with `cargo xtask test`, or set it to a registry's HOST:PORT"
        ),
    }
}

/// The tasks `mid` and `app`: `app` is built on `mid`, `mid` on the base.
pub(crate) struct RegistryFleet {
    pub(crate) inner: TestFleet,
    client: Registry,
    /// Part of each built manifest, to give it another digest.
    pub(crate) salt: String,
    /// Drops the pushes of successful builds.
    pub(crate) loses_pushes: bool,
    lost_pushes: Vec<(ImageRef, String)>,
    newest: u64,
}

/// Returns a manifest that differs for each text.
fn manifest(text: &str) -> String {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(CONFIG.as_bytes()), "size": CONFIG.len()},
        "layers": [],
        "annotations": {"text": text},
    })
    .to_string()
}

impl RegistryFleet {
    pub(crate) async fn new(db: TestDb, registry: &str, settings: Value) -> Self {
        let mut inner = TestFleet::new(db, settings).await;
        let salt: u64 = rand::random();
        let mut below = BASE.to_owned();
        for name in NAMES {
            inner.create_task(name, &[&below], json!({})).await;
            let task = inner.tasks.get_mut(name).unwrap();
            task.image = format!("{registry}/promotions-{salt:x}/{name}:1");
            below.clone_from(&task.image);
        }
        inner.move_base(BASE, "old").await;
        let mut fleet = Self {
            inner,
            client: Registry::new(Credentials::new(), Settings::default()).unwrap(),
            salt: "first".into(),
            loses_pushes: false,
            lost_pushes: Vec::new(),
            newest: 0,
        };
        for name in NAMES {
            fleet.inner.enqueue_run(name).await;
            fleet.build_task(name, true).await;
        }
        fleet.poll_tags().await;
        fleet.inner.run_full_pass().await;
        assert_eq!(fleet.count_cascades().await, 0);
        fleet.salt = String::new();
        fleet
    }

    /// Creates a fleet whose cascade has staged all images. Returns also the digests of the tags.
    pub(crate) async fn with_staged_images(
        db: TestDb,
        registry: &str,
    ) -> (Self, [Option<Digest>; 2]) {
        let mut fleet = Self::new(db, registry, json!({"promotion": {"tasks": "app"}})).await;
        let before = fleet.resolve_tags().await;
        fleet.move_base("new").await;
        for name in NAMES {
            fleet.build_task(name, true).await;
        }
        (fleet, before)
    }

    fn tag_ref(&self, name: &str) -> ImageRef {
        self.inner.tasks[name].image.parse().unwrap()
    }

    /// Sets the tag of a task to a digest.
    pub(crate) async fn move_tag(&self, name: &str, to: &Digest) {
        let tag = self.tag_ref(name);
        let manifest = self.client.manifest(&tag.at(to.clone())).await.unwrap();
        let put = self
            .client
            .put_manifest(&tag, &manifest.media_type, manifest.raw);
        assert_eq!(put.await.unwrap(), *to);
    }

    async fn count_cascades(&self) -> u64 {
        let all = cascades::ListFilter {
            limit: 100,
            ..Default::default()
        };
        let list = cascades::list(&self.inner.app, all).await.unwrap();
        u64::try_from(list.len()).unwrap()
    }

    /// Moves the base and starts a cascade.
    pub(crate) async fn move_base(&mut self, to: &str) {
        self.inner.move_base(BASE, to).await;
        self.start_cascade().await;
    }

    /// Creates a cascade of all stale images and advances the clock past its settling time.
    pub(crate) async fn start_cascade(&mut self) {
        self.inner.run_full_pass().await;
        self.inner.advance_clock(31 * SECOND);
        self.inner.run_pass().await;
        self.newest = self.count_cascades().await;
    }

    /// Leases the next run, which must be one of this task, and finishes it. Returns the digests of
    /// its bases.
    pub(crate) async fn build_task(
        &mut self,
        name: &str,
        succeeds: bool,
    ) -> BTreeMap<String, Digest> {
        self.inner.run_pass().await;
        assert_eq!(self.inner.lease_runs().await, [name]);
        let run = self.inner.leased.remove(0);
        let task = self.inner.tasks[name].clone();
        let mut used = BTreeMap::new();
        for base in &task.bases {
            let pinned = run.spec.pins.get(base).cloned();
            let now = || self.inner.registry[base].clone();
            used.insert(base.clone(), pinned.unwrap_or_else(now));
        }
        let text = manifest(&format!("{name} {} {used:?}", self.salt));
        let digest = sha256(text.as_bytes());
        if succeeds && self.loses_pushes {
            self.lost_pushes.push((self.tag_ref(name), text));
        } else if succeeds {
            self.push_manifest(&self.tag_ref(name), text, run.spec.push_by_digest)
                .await;
        }
        let step = StepId::new("build").unwrap();
        let result = RunResult {
            built: vec![BuiltResult {
                step: step.clone(),
                names: vec![task.image.clone()],
                digest: digest.clone(),
            }],
            images: vec![ImageResult {
                step: step.clone(),
                name: task.image.clone(),
                digest: digest.clone(),
                platforms: BTreeMap::new(),
                staged: run.spec.push_by_digest,
            }],
            bases: used
                .iter()
                .map(|(name, digest)| BaseResult {
                    step: step.clone(),
                    role: BaseRole::Runtime,
                    name: name.clone(),
                    digest: digest.clone(),
                    evidence: Evidence::Provenance,
                    platforms: Vec::new(),
                })
                .collect(),
            ..RunResult::default()
        };
        let state = if succeeds {
            RunState::Succeeded
        } else {
            RunState::Failed
        };
        let reported = [AttemptReport {
            run: run.id.clone(),
            attempt: run.attempt,
            runner_id: "n".into(),
            report: Report::Finished {
                state,
                reason: (!succeeds).then(|| "a step failed".to_owned()),
                result: Box::new(if succeeds {
                    result
                } else {
                    RunResult::default()
                }),
                log_length: 0,
                log_sha256: "ab".repeat(32),
            },
        }];
        let now = self.inner.now();
        let verdicts = self.inner.app.store.report(&reported, now, 1000);
        assert_eq!(verdicts.await.unwrap(), [Verdict::Done]);
        self.poll_and_run_pass().await;
        used
    }

    /// Applies finished runs and polls the tags.
    pub(crate) async fn poll_and_run_pass(&mut self) {
        self.inner.run_pass().await;
        self.poll_tags().await;
        self.inner.run_full_pass().await;
    }

    async fn poll_tags(&mut self) {
        self.inner.advance_clock(40 * SECOND);
        for name in NAMES {
            let tag = self.tag_ref(name);
            if let Ok(found) = self.client.resolve(&tag).await {
                self.inner.registry.insert(tag.to_string(), found.digest);
            }
        }
        self.inner.poll_tag(&self.tag_ref("mid").to_string()).await;
    }

    async fn push_manifest(&self, tag: &ImageRef, text: String, by_digest: bool) {
        self.client.put_blob(tag, CONFIG.into()).await.unwrap();
        let target = if by_digest {
            tag.untagged()
        } else {
            tag.clone()
        };
        let put = self.client.put_manifest(&target, OCI_MANIFEST, text.into());
        put.await.unwrap();
    }

    /// Pushes the manifests that [`Self::loses_pushes`] has dropped.
    pub(crate) async fn push_lost_images(&mut self) {
        for (tag, text) in std::mem::take(&mut self.lost_pushes) {
            self.push_manifest(&tag, text, true).await;
        }
    }

    /// Pushes an image to the tag of a task without a run.
    pub(crate) async fn push_foreign_image(&self, name: &str) -> Digest {
        let text = manifest("foreign");
        let digest = sha256(text.as_bytes());
        self.push_manifest(&self.tag_ref(name), text, false).await;
        digest
    }

    /// Resolves the tags of both tasks at the registry.
    pub(crate) async fn resolve_tags(&self) -> [Option<Digest>; 2] {
        let [a, b] = NAMES.map(|name| self.tag_ref(name));
        [
            self.client.resolve(&a).await.ok().map(|found| found.digest),
            self.client.resolve(&b).await.ok().map(|found| found.digest),
        ]
    }

    /// Returns the newest cascade.
    pub(crate) async fn newest_cascade(&self) -> CascadeDetail {
        self.inner.cascade(self.newest).await
    }

    pub(crate) async fn cascade_image(&self, name: &str) -> CascadeImage {
        let tag = self.tag_ref(name).to_string();
        let images = self.newest_cascade().await.images;
        let found = images.into_iter().find(|image| image.name == tag);
        found.unwrap()
    }

    /// Returns the recorded digest of an image and those of its bases.
    pub(crate) async fn recorded_digests(&self, name: &str) -> (Digest, Vec<Digest>) {
        let tag = self.tag_ref(name).to_string();
        let (image, bases) = self.inner.app.store.image(&tag).await.unwrap();
        (
            image.digest,
            bases.into_iter().map(|base| base.digest).collect(),
        )
    }

    /// Asserts that no run starts automatically and that there are exactly `count` cascades.
    pub(crate) async fn assert_idle_after(&mut self, count: u64) {
        for _ in 0..3 {
            self.poll_and_run_pass().await;
            self.inner.advance_clock(61 * SECOND);
            self.inner.run_pass().await;
            assert_eq!(self.inner.lease_runs().await, Vec::<String>::new());
        }
        assert_eq!(self.count_cascades().await, count);
    }
}
