//! Runs one build: opens the session, asks BuildKit to solve, follows its status, and reads what came of it.
//!
//! Order at the end: the solve returns, the session closes, the status stream is read to its end, and only then is the
//! outcome given back, so that no event comes after it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bollard_buildkit_proto::moby::buildkit::v1 as bk;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::capabilities::{EndpointKind, Feature};
use crate::client::{BuildOutcome, Inner};
use crate::dockerfile;
use crate::error::{BuildError, HelperImages};
use crate::filesync::{FileSyncService, Tree};
use crate::frontend::{self, CONTEXT, DOCKERFILE};
use crate::history;
use crate::provenance::UsedSource;
use crate::request::{
    BuildContext, BuildRequest, CacheSpec, DockerfileSource, Export, NamedContext, Sink,
};
use crate::session::{
    AuthService, BuildSecret, ByteSink, ContentService, FileSendService, Layout, LayoutError,
    SecretService, SecretSource, Services, Session, SshService, Store, Target,
};
use crate::status::{self, BuildEvent, Memory};
use crate::transport::MAX_MESSAGE;

/// How long the status stream may be silent after the solve has ended.
const STATUS_SILENCE: Duration = Duration::from_secs(5);
/// The same after a cancel, where nobody waits for completeness.
const STATUS_SILENCE_CANCELED: Duration = Duration::from_millis(300);
const GIT_TOKEN_SECRET: &str = "GIT_AUTH_TOKEN";
const DEFAULT_TAG: &str = "latest";

pub(crate) async fn build(
    inner: &Inner,
    mut request: BuildRequest,
    events: mpsc::Sender<BuildEvent>,
    cancel: CancellationToken,
) -> Result<BuildOutcome, BuildError> {
    let endpoint = inner.endpoint.to_string();
    let capabilities = &inner.capabilities;
    if let BuildContext::Remote {
        git_token: Some(token),
        ..
    } = &request.context
    {
        let source = SecretSource::Text(token.clone());
        request.secrets.push(BuildSecret {
            id: GIT_TOKEN_SECRET.to_owned(),
            source,
        });
    }
    frontend::check(&request, capabilities)?;
    let caches = Caches::prepare(&mut request)?;
    let layouts = named_layouts(&request)?;
    let references = layouts
        .iter()
        .map(|(name, layout)| (name.clone(), layout.reference.clone()))
        .collect();
    dockerfile::decide_frontend(&mut request)?;
    let helpers = frontend::helper_images(&request, dockerfile::head(&request).as_deref());
    frontend::hold_syntax(&mut request, &helpers);
    let frontend = frontend::frontend(&request, capabilities, &references)?;
    let trees = trees(&request)?;
    let build_ref = crate::random_id();
    let mut solve = bk::SolveRequest {
        r#ref: build_ref.clone(),
        frontend: frontend.name.to_owned(),
        frontend_attrs: frontend.attrs,
        entitlements: frontend.entitlements,
        cache: Some(frontend::cache_options(&request)),
        source_policy: frontend::source_policy(&request),
        exporters: request
            .exports
            .iter()
            .map(|export| frontend::exporter(export, capabilities.kind))
            .collect(),
        ..bk::SolveRequest::default()
    };
    // Builders older than 0.13 know one exporter only, in fields of its own.
    if let Some(first) = solve.exporters.first() {
        solve.exporter_deprecated.clone_from(&first.r#type);
        solve.exporter_attrs_deprecated.clone_from(&first.attrs);
    }
    let shared_key = request
        .shared_key
        .clone()
        .unwrap_or_else(|| shared_key(&request.context));
    let stores: HashMap<String, Store> = caches
        .stores
        .into_iter()
        .chain(
            layouts
                .into_values()
                .map(|layout| (layout.store, layout.content)),
        )
        .collect();
    let results = result_targets(std::mem::take(&mut request.exports), capabilities.kind).await?;
    let services = Services {
        files: FileSyncService::new(trees),
        auth: AuthService(Arc::clone(&request.credentials)),
        secrets: (!request.secrets.is_empty()).then(|| SecretService::new(&request.secrets)),
        ssh: (!request.ssh.is_empty()).then(|| SshService::new(&request.ssh)),
        results: (!results.is_empty()).then(|| FileSendService::new(results)),
        content: (!stores.is_empty()).then(|| ContentService::new(stores)),
    };
    if cancel.is_cancelled() {
        return Err(BuildError::Canceled);
    }
    let session = Session::start(&inner.endpoint, &inner.channel, &shared_key, services)
        .await
        .map_err(|status| BuildError::from_status(status, &endpoint, &HelperImages::default()))?;
    solve.session.clone_from(&session.id);

    let mut control = ControlClient::new(inner.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let ended = Ended::default();
    let follower = tokio::spawn(follow(
        inner.channel.clone(),
        build_ref.clone(),
        events,
        ended.clone(),
    ));
    let solved = tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        solved = control.solve(solve) => Some(solved),
    };
    drop(session);
    match &solved {
        None => ended.canceled.cancel(),
        Some(_) => ended.finished.cancel(),
    }
    let mut memory = follower.await.unwrap_or_default();
    let response = match solved {
        None => return Err(BuildError::Canceled),
        Some(Ok(response)) => response.into_inner().exporter_response,
        Some(Err(status)) => {
            return Err(with_tail(
                BuildError::from_status(status, &endpoint, &helpers),
                &mut memory,
            ));
        }
    };
    let metadata: BTreeMap<String, String> = response.into_iter().collect();
    caches
        .exported
        .iter()
        .try_for_each(|cache| cache.finish(&metadata))?;
    let used = used(inner, &build_ref, &memory, &helpers).await;
    Ok(BuildOutcome {
        image_digest: metadata
            .get("containerimage.digest")
            .cloned()
            .or_else(|| descriptor_digest(&metadata)),
        config_digest: metadata.get("containerimage.config.digest").cloned(),
        metadata,
        provenance: used,
        build_ref,
    })
}

/// How the solve ended, for the one who follows its status.
#[derive(Debug, Clone, Default)]
struct Ended {
    finished: CancellationToken,
    canceled: CancellationToken,
}

impl Ended {
    /// Waits for the end and then for as long as the status may stay silent.
    async fn silence(&self) {
        tokio::select! {
            () = self.finished.cancelled() => tokio::time::sleep(STATUS_SILENCE).await,
            () = self.canceled.cancelled() => tokio::time::sleep(STATUS_SILENCE_CANCELED).await,
        }
    }
}

/// Passes the status on until the stream ends, or is silent for long after the solve's end.
async fn follow(
    channel: Channel,
    build_ref: String,
    events: mpsc::Sender<BuildEvent>,
    ended: Ended,
) -> Memory {
    let mut memory = Memory::default();
    let mut control = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let stream = tokio::select! {
        stream = control.status(bk::StatusRequest { r#ref: build_ref }) => stream,
        () = ended.silence() => return memory,
    };
    let mut stream = match stream {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            // The solve failed before there was anything to tell; its own error says why.
            tracing::debug!(%status, "no status");
            return memory;
        }
    };
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = ended.silence() => return memory,
        };
        match message {
            Ok(Some(response)) => {
                for event in status::events(response) {
                    memory.note(&event);
                    // Nobody listening is no reason to stop: the build goes on.
                    let _ = events.send(event).await;
                }
            }
            Ok(None) => return memory,
            Err(status) => {
                tracing::debug!(%status, "the status ended early");
                return memory;
            }
        }
    }
}

fn with_tail(mut error: BuildError, memory: &mut Memory) -> BuildError {
    if let BuildError::Failed(failure) = &mut error {
        failure.vertex = failure.vertex.take().or_else(|| memory.failed_vertex());
        if let Some(vertex) = &failure.vertex {
            failure.log_tail = memory.tail(vertex);
        }
    }
    error
}

async fn used(
    inner: &Inner,
    build_ref: &str,
    memory: &Memory,
    helpers: &HelperImages,
) -> Vec<UsedSource> {
    let named = memory
        .named_sources
        .iter()
        .filter_map(|source| UsedSource::from_pinned(source));
    if inner.capabilities.missing(Feature::History).is_none() {
        match history::used_sources(&inner.channel, build_ref).await {
            Ok(mut used) => {
                // Provenance tells what a frontend asked for, and not of every frontend itself.
                let of_line = helpers.frontend.as_deref().map(frontend::familiar);
                let known = |image: &UsedSource| {
                    let named = frontend::familiar(&image.reference);
                    used.iter()
                        .any(|one| frontend::familiar(&one.reference) == named)
                };
                let missing: Vec<UsedSource> = named
                    .filter(|image| of_line == Some(frontend::familiar(&image.reference)))
                    .filter(|image| !known(image))
                    .collect();
                used.extend(missing);
                return used;
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::filesync::error_chain(&error),
                    "what the build used is read from its steps only"
                );
            }
        }
    }
    named.collect()
}

fn descriptor_digest(metadata: &BTreeMap<String, String>) -> Option<String> {
    let encoded = metadata.get("containerimage.descriptor")?;
    let json = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .ok()?;
    let descriptor: serde_json::Value = serde_json::from_slice(&json).ok()?;
    descriptor["digest"].as_str().map(str::to_owned)
}

/// What the builder may ask for by name.
fn trees(request: &BuildRequest) -> Result<HashMap<String, Tree>, BuildError> {
    let mut trees = HashMap::new();
    let nothing = || Tree::Memory(Arc::new([]));
    match &request.context {
        BuildContext::Local { dir } => {
            trees.insert(CONTEXT.to_owned(), folder(dir)?);
        }
        BuildContext::None => {
            trees.insert(CONTEXT.to_owned(), nothing());
        }
        BuildContext::Remote { .. } => {}
    }
    match (&request.dockerfile, &request.context) {
        (DockerfileSource::InContext(path), BuildContext::Local { dir }) => {
            let parent = dockerfile::folder_in_context(dir, path)?;
            trees.insert(DOCKERFILE.to_owned(), folder(&parent)?);
        }
        (DockerfileSource::InContext(_), BuildContext::Remote { .. }) => {}
        (DockerfileSource::InContext(path), BuildContext::None) => {
            return Err(BuildError::Request(format!(
                "the Dockerfile {path:?} is to be in the context, and there is none"
            )));
        }
        (DockerfileSource::Local { dir, .. }, _) => {
            trees.insert(DOCKERFILE.to_owned(), folder(dir)?);
        }
        (DockerfileSource::Inline(text), _) => {
            trees.insert(
                DOCKERFILE.to_owned(),
                Tree::Memory(Arc::new([("Dockerfile".to_owned(), text.clone())])),
            );
        }
    }
    for (name, context) in &request.named_contexts {
        if let NamedContext::Local(dir) = context {
            trees.insert(frontend::local_name(name), folder(dir)?);
        }
    }
    Ok(trees)
}

fn folder(dir: &Path) -> Result<Tree, BuildError> {
    let failed = |source| BuildError::Io {
        action: "use the folder",
        path: dir.to_owned(),
        source,
    };
    if !std::fs::metadata(dir).map_err(failed)?.is_dir() {
        return Err(failed(std::io::ErrorKind::NotADirectory.into()));
    }
    Ok(Tree::Folder(dir.to_owned()))
}

/// Returns a key that is the same for the same folder on the same machine, so that the builder finds what it was sent
/// before. Without a folder, the key is of this build alone: builds with one key share the files that they send.
fn shared_key(context: &BuildContext) -> String {
    let BuildContext::Local { dir } = context else {
        return crate::random_id();
    };
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.clone());
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let hash = Sha256::new()
        .chain_update(machine.trim())
        .chain_update([0])
        .chain_update(dir.as_os_str().as_encoded_bytes())
        .finalize();
    hash.iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Where each export's bytes go, by its place in the request.
async fn result_targets(
    exports: Vec<Export>,
    kind: EndpointKind,
) -> Result<HashMap<usize, Target>, BuildError> {
    let mut targets = HashMap::new();
    for (place, export) in exports.into_iter().enumerate() {
        let sink = match export {
            Export::Image(_) => continue,
            Export::Load { archive, .. } => {
                match archive.filter(|_| kind == EndpointKind::Buildkitd) {
                    Some(archive) => archive,
                    None => continue,
                }
            }
            Export::Local { dir } => {
                targets.insert(place, Target::Folder(dir));
                continue;
            }
            Export::Tar(archive) | Export::Oci { archive, .. } => archive,
        };
        let sink: ByteSink = match sink {
            Sink::Writer(writer) => writer,
            Sink::File(path) => match tokio::fs::File::create(&path).await {
                Ok(file) => Box::pin(file),
                Err(source) => {
                    return Err(BuildError::Io {
                        action: "create",
                        path,
                        source,
                    });
                }
            },
        };
        targets.insert(place, Target::Bytes(std::sync::Mutex::new(Some(sink))));
    }
    Ok(targets)
}

/// An image in a folder, as a named context.
struct NamedLayout {
    /// The id by which the builder asks for its blobs.
    store: String,
    /// What the frontend is told.
    reference: String,
    content: Store,
}

fn named_layouts(request: &BuildRequest) -> Result<HashMap<String, NamedLayout>, BuildError> {
    let mut layouts = HashMap::new();
    for (name, context) in &request.named_contexts {
        let (content, digest) = match context {
            NamedContext::OciLayout { dir, digest } => {
                let layout = Layout::open_existing(dir);
                let digest = match digest {
                    Some(digest) => digest.clone(),
                    None => layout.resolve(DEFAULT_TAG).map_err(layout_error)?,
                };
                (Store::Folder(layout), digest)
            }
            NamedContext::Provided(image) => {
                let blobs = Store::Provided(Arc::clone(&image.blobs));
                (blobs, image.digest.clone())
            }
            NamedContext::Local(_) | NamedContext::Reference(_) => continue,
        };
        let id = crate::random_id();
        layouts.insert(
            name.clone(),
            NamedLayout {
                store: format!("oci:{id}"),
                reference: format!("{id}@{digest}"),
                content,
            },
        );
    }
    Ok(layouts)
}

fn layout_error(error: LayoutError) -> BuildError {
    BuildError::Request(crate::filesync::error_chain(&error))
}

/// Caches whose content this program reads or writes.
struct Caches {
    stores: HashMap<String, Store>,
    exported: Vec<ExportedCache>,
}

struct ExportedCache {
    layout: Layout,
    tag: String,
}

impl Caches {
    /// Opens the folders, and names in each import the digest that its index has. A folder that holds no cache (yet) is
    /// not an error: the import is dropped.
    fn prepare(request: &mut BuildRequest) -> Result<Self, BuildError> {
        let mut stores = HashMap::new();
        let mut exported = Vec::new();
        request.cache_imports.retain_mut(|cache| {
            if cache.kind != "local" {
                return true;
            }
            let Some(source) = cache.attrs.get("src").cloned() else {
                return true;
            };
            let layout = Layout::open_existing(Path::new(&source));
            if !cache.attrs.contains_key("digest") {
                match layout.resolve(tag(cache)) {
                    Ok(digest) => cache.attrs.insert("digest".to_owned(), digest),
                    Err(error) => {
                        tracing::info!(
                            folder = source,
                            error = crate::filesync::error_chain(&error),
                            "no cache to import"
                        );
                        return false;
                    }
                };
            }
            stores.insert(format!("local:{source}"), Store::Folder(layout));
            true
        });
        for cache in std::mem::take(&mut request.provided_caches) {
            let id = crate::random_id();
            stores.insert(format!("local:{id}"), Store::Provided(cache.blobs));
            let attrs = [("src", id), ("digest", cache.digest)];
            request.cache_imports.push(CacheSpec {
                kind: "local".to_owned(),
                attrs: attrs.map(|(key, value)| (key.to_owned(), value)).into(),
            });
        }
        for cache in &request.cache_exports {
            if cache.kind != "local" {
                continue;
            }
            let missing = || {
                BuildError::Request(
                    "a cache of type local needs `dest`, the folder it is written to".to_owned(),
                )
            };
            let dest = cache.attrs.get("dest").ok_or_else(missing)?;
            let layout = Layout::create(Path::new(dest)).map_err(layout_error)?;
            stores.insert(format!("local:{dest}"), Store::Folder(layout.clone()));
            exported.push(ExportedCache {
                layout,
                tag: tag(cache).to_owned(),
            });
        }
        if request
            .cache_imports
            .iter()
            .any(|cache| cache.kind == "local" && !cache.attrs.contains_key("src"))
        {
            return Err(BuildError::Request(
                "a cache of type local needs `src`, the folder it is read from".to_owned(),
            ));
        }
        Ok(Self { stores, exported })
    }
}

fn tag(cache: &CacheSpec) -> &str {
    cache.attrs.get("tag").map_or(DEFAULT_TAG, String::as_str)
}

impl ExportedCache {
    /// Makes the index name what was exported.
    fn finish(&self, metadata: &BTreeMap<String, String>) -> Result<(), BuildError> {
        let Some(text) = metadata.get("cache.manifest") else {
            return Ok(());
        };
        let descriptor = serde_json::from_str(text).map_err(|e| {
            BuildError::Request(format!(
                "the builder described the exported cache in a way that is not JSON: {e}"
            ))
        })?;
        self.layout.tag(descriptor, &self.tag).map_err(layout_error)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_shared_key_is_of_the_folder_not_of_its_spelling() {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let key = |path: PathBuf| shared_key(&BuildContext::Local { dir: path });
        assert_eq!(key(dir.path().into()), key(dir.path().join("sub/..")));
        assert_ne!(key(dir.path().into()), key(dir.path().join("sub")));
        assert_eq!(key(dir.path().into()).len(), 32);
    }

    #[test]
    fn the_digest_is_found_in_the_descriptor() {
        let encoded = base64::engine::general_purpose::STANDARD.encode(r#"{"digest":"sha256:aa"}"#);
        let metadata = BTreeMap::from([("containerimage.descriptor".to_owned(), encoded)]);
        assert_eq!(descriptor_digest(&metadata).as_deref(), Some("sha256:aa"));
        assert_eq!(descriptor_digest(&BTreeMap::new()), None);
    }

    #[tokio::test]
    async fn folders_are_checked_before_the_build() {
        let request = BuildRequest::new(BuildContext::Local {
            dir: "/absent".into(),
        });
        assert!(matches!(trees(&request), Err(BuildError::Io { .. })));
        let request = BuildRequest::new(BuildContext::None);
        assert!(matches!(trees(&request), Err(BuildError::Request(_))));
    }
}
