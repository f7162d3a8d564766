//! Requests for builds: the input, the options, and the destinations of the result.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use acrtask_model::{CacheNamespace, Secret};
use tokio::io::AsyncWrite;

use crate::blob_source::ProvidedImage;
use crate::session::{Anonymous, BuildSecret, Credentials, SshSource};
use crate::{SourceAddresses, SourceFiles, SourceImages};

/// Request for a build. Start from [`BuildRequest::new`] and set the fields that differ.
pub struct BuildRequest {
    /// Files that `COPY` and `ADD` can use.
    pub context: BuildContext,
    /// Location of the Dockerfile.
    pub dockerfile: DockerfileSource,
    /// Stage to build. `None`: the last one.
    pub target: Option<String>,
    /// Platforms: `linux/amd64`, `linux/arm64/v8`. Empty: the builder's own.
    pub platforms: Vec<String>,
    /// Values for `ARG`. `None`: the variable of this process' environment. The argument is omitted
    /// if the variable does not exist.
    pub build_args: Vec<(String, Option<String>)>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Parts that must not come from the cache.
    pub no_cache: NoCache,
    /// Fetch bases from their registries only. Otherwise the builder also searches an engine's
    /// store.
    pub pull: bool,
    /// Host and address for the hosts file of `RUN`. The address `host-gateway` is the engine's
    /// host.
    pub add_hosts: Vec<(String, String)>,
    /// Network of `RUN`.
    pub network: Network,
    /// Size of `/dev/shm` in `RUN`, in bytes.
    pub shm_size: Option<u64>,
    /// Limits of `RUN`: `nofile=1024:4096`.
    pub ulimits: Vec<String>,
    /// Parent cgroup of `RUN`.
    pub cgroup_parent: Option<String>,
    /// Additional contexts by name.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Secrets that `RUN --mount=type=secret` may use.
    pub secrets: Vec<BuildSecret>,
    /// Agents that `RUN --mount=type=ssh` may use.
    pub ssh: Vec<SshSource>,
    /// Caches to import.
    pub cache_imports: Vec<CacheSpec>,
    /// Caches to import with blobs from this program.
    pub provided_caches: Vec<ProvidedImage>,
    /// Caches to export.
    pub cache_exports: Vec<CacheSpec>,
    /// Provenance of the image. The outcome always lists the sources of the build.
    pub provenance: Provenance,
    /// Attributes of an SBOM attestation: `generator=IMAGE`, or empty for the default scanner.
    /// `None`: no SBOM.
    pub sbom: Option<String>,
    /// Frontend image that replaces the Dockerfile's `# syntax=` line.
    pub syntax: Option<String>,
    /// References that must resolve to exactly this digest.
    pub pins: Vec<SourcePin>,
    /// Destinations of the result. Empty: the result is only built and cached.
    pub exports: Vec<Export>,
    /// Namespaces of the caches. `None`: the namespace of all builds without one.
    pub cache_namespaces: Option<CacheNamespaces>,
    /// Addresses of files that the builder may fetch.
    pub sources: SourceAddresses,
    /// Images that the build may use.
    pub images: SourceImages,
    /// Git repositories and files that the builder may fetch.
    pub files: SourceFiles,
    /// Frontends that the build may use.
    pub frontends: Frontends,
    /// Credentials for registries.
    pub credentials: Arc<dyn Credentials>,
    /// Key of a context that is synchronized repeatedly. With the same key, only changes are sent.
    /// `None`: a key derived from the path of the context folder.
    pub shared_key: Option<String>,
}

impl BuildRequest {
    /// Creates a request for the context's own `Dockerfile`, without a destination of the result.
    pub fn new(context: BuildContext) -> Self {
        Self {
            context,
            dockerfile: DockerfileSource::InContext("Dockerfile".to_owned()),
            target: None,
            platforms: Vec::new(),
            build_args: Vec::new(),
            labels: BTreeMap::new(),
            no_cache: NoCache::default(),
            pull: false,
            add_hosts: Vec::new(),
            network: Network::default(),
            shm_size: None,
            ulimits: Vec::new(),
            cgroup_parent: None,
            named_contexts: BTreeMap::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            cache_imports: Vec::new(),
            provided_caches: Vec::new(),
            cache_exports: Vec::new(),
            provenance: Provenance::default(),
            sbom: None,
            syntax: None,
            pins: Vec::new(),
            exports: Vec::new(),
            cache_namespaces: None,
            sources: SourceAddresses::default(),
            images: SourceImages::default(),
            files: SourceFiles::default(),
            frontends: Frontends::default(),
            credentials: Arc::new(Anonymous),
            shared_key: None,
        }
    }
}

/// Files that `COPY` and `ADD` can use.
#[derive(Debug, Clone)]
pub enum BuildContext {
    /// Folder of this machine.
    Local {
        /// Path of the folder.
        dir: PathBuf,
    },
    /// URL that the builder fetches itself: git or http.
    Remote {
        /// URL of the context: `https://example.com/r.git#branch:folder`.
        url: String,
        /// Token for a private git repository.
        git_token: Option<Secret>,
    },
    /// No files.
    None,
}

/// Location of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// Path relative to the context.
    InContext(String),
    /// File of this machine.
    Local {
        /// Folder of the file, and of its own `NAME.dockerignore`.
        dir: PathBuf,
        /// Name of the file.
        name: String,
    },
    /// Text of the Dockerfile.
    Inline(Vec<u8>),
}

/// Parts of a build that must not come from the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    /// All stages may use the cache.
    #[default]
    UseCache,
    /// No stage may use the cache.
    All,
    /// These stages must not use the cache.
    Stages(Vec<String>),
}

/// Network of `RUN`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Sandbox network of the builder.
    #[default]
    Default,
    /// Network of the builder's host. Requires the entitlement `network.host` at the builder.
    Host,
    /// No network.
    None,
}

/// Additional context, which the Dockerfile names in `FROM` or `COPY --from`.
#[derive(Debug, Clone)]
pub enum NamedContext {
    /// Folder of this machine.
    Local(PathBuf),
    /// Reference for the builder: `docker-image://…`, a git or http URL, `target:…`.
    Reference(String),
    /// Image in a folder with OCI layout.
    OciLayout {
        /// Path of the folder.
        dir: PathBuf,
        /// Digest of the image. `None`: the one that the index names.
        digest: Option<String>,
    },
    /// Image with blobs from this program.
    Provided(ProvidedImage),
}

/// Frontends that a build may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Frontends {
    /// Every image that a `# syntax=` line names.
    #[default]
    Any,
    /// The builder's own frontend, and those of [`OFFICIAL_FRONTENDS`]. Another frontend can use a
    /// cache that the request does not name, and thereby decide layers of other builds.
    Official,
}

/// Repositories with the frontends of BuildKit's own authors, all on Docker Hub.
pub const OFFICIAL_FRONTENDS: [&str; 2] = ["docker/dockerfile", "docker/dockerfile-upstream"];

/// Cache in the syntax of `docker build`: `type=registry,ref=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// Kind of the cache: `registry`, `inline`, `local`, or another kind that the builder supports.
    pub kind: String,
    /// Attributes: `ref`, `mode`, `dest`, `src` and so on.
    pub attrs: BTreeMap<String, String>,
}

/// Provenance of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Provenance {
    /// No provenance.
    Off,
    /// Sources without the build's arguments. For builds with confidential arguments.
    Min,
    /// All information, including the values of build arguments, if the endpoint can attach it.
    #[default]
    Max,
    /// Attributes as in `docker build --provenance`. Refused if the endpoint cannot attach
    /// provenance.
    Attrs(String),
}

impl Provenance {
    /// Returns `true` if the provenance lists the arguments of the build, including the hosts of
    /// its `RUN`s.
    pub fn lists_hosts(&self) -> bool {
        *self != Self::Off
    }

    /// Returns `true` if the provenance lists each instruction of the builder, including the ids of
    /// cache mounts.
    pub fn lists_instructions(&self) -> bool {
        match self {
            Self::Off | Self::Min => false,
            Self::Max => true,
            // If there are several modes, a builder uses one of them.
            Self::Attrs(attrs) => {
                let attrs = attrs.split(',').map(str::trim);
                let mut modes = attrs.filter_map(|attr| attr.strip_prefix("mode="));
                modes.next() != Some("min") || modes.any(|mode| mode != "min")
            }
        }
    }
}

/// Namespaces of a builder's caches. Builds with the same namespace share a cache.
#[derive(Debug, Clone)]
pub struct CacheNamespaces {
    /// Namespace of cache mounts.
    pub mounts: CacheNamespace,
    /// Namespace of the layers of `RUN`s.
    pub layers: CacheNamespace,
}

/// Reference that must resolve to exactly this digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePin {
    /// Normalized reference: `docker.io/library/busybox:1.36`.
    pub reference: String,
    /// Digest: `sha256:…`.
    pub digest: String,
}

/// Destination of the result.
#[derive(Debug)]
pub enum Export {
    /// Image in the endpoint's own store, and with `push` also in the registry of its names.
    Image(ImageExport),
    /// Image in the store of a Docker Engine. The engine's own BuildKit stores it. A separate
    /// buildkitd writes an archive for `docker load` to the sink.
    Load {
        /// Names with tags.
        names: Vec<String>,
        /// Destination of a separate buildkitd's archive.
        archive: Option<Sink>,
    },
    /// File system of the result, as a folder.
    Local {
        /// Path of the folder. Existing files are merged with the result.
        dir: PathBuf,
    },
    /// File system of the result, as a tar archive.
    Tar(Sink),
    /// Image as a tar archive in OCI layout.
    Oci {
        /// Names with tags.
        names: Vec<String>,
        /// Destination of the archive.
        archive: Sink,
    },
}

/// Export of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageExport {
    /// Names with tags. With `push_by_digest`, names without tags.
    pub names: Vec<String>,
    /// Push to the registries of the names.
    pub push: bool,
    /// Push without tags.
    pub push_by_digest: bool,
    /// Allow plain HTTP, or a certificate of an unknown authority.
    pub insecure: bool,
    /// Other attributes of the exporter: `compression`, `annotation.…`, `oci-mediatypes`.
    pub attrs: BTreeMap<String, String>,
}

/// Receiver of an archive.
pub enum Sink {
    /// File, whose content is replaced.
    File(PathBuf),
    /// Other writer: standard output, or a request to an engine.
    Writer(Pin<Box<dyn AsyncWrite + Send>>),
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Writer(_) => f.write_str("Writer"),
        }
    }
}
