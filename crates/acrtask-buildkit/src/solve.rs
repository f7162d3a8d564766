//! Execution of one build: opens the session, starts the solve, forwards its status, and collects
//! the result.
//!
//! The order at the end: the solve returns, the session closes, and the status stream is read to
//! its end. Only then is the outcome returned, so that no event follows it.

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
use crate::status::{self, BuildEvent, EventSummary};
use crate::transport::MAX_MESSAGE;

/// Maximum silence of the status stream after the end of the solve.
const STATUS_SILENCE: Duration = Duration::from_secs(5);
/// Maximum silence after a cancelation, when completeness does not matter.
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
    frontend::check_request(&request, capabilities)?;
    let caches = Caches::prepare(&mut request)?;
    let layouts = named_layouts(&request)?;
    let references = layouts
        .iter()
        .map(|(name, layout)| (name.clone(), layout.reference.clone()))
        .collect();
    dockerfile::check_frontend(&mut request)?;
    let helpers = frontend::helper_images(&request, dockerfile::read_head(&request).as_deref());
    frontend::pin_frontend(&mut request, &helpers);
    let frontend = frontend::build_frontend(&request, capabilities, &references)?;
    let trees = build_trees(&request)?;
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
            .map(|export| frontend::build_exporter(export, capabilities.kind))
            .collect(),
        ..bk::SolveRequest::default()
    };
    // Builders older than 0.13 support only one exporter, in separate fields.
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
    let ended = SolveEnd::default();
    let follower = tokio::spawn(follow_status(
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
    let mut summary = follower.await.unwrap_or_default();
    let response = match solved {
        None => return Err(BuildError::Canceled),
        Some(Ok(response)) => response.into_inner().exporter_response,
        Some(Err(status)) => {
            return Err(add_log_tail(
                BuildError::from_status(status, &endpoint, &helpers),
                &mut summary,
            ));
        }
    };
    let metadata: BTreeMap<String, String> = response.into_iter().collect();
    caches
        .exported
        .iter()
        .try_for_each(|cache| cache.update_index(&metadata))?;
    let used = list_sources(inner, &build_ref, &summary, &helpers).await;
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

/// Signals of the end of the solve, for the task that reads its status.
#[derive(Debug, Clone, Default)]
struct SolveEnd {
    finished: CancellationToken,
    canceled: CancellationToken,
}

impl SolveEnd {
    /// Waits for the end, and then for the maximum silence of the status.
    async fn silence(&self) {
        tokio::select! {
            () = self.finished.cancelled() => tokio::time::sleep(STATUS_SILENCE).await,
            () = self.canceled.cancelled() => tokio::time::sleep(STATUS_SILENCE_CANCELED).await,
        }
    }
}

/// Forwards the status until the stream ends, or until it is silent for too long after the end of
/// the solve.
async fn follow_status(
    channel: Channel,
    build_ref: String,
    events: mpsc::Sender<BuildEvent>,
    ended: SolveEnd,
) -> EventSummary {
    let mut summary = EventSummary::default();
    let mut control = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let stream = tokio::select! {
        stream = control.status(bk::StatusRequest { r#ref: build_ref }) => stream,
        () = ended.silence() => return summary,
    };
    let mut stream = match stream {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            // The solve failed before the first status. Its own error contains the reason.
            tracing::debug!(%status, "received no status");
            return summary;
        }
    };
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = ended.silence() => return summary,
        };
        match message {
            Ok(Some(response)) => {
                for event in status::convert_events(response) {
                    summary.record(&event);
                    // A missing receiver does not stop the build.
                    let _ = events.send(event).await;
                }
            }
            Ok(None) => return summary,
            Err(status) => {
                tracing::debug!(%status, "lost the status of a build");
                return summary;
            }
        }
    }
}

fn add_log_tail(mut error: BuildError, summary: &mut EventSummary) -> BuildError {
    if let BuildError::Failed(failure) = &mut error {
        failure.vertex = failure.vertex.take().or_else(|| summary.failed_vertex());
        if let Some(vertex) = &failure.vertex {
            failure.log_tail = summary.take_tail(vertex);
        }
    }
    error
}

async fn list_sources(
    inner: &Inner,
    build_ref: &str,
    summary: &EventSummary,
    helpers: &HelperImages,
) -> Vec<UsedSource> {
    let named = summary
        .named_sources
        .iter()
        .filter_map(|source| UsedSource::from_pinned(source));
    if inner.capabilities.missing(Feature::History).is_none() {
        match history::used_sources(&inner.channel, build_ref).await {
            Ok(mut used) => {
                // Provenance lists the sources that a frontend requested, but not always the
                // frontend itself.
                let of_line = helpers.frontend.as_deref().map(frontend::familiar_name);
                let is_listed = |image: &UsedSource| {
                    let named = frontend::familiar_name(&image.reference);
                    used.iter()
                        .any(|source| frontend::familiar_name(&source.reference) == named)
                };
                let missing: Vec<UsedSource> = named
                    .filter(|image| of_line == Some(frontend::familiar_name(&image.reference)))
                    .filter(|image| !is_listed(image))
                    .collect();
                used.extend(missing);
                return used;
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::filesync::error_chain(&error),
                    "reading the sources of a build from its steps only"
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

/// Returns the folders that the builder may request by name.
fn build_trees(request: &BuildRequest) -> Result<HashMap<String, Tree>, BuildError> {
    let mut trees = HashMap::new();
    let empty = || Tree::Memory(Arc::new([]));
    match &request.context {
        BuildContext::Local { dir } => {
            trees.insert(CONTEXT.to_owned(), folder_tree(dir)?);
        }
        BuildContext::None => {
            trees.insert(CONTEXT.to_owned(), empty());
        }
        BuildContext::Remote { .. } => {}
    }
    match (&request.dockerfile, &request.context) {
        (DockerfileSource::InContext(path), BuildContext::Local { dir }) => {
            let parent = dockerfile::folder_in_context(dir, path)?;
            trees.insert(DOCKERFILE.to_owned(), folder_tree(&parent)?);
        }
        (DockerfileSource::InContext(_), BuildContext::Remote { .. }) => {}
        (DockerfileSource::InContext(path), BuildContext::None) => {
            return Err(BuildError::Request(format!(
                "the Dockerfile {path:?} must be in the context, but the build has no context"
            )));
        }
        (DockerfileSource::Local { dir, .. }, _) => {
            trees.insert(DOCKERFILE.to_owned(), folder_tree(dir)?);
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
            trees.insert(frontend::local_name(name), folder_tree(dir)?);
        }
    }
    Ok(trees)
}

fn folder_tree(dir: &Path) -> Result<Tree, BuildError> {
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

/// Returns a key for the folder on this machine, so that the builder can reuse earlier transfers.
/// Without a folder, the key belongs to this build alone, because builds with the same key share
/// the files that they send.
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

/// Returns the destination of each export, by its index in the request.
async fn result_targets(
    exports: Vec<Export>,
    kind: EndpointKind,
) -> Result<HashMap<usize, Target>, BuildError> {
    let mut targets = HashMap::new();
    for (index, export) in exports.into_iter().enumerate() {
        let sink = match export {
            Export::Image(_) => continue,
            Export::Load { archive, .. } => {
                match archive.filter(|_| kind == EndpointKind::Buildkitd) {
                    Some(archive) => archive,
                    None => continue,
                }
            }
            Export::Local { dir } => {
                targets.insert(index, Target::Folder(dir));
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
        targets.insert(index, Target::Bytes(std::sync::Mutex::new(Some(sink))));
    }
    Ok(targets)
}

/// Image in a folder, as a named context.
struct NamedLayout {
    /// Store id in requests of the builder.
    store: String,
    /// Reference for the frontend.
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

/// Caches that this program reads or writes.
struct Caches {
    stores: HashMap<String, Store>,
    exported: Vec<ExportedCache>,
}

struct ExportedCache {
    layout: Layout,
    tag: String,
}

impl Caches {
    /// Opens the folders, and sets the digest of each import from its index. Drops an import whose
    /// folder does not contain a cache yet.
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
                match layout.resolve(cache_tag(cache)) {
                    Ok(digest) => cache.attrs.insert("digest".to_owned(), digest),
                    Err(error) => {
                        tracing::info!(
                            folder = source,
                            error = crate::filesync::error_chain(&error),
                            "skipping a cache that does not exist"
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
                    "a cache of type local needs `dest`, its target folder".to_owned(),
                )
            };
            let dest = cache.attrs.get("dest").ok_or_else(missing)?;
            let layout = Layout::create(Path::new(dest)).map_err(layout_error)?;
            stores.insert(format!("local:{dest}"), Store::Folder(layout.clone()));
            exported.push(ExportedCache {
                layout,
                tag: cache_tag(cache).to_owned(),
            });
        }
        if request
            .cache_imports
            .iter()
            .any(|cache| cache.kind == "local" && !cache.attrs.contains_key("src"))
        {
            return Err(BuildError::Request(
                "a cache of type local needs `src`, its source folder".to_owned(),
            ));
        }
        Ok(Self { stores, exported })
    }
}

fn cache_tag(cache: &CacheSpec) -> &str {
    cache.attrs.get("tag").map_or(DEFAULT_TAG, String::as_str)
}

impl ExportedCache {
    /// Adds the exported cache to the index.
    fn update_index(&self, metadata: &BTreeMap<String, String>) -> Result<(), BuildError> {
        let Some(text) = metadata.get("cache.manifest") else {
            return Ok(());
        };
        let descriptor = serde_json::from_str(text).map_err(|e| {
            BuildError::Request(format!(
                "the builder's description of the exported cache is not JSON: {e}"
            ))
        })?;
        self.layout
            .set_tag(descriptor, &self.tag)
            .map_err(layout_error)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn shared_key_identifies_the_folder() {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let key = |path: PathBuf| shared_key(&BuildContext::Local { dir: path });
        assert_eq!(key(dir.path().into()), key(dir.path().join("sub/..")));
        assert_ne!(key(dir.path().into()), key(dir.path().join("sub")));
        assert_eq!(key(dir.path().into()).len(), 32);
    }

    #[test]
    fn descriptor_digest_decodes_the_descriptor() {
        let encoded = base64::engine::general_purpose::STANDARD.encode(r#"{"digest":"sha256:aa"}"#);
        let metadata = BTreeMap::from([("containerimage.descriptor".to_owned(), encoded)]);
        assert_eq!(descriptor_digest(&metadata).as_deref(), Some("sha256:aa"));
        assert_eq!(descriptor_digest(&BTreeMap::new()), None);
    }

    #[tokio::test]
    async fn build_trees_checks_folders() {
        let request = BuildRequest::new(BuildContext::Local {
            dir: "/absent".into(),
        });
        assert!(matches!(build_trees(&request), Err(BuildError::Io { .. })));
        let request = BuildRequest::new(BuildContext::None);
        assert!(matches!(build_trees(&request), Err(BuildError::Request(_))));
    }
}
