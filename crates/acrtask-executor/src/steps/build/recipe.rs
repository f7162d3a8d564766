//! Preparation of a build request from the words of a build line, including all files that it
//! needs.
//!
//! A recipe can create any number of requests. To load or push an image of a separate BuildKit, the
//! executor requests the build again.

mod caches;
mod files;
mod pins;
mod secrets;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use acrtask_buildkit::{
    AllowedImage, BuildContext, BuildRequest, BuildSecret, CacheNamespaces, CacheSpec,
    DockerfileSource, Frontends, NamedContext, Network, NoCache, Provenance, ProvidedImage,
    SourceAddresses, SourcePin, SshSource, VerifiedFile,
};
use acrtask_model::{Digest, ImageRef, ReferenceError, TrustDomain};
use acrtask_source::{ContextSpec, Origin};
use acrtask_spec::build_line::{BuildLine, ContextRef};

pub(crate) use self::caches::INLINE_CACHE;
pub(super) use self::caches::{LOCAL_CACHE, import_shared, seal_exported};
use self::caches::{cache_namespaces, check_cache, exported_caches, imported_caches};
use self::secrets::{read_secrets, ssh_agents};
use super::{fetched, input};
use crate::{
    Reach,
    builder::BuilderCredentials,
    cmd::{
        body::working_folder,
        flags::{is_machine_wide_limit, parse_ulimit},
    },
    context::StepContext,
    error::error_chain,
    output::lock,
    possession::check_layout,
    workspace::{BuildFolder, HOME, WORKSPACE, WorkspaceError, resolve_path},
};

/// The complete input of a build.
#[derive(Debug)]
pub(crate) struct Recipe {
    line: BuildLine,
    context: BuildContext,
    dockerfile: DockerfileSource,
    build_args: Vec<(String, Option<String>)>,
    secrets: Vec<BuildSecret>,
    ssh: Vec<SshSource>,
    named_contexts: BTreeMap<String, NamedContext>,
    pins: Vec<SourcePin>,
    /// Images of this run that the build uses, by their names in the engine.
    own: BTreeMap<ImageRef, ImageRef>,
    /// Images that the builder of a runner fetches itself: frontends, scanners, and names that a
    /// stage may have.
    allowed: Mutex<Vec<AllowedImage>>,
    /// All other images that the build may use on a runner, by the names of their contexts.
    provided: Mutex<BTreeMap<String, NamedContext>>,
    /// Replacements by contexts of the line: complete names without digests, with the image that is
    /// used. `None` for a folder or a layout, which no registry has.
    replaced: BTreeMap<String, Option<ImageRef>>,
    /// Files with a checksum that the builder of a runner may fetch.
    verified: Mutex<Vec<VerifiedFile>>,
    /// Digests of images in their registries, by the digests that the builder receives.
    originals: Mutex<BTreeMap<Digest, Digest>>,
    /// Sealed caches that the build imports on a runner.
    pub(super) provided_caches: Vec<ProvidedImage>,
    provenance: Provenance,
    cache_namespaces: CacheNamespaces,
    pub(crate) cache_imports: Vec<CacheSpec>,
    pub(crate) cache_exports: Vec<CacheSpec>,
    /// Folders that the build reads. They exist as long as the recipe.
    _guards: Vec<TempGuard>,
}

#[derive(Debug)]
enum TempGuard {
    Folder(#[expect(dead_code, reason = "kept for its drop")] BuildFolder),
    Fetched(#[expect(dead_code, reason = "kept for its drop")] acrtask_source::Workspace),
}

/// The workspace as a build sees it, with the step's working directory.
struct Base {
    /// Path of the workspace's root on this machine, without links.
    root: PathBuf,
    /// Path of the home folder on this machine, without links. `None` if the line has no path in
    /// it.
    home: Option<PathBuf>,
    /// Working directory of the step: `/workspace/...`.
    folder: String,
}

impl Base {
    /// Returns the path on this machine for a path of the line. Refuses links that leave the
    /// workspace.
    fn local_path(&self, path: &str) -> Result<PathBuf, String> {
        let inside = resolve_path(&self.folder, path).map_err(|error| error_chain(&error))?;
        let (root, relative) = match (inside.strip_prefix(WORKSPACE), &self.home) {
            (Some(relative), _) => (&self.root, relative),
            (None, Some(home)) => (home, inside.strip_prefix(HOME).unwrap_or_default()),
            (None, None) => return Err(format!("{path} is not in the workspace")),
        };
        acrtask_source::paths::resolve_inside(root, Path::new(relative.trim_start_matches('/')))
            .map_err(|error| error_chain(&error))
    }
}

impl Recipe {
    /// Fetches and reads the inputs of the line.
    pub(crate) async fn prepare(ctx: &StepContext, line: &BuildLine) -> Result<Self, String> {
        let mut guards = Vec::new();
        let root = real_folder(ctx.run.workspace.build_folder().await, &mut guards)?;
        let folder = working_folder(&ctx.step);
        let home = match uses_home(line, &folder) {
            true => Some(real_folder(
                ctx.run.workspace.home_build_folder().await,
                &mut guards,
            )?),
            false => None,
        };
        let base = Base { root, home, folder };
        let (context, dockerfile) = prepare_context(ctx, line, &base, &mut guards).await?;
        let mut named_contexts = BTreeMap::new();
        for (name, value) in &line.build_contexts {
            let named = prepare_named_context(ctx, value, &base, &mut guards).await?;
            named_contexts.insert(name.clone(), named);
        }
        let build_args: Vec<_> = line
            .build_args
            .iter()
            .map(|(name, value)| {
                let value = value.clone().or_else(|| ctx.run.variable(&ctx.step, name));
                (name.clone(), value)
            })
            // Drops an argument without a value. The environment of this process does not belong to
            // the task.
            .filter(|(_, value)| value.is_some())
            .collect();
        let provenance = requested_provenance(ctx, line, &build_args).await;
        let cache_namespaces = cache_namespaces(ctx, &provenance);
        for cache in line.cache_from.iter().chain(&line.cache_to) {
            check_cache(&ctx.run.domain.trust, &cache.kind)?;
        }
        let imported = imported_caches(ctx, line, &base).await?;
        let cache_exports = exported_caches(ctx, line, &build_args, &base).await?;
        let mut recipe = Self {
            context,
            dockerfile,
            build_args,
            secrets: read_secrets(ctx, line, &base)?,
            ssh: ssh_agents(ctx, line)?,
            named_contexts,
            pins: Vec::new(),
            own: BTreeMap::new(),
            allowed: Mutex::default(),
            provided: Mutex::default(),
            replaced: BTreeMap::new(),
            verified: Mutex::default(),
            originals: Mutex::default(),
            provided_caches: imported.provided,
            provenance,
            cache_namespaces,
            cache_imports: imported.caches,
            cache_exports,
            line: line.clone(),
            _guards: guards,
        };
        pins::pin_images(ctx, &mut recipe).await?;
        if ctx.run.reach == Reach::Public
            && let Some(text) = recipe.dockerfile_text()
        {
            let given = recipe.build_args();
            let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
            fetched::check_dockerfile(text, given.collect()).await?;
        }
        Ok(recipe)
    }

    /// Returns the request, without exports.
    pub(crate) fn request(&self, ctx: &StepContext) -> Result<BuildRequest, String> {
        let line = &self.line;
        let mut request = BuildRequest::new(self.context.clone());
        request.dockerfile = self.dockerfile.clone();
        request.target = line.target.clone();
        request.platforms = line.platforms.clone();
        request.build_args = self.build_args.clone();
        request.labels = line.labels.iter().cloned().collect();
        request.no_cache = match (line.no_cache, line.no_cache_filter.is_empty()) {
            (true, _) => NoCache::All,
            (false, false) => NoCache::Stages(line.no_cache_filter.clone()),
            (false, true) => NoCache::UseCache,
        };
        // A name that is not pinned is resolved in its registry. On the user's own machine the
        // engine's image is the fallback. Images of this run exist only in the engine. BuildKit
        // uses the engine after the registry, which does not have them.
        request.pull = (line.pull || !ctx.run.options.own_machine) && self.own.is_empty();
        request.add_hosts = line
            .add_hosts
            .iter()
            .map(|text| parse_host(text))
            .collect::<Result<_, _>>()?;
        request.network = parse_network(ctx, line.network.as_deref())?;
        request.shm_size = line.shm_size;
        request.ulimits = allowed_ulimits(ctx, line)?;
        request.pins = self.pins.clone();
        request.named_contexts = self.named_contexts.clone();
        let provided = lock(&self.provided).clone();
        request.named_contexts.extend(provided);
        request.secrets = self.secrets.clone();
        request.ssh = self.ssh.clone();
        request.cache_imports = self.cache_imports.clone();
        request.provided_caches = self.provided_caches.clone();
        request.cache_exports = self.cache_exports.clone();
        request.provenance = self.provenance.clone();
        request.cache_namespaces = Some(self.cache_namespaces.clone());
        request.sources = match ctx.run.reach {
            Reach::Public => SourceAddresses::PublicOnly,
            Reach::Everything => SourceAddresses::Any,
        };
        request.images = self.allowed_images(ctx);
        request.files = self.allowed_files(ctx);
        request.frontends =
            if ctx.run.domain.trust == TrustDomain::Local || ctx.run.options.allow.frontends {
                Frontends::Any
            } else {
                Frontends::Official
            };
        request.sbom = line
            .sbom
            .clone()
            .filter(|sbom| sbom != "false")
            .map(|sbom| if sbom == "true" { String::new() } else { sbom });
        request.credentials = Arc::new(BuilderCredentials(ctx.run.credentials()));
        Ok(request)
    }

    /// Returns the name of an image of this run that the engine has under another one.
    pub(crate) fn own_name(&self, stored: &str) -> Option<&ImageRef> {
        let stored = stored.split('@').next().unwrap_or(stored);
        self.own.get(&stored.parse().ok()?)
    }

    /// Returns the image that a build used under the name `reference` in its provenance: the image
    /// of a context that has replaced it. `None` if no registry has the image.
    pub(crate) fn used_name(&self, reference: &str) -> Option<String> {
        if let Some(own) = self.own_name(reference) {
            return Some(own.to_string());
        }
        match self.replaced.get(&pins::replaced_name(reference)) {
            Some(used) => used.as_ref().map(ToString::to_string),
            None => Some(reference.to_owned()),
        }
    }

    /// Returns the registry's digest of an image that the builder has under `digest`.
    pub(crate) fn registry_digest(&self, digest: Digest) -> Digest {
        lock(&self.originals)
            .get(&digest)
            .cloned()
            .unwrap_or(digest)
    }

    /// Returns the Dockerfile's text if it is on this machine.
    pub(crate) fn dockerfile_text(&self) -> Option<String> {
        match (&self.dockerfile, &self.context) {
            (DockerfileSource::Inline(bytes), _) => String::from_utf8(bytes.clone()).ok(),
            (DockerfileSource::Local { dir, name }, _) => input::text_inside(dir, name),
            (DockerfileSource::InContext(path), BuildContext::Local { dir }) => {
                input::text_inside(dir, path)
            }
            (DockerfileSource::InContext(_), _) => None,
        }
    }

    /// Returns the value of `--target`.
    pub(crate) fn target(&self) -> Option<&str> {
        self.line.target.as_deref()
    }

    /// Returns the names and values of build arguments.
    pub(crate) fn build_args(&self) -> impl Iterator<Item = (&str, &str)> {
        self.build_args
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }
}

/// Returns the path of `folder` without links, and keeps the folder as long as the recipe.
fn real_folder(
    folder: Result<BuildFolder, WorkspaceError>,
    guards: &mut Vec<TempGuard>,
) -> Result<PathBuf, String> {
    let folder = folder.map_err(|error| error_chain(&error))?;
    let path = std::fs::canonicalize(&folder.path)
        .map_err(|error| format!("cannot use the context {}: {error}", folder.path.display()))?;
    guards.push(TempGuard::Folder(folder));
    Ok(path)
}

/// Returns `true` if `line` has a path in the home folder.
fn uses_home(line: &BuildLine, folder: &str) -> bool {
    let paths = line.local_paths();
    let secrets = line.secrets.iter();
    let secrets = secrets.filter_map(|secret| secret.src.as_deref());
    paths
        .chain(secrets)
        .any(|path| resolve_path(folder, path).is_ok_and(|path| !path.starts_with(WORKSPACE)))
}

async fn prepare_context(
    ctx: &StepContext,
    line: &BuildLine,
    base: &Base,
    guards: &mut Vec<TempGuard>,
) -> Result<(BuildContext, DockerfileSource), String> {
    let from_stdin = line.file.as_deref() == Some("-");
    let in_context =
        || DockerfileSource::InContext(line.file.clone().unwrap_or_else(|| "Dockerfile".into()));
    // The task chooses the path, and the files are on this machine.
    let in_fetched = |context: BuildContext| {
        if let (BuildContext::Local { dir }, Some(file)) = (&context, &line.file) {
            let root = dir
                .canonicalize()
                .map_err(|error| format!("{file}: {error}"))?;
            acrtask_source::paths::resolve_inside(&root, Path::new(file)).map_err(|error| {
                format!("the Dockerfile {file} is not used: {}", error_chain(&error))
            })?;
        }
        Ok::<_, String>((context, in_context()))
    };
    match &line.context {
        ContextRef::Path(path) => {
            let dir = base.local_path(path)?;
            if !dir.is_dir() {
                return Err(format!(
                    "the context {path} is not a folder of the workspace"
                ));
            }
            let dockerfile = if from_stdin {
                input::stdin_dockerfile(ctx)?
            } else {
                local_dockerfile(line.file.as_deref(), path, &dir, base)?
            };
            Ok((BuildContext::Local { dir }, dockerfile))
        }
        ContextRef::Git(url) | ContextRef::Http(url) => {
            let dockerfile = if from_stdin {
                input::stdin_dockerfile(ctx)?
            } else {
                in_context()
            };
            if let Some(workspace) = fetched::fetch_context(ctx, url).await? {
                let dir = workspace.root.clone();
                guards.push(TempGuard::Fetched(workspace));
                let context = BuildContext::Local { dir };
                return match from_stdin {
                    true => Ok((context, dockerfile)),
                    false => in_fetched(context),
                };
            }
            let url = url.clone();
            Ok((
                BuildContext::Remote {
                    url,
                    git_token: None,
                },
                dockerfile,
            ))
        }
        ContextRef::Oci(reference) => {
            let reference = reference.trim_start_matches("oci://");
            let reference = reference
                .parse()
                .map_err(|error: ReferenceError| error_chain(&error))?;
            let spec = ContextSpec::Oci(reference);
            in_fetched(fetch_to_folder(ctx, &spec, Origin::TaskFile, guards).await?)
        }
        ContextRef::Stdin => {
            let Some(path) = &ctx.run.stdin else {
                return Err(
                    "the context `-` is the standard input of the run, which is empty; \
                            write `acrtask run ... < context.tar`"
                        .into(),
                );
            };
            if input::is_archive(path)? {
                let spec = ContextSpec::TarballFile(path.clone());
                in_fetched(fetch_to_folder(ctx, &spec, Origin::Operator, guards).await?)
            } else {
                Ok((
                    BuildContext::None,
                    DockerfileSource::Inline(input::stdin_text(ctx)?),
                ))
            }
        }
    }
}

async fn fetch_to_folder(
    ctx: &StepContext,
    spec: &ContextSpec,
    origin: Origin,
    guards: &mut Vec<TempGuard>,
) -> Result<BuildContext, String> {
    let options = acrtask_source::Options {
        origin,
        credentials: ctx.run.credentials(),
        insecure_registries: ctx.run.options.insecure_registries.clone(),
        operator_registries: ctx.run.options.operator_registries.clone(),
        scratch_dir: ctx.run.options.scratch_root.clone(),
        ..Default::default()
    };
    let workspace = acrtask_source::fetch(spec, &options)
        .await
        .map_err(|error| error_chain(&error))?;
    let dir = workspace.root.clone();
    guards.push(TempGuard::Fetched(workspace));
    Ok(BuildContext::Local { dir })
}

/// Resolves `-f` as `docker build` does, relative to the step's folder, and otherwise relative to
/// the context.
fn local_dockerfile(
    file: Option<&str>,
    context: &str,
    dir: &Path,
    base: &Base,
) -> Result<DockerfileSource, String> {
    let Some(file) = file else {
        return Ok(DockerfileSource::InContext("Dockerfile".into()));
    };
    let in_context = format!("{}/{file}", context.trim_end_matches('/'));
    let found = [file, &in_context]
        .into_iter()
        .filter_map(|path| base.local_path(path).ok())
        .find(|path| path.is_file());
    let Some(path) = found else {
        return Err(format!(
            "the Dockerfile {file} exists neither in the workspace's {} nor in the context {context}",
            base.folder
                .strip_prefix(WORKSPACE)
                .filter(|f| !f.is_empty())
                .unwrap_or("root")
        ));
    };
    if let Ok(relative) = path.strip_prefix(dir) {
        return Ok(DockerfileSource::InContext(
            relative.to_string_lossy().into_owned(),
        ));
    }
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok(DockerfileSource::Local {
            dir: dir.into(),
            name: name.to_string_lossy().into_owned(),
        }),
        _ => Err(format!("{file} is not a file")),
    }
}

/// Resolves a `--build-context`.
async fn prepare_named_context(
    ctx: &StepContext,
    value: &str,
    base: &Base,
    guards: &mut Vec<TempGuard>,
) -> Result<NamedContext, String> {
    let is_url = value.contains("://") || value.starts_with("git@") || value.starts_with("target:");
    if let Some(path) = value.strip_prefix("oci-layout://") {
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => (path, Some(digest.to_owned())),
            None => (path, None),
        };
        let dir = base.local_path(path)?;
        check_layout(&ctx.run, &dir, digest.as_deref()).await?;
        return Ok(NamedContext::OciLayout { dir, digest });
    }
    if is_url {
        if fetched::is_git(value)
            && let Some(workspace) = fetched::fetch_context(ctx, value).await?
        {
            let dir = workspace.root.clone();
            guards.push(TempGuard::Fetched(workspace));
            return Ok(NamedContext::Local(dir));
        }
        // Images may be in a private registry, as those of `FROM` may.
        let is_image = value.starts_with("docker-image://");
        if ctx.run.reach == Reach::Public && !is_image {
            fetched::check_url(value).await?;
        }
        return Ok(NamedContext::Reference(value.into()));
    }
    let dir = base.local_path(value)?;
    if dir.is_dir() {
        Ok(NamedContext::Local(dir))
    } else {
        Err(format!(
            "--build-context: {value} is not a folder of the workspace"
        ))
    }
}

/// Returns the limits of `--ulimit`. A limit that can give a process priority over all others of
/// the machine needs the operator's permission.
fn allowed_ulimits(ctx: &StepContext, line: &BuildLine) -> Result<Vec<String>, String> {
    for text in &line.ulimits {
        let limit = parse_ulimit(text)?;
        let machine_wide = limit.name.as_deref().is_some_and(is_machine_wide_limit);
        if machine_wide && !ctx.run.options.allow.privileged {
            return Err(format!(
                "`--ulimit {text}` would let the build reach other processes of the machine; an operator who trusts \
                 this task allows it with `--allow privileged`"
            ));
        }
    }
    Ok(line.ulimits.clone())
}

/// Parses `--add-host HOST:IP` or `HOST=IP`.
fn parse_host(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .or_else(|| text.split_once(':'))
        .map(|(host, ip)| (host.to_owned(), ip.trim_matches(['[', ']']).to_owned()))
        .ok_or_else(|| format!("--add-host takes HOST:IP, not `{text}`"))
}

fn parse_network(ctx: &StepContext, wanted: Option<&str>) -> Result<Network, String> {
    match wanted {
        None | Some("default" | "bridge" | "") => Ok(Network::Default),
        Some("none") => Ok(Network::None),
        Some("host") if ctx.run.options.allow.host_network => Ok(Network::Host),
        Some("host") => Err(
            "the host's network is not allowed here; an operator who trusts this task \
                             allows it with `--allow host-network`"
                .into(),
        ),
        Some(other) => Err(format!(
            "--network is default, none or host for a build, not `{other}`"
        )),
    }
}

/// Returns the provenance to attach to the image: none, unless the line requests it.
///
/// An attestation contains the time of the build. With a default attestation the same inputs would
/// never give the same digest again. BuildKit's record of the build lists the used images without
/// it. An argument that contains a secret causes a warning and is left out.
async fn requested_provenance(
    ctx: &StepContext,
    line: &BuildLine,
    args: &[(String, Option<String>)],
) -> Provenance {
    let leaking = args.iter().find(|(_, value)| {
        value
            .as_ref()
            .is_some_and(|value| ctx.output.mask(value) != *value)
    });
    if let Some((name, _)) = leaking {
        let message = format!(
            "build argument {name} contains a secret, which stays in the history of the image"
        );
        let help = format!(
            "give it as a secret: `--secret id={name},env={name}` and `RUN --mount=type=secret,id={name}`"
        );
        ctx.run
            .events
            .warn(Some(&ctx.step.id), message, Some(help))
            .await;
    }
    match line.provenance.as_deref() {
        None | Some("false") => Provenance::Off,
        Some("" | "true" | "mode=min") => Provenance::Min,
        Some("mode=max") if leaking.is_some() => Provenance::Min,
        Some("mode=max") => Provenance::Max,
        Some(attrs) => Provenance::Attrs(attrs.into()),
    }
}
