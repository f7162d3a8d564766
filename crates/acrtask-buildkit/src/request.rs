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
    /// The files that `COPY` and `ADD` see.
    pub context: BuildContext,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// The stage to build; the last one when `None`.
    pub target: Option<String>,
    /// `linux/amd64`, `linux/arm64/v8`; the builder's own when empty.
    pub platforms: Vec<String>,
    /// Values for `ARG`. One without a value is taken from this process' environment, and left out when it is not there.
    pub build_args: Vec<(String, Option<String>)>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Parts that must not come from the cache.
    pub no_cache: NoCache,
    /// Take bases from their registries alone. Else an engine's store is asked for what a registry does not have.
    pub pull: bool,
    /// `host` and address for the hosts file of `RUN`; the address `host-gateway` is the engine's host.
    pub add_hosts: Vec<(String, String)>,
    /// The network of `RUN`.
    pub network: Network,
    /// Bytes of `/dev/shm` in `RUN`.
    pub shm_size: Option<u64>,
    /// `nofile=1024:4096`.
    pub ulimits: Vec<String>,
    /// The cgroup that `RUN` is put under.
    pub cgroup_parent: Option<String>,
    /// Further contexts, by name.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Secrets that `RUN --mount=type=secret` may use.
    pub secrets: Vec<BuildSecret>,
    /// Agents that `RUN --mount=type=ssh` may use.
    pub ssh: Vec<SshSource>,
    /// Caches to use.
    pub cache_imports: Vec<CacheSpec>,
    /// Caches to use whose blobs come from this program.
    pub provided_caches: Vec<ProvidedImage>,
    /// Caches to write.
    pub cache_exports: Vec<CacheSpec>,
    /// Provenance that the image carries. The outcome lists the sources of the build in any case.
    pub provenance: Provenance,
    /// Attributes of an SBOM attestation (`generator=IMAGE`, or nothing for the default scanner); no SBOM when `None`.
    pub sbom: Option<String>,
    /// A frontend image in place of the Dockerfile's `# syntax=` line.
    pub syntax: Option<String>,
    /// References that must be taken at exactly this digest.
    pub pins: Vec<SourcePin>,
    /// Destinations of the result. Empty: it is built and cached alone.
    pub exports: Vec<Export>,
    /// Namespaces of the caches. `None`: those of all builds without namespaces.
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
    /// Key of a context that is synchronized repeatedly. With the same key, only changes are
    /// sent. `None`: a key of the context folder's path.
    pub shared_key: Option<String>,
}

impl BuildRequest {
    /// A build of the context's own `Dockerfile`, with the result nowhere.
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

/// The files that `COPY` and `ADD` see.
#[derive(Debug, Clone)]
pub enum BuildContext {
    /// A folder of this machine.
    Local {
        /// The folder.
        dir: PathBuf,
    },
    /// Something that the builder fetches itself: a git or http URL.
    Remote {
        /// `https://example.com/r.git#branch:folder`.
        url: String,
        /// For a private git repository.
        git_token: Option<Secret>,
    },
    /// No files.
    None,
}

/// Location of the Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// A path relative to the context.
    InContext(String),
    /// A file of this machine.
    Local {
        /// Folder of the file, and of its own `NAME.dockerignore`.
        dir: PathBuf,
        /// Name of the file.
        name: String,
    },
    /// The text itself.
    Inline(Vec<u8>),
}

/// Parts of a build that must not come from the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    /// All stages may.
    #[default]
    UseCache,
    /// No stage may.
    All,
    /// These stages may not.
    Stages(Vec<String>),
}

/// The network of `RUN`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The builder's sandbox network.
    #[default]
    Default,
    /// The builder's host; needs the entitlement `network.host` there.
    Host,
    /// None.
    None,
}

/// A further context, which the Dockerfile names in `FROM` or `COPY --from`.
#[derive(Debug, Clone)]
pub enum NamedContext {
    /// A folder of this machine.
    Local(PathBuf),
    /// `docker-image://…`, a git or http URL, `target:…`.
    Reference(String),
    /// An image in a folder with OCI layout.
    OciLayout {
        /// The folder.
        dir: PathBuf,
        /// The image's digest; the one that the index names when `None`.
        digest: Option<String>,
    },
    /// An image whose blobs come from this program.
    Provided(ProvidedImage),
}

/// Frontends that a build may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Frontends {
    /// Every image that a `# syntax=` line names.
    #[default]
    Any,
    /// The builder's own, and those of [`OFFICIAL_FRONTENDS`]. Another one can read a cache that the request does not
    /// name, and so decide layers of other builds.
    Official,
}

/// Repositories with the frontends of BuildKit's own authors, all on Docker Hub.
pub const OFFICIAL_FRONTENDS: [&str; 2] = ["docker/dockerfile", "docker/dockerfile-upstream"];

/// A cache, as `docker build` writes it: `type=registry,ref=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// `registry`, `inline`, `local`, or what else the builder knows.
    pub kind: String,
    /// `ref`, `mode`, `dest`, `src` and so on.
    pub attrs: BTreeMap<String, String>,
}

/// Provenance that an image carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Provenance {
    /// None.
    Off,
    /// The sources, without the build's arguments. For builds with confidential arguments.
    Min,
    /// Everything, the values of build arguments included, where the endpoint can attach it.
    #[default]
    Max,
    /// Attributes as `docker build --provenance` takes them. Refused where the endpoint cannot attach it.
    Attrs(String),
}

impl Provenance {
    /// Returns `true` if it lists the arguments of the build, the hosts of its `RUN`s among them.
    pub fn lists_hosts(&self) -> bool {
        *self != Self::Off
    }

    /// Returns `true` if it lists each instruction of the builder, the ids of cache mounts among them.
    pub fn lists_instructions(&self) -> bool {
        match self {
            Self::Off | Self::Min => false,
            Self::Max => true,
            // A builder takes one of several modes.
            Self::Attrs(attrs) => {
                let attrs = attrs.split(',').map(str::trim);
                let mut modes = attrs.filter_map(|attr| attr.strip_prefix("mode="));
                modes.next() != Some("min") || modes.any(|mode| mode != "min")
            }
        }
    }
}

/// The names under which a builder keeps what a build may use again.
#[derive(Debug, Clone)]
pub struct CacheNamespaces {
    /// Namespace of cache mounts.
    pub mounts: CacheNamespace,
    /// Namespace of the layers of `RUN`s.
    pub layers: CacheNamespace,
}

/// A reference that must be taken at exactly this digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePin {
    /// `docker.io/library/busybox:1.36`, normalized.
    pub reference: String,
    /// `sha256:…`.
    pub digest: String,
}

/// Destination of the result.
#[derive(Debug)]
pub enum Export {
    /// An image: into the endpoint's own store, and with `push` to the registry that its names say.
    Image(ImageExport),
    /// Into a Docker Engine's store. The engine's own BuildKit does it itself; a separate buildkitd writes what `docker load` reads to the sink.
    Load {
        /// Names with tags.
        names: Vec<String>,
        /// Destination of a separate buildkitd's archive.
        archive: Option<Sink>,
    },
    /// The file system of the result, as a folder.
    Local {
        /// The folder; what is there is merged with.
        dir: PathBuf,
    },
    /// The file system of the result, as a tar.
    Tar(Sink),
    /// The image as a tar in OCI layout.
    Oci {
        /// Names with tags.
        names: Vec<String>,
        /// Destination of the archive.
        archive: Sink,
    },
}

/// An image export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageExport {
    /// Names with tags; with `push_by_digest` without.
    pub names: Vec<String>,
    /// Push to the registries of the names.
    pub push: bool,
    /// Push without tags.
    pub push_by_digest: bool,
    /// Plain HTTP, or a certificate without a known signer.
    pub insecure: bool,
    /// Anything else that the exporter knows: `compression`, `annotation.…`, `oci-mediatypes`.
    pub attrs: BTreeMap<String, String>,
}

/// Takes the bytes of an archive.
pub enum Sink {
    /// A file; what it held is replaced.
    File(PathBuf),
    /// Anything else: standard output, a request to an engine.
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
