//! Attributes of a solve, made from a request: pure decisions, all refusals before a step runs.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1 as bk;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy;

use crate::capabilities::{Capabilities, EndpointKind, Feature};
use crate::dockerfile::syntax_line;
use crate::error::{BuildError, HelperImages};
use crate::request::{
    BuildContext, BuildRequest, CacheNamespaces, CacheSpec, DockerfileSource, Export, Frontends,
    ImageExport, NamedContext, Network, NoCache, Provenance,
};
use crate::sources;

/// The name under which the builder asks for the context.
pub(crate) const CONTEXT: &str = "context";
/// The name under which it asks for the Dockerfile.
pub(crate) const DOCKERFILE: &str = "dockerfile";
/// The scanner that BuildKit uses when none is named.
/// The image that writes SBOMs where a build names no other one.
pub const DEFAULT_SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";
const DEFAULT_DOCKERFILE: &str = "Dockerfile";
const HOST_GATEWAY: &str = "host-gateway";
/// The build argument that BuildKit puts before the id of each cache mount.
const CACHE_MOUNTS: &str = "build-arg:BUILDKIT_CACHE_MOUNT_NS";
const ADD_HOSTS: &str = "add-hosts";
/// End of the host name that contains a namespace. No resolver has it.
const NAMESPACE_HOST: &str = "acrtask.invalid";
/// The address of that host: documentation only, so that nothing is there.
const NAMESPACE_ADDRESS: &str = "192.0.2.1";
const ENTITLEMENT_HOST: &str = "network.host";

type Attrs = HashMap<String, String>;

/// The frontend, its attributes, and the entitlements that they need.
pub(crate) struct Frontend {
    pub(crate) name: &'static str,
    pub(crate) attrs: Attrs,
    pub(crate) entitlements: Vec<String>,
}

fn unsupported(capabilities: &Capabilities, feature: Feature) -> Result<(), BuildError> {
    match capabilities.missing(feature) {
        None => Ok(()),
        Some(feature) => Err(BuildError::Unsupported {
            feature,
            endpoint: capabilities.endpoint().to_owned(),
            help: capabilities.help(),
        }),
    }
}

/// Refuses what the endpoint cannot do.
pub(crate) fn check(request: &BuildRequest, capabilities: &Capabilities) -> Result<(), BuildError> {
    let needs = |feature| unsupported(capabilities, feature);
    if request.platforms.len() > 1 {
        needs(Feature::MultiPlatform)?;
    }
    if request.sbom.is_some() || matches!(request.provenance, Provenance::Attrs(_)) {
        needs(Feature::Attestations)?;
    }
    if request
        .cache_exports
        .iter()
        .any(|cache| cache.kind != "inline")
    {
        needs(Feature::CacheExport)?;
    }
    if request.exports.len() > 1 {
        needs(Feature::SeveralExports)?;
    }
    for export in &request.exports {
        match export {
            Export::Image(image) => {
                if image.push {
                    needs(Feature::Push)?;
                    if image.names.is_empty() {
                        return Err(BuildError::Request(
                            "an image that is pushed needs a name".to_owned(),
                        ));
                    }
                }
                if image.push_by_digest {
                    needs(Feature::PushByDigest)?;
                }
            }
            Export::Load { archive, .. } => {
                if capabilities.kind == EndpointKind::Buildkitd && archive.is_none() {
                    return Err(BuildError::Request(
                        "a separate buildkitd cannot load an image into an engine by itself: its archive needs a sink".to_owned(),
                    ));
                }
            }
            Export::Oci { .. } => needs(Feature::ImageArchive)?,
            Export::Local { .. } | Export::Tar(_) => {}
        }
    }
    let mut ids: Vec<&str> = request
        .secrets
        .iter()
        .map(|secret| secret.id.as_str())
        .collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(BuildError::Request(format!(
            "the secret {:?} is given twice",
            pair[0]
        )));
    }
    for secret in &request.secrets {
        secret.check()?;
    }
    Ok(())
}

/// The frontend's attributes. `stores`: for each named context in OCI layout, its store and digest.
pub(crate) fn frontend(
    request: &BuildRequest,
    capabilities: &Capabilities,
    layouts: &HashMap<String, String>,
) -> Result<Frontend, BuildError> {
    let mut attrs = Attrs::new();
    let mut entitlements = Vec::new();
    let mut set = |key: &str, value: String| {
        attrs.insert(key.to_owned(), value);
    };
    match &request.context {
        BuildContext::Remote { url, .. } => set(CONTEXT, url.clone()),
        BuildContext::Local { .. } | BuildContext::None => {}
    }
    match &request.dockerfile {
        DockerfileSource::InContext(path) => {
            let name = match &request.context {
                BuildContext::Local { .. } => file_name(path),
                BuildContext::Remote { .. } | BuildContext::None => path.as_str(),
            };
            set("filename", name.to_owned());
        }
        DockerfileSource::Local { name, .. } => {
            set("filename", name.clone());
            set("dockerfilekey", DOCKERFILE.to_owned());
        }
        DockerfileSource::Inline(_) => {
            set("filename", DEFAULT_DOCKERFILE.to_owned());
            set("dockerfilekey", DOCKERFILE.to_owned());
        }
    }
    if let Some(target) = &request.target {
        set("target", target.clone());
    }
    if !request.platforms.is_empty() {
        set("platform", request.platforms.join(","));
    }
    for (name, value) in &request.build_args {
        if let Some(value) = value.clone().or_else(|| std::env::var(name).ok()) {
            set(&format!("build-arg:{name}"), value);
        }
    }
    for (name, value) in &request.labels {
        set(&format!("label:{name}"), value.clone());
    }
    match &request.no_cache {
        NoCache::UseCache => {}
        NoCache::All => set("no-cache", String::new()),
        NoCache::Stages(stages) => set("no-cache", stages.join(",")),
    }
    // By default the registry comes first, and an engine's own store after it.
    if request.pull {
        set("image-resolve-mode", "pull".to_owned());
    }
    if !request.add_hosts.is_empty() {
        set(ADD_HOSTS, hosts(&request.add_hosts, capabilities)?);
    }
    match request.network {
        Network::Default => {}
        Network::None => set("force-network-mode", "none".to_owned()),
        Network::Host => {
            set("force-network-mode", "host".to_owned());
            entitlements.push(ENTITLEMENT_HOST.to_owned());
        }
    }
    if let Some(bytes) = request.shm_size {
        set("shm-size", bytes.to_string());
    }
    if !request.ulimits.is_empty() {
        set("ulimit", request.ulimits.join(","));
    }
    if let Some(parent) = &request.cgroup_parent {
        set("cgroup-parent", parent.clone());
    }
    if capabilities.kind != EndpointKind::Buildkitd {
        for pin in &request.pins {
            set(
                &format!("context:{}", familiar(&pin.reference)),
                format!(
                    "docker-image://{}@{}",
                    without_digest(&pin.reference),
                    pin.digest
                ),
            );
        }
    }
    for (name, context) in &request.named_contexts {
        let value = match context {
            NamedContext::Local(_) => format!("local:{}", local_name(name)),
            NamedContext::Reference(reference) => reference.clone(),
            NamedContext::OciLayout { .. } | NamedContext::Provided(_) => {
                let reference = layouts.get(name).ok_or_else(|| {
                    BuildError::Request(format!("the context {name:?} was not prepared"))
                })?;
                format!("oci-layout://{reference}")
            }
        };
        set(&format!("context:{name}"), value);
    }
    if let Some(attestation) = provenance(&request.provenance, capabilities) {
        set("attest:provenance", attestation);
    }
    if let Some(sbom) = &request.sbom {
        let generator = if sbom.contains("generator=") {
            sbom.clone()
        } else {
            join(&[sbom, &format!("generator={DEFAULT_SCANNER}")])
        };
        set("attest:sbom", generator);
    }
    if !request.cache_imports.is_empty() {
        set("cache-imports", imports_json(&request.cache_imports));
    }
    let name = match &request.syntax {
        None => "dockerfile.v0",
        Some(syntax) => {
            let image = syntax.split_whitespace().next().unwrap_or_default();
            if image.is_empty() {
                return Err(BuildError::Request(
                    "the name of the frontend image is empty".to_owned(),
                ));
            }
            set("source", image.to_owned());
            set("cmdline", syntax.clone());
            "gateway.v0"
        }
    };
    if request.frontends == Frontends::Official {
        // With a command line, even an empty one, the builder's own frontend reads no `# syntax=` line.
        attrs.entry("cmdline".to_owned()).or_default();
    }
    if let Some(namespaces) = &request.cache_namespaces {
        isolate(&mut attrs, namespaces);
    }
    Ok(Frontend {
        name,
        attrs,
        entitlements,
    })
}

/// Separates the build's cache mounts, and the layers of each `RUN`, from those of other namespaces.
///
/// A host of the hosts file is part of a `RUN`'s cache key, and leaves nothing in the image.
fn isolate(attrs: &mut Attrs, namespaces: &CacheNamespaces) {
    let mounts = namespaces.mounts.expose();
    let mounts = match attrs.get(CACHE_MOUNTS) {
        Some(own) => format!("{mounts}/{own}"),
        None => mounts.to_owned(),
    };
    attrs.insert(CACHE_MOUNTS.to_owned(), mounts);
    let layers = namespaces.layers.expose();
    let host = format!("{layers}.{NAMESPACE_HOST}={NAMESPACE_ADDRESS}");
    let hosts = match attrs.get(ADD_HOSTS) {
        Some(others) => format!("{others},{host}"),
        None => host,
    };
    attrs.insert(ADD_HOSTS.to_owned(), hosts);
}

fn provenance(wanted: &Provenance, capabilities: &Capabilities) -> Option<String> {
    let can = capabilities.missing(Feature::Attestations).is_none();
    match wanted {
        Provenance::Off => None,
        Provenance::Min => can.then(|| "mode=min".to_owned()),
        Provenance::Max => can.then(|| "mode=max".to_owned()),
        Provenance::Attrs(attrs) => Some(attrs.clone()),
    }
}

fn join(parts: &[&str]) -> String {
    parts
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(",")
}

/// The local name of a named context; two names are taken.
pub(crate) fn local_name(name: &str) -> String {
    if name == CONTEXT || name == DOCKERFILE {
        format!("_{name}")
    } else {
        name.to_owned()
    }
}

pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn hosts(hosts: &[(String, String)], capabilities: &Capabilities) -> Result<String, BuildError> {
    let mut out = Vec::with_capacity(hosts.len());
    for (host, address) in hosts {
        let address = if address == HOST_GATEWAY {
            capabilities.host_gateway().ok_or_else(|| BuildError::Unsupported {
                feature: format!("the address {HOST_GATEWAY} for the host {host:?}: it does not tell its host's address"),
                endpoint: capabilities.endpoint().to_owned(),
                help: "write the address itself".to_owned(),
            })?
        } else {
            address.trim_start_matches('[').trim_end_matches(']')
        };
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(BuildError::Request(format!(
                "{address:?} is not an address for the host {host:?}"
            )));
        }
        out.push(format!("{host}={address}"));
    }
    Ok(out.join(","))
}

fn imports_json(imports: &[CacheSpec]) -> String {
    let entries: Vec<_> = imports
        .iter()
        .map(|cache| serde_json::json!({"Type": cache.kind, "Attrs": cache.attrs}))
        .collect();
    serde_json::Value::from(entries).to_string()
}

pub(crate) fn cache_options(request: &BuildRequest) -> bk::CacheOptions {
    let entry = |cache: &CacheSpec| bk::CacheOptionsEntry {
        r#type: cache.kind.clone(),
        attrs: cache.attrs.clone().into_iter().collect(),
    };
    bk::CacheOptions {
        exports: request.cache_exports.iter().map(entry).collect(),
        imports: request.cache_imports.iter().map(entry).collect(),
        ..bk::CacheOptions::default()
    }
}

/// Returns the name of an export's exporter at this endpoint, and its attributes.
pub(crate) fn exporter(export: &Export, kind: EndpointKind) -> bk::Exporter {
    let (name, attrs) = match export {
        Export::Image(image) => (image_exporter(kind), image_attrs(image)),
        Export::Load { names, .. } => match kind {
            EndpointKind::Buildkitd => ("docker", named(names)),
            EndpointKind::EngineContainerdStore | EndpointKind::EngineClassicStore => {
                (image_exporter(kind), named(names))
            }
        },
        Export::Local { .. } => ("local", Attrs::new()),
        Export::Tar(_) => ("tar", Attrs::new()),
        Export::Oci { names, .. } => ("oci", named(names)),
    };
    bk::Exporter {
        r#type: name.to_owned(),
        attrs,
    }
}

/// An engine's own exporter registers the image at the engine; the plain one does not.
fn image_exporter(kind: EndpointKind) -> &'static str {
    match kind {
        EndpointKind::Buildkitd => "image",
        EndpointKind::EngineContainerdStore | EndpointKind::EngineClassicStore => "moby",
    }
}

fn named(names: &[String]) -> Attrs {
    if names.is_empty() {
        Attrs::new()
    } else {
        Attrs::from([("name".to_owned(), names.join(","))])
    }
}

fn image_attrs(image: &ImageExport) -> Attrs {
    let mut attrs: Attrs = image.attrs.clone().into_iter().collect();
    attrs.extend(named(&image.names));
    for (key, on) in [
        ("push", image.push),
        ("push-by-digest", image.push_by_digest),
        ("registry.insecure", image.insecure),
    ] {
        if on {
            attrs.insert(key.to_owned(), "true".to_owned());
        }
    }
    attrs
}

/// A reference as a Dockerfile's author would write it, which is how the frontend looks a named context up.
pub fn familiar(reference: &str) -> &str {
    let short = without_digest(reference);
    let short = short
        .strip_prefix("docker.io/")
        .map_or(short, |rest| rest.strip_prefix("library/").unwrap_or(rest));
    short.strip_suffix(":latest").unwrap_or(short)
}

/// Holds the frontend of a `# syntax=` line to its pin. Endpoints ask for it before they apply a policy.
pub(crate) fn hold_syntax(request: &mut BuildRequest, helpers: &HelperImages) {
    let Some(name) = helpers
        .frontend
        .as_deref()
        .filter(|name| !name.contains('@'))
    else {
        return;
    };
    let pin = request
        .pins
        .iter()
        .find(|pin| familiar(without_digest(&pin.reference)) == familiar(name));
    if let Some(pin) = pin {
        let held = format!("{}@{}", without_digest(&pin.reference), pin.digest);
        request.syntax = Some(held);
    }
}

/// The reference without a digest.
fn without_digest(reference: &str) -> &str {
    reference.split('@').next().unwrap_or(reference)
}

/// Returns the rules for images and addresses, and a policy that turns each pinned reference into one with its digest.
/// An engine's BuildKit applies policies only after it has resolved the tag, when no reference matches any more; there
/// pins are named contexts too, which come before everything.
pub(crate) fn source_policy(request: &BuildRequest) -> Option<sourcepolicy::Policy> {
    let mut rules = sources::image_rules(&request.images);
    rules.extend(sources::rules(request.sources));
    rules.extend(sources::file_rules(&request.files));
    if request.pins.is_empty() && rules.is_empty() {
        return None;
    }
    let pins = request.pins.iter().map(|pin| {
        let name = without_digest(&pin.reference);
        sourcepolicy::Rule {
            action: sourcepolicy::PolicyAction::Convert.into(),
            selector: Some(sourcepolicy::Selector {
                identifier: format!("docker-image://{name}"),
                match_type: sourcepolicy::MatchType::Exact.into(),
                constraints: Vec::new(),
            }),
            updates: Some(sourcepolicy::Update {
                identifier: format!("docker-image://{name}@{}", pin.digest),
                attrs: HashMap::new(),
            }),
        }
    });
    Some(sourcepolicy::Policy {
        version: 1,
        rules: rules.into_iter().chain(pins).collect(),
    })
}

/// Images that the build needs beside those in the Dockerfile's instructions.
pub(crate) fn helper_images(request: &BuildRequest, dockerfile: Option<&[u8]>) -> HelperImages {
    let image = |line: String| line.split_whitespace().next().map(str::to_owned);
    let from_file = || dockerfile.and_then(syntax_line).and_then(image);
    HelperImages {
        frontend: request
            .syntax
            .as_ref()
            .and_then(|s| s.split_whitespace().next().map(str::to_owned))
            .or_else(from_file),
        sbom_scanner: request.sbom.as_ref().map(|attrs| {
            let named = attrs
                .split(',')
                .find_map(|pair| pair.trim().strip_prefix("generator="));
            named.unwrap_or(DEFAULT_SCANNER).to_owned()
        }),
    }
}

#[cfg(test)]
mod tests;
