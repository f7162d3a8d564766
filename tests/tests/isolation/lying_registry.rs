//! A registry chosen by a task claims to have a private image of another owner, which the engine
//! has. A digest is not a secret. So the run gets the image only if that registry also sends its
//! content.

use std::{collections::HashMap, net::TcpListener, sync::Arc};

use acrtask_model::{ImageRef, Secret};
use acrtask_registry::{Credentials, Manifest, ManifestBody, Registry, Settings};
use acrtask_tests::{
    Outcome, TestEnvironment, engine,
    misbehaving::{Misbehaving, ReceivedRequest, Reply},
    new_run_id,
    project::create_folder,
    service::TestServer,
};
use serde_json::json;

/// Parts of the image that the registry sends, by the first path component of the repository.
const LIES: [(&str, &[Part]); 13] = [
    ("digest", &[]),
    ("manifest", &[Part::Manifest]),
    ("config", &[Part::Manifest, Part::Config]),
    (
        "wrong-layers",
        &[Part::Manifest, Part::Config, Part::WrongLayer],
    ),
    (
        "own-config",
        &[Part::Manifest, Part::Config, Part::OwnConfig],
    ),
    (
        "own-layers",
        &[Part::Manifest, Part::Config, Part::Other("")],
    ),
    (
        "spelled",
        &[Part::Manifest, Part::Config, Part::Other("AMD64")],
    ),
    (
        "without-a-system",
        &[Part::Manifest, Part::Config, Part::Other("no system")],
    ),
    ("urls", &[Part::Manifest, Part::Config, Part::Other("urls")]),
    (
        "nested",
        &[Part::Manifest, Part::Config, Part::Other("nested")],
    ),
    (
        "manifest-as-layer",
        &[Part::Manifest, Part::Config, Part::Other("manifest")],
    ),
    (
        "two-keys",
        &[Part::Manifest, Part::Config, Part::Other("Layers")],
    ),
    (
        "two-equal-keys",
        &[Part::Manifest, Part::Config, Part::Other("layers")],
    ),
];
/// Index of an honest image and of a second index, which contains the private image for another
/// platform.
const HIDDEN: (&str, &[Part]) = (
    "hidden",
    &[Part::Manifest, Part::Config, Part::Other("hidden")],
);
/// Image whose layer is the index that contains the private image. Pulling it adds the index to the
/// store.
const INJECTED: (&str, &[Part]) = (
    "injected",
    &[Part::Manifest, Part::Config, Part::Other("injected")],
);
const HONEST: (&str, &[Part]) = ("honest", &[Part::Manifest, Part::Config, Part::Layer]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Manifest,
    Config,
    Layer,
    /// Bytes of the requested range that differ from the layer.
    WrongLayer,
    /// Image of the attacker with the layers of the private image.
    OwnConfig,
    /// Image of the attacker, by its key in [`Stored::others`].
    Other(&'static str),
}

/// Private image with its forged variants, as the registry stores them.
#[derive(Debug, Default)]
struct Stored {
    digest: String,
    /// Digest of an attacker's image with the same layers.
    own_digest: String,
    /// Digests of attacker's images with other layers, by kind:
    /// - `""`: the configuration lists the layers of the private image.
    /// - `AMD64`, `no system`: an index of `""` with an unusual platform.
    /// - `urls`: an honest image with other addresses of its layers.
    /// - `Layers`, `layers`: an honest image that lists the private layers a second time under this
    ///   key.
    others: HashMap<&'static str, String>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    /// Configurations, and layers of the attacker, by digest.
    configs: HashMap<String, Vec<u8>>,
    layers: HashMap<String, Vec<u8>>,
}

impl Stored {
    async fn read(image: &ImageRef, user: &str, password: &str) -> Self {
        let credentials =
            Credentials::new().with(image.registry(), user, Secret::new(password.to_owned()));
        let registry = Registry::new(credentials, Settings::default()).unwrap();
        let mut stored = Self::default();
        let first = registry.manifest(image).await.unwrap();
        stored.digest = first.digest.to_string();
        let mut waiting = vec![first];
        while let Some(manifest) = waiting.pop() {
            let raw = manifest.raw.to_vec();
            match &manifest.body {
                ManifestBody::Index(index) => {
                    for entry in &index.manifests {
                        let child = image.at(entry.digest.clone());
                        waiting.push(registry.manifest(&child).await.unwrap());
                    }
                }
                ManifestBody::Image(body) => {
                    let config = &body.config.digest;
                    let bytes = registry.blob_bytes(image, config, 1 << 20).await.unwrap();
                    stored.add_own_image(&raw, &bytes, config.as_str());
                    for kind in ["", "own", "urls", "Layers", "layers"] {
                        stored.add_other_layers(&raw, &bytes, kind);
                    }
                    let odd = json!({"os": "linux", "architecture": "AMD64"});
                    stored.add_index("AMD64", &odd);
                    stored.add_hidden(&manifest);
                    stored.add_nested();
                    stored.add_manifest_as_layer(&manifest);
                    stored.add_index("no system", &json!({"os": "", "architecture": ""}));
                    stored.configs.insert(config.to_string(), bytes.to_vec());
                    for layer in &body.layers {
                        let bytes = registry.blob_bytes(image, &layer.digest, 1 << 30);
                        let bytes = bytes.await.unwrap().to_vec();
                        stored.layers.insert(layer.digest.to_string(), bytes);
                    }
                }
            }
            let kept = (manifest.media_type.clone(), raw);
            stored.manifests.insert(manifest.digest.to_string(), kept);
        }
        stored
    }

    /// Adds an image with the same layers and another configuration.
    fn add_own_image(&mut self, manifest: &[u8], config: &[u8], old: &str) {
        let digest = |bytes: &[u8]| acrtask_registry::manifest::sha256(bytes).to_string();
        let mut own: serde_json::Value = serde_json::from_slice(config).unwrap();
        own["author"] = "the attacker".into();
        let own = serde_json::to_vec(&own).unwrap();
        let mut document: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        assert_eq!(document["config"]["digest"], old);
        document["config"]["digest"] = digest(&own).into();
        document["config"]["size"] = own.len().into();
        let document = serde_json::to_vec(&document).unwrap();
        self.own_digest = digest(&document);
        self.configs.insert(digest(&own), own);
        let media_type = acrtask_registry::manifest::OCI_MANIFEST.to_owned();
        self.manifests
            .insert(self.own_digest.clone(), (media_type, document));
    }

    /// Adds nested indexes with ten million paths to the image `""`.
    fn add_nested(&mut self) {
        let mut digest = self.others[""].clone();
        for _ in 0..7 {
            let (media_type, raw) = &self.manifests[&digest];
            let entry = json!({"mediaType": media_type, "digest": digest, "size": raw.len()});
            let index_type = acrtask_registry::manifest::OCI_INDEX;
            let entries = vec![entry; 10];
            let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": entries});
            let raw = index.to_string().into_bytes();
            digest = acrtask_registry::manifest::sha256(&raw).to_string();
            self.manifests
                .insert(digest.clone(), (index_type.to_owned(), raw));
        }
        self.others.insert("nested", digest);
    }

    /// Adds an image whose layer is the manifest of the private image.
    fn add_manifest_as_layer(&mut self, private: &Manifest) {
        let config = json!({"os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": []}});
        let config = config.to_string().into_bytes();
        let digest = acrtask_registry::manifest::sha256(&config).to_string();
        let image_type = acrtask_registry::manifest::OCI_MANIFEST;
        let image = json!({"schemaVersion": 2, "mediaType": image_type,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest, "size": config.len()},
            "layers": [{"mediaType": private.media_type,
                "digest": private.digest, "size": private.raw.len()}]});
        let raw = image.to_string().into_bytes();
        self.configs.insert(digest, config);
        self.configs
            .insert(private.digest.to_string(), private.raw.to_vec());
        let digest = acrtask_registry::manifest::sha256(&raw).to_string();
        self.others.insert("manifest", digest.clone());
        self.manifests.insert(digest, (image_type.to_owned(), raw));
    }

    /// Adds the images of [`HIDDEN`] and [`INJECTED`] for the private image.
    fn add_hidden(&mut self, private: &Manifest) {
        let digest = |bytes: &[u8]| acrtask_registry::manifest::sha256(bytes).to_string();
        let index_type = acrtask_registry::manifest::OCI_INDEX;
        let there = json!({"os": "linux", "architecture": "s390x"});
        let inner = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
            {"mediaType": private.media_type, "digest": private.digest, "size": private.raw.len(), "platform": there},
        ]});
        let inner = inner.to_string().into_bytes();
        let own = self.others["own"].clone();
        let (own_type, raw) = &self.manifests[&own];
        let outer = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [
            {"mediaType": own_type, "digest": own, "size": raw.len(),
                "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": index_type, "digest": digest(&inner), "size": inner.len(), "platform": there},
        ]});
        let outer = outer.to_string().into_bytes();
        let config = json!({"os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [digest(&inner)]}});
        let config = config.to_string().into_bytes();
        let image_type = acrtask_registry::manifest::OCI_MANIFEST;
        let injected = json!({"schemaVersion": 2, "mediaType": image_type,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest(&inner), "size": inner.len()}]});
        let injected = injected.to_string().into_bytes();
        self.configs.insert(digest(&config), config);
        self.configs.insert(digest(&inner), inner.clone());
        self.others.insert("hidden", digest(&outer));
        self.others.insert("injected", digest(&injected));
        for (media_type, raw) in [
            (index_type, inner),
            (index_type, outer),
            (image_type, injected),
        ] {
            self.manifests
                .insert(digest(&raw), (media_type.to_owned(), raw));
        }
    }

    /// Adds an index of the image `""` with this platform.
    fn add_index(&mut self, kind: &'static str, platform: &serde_json::Value) {
        let digest = &self.others[""];
        let (media_type, raw) = &self.manifests[digest];
        let entry = json!({
            "mediaType": media_type, "digest": digest, "size": raw.len(), "platform": platform,
        });
        let index_type = acrtask_registry::manifest::OCI_INDEX;
        let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [entry]});
        let raw = index.to_string().into_bytes();
        let digest = acrtask_registry::manifest::sha256(&raw).to_string();
        self.others.insert(kind, digest.clone());
        self.manifests.insert(digest, (index_type.to_owned(), raw));
    }

    /// Adds an image with other layers, as [`Stored::others`] describes it.
    fn add_other_layers(&mut self, manifest: &[u8], config: &[u8], kind: &'static str) {
        let digest = |bytes: &[u8]| acrtask_registry::manifest::sha256(bytes).to_string();
        let document: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let count = document["layers"].as_array().unwrap().len();
        let mut own = document.clone();
        let mut own_config: serde_json::Value = serde_json::from_slice(config).unwrap();
        for number in 0..count {
            // An empty archive is two blocks of zeros. The appended bytes make the layer unique in
            // each test run.
            let mut layer = vec![0; 1024];
            layer.extend(format!("{number} {}", digest(manifest)).bytes());
            layer.resize(1536, 0);
            own["layers"][number]["digest"] = digest(&layer).into();
            own["layers"][number]["size"] = layer.len().into();
            own_config["rootfs"]["diff_ids"][number] = digest(&layer).into();
            if kind == "urls" {
                own["layers"][number]["urls"] = json!(["http://127.0.0.1:1/"]);
            }
            self.configs.insert(digest(&layer), layer);
        }
        if !kind.is_empty() {
            let own_config = serde_json::to_vec(&own_config).unwrap();
            own["config"]["digest"] = digest(&own_config).into();
            own["config"]["size"] = own_config.len().into();
            self.configs.insert(digest(&own_config), own_config);
        }
        let mut text = own.to_string();
        if kind.eq_ignore_ascii_case("layers") {
            assert_eq!(text.pop(), Some('}'));
            text = format!("{text},{kind:?}:{}}}", document["layers"]);
        }
        let found = digest(text.as_bytes());
        self.others.insert(kind, found.clone());
        let media_type = document["mediaType"].as_str().unwrap().to_owned();
        self.manifests
            .insert(found, (media_type, text.into_bytes()));
    }

    fn advertised_digest(&self, parts: &[Part]) -> &str {
        let wanted = parts.iter().find_map(|part| match part {
            Part::OwnConfig => Some(&self.own_digest),
            Part::Other(kind) => Some(&self.others[kind]),
            _ => None,
        });
        wanted.unwrap_or(&self.digest)
    }

    fn respond(&self, received: &ReceivedRequest) -> Reply {
        let path = received.request.path.trim_start_matches("/v2/");
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        let all = LIES.iter().chain([&HONEST, &HIDDEN, &INJECTED]);
        let Some((_, parts)) = all.into_iter().find(|(lie, _)| *lie == name) else {
            return Reply::status(if path.is_empty() { 200 } else { 404 }, &[]);
        };
        let (kind, digest) = rest.rsplit_once('/').unwrap_or((rest, ""));
        let is_head = received.request.method == "HEAD";
        if kind.ends_with("manifests") {
            let digest = if digest.contains(':') {
                digest
            } else {
                self.advertised_digest(parts)
            };
            let Some((media_type, raw)) = self.manifests.get(digest) else {
                return Reply::status(404, &[]);
            };
            if !is_head && !parts.contains(&Part::Manifest) {
                return Reply::status(404, &[]);
            }
            return Reply::body(media_type, raw.clone()).with("Docker-Content-Digest", digest);
        }
        if let Some(config) = self.configs.get(digest) {
            return match is_head || parts.contains(&Part::Config) {
                true => Reply::body("application/octet-stream", config.clone()),
                false => Reply::status(404, &[]),
            };
        }
        let Some(layer) = self.layers.get(digest) else {
            return Reply::status(404, &[]);
        };
        if is_head || parts.contains(&Part::Layer) {
            return Reply::body("application/octet-stream", layer.clone());
        }
        let range = received.request.headers.get("range");
        let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        match range.filter(|_| parts.contains(&Part::WrongLayer)) {
            Some((first, last)) => {
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                Reply::Complete(206, Vec::new(), vec![0; last - first + 1])
            }
            None => Reply::status(404, &[]),
        }
    }
}

/// Returns steps that use `NAME:1` and `NAME@DIGEST`. Each fails unless the run gets the image.
/// Only `trigger` always succeeds.
fn attack_files(name: &str, digest: &str, target: &str, base: &str) -> tempfile::TempDir {
    let (tag, pinned) = (format!("{name}:1"), format!("{name}@{digest}"));
    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    for (number, image) in [&tag, &pinned].into_iter().enumerate() {
        for line in [
            format!("cmd: {image} cat /who"),
            format!("cmd: docker run --pull never {image} cat /who"),
            format!("cmd: docker pull {image}"),
            format!("cmd: docker push {image}"),
            format!("build: -t a --build-context y=docker-image://{image} -f Named ."),
            format!("build: -t b -f From{number} ."),
            format!("build: -t c -f Copy{number} ."),
        ] {
            task.push_str(&format!("  - ignoreErrors: true\n    {line}\n"));
        }
    }
    task.push_str("  - {id: trigger, build: -t own -f Trigger .}\n");
    task.push_str("  - {ignoreErrors: true, build: -t d -f Own .}\n");
    task.push_str(&format!(
        "  - {{ignoreErrors: true, cmd: docker tag {pinned} {target}}}\n"
    ));
    create_folder(&[
        ("acr-task.yaml", &task),
        ("Named", "FROM y\nRUN cat /who\n"),
        ("From0", &format!("FROM {tag}\nRUN cat /who\n")),
        ("From1", &format!("FROM {pinned}\nRUN cat /who\n")),
        (
            "Copy0",
            &format!("FROM {base}\nCOPY --from={tag} /who /who\nRUN cat /who\n"),
        ),
        (
            "Copy1",
            &format!("FROM {base}\nCOPY --from={pinned} /who /who\nRUN cat /who\n"),
        ),
        (
            "Trigger",
            &format!("FROM {base}\nONBUILD COPY --from={pinned} /who /who\n"),
        ),
        ("Own", "FROM own\nRUN cat /who\n"),
    ])
}

/// Returns steps that try to reach the private image through the index of [`HIDDEN`].
fn hidden_files(registry: &str, base: &str) -> tempfile::TempDir {
    let image = format!("{registry}/{}/x:1", HIDDEN.0);
    let from = |platform: &str| {
        format!(
            "FROM {platform} {image} AS s\nFROM {base}\nCOPY --from=s /who /who\nRUN cat /who\n"
        )
    };
    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    for (number, line) in [
        "build: -t a -f First .".to_owned(),
        "build: -t b -f Injected .".to_owned(),
        "build: -t c -f There .".to_owned(),
        "build: -t d -f Spelled .".to_owned(),
        format!("cmd: docker pull --platform linux/s390x {image}"),
        format!("cmd: {image} cat /who"),
        format!("cmd: docker run --platform linux/s390x --pull never {image} cat /who"),
        "build: -t e --no-cache -f First .".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        task.push_str(&format!(
            "  - {{id: s{number}, ignoreErrors: true, {line}}}\n"
        ));
    }
    create_folder(&[
        ("acr-task.yaml", &task),
        ("First", &format!("FROM {image}\nCOPY First /first\n")),
        (
            "Injected",
            &format!("FROM {registry}/{}/x:1\nCOPY First /first\n", INJECTED.0),
        ),
        ("There", &from("--platform=linux/s390x")),
        ("Spelled", &from("--plat\\\nform=linux/s390x")),
    ])
}

fn failed_steps(outcome: &Outcome) -> Vec<bool> {
    let finished = outcome.events_named("step_finished");
    let others = finished.iter().filter(|step| step["step"] != "trigger");
    others.map(|step| step["state"] == "failed").collect()
}

#[test]
fn lying_registry_gives_no_run_access_to_images_in_the_engine() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let registry = std::env::var("ACRTASK_TEST_AUTH_REGISTRY").unwrap();
    let user = std::env::var("ACRTASK_TEST_AUTH_USER").unwrap();
    let password = std::env::var("ACRTASK_TEST_AUTH_PASSWORD").unwrap();
    let server = TestServer::start(&environment, &["--slots", "2"]);
    let unique = new_run_id();
    let image = format!("{registry}/iso/private:{unique}");
    let task = format!(
        "version: v1.1.0
steps:
  - cmd: docker login -u {user} -p {password} {registry}
  - build: -t {image} .
  - push: [{image}]
  - cmd: docker pull {image}
  - cmd: {image} cat /who
"
    );
    let dockerfile = format!(
        "FROM {}\nRUN echo private-{unique} > /who && head -c 200000 /dev/urandom > /big\n",
        environment.busybox()
    );
    let files = create_folder(&[("acr-task.yaml", &task), ("Dockerfile", &dockerfile)]);
    let run = || server.run(files.path(), &["run", "-o", "plain", "."]);
    let owner = run().wait();
    assert_eq!(owner.code, Some(0), "{}", owner.transcript());
    let private = format!("private-{unique}");
    assert!(owner.stdout.contains(&private), "{}", owner.transcript());

    let reference: ImageRef = image.parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stored = runtime.block_on(Stored::read(&reference, &user, &password));
    let stored = Arc::new(stored);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answering = Arc::clone(&stored);
    let lying = Misbehaving::start(listener, None, move |received| answering.respond(received));

    let target = format!("{}/iso/stolen:{unique}", environment.registry);
    for (lie, parts) in LIES {
        let name = format!("{address}/{lie}/x");
        let files = attack_files(
            &name,
            stored.advertised_digest(parts),
            &target,
            &environment.busybox(),
        );
        let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
        let failed = failed_steps(&outcome);
        assert_eq!(failed.len(), 16, "{lie}: {}", outcome.transcript());
        assert!(
            failed.iter().all(|failed| *failed),
            "{lie}: {failed:?} {}",
            outcome.transcript()
        );
        assert!(
            !outcome.stdout.contains(&private),
            "{lie}: {}",
            outcome.transcript()
        );
        assert!(
            outcome
                .stdout
                .contains("has not proven that this run may read it"),
            "{lie}: {}",
            outcome.transcript()
        );
    }
    let files = hidden_files(&address.to_string(), &environment.busybox());
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert!(
        !outcome.stdout.contains(&private),
        "{}",
        outcome.transcript()
    );
    let mut states = outcome.events_named("step_finished");
    states.sort_by_key(|step| step["step"].as_str().map(str::to_owned));
    let hidden: Vec<bool> = states
        .iter()
        .map(|step| step["state"] == "failed")
        .collect();
    // The honest image of the index is used, before and after.
    let expected = [false, true, true, true, true, true, true, false];
    assert_eq!(hidden, expected, "{}", outcome.transcript());
    // The same registry is accepted once it sends all of the content.
    let name = format!("{address}/{}/x", HONEST.0);
    let files = attack_files(&name, &stored.digest, &target, &environment.busybox());
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    let failed = failed_steps(&outcome);
    // The default frontend does not support `ONBUILD COPY --from` of an image.
    let expected: Vec<bool> = (0..16).map(|step| step == 14).collect();
    assert_eq!(failed, expected, "{}", outcome.transcript());
    assert!(
        outcome.stdout.contains(&private),
        "{}",
        outcome.transcript()
    );
    engine::docker_output(&["image", "rm", "-f", &stored.digest]);
    // The registry could send BuildKit other content than the runner, so BuildKit must not request
    // anything from it.
    let requests = lying.requests();
    let clients = requests
        .iter()
        .map(|received| received.request.headers.get("user-agent"));
    let mut clients: Vec<_> = clients
        .map(|client| client.cloned().unwrap_or_default())
        .collect();
    clients.sort();
    clients.dedup();
    let is_expected =
        |client: &String| client.starts_with("acrtask") || client.starts_with("docker/");
    assert!(clients.iter().all(is_expected), "{clients:?}");
}
