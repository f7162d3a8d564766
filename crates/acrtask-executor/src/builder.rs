//! The BuildKit that builds for a run: the engine's own, or a separate one.
//!
//! What differs between them is where an image is afterwards. The engine's own BuildKit puts it into the
//! store that containers are made from and pushes are read from. A separate one keeps it in its cache: it is
//! loaded into the engine once, as a stream, when a step needs it there, and pushed from the cache.

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
    error::{ConnectError, chain},
    images::OwnImage,
    login_help::with_login_help,
    output::lock,
    steps::build,
};

/// Bytes on their way from a separate BuildKit to the engine.
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

    /// One line for the first event of a run.
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

    /// True where what is built is at once what containers are made of.
    pub(crate) fn is_engine(&self) -> bool {
        self.client.capabilities().images_are_runnable()
    }

    /// What of a build line this builder cannot do, by name.
    pub(crate) fn lacks(&self, line: &BuildLine) -> Vec<String> {
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

    /// Runs a build whose progress goes to the step's events.
    pub(crate) async fn build(
        &self,
        ctx: &StepContext,
        request: BuildRequest,
    ) -> Result<BuildOutcome, acrtask_buildkit::BuildError> {
        let (sender, told) = mpsc::channel(64);
        let build = self.client.build(request, sender, ctx.cancel.clone());
        let (outcome, ()) = tokio::join!(build, build::progress::follow(ctx, told));
        outcome
    }

    /// Loads an image of a separate BuildKit into the engine, from its cache, without a file between.
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
        let mut request = self.again(ctx, built).await?;
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
            format!("could not take the image from BuildKit: {}", chain(&error))
        })?;
        loaded.map_err(|error| chain(&error))
    }

    /// Pushes an image of a separate BuildKit from its cache, without its tag where the run holds it back; returns the
    /// digest that it pushed.
    pub(crate) async fn push_from_cache(
        &self,
        ctx: &StepContext,
        built: &OwnImage,
        image: &ImageRef,
    ) -> Result<Digest, String> {
        let mut request = self.again(ctx, built).await?;
        let by_digest = ctx.run.hold;
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
            .map_err(|error| with_login_help(chain(&error)))?;
        let digest = outcome.image_digest.unwrap_or_default();
        digest
            .parse()
            .map_err(|_| format!("BuildKit gave no digest for {image}"))
    }

    /// The request that made an image, once more: everything of it is in the cache.
    async fn again(&self, ctx: &StepContext, built: &OwnImage) -> Result<BuildRequest, String> {
        let recipe = ctx.run.recipes.find(&built.step);
        let recipe =
            recipe.ok_or_else(|| format!("step {} has not been built here", built.step))?;
        let mut request = recipe.request(ctx)?;
        // Nothing is to be built anew, whatever the step said the first time.
        request.no_cache = acrtask_buildkit::NoCache::UseCache;
        // A cache inside of the image is part of its digest.
        let cache_exports = &mut request.cache_exports;
        cache_exports.retain(|cache| cache.kind == build::INLINE_CACHE);
        Ok(request)
    }
}

/// Returns the platforms of an image that `engine`'s platform takes: an archive holds one only.
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

/// Returns the normal names of a platform's system and processor, without the variant.
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

/// How the images of a run were built, so that a separate BuildKit can be asked for them again.
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

/// The run's credentials, as the builder asks for them.
pub(crate) struct ForBuilder(pub(crate) Credentials);

#[tonic::async_trait]
impl acrtask_buildkit::Credentials for ForBuilder {
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
                tracing::warn!(host, error = %chain(&error), "no credential for the builder");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_loads_its_own_platform() {
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
