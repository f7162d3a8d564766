//! Two tasks, the one on the other, whose images are manifests in a real registry.

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
use acrtask_store::{Report, Reported, Verdict};
use serde_json::{Value, json};

use crate::{
    place::Place,
    world::{SECOND, World},
};

/// Of the tasks, from below.
pub(crate) const NAMES: [&str; 2] = ["mid", "app"];
/// What all stands on. No tag of it is ever moved.
const BASE: &str = "r.io/base:1";
const CONFIG: &str = "{}";

/// The registry's address. None only where the tests were told to do without an engine.
pub(crate) fn registry() -> Option<String> {
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

/// base -> mid -> app.
pub(crate) struct Fleet {
    pub(crate) world: World,
    client: Registry,
    /// Goes into what is built.
    pub(crate) salt: String,
    /// What is built does not reach the registry.
    pub(crate) lose: bool,
    lost: Vec<(ImageRef, String)>,
    newest: u64,
}

/// A manifest that is different for each text.
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

impl Fleet {
    pub(crate) async fn new(place: Place, registry: &str, settings: Value) -> Self {
        let mut world = World::new(place, settings).await;
        let salt: u64 = rand::random();
        let mut below = BASE.to_owned();
        for name in NAMES {
            world.task(name, &[&below], json!({})).await;
            let model = world.models.get_mut(name).unwrap();
            model.image = format!("{registry}/promotions-{salt:x}/{name}:1");
            below.clone_from(&model.image);
        }
        world.moves(BASE, "old").await;
        let mut fleet = Self {
            world,
            client: Registry::new(Credentials::new(), Settings::default()).unwrap(),
            salt: "first".into(),
            lose: false,
            lost: Vec::new(),
            newest: 0,
        };
        for name in NAMES {
            fleet.world.by_hand(name).await;
            fleet.build(name, true).await;
        }
        fleet.look().await;
        fleet.world.compare().await;
        assert_eq!(fleet.count().await, 0);
        fleet.salt = String::new();
        fleet
    }

    /// One whose cascade has built everything and holds it back; and what its tags hold.
    pub(crate) async fn holding(place: Place, registry: &str) -> (Self, [Option<Digest>; 2]) {
        let mut fleet = Self::new(place, registry, json!({"promotion": {"tasks": "app"}})).await;
        let before = fleet.tags().await;
        fleet.base_moves("new").await;
        for name in NAMES {
            fleet.build(name, true).await;
        }
        (fleet, before)
    }

    fn tag(&self, name: &str) -> ImageRef {
        self.world.models[name].image.parse().unwrap()
    }

    /// Moves a task's tag.
    pub(crate) async fn put(&self, name: &str, to: &Digest) {
        let tag = self.tag(name);
        let manifest = self.client.manifest(&tag.at(to.clone())).await.unwrap();
        let put = self
            .client
            .put_manifest(&tag, &manifest.media_type, manifest.raw);
        assert_eq!(put.await.unwrap(), *to);
    }

    async fn count(&self) -> u64 {
        let all = cascades::ListFilter {
            limit: 100,
            ..Default::default()
        };
        let list = cascades::list(&self.world.app, all).await.unwrap();
        u64::try_from(list.len()).unwrap()
    }

    /// The base has another digest, and a cascade of it has settled.
    pub(crate) async fn base_moves(&mut self, to: &str) {
        self.world.moves(BASE, to).await;
        self.begins().await;
    }

    /// What is stale makes a cascade, which settles.
    pub(crate) async fn begins(&mut self) {
        self.world.compare().await;
        self.world.wait(31 * SECOND);
        self.world.tick().await;
        self.newest = self.count().await;
    }

    /// The next run that a runner gets is one of this task, and ends. Gives what it was built from.
    pub(crate) async fn build(&mut self, name: &str, well: bool) -> BTreeMap<String, Digest> {
        self.world.tick().await;
        assert_eq!(self.world.take_runs().await, [name]);
        let run = self.world.held.remove(0);
        let model = self.world.models[name].clone();
        let mut used = BTreeMap::new();
        for base in &model.bases {
            let pinned = run.spec.pins.get(base).cloned();
            let now = || self.world.registry[base].clone();
            used.insert(base.clone(), pinned.unwrap_or_else(now));
        }
        let text = manifest(&format!("{name} {} {used:?}", self.salt));
        let digest = sha256(text.as_bytes());
        if well && self.lose {
            self.lost.push((self.tag(name), text));
        } else if well {
            self.push(&self.tag(name), text, run.spec.hold).await;
        }
        let step = StepId::new("build").unwrap();
        let result = RunResult {
            built: vec![BuiltResult {
                step: step.clone(),
                names: vec![model.image.clone()],
                digest: digest.clone(),
            }],
            images: vec![ImageResult {
                step: step.clone(),
                name: model.image.clone(),
                digest: digest.clone(),
                platforms: BTreeMap::new(),
                held: run.spec.hold,
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
        let state = if well {
            RunState::Succeeded
        } else {
            RunState::Failed
        };
        let reported = [Reported {
            run: run.id.clone(),
            attempt: run.attempt,
            runner_id: "n".into(),
            report: Report::Finished {
                state,
                reason: (!well).then(|| "a step failed".to_owned()),
                result: Box::new(if well { result } else { RunResult::default() }),
                log_length: 0,
                log_sha256: "ab".repeat(32),
            },
        }];
        let now = self.world.now();
        let verdicts = self.world.app.store.report(&reported, now, 1000);
        assert_eq!(verdicts.await.unwrap(), [Verdict::Done]);
        self.settle().await;
        used
    }

    /// The server takes what has ended, and looks at what tags hold.
    pub(crate) async fn settle(&mut self) {
        self.world.tick().await;
        self.look().await;
        self.world.compare().await;
    }

    async fn look(&mut self) {
        self.world.wait(40 * SECOND);
        for name in NAMES {
            let tag = self.tag(name);
            if let Ok(found) = self.client.resolve(&tag).await {
                self.world.registry.insert(tag.to_string(), found.digest);
            }
        }
        self.world.looked(&self.tag("mid").to_string()).await;
    }

    async fn push(&self, tag: &ImageRef, text: String, held: bool) {
        self.client.put_blob(tag, CONFIG.into()).await.unwrap();
        let target = if held { tag.untagged() } else { tag.clone() };
        let put = self.client.put_manifest(&target, OCI_MANIFEST, text.into());
        put.await.unwrap();
    }

    /// What did not reach the registry is there now.
    pub(crate) async fn push_lost(&mut self) {
        for (tag, text) in std::mem::take(&mut self.lost) {
            self.push(&tag, text, true).await;
        }
    }

    /// Somebody whom the server does not know pushes to the tag of a task.
    pub(crate) async fn foreign(&self, name: &str) -> Digest {
        let text = manifest("foreign");
        let digest = sha256(text.as_bytes());
        self.push(&self.tag(name), text, false).await;
        digest
    }

    /// What the tags hold, as the registry says.
    pub(crate) async fn tags(&self) -> [Option<Digest>; 2] {
        let [a, b] = NAMES.map(|name| self.tag(name));
        [
            self.client.resolve(&a).await.ok().map(|found| found.digest),
            self.client.resolve(&b).await.ok().map(|found| found.digest),
        ]
    }

    /// The newest cascade.
    pub(crate) async fn show(&self) -> CascadeDetail {
        self.world.show(self.newest).await
    }

    pub(crate) async fn shown(&self, name: &str) -> CascadeImage {
        let tag = self.tag(name).to_string();
        let images = self.show().await.images;
        let found = images.into_iter().find(|image| image.name == tag);
        found.unwrap()
    }

    /// What is recorded of an image: its digest, and those of its bases.
    pub(crate) async fn recorded(&self, name: &str) -> (Digest, Vec<Digest>) {
        let tag = self.tag(name).to_string();
        let (image, bases) = self.world.app.store.image(&tag).await.unwrap();
        (
            image.digest,
            bases.into_iter().map(|base| base.digest).collect(),
        )
    }

    /// Nothing is built by itself after so many cascades.
    pub(crate) async fn rests_after(&mut self, count: u64) {
        for _ in 0..3 {
            self.settle().await;
            self.world.wait(61 * SECOND);
            self.world.tick().await;
            assert_eq!(self.world.take_runs().await, Vec::<String>::new());
        }
        assert_eq!(self.count().await, count);
    }
}
