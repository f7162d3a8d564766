//! From the words of a build line to a request, with everything fetched and read that it needs.
//!
//! A recipe can be made into a request any number of times: a separate BuildKit is asked for an image again
//! when it is loaded or pushed.

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
use self::secrets::{secrets, ssh};
use super::{fetched, input};
use crate::{
    Reach,
    builder::ForBuilder,
    cmd::{body::working_folder, flags::is_machine_wide_limit},
    context::StepContext,
    error::chain,
    output::lock,
    possession::check_layout,
    workspace::{BuildFolder, HOME, WORKSPACE, WorkspaceError, resolve_path},
};

/// Everything that a build needs, ready.
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
    /// The images of this run that the build uses, by their names in the engine.
    own: BTreeMap<ImageRef, ImageRef>,
    /// Images that the builder asks for itself at a runner: frontends, scanners, and names that a stage may have.
    allowed: Mutex<Vec<AllowedImage>>,
    /// All other images that the build may use at a runner, by the names of their contexts.
    provided: Mutex<BTreeMap<String, NamedContext>>,
    /// Names that contexts of the line replace, completed and without digests, with the image that is used. `None`: a folder
    /// or a layout, which no registry has.
    replaced: BTreeMap<String, Option<ImageRef>>,
    /// Files with a checksum that the builder of a runner may fetch.
    verified: Mutex<Vec<VerifiedFile>>,
    /// The digests of images in their registries, by those that the builder gets.
    originals: Mutex<BTreeMap<Digest, Digest>>,
    /// Sealed caches that the build imports at a runner.
    pub(super) provided_caches: Vec<ProvidedImage>,
    provenance: Provenance,
    cache_namespaces: CacheNamespaces,
    pub(crate) cache_imports: Vec<CacheSpec>,
    pub(crate) cache_exports: Vec<CacheSpec>,
    /// Folders that the build reads; they live as long as the recipe.
    _held: Vec<Held>,
}

#[derive(Debug)]
enum Held {
    Folder(#[expect(dead_code, reason = "held for its drop")] BuildFolder),
    Fetched(#[expect(dead_code, reason = "held for its drop")] acrtask_source::Workspace),
}

/// The workspace as a build sees it, with the step's working directory.
struct Base {
    /// The workspace's root on this machine, without links.
    root: PathBuf,
    /// The home folder on this machine, without links, if the line names a path in it.
    home: Option<PathBuf>,
    /// The step's folder: `/workspace/...`.
    folder: String,
}

impl Base {
    /// A path of the line on this machine. Links that leave the workspace are refused.
    fn local(&self, path: &str) -> Result<PathBuf, String> {
        let inside = resolve_path(&self.folder, path).map_err(|error| chain(&error))?;
        let (root, relative) = match (inside.strip_prefix(WORKSPACE), &self.home) {
            (Some(relative), _) => (&self.root, relative),
            (None, Some(home)) => (home, inside.strip_prefix(HOME).unwrap_or_default()),
            (None, None) => return Err(format!("{path} is not in the workspace")),
        };
        acrtask_source::paths::inside(root, Path::new(relative.trim_start_matches('/')))
            .map_err(|error| chain(&error))
    }
}

impl Recipe {
    /// Fetches and reads what the line names.
    pub(crate) async fn prepare(ctx: &StepContext, line: &BuildLine) -> Result<Self, String> {
        let mut held = Vec::new();
        let root = real_folder(ctx.run.workspace.for_build().await, &mut held)?;
        let folder = working_folder(&ctx.step);
        let home = match names_home(line, &folder) {
            true => Some(real_folder(
                ctx.run.workspace.home_for_build().await,
                &mut held,
            )?),
            false => None,
        };
        let base = Base { root, home, folder };
        let (context, dockerfile) = context(ctx, line, &base, &mut held).await?;
        let mut named_contexts = BTreeMap::new();
        for (name, value) in &line.build_contexts {
            let named = named(ctx, value, &base, &mut held).await?;
            named_contexts.insert(name.clone(), named);
        }
        let build_args: Vec<_> = line
            .build_args
            .iter()
            .map(|(name, value)| {
                let value = value.clone().or_else(|| ctx.run.variable(&ctx.step, name));
                (name.clone(), value)
            })
            // One that nothing gives a value to is as if it were not there; this process' environment
            // is not the task's.
            .filter(|(_, value)| value.is_some())
            .collect();
        let provenance = provenance(ctx, line, &build_args).await;
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
            secrets: secrets(ctx, line, &base)?,
            ssh: ssh(ctx, line)?,
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
            _held: held,
        };
        pins::pin_images(ctx, &mut recipe).await?;
        if ctx.run.reach == Reach::Public
            && let Some(text) = recipe.dockerfile_text()
        {
            let given = recipe.build_args();
            let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
            fetched::check_dockerfile(&text, given.collect()).await?;
        }
        Ok(recipe)
    }

    /// The request, without exports.
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
        // A name that is not pinned is resolved in its registry. On one's own machine the engine may have it else.
        // The engine alone has images of this run. BuildKit looks there after the registry, which those do not have.
        request.pull = (line.pull || !ctx.run.options.own_machine) && self.own.is_empty();
        request.add_hosts = line
            .add_hosts
            .iter()
            .map(|text| host(text))
            .collect::<Result<_, _>>()?;
        request.network = network(ctx, line.network.as_deref())?;
        request.shm_size = line.shm_size;
        request.ulimits = ulimits(ctx, line)?;
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
        request.images = self.images(ctx);
        request.files = self.files(ctx);
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
        request.credentials = Arc::new(ForBuilder(ctx.run.credentials()));
        Ok(request)
    }

    /// Returns the name of an image of this run that the engine knows by another one.
    pub(crate) fn own_name(&self, stored: &str) -> Option<&ImageRef> {
        let stored = stored.split('@').next().unwrap_or(stored);
        self.own.get(&stored.parse().ok()?)
    }

    /// Returns the image that a build used where its provenance has the name `reference`: the image of a context that has
    /// replaced it. `None` if no registry has it.
    pub(crate) fn used_name(&self, reference: &str) -> Option<String> {
        if let Some(own) = self.own_name(reference) {
            return Some(own.to_string());
        }
        match self.replaced.get(&pins::replaced_name(reference)) {
            Some(used) => used.as_ref().map(ToString::to_string),
            None => Some(reference.to_owned()),
        }
    }

    /// Returns the digest in its registry of an image that the builder has with this one.
    pub(crate) fn original(&self, digest: Digest) -> Digest {
        lock(&self.originals)
            .get(&digest)
            .cloned()
            .unwrap_or(digest)
    }

    /// The Dockerfile's text, where it is on this machine.
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

    /// `--target`.
    pub(crate) fn target(&self) -> Option<&str> {
        self.line.target.as_deref()
    }

    /// The values of build arguments.
    pub(crate) fn build_args(&self) -> impl Iterator<Item = (&str, &str)> {
        self.build_args
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }
}

/// Returns the path of `folder` without links, and keeps the folder as long as the recipe.
fn real_folder(
    folder: Result<BuildFolder, WorkspaceError>,
    held: &mut Vec<Held>,
) -> Result<PathBuf, String> {
    let folder = folder.map_err(|error| chain(&error))?;
    let path = std::fs::canonicalize(&folder.path)
        .map_err(|error| format!("cannot use the context {}: {error}", folder.path.display()))?;
    held.push(Held::Folder(folder));
    Ok(path)
}

/// Returns `true` if `line` has a path in the home folder.
fn names_home(line: &BuildLine, folder: &str) -> bool {
    let paths = line.local_paths();
    let secrets = line.secrets.iter();
    let secrets = secrets.filter_map(|secret| secret.src.as_deref());
    paths
        .chain(secrets)
        .any(|path| resolve_path(folder, path).is_ok_and(|path| !path.starts_with(WORKSPACE)))
}

async fn context(
    ctx: &StepContext,
    line: &BuildLine,
    base: &Base,
    held: &mut Vec<Held>,
) -> Result<(BuildContext, DockerfileSource), String> {
    let from_stdin = line.file.as_deref() == Some("-");
    let in_context =
        || DockerfileSource::InContext(line.file.clone().unwrap_or_else(|| "Dockerfile".into()));
    // The path is the task's, and the files are on this machine.
    let in_fetched = |context: BuildContext| {
        if let (BuildContext::Local { dir }, Some(file)) = (&context, &line.file) {
            let root = dir
                .canonicalize()
                .map_err(|error| format!("{file}: {error}"))?;
            acrtask_source::paths::inside(&root, Path::new(file))
                .map_err(|error| format!("the Dockerfile {file} is not used: {}", chain(&error)))?;
        }
        Ok::<_, String>((context, in_context()))
    };
    match &line.context {
        ContextRef::Path(path) => {
            let dir = base.local(path)?;
            if !dir.is_dir() {
                return Err(format!("the context {path} is no folder of the workspace"));
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
            if let Some(workspace) = fetched::fetch(ctx, url).await? {
                let dir = workspace.root.clone();
                held.push(Held::Fetched(workspace));
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
                .map_err(|error: ReferenceError| chain(&error))?;
            let spec = ContextSpec::Oci(reference);
            in_fetched(fetch_ours(ctx, &spec, Origin::TaskFile, held).await?)
        }
        ContextRef::Stdin => {
            let Some(path) = &ctx.run.stdin else {
                return Err(
                    "the context `-` is what the run gets on standard input, and it got nothing; \
                            give it one: `acrtask run ... < context.tar`"
                        .into(),
                );
            };
            if input::is_archive(path)? {
                let spec = ContextSpec::TarballFile(path.clone());
                in_fetched(fetch_ours(ctx, &spec, Origin::Operator, held).await?)
            } else {
                Ok((
                    BuildContext::None,
                    DockerfileSource::Inline(input::stdin(ctx)?),
                ))
            }
        }
    }
}

async fn fetch_ours(
    ctx: &StepContext,
    spec: &ContextSpec,
    origin: Origin,
    held: &mut Vec<Held>,
) -> Result<BuildContext, String> {
    let options = acrtask_source::Options {
        origin,
        credentials: ctx.run.credentials(),
        insecure_registries: ctx.run.options.insecure_registries.clone(),
        known_registries: ctx.run.options.known_registries.clone(),
        scratch_dir: ctx.run.options.scratch_root.clone(),
        ..Default::default()
    };
    let workspace = acrtask_source::fetch(spec, &options)
        .await
        .map_err(|error| chain(&error))?;
    let dir = workspace.root.clone();
    held.push(Held::Fetched(workspace));
    Ok(BuildContext::Local { dir })
}

/// `-f`: as `docker build` reads it, from where the step stands; else from the context.
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
        .filter_map(|path| base.local(path).ok())
        .find(|path| path.is_file());
    let Some(path) = found else {
        return Err(format!(
            "there is no Dockerfile {file}, neither in the workspace's {} nor in the context {context}",
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
        _ => Err(format!("{file} is no file")),
    }
}

/// `--build-context`.
async fn named(
    ctx: &StepContext,
    value: &str,
    base: &Base,
    held: &mut Vec<Held>,
) -> Result<NamedContext, String> {
    let is_url = value.contains("://") || value.starts_with("git@") || value.starts_with("target:");
    if let Some(path) = value.strip_prefix("oci-layout://") {
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => (path, Some(digest.to_owned())),
            None => (path, None),
        };
        let dir = base.local(path)?;
        check_layout(&ctx.run, &dir, digest.as_deref()).await?;
        return Ok(NamedContext::OciLayout { dir, digest });
    }
    if is_url {
        if fetched::is_git(value)
            && let Some(workspace) = fetched::fetch(ctx, value).await?
        {
            let dir = workspace.root.clone();
            held.push(Held::Fetched(workspace));
            return Ok(NamedContext::Local(dir));
        }
        // Images may come from a private registry, as those of `FROM` may.
        let is_image = value.starts_with("docker-image://");
        if ctx.run.reach == Reach::Public && !is_image {
            fetched::check(value).await?;
        }
        return Ok(NamedContext::Reference(value.into()));
    }
    let dir = base.local(value)?;
    if dir.is_dir() {
        Ok(NamedContext::Local(dir))
    } else {
        Err(format!(
            "--build-context: {value} is no folder of the workspace"
        ))
    }
}

/// `--ulimit`. A limit that lets a process run before all others of the machine needs the operator.
fn ulimits(ctx: &StepContext, line: &BuildLine) -> Result<Vec<String>, String> {
    let mut limits = line.ulimits.iter().flat_map(|text| text.split(','));
    let name = |text: &str| text.split('=').next().unwrap_or("").trim().to_owned();
    match limits.find(|text| is_machine_wide_limit(&name(text))) {
        Some(refused) if !ctx.run.options.allow.privileged => Err(format!(
            "`--ulimit {refused}` would let the build reach other processes of the machine; an operator who trusts this \
             task allows it with `--allow privileged`"
        )),
        _ => Ok(line.ulimits.clone()),
    }
}

/// `--add-host HOST:IP` or `HOST=IP`.
fn host(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .or_else(|| text.split_once(':'))
        .map(|(host, ip)| (host.to_owned(), ip.trim_matches(['[', ']']).to_owned()))
        .ok_or_else(|| format!("--add-host takes HOST:IP, not `{text}`"))
}

fn network(ctx: &StepContext, wanted: Option<&str>) -> Result<Network, String> {
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

/// What the image is to say of its own making: nothing, unless the line asks for it.
///
/// An attestation holds the time of the build, so with one by default the same inputs would never give the
/// same digest again. What the build used is known without it, from BuildKit's record of the build.
/// An argument that holds a secret is warned of, and kept out.
async fn provenance(
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
            "build argument {name} holds a secret, which stays in the history of the image"
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
