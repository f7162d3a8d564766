//! The BuildKit that builds for a run: the engine's own, or a separate one.
//!
//! They differ in the location of an image after the build. The engine's own BuildKit stores it in
//! the engine, which creates containers and pushes from there. A separate one keeps it in its
//! cache, and pushes from there. If a step needs such an image in the engine, it is loaded once, as
//! a stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use acrtask_buildkit::{
    BuildOutcome, BuildRequest, Client, Endpoint, EndpointKind, Export, Feature, ImageExport,
    Provenance, RegistryCredential, Sink,
};
use acrtask_model::{Digest, ImageRef, StepId};
use acrtask_registry::{Credential, Credentials};
use acrtask_spec::build_line::BuildLine;
use tokio::sync::mpsc;

use crate::{
    context::StepContext,
    engine::DockerEndpoint,
    error::{ConnectError, error_chain},
    images::OwnImage,
    login_help::with_login_help,
    output::lock,
    steps::build,
};

/// Size of the buffer between a separate BuildKit and the engine, in bytes.
const LOAD_BUFFER: usize = 1 << 20;

/// A connected builder. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    pub(crate) client: Client,
}

impl Builder {
    /// Connects to `endpoint`, or to the BuildKit inside the engine.
    pub(crate) async fn connect(
        docker: &DockerEndpoint,
        endpoint: Option<&Endpoint>,
    ) -> Result<Self, ConnectError> {
        let endpoint = match endpoint {
            Some(endpoint) => endpoint.clone(),
            None => match docker.host.strip_prefix("unix://") {
                Some(socket) => Endpoint::DockerEngine {
                    socket: socket.into(),
                },
                None => {
                    return Err(ConnectError {
                        what: "the engine's BuildKit",
                        address: docker.host.clone(),
                        help: "name a buildkitd with --builder, or reach the engine by its unix socket \
                               (ssh can forward one: `ssh -L /tmp/docker.sock:/var/run/docker.sock HOST`)"
                            .into(),
                        source: "the BuildKit inside a Docker engine is reached by a unix socket only".into(),
                    });
                }
            },
        };
        let address = endpoint.to_string();
        match Client::connect(endpoint).await {
            Ok(client) => Ok(Self { client }),
            Err(source) => Err(ConnectError {
                what: "BuildKit",
                address,
                help:
                    "start it, or name another one with --builder (unix:///path, tcp://host:port, \
                       docker:///path)"
                        .into(),
                source: source.into(),
            }),
        }
    }

    /// Returns a one-line description for the first event of a run.
    pub(crate) fn describe(&self) -> String {
        let capabilities = self.client.capabilities();
        let kind = match capabilities.kind {
            EndpointKind::Buildkitd => "buildkitd",
            EndpointKind::EngineContainerdStore | EndpointKind::EngineClassicStore => {
                "the engine's BuildKit"
            }
        };
        match &capabilities.buildkit_version {
            Some(version) => format!("{kind} {version} ({})", capabilities.endpoint()),
            None => format!("{kind} ({})", capabilities.endpoint()),
        }
    }

    /// Returns `true` if containers can use an image directly after its build.
    pub(crate) fn is_engine(&self) -> bool {
        self.client.capabilities().images_are_runnable()
    }

    /// Returns the names of features that a build line needs and this builder lacks.
    pub(crate) fn missing_features(&self, line: &BuildLine) -> Vec<String> {
        let kinds = |kind: &str| {
            line.outputs
                .iter()
                .any(|o| o.contains(&format!("type={kind}")))
        };
        let attested = line.sbom.as_deref().is_some_and(|sbom| sbom != "false");
        let needed = [
            (line.platforms.len() > 1, Feature::MultiPlatform),
            (attested, Feature::Attestations),
            (
                line.cache_to.iter().any(|cache| cache.kind != "inline"),
                Feature::CacheExport,
            ),
            (kinds("oci"), Feature::ImageArchive),
        ];
        let capabilities = self.client.capabilities();
        needed
            .into_iter()
            .filter(|(needed, _)| *needed)
            .filter_map(|(_, feature)| capabilities.missing(feature))
            .collect()
    }

    /// Runs a build and sends its progress to the step's events.
    pub(crate) async fn build(
        &self,
        ctx: &StepContext,
        request: BuildRequest,
    ) -> Result<BuildOutcome, acrtask_buildkit::BuildError> {
        let (sender, events) = mpsc::channel(64);
        let build = self.client.build(request, sender, ctx.cancel.clone());
        let (outcome, ()) = tokio::join!(build, build::progress::forward_events(ctx, events));
        outcome
    }

    /// Loads an image of a separate BuildKit from its cache into the engine, without a temporary
    /// file.
    pub(crate) async fn load_into_engine(
        &self,
        ctx: &StepContext,
        built: &OwnImage,
        name: &ImageRef,
    ) -> Result<(), String> {
        let message = format!("loading {} into the engine", built.names[0]);
        ctx.run
            .events
            .send(acrtask_model::EventKind::Progress { message })
            .await;
        let (writer, reader) = tokio::io::duplex(LOAD_BUFFER);
        let mut request = self.repeat_request(ctx, built).await?;
        request.provenance = Provenance::Off;
        request.platforms = loaded_platforms(request.platforms, &ctx.run.engine.facts.platform)?;
        request.exports = vec![Export::Load {
            names: vec![name.to_string()],
            archive: Some(Sink::Writer(Box::pin(writer))),
        }];
        let archive = tokio_util::io::ReaderStream::with_capacity(reader, LOAD_BUFFER);
        let (solved, loaded) = tokio::join!(
            self.build(ctx, request),
            ctx.run.engine.load_images(archive)
        );
        solved.map_err(|error| {
            format!(
                "could not export the image from BuildKit: {}",
                error_chain(&error)
            )
        })?;
        loaded.map_err(|error| error_chain(&error))
    }

    /// Pushes an image of a separate BuildKit from its cache. Pushes by digest only if the run
    /// stages images. Returns the digest of the pushed image.
    pub(crate) async fn push_from_cache(
        &self,
        ctx: &StepContext,
        built: &OwnImage,
        image: &ImageRef,
    ) -> Result<Digest, String> {
        let mut request = self.repeat_request(ctx, built).await?;
        let by_digest = ctx.run.push_by_digest;
        request.exports = vec![Export::Image(ImageExport {
            names: vec![if by_digest {
                image.name()
            } else {
                image.to_string()
            }],
            push: true,
            push_by_digest: by_digest,
            insecure: ctx.run.is_insecure(image.registry()),
            attrs: build::no_store(),
        })];
        let outcome = self
            .build(ctx, request)
            .await
            .map_err(|error| with_login_help(error_chain(&error)))?;
        let digest = outcome.image_digest.unwrap_or_default();
        digest
            .parse()
            .map_err(|_| format!("BuildKit returned no digest for {image}"))
    }

    /// Returns the request that built an image, for another build entirely from the cache.
    async fn repeat_request(
        &self,
        ctx: &StepContext,
        built: &OwnImage,
    ) -> Result<BuildRequest, String> {
        let recipe = ctx.run.recipes.find(&built.step);
        let recipe = recipe
            .ok_or_else(|| format!("step {} has no build that could be repeated", built.step))?;
        let mut request = recipe.request(ctx)?;
        // The image must come from the cache, even if the step disabled the cache.
        request.no_cache = acrtask_buildkit::NoCache::UseCache;
        // A cache inside the image is part of its digest.
        let cache_exports = &mut request.cache_exports;
        cache_exports.retain(|cache| cache.kind == build::INLINE_CACHE);
        Ok(request)
    }
}

/// Returns the platforms that the engine can load from a build. An archive contains only one.
fn loaded_platforms(built: Vec<String>, engine: &str) -> Result<Vec<String>, String> {
    if built.len() < 2 {
        return Ok(built);
    }
    let of_engine = built
        .iter()
        .find(|platform| os_and_architecture(platform) == os_and_architecture(engine));
    match of_engine {
        Some(platform) => Ok(vec![platform.clone()]),
        None => Err(format!(
            "the image was built for {}, and the engine runs {engine}; add it to `--platform`",
            built.join(", ")
        )),
    }
}

/// Returns the normalized names of a platform's system and processor, without the variant.
fn os_and_architecture(platform: &str) -> (String, String) {
    let platform = platform.trim().to_lowercase();
    let mut parts = platform.split('/');
    let first = parts.next().unwrap_or_default();
    let (os, architecture) = match parts.next() {
        Some(architecture) => (first, architecture),
        None => ("linux", first),
    };
    let architecture = match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        "i386" => "386",
        other => other,
    };
    (os.to_owned(), architecture.to_owned())
}

/// The build requests of a run, to request the images from a separate BuildKit again.
#[derive(Debug, Default)]
pub(crate) struct Recipes(Mutex<HashMap<StepId, Arc<build::Recipe>>>);

impl Recipes {
    pub(crate) fn add(&self, step: StepId, recipe: Arc<build::Recipe>) {
        lock(&self.0).insert(step, recipe);
    }

    fn find(&self, step: &StepId) -> Option<Arc<build::Recipe>> {
        lock(&self.0).get(step).cloned()
    }
}

/// The run's credentials as a credential provider for the builder.
pub(crate) struct BuilderCredentials(pub(crate) Credentials);

#[tonic::async_trait]
impl acrtask_buildkit::Credentials for BuilderCredentials {
    async fn for_host(&self, host: &str) -> Option<RegistryCredential> {
        match self.0.for_host(host).await {
            Ok(credential) => credential.map(|credential| match credential {
                Credential::Password { username, password } => RegistryCredential {
                    username,
                    secret: password,
                },
                Credential::IdentityToken(token) => RegistryCredential {
                    username: String::new(),
                    secret: token,
                },
            }),
            Err(error) => {
                tracing::warn!(host, error = %error_chain(&error), "could not read a credential for the builder");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_loads_its_own_platform() {
        let loaded = |built: &[&str], engine: &str| {
            let built = built.iter().map(|platform| (*platform).to_owned());
            loaded_platforms(built.collect(), engine)
        };
        for (built, engine, expected) in [
            (&[][..], "linux/amd64", &[][..]),
            (&["linux/arm64"], "linux/amd64", &["linux/arm64"]),
            (
                &["linux/arm64", "linux/amd64"],
                "linux/amd64",
                &["linux/amd64"],
            ),
            (
                &["linux/amd64", "linux/arm64/v8"],
                "linux/arm64",
                &["linux/arm64/v8"],
            ),
            (&["linux/arm64", "x86_64"], "linux/amd64", &["x86_64"]),
        ] {
            assert_eq!(loaded(built, engine).unwrap(), expected, "{built:?}");
        }
        let refused = loaded(&["linux/s390x", "linux/arm64"], "linux/amd64").unwrap_err();
        assert_eq!(
            refused,
            "the image was built for linux/s390x, linux/arm64, and the engine runs linux/amd64; add it to `--platform`"
        );
    }
}
