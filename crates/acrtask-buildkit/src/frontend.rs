//! Conversion of a request to the attributes of a solve: pure decisions, which refuse a request
//! before any step runs.

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

/// Name of the context in requests of the builder.
pub(crate) const CONTEXT: &str = "context";
/// Name of the Dockerfile's folder in requests of the builder.
pub(crate) const DOCKERFILE: &str = "dockerfile";
/// Image of the scanner that writes SBOMs if a build names no other one.
pub const DEFAULT_SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";
const DEFAULT_DOCKERFILE: &str = "Dockerfile";
const HOST_GATEWAY: &str = "host-gateway";
/// Build argument that BuildKit prepends to the id of each cache mount.
const CACHE_MOUNTS: &str = "build-arg:BUILDKIT_CACHE_MOUNT_NS";
const ADD_HOSTS: &str = "add-hosts";
/// Suffix of the host name that contains a namespace. No resolver knows it.
const NAMESPACE_HOST: &str = "acrtask.invalid";
/// Address of that host: reserved for documentation, so that it is unused.
const NAMESPACE_ADDRESS: &str = "192.0.2.1";
const ENTITLEMENT_HOST: &str = "network.host";

type Attrs = HashMap<String, String>;

/// Frontend, its attributes, and the entitlements that they require.
pub(crate) struct Frontend {
    pub(crate) name: &'static str,
    pub(crate) attrs: Attrs,
    pub(crate) entitlements: Vec<String>,
}

fn require_feature(capabilities: &Capabilities, feature: Feature) -> Result<(), BuildError> {
    match capabilities.missing(feature) {
        None => Ok(()),
        Some(feature) => Err(BuildError::Unsupported {
            feature,
            endpoint: capabilities.endpoint().to_owned(),
            help: capabilities.help(),
        }),
    }
}

/// Refuses a request that the endpoint does not support.
pub(crate) fn check_request(
    request: &BuildRequest,
    capabilities: &Capabilities,
) -> Result<(), BuildError> {
    let needs = |feature| require_feature(capabilities, feature);
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
                        "a separate buildkitd cannot load an image into an engine: its archive needs a sink".to_owned(),
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

/// Builds the attributes of the frontend. `layouts` maps each named context in OCI layout to its
/// store and digest.
#[allow(
    clippy::disallowed_methods,
    reason = "the variable belongs to a tool whose conventions apply here"
)]
pub(crate) fn build_frontend(
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
    // By default, the registry precedes the engine's own store.
    if request.pull {
        set("image-resolve-mode", "pull".to_owned());
    }
    if !request.add_hosts.is_empty() {
        set(ADD_HOSTS, format_hosts(&request.add_hosts, capabilities)?);
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
    if capabilities.is_in_engine() {
        for pin in &request.pins {
            set(
                &format!("context:{}", familiar_name(&pin.reference)),
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
    if let Some(attestation) = provenance_attrs(&request.provenance, capabilities) {
        set("attest:provenance", attestation);
    }
    if let Some(sbom) = &request.sbom {
        let generator = if sbom.contains("generator=") {
            sbom.clone()
        } else {
            join_parts(&[sbom, &format!("generator={DEFAULT_SCANNER}")])
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
        // With a command line, even an empty one, the builder's own frontend ignores the `#
        // syntax=` line.
        attrs.entry("cmdline".to_owned()).or_default();
    }
    if let Some(namespaces) = &request.cache_namespaces {
        add_namespaces(&mut attrs, namespaces);
    }
    Ok(Frontend {
        name,
        attrs,
        entitlements,
    })
}

/// Separates the build's cache mounts, and the layers of each `RUN`, from those of other
/// namespaces.
///
/// A host of the hosts file is part of a `RUN`'s cache key, and does not change the image.
fn add_namespaces(attrs: &mut Attrs, namespaces: &CacheNamespaces) {
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

fn provenance_attrs(wanted: &Provenance, capabilities: &Capabilities) -> Option<String> {
    let can = capabilities.missing(Feature::Attestations).is_none();
    match wanted {
        Provenance::Off => None,
        Provenance::Min => can.then(|| "mode=min".to_owned()),
        Provenance::Max => can.then(|| "mode=max".to_owned()),
        Provenance::Attrs(attrs) => Some(attrs.clone()),
    }
}

fn join_parts(parts: &[&str]) -> String {
    parts
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(",")
}

/// Returns the local name of a named context. Two names are reserved.
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

fn format_hosts(
    hosts: &[(String, String)],
    capabilities: &Capabilities,
) -> Result<String, BuildError> {
    let mut out = Vec::with_capacity(hosts.len());
    for (host, address) in hosts {
        let address = if address == HOST_GATEWAY {
            capabilities.host_gateway().ok_or_else(|| BuildError::Unsupported {
                feature: format!("the address {HOST_GATEWAY} for the host {host:?}: the endpoint does not report its host's address"),
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

/// Builds the exporter of an export for this kind of endpoint, with its attributes.
pub(crate) fn build_exporter(export: &Export, kind: EndpointKind) -> bk::Exporter {
    let (name, attrs) = match export {
        Export::Image(image) => (image_exporter(kind), image_attrs(image)),
        Export::Load { names, .. } => match kind {
            EndpointKind::Buildkitd => ("docker", name_attrs(names)),
            EndpointKind::EngineContainerdStore | EndpointKind::EngineClassicStore => {
                (image_exporter(kind), name_attrs(names))
            }
        },
        Export::Local { .. } => ("local", Attrs::new()),
        Export::Tar(_) => ("tar", Attrs::new()),
        Export::Oci { names, .. } => ("oci", name_attrs(names)),
    };
    bk::Exporter {
        r#type: name.to_owned(),
        attrs,
    }
}

/// Returns the exporter of images. An engine's own exporter registers the image at the engine; the
/// plain one does not.
fn image_exporter(kind: EndpointKind) -> &'static str {
    match kind {
        EndpointKind::Buildkitd => "image",
        EndpointKind::EngineContainerdStore | EndpointKind::EngineClassicStore => "moby",
    }
}

fn name_attrs(names: &[String]) -> Attrs {
    if names.is_empty() {
        Attrs::new()
    } else {
        Attrs::from([("name".to_owned(), names.join(","))])
    }
}

fn image_attrs(image: &ImageExport) -> Attrs {
    let mut attrs: Attrs = image.attrs.clone().into_iter().collect();
    attrs.extend(name_attrs(&image.names));
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

/// Returns a reference in the short form of Dockerfiles. The frontend looks up named contexts in
/// this form.
pub fn familiar_name(reference: &str) -> &str {
    let short = without_digest(reference);
    let short = short
        .strip_prefix("docker.io/")
        .map_or(short, |rest| rest.strip_prefix("library/").unwrap_or(rest));
    short.strip_suffix(":latest").unwrap_or(short)
}

/// Sets the frontend of a `# syntax=` line to its pinned digest. Endpoints fetch the frontend
/// before they apply a policy.
pub(crate) fn pin_frontend(request: &mut BuildRequest, helpers: &HelperImages) {
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
        .find(|pin| familiar_name(without_digest(&pin.reference)) == familiar_name(name));
    if let Some(pin) = pin {
        let pinned = format!("{}@{}", without_digest(&pin.reference), pin.digest);
        request.syntax = Some(pinned);
    }
}

/// Returns the reference without a digest.
fn without_digest(reference: &str) -> &str {
    reference.split('@').next().unwrap_or(reference)
}

/// Returns the policy of a request: the rules for images and addresses, and one that converts each
/// pinned reference to its digest. An engine's BuildKit applies policies only after it resolves the
/// tag, so no reference matches. For an engine, pins are therefore also named contexts, which take
/// precedence.
pub(crate) fn source_policy(request: &BuildRequest) -> Option<sourcepolicy::Policy> {
    let mut rules = sources::image_rules(&request.images);
    rules.extend(sources::address_rules(request.sources));
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

/// Returns the images that the build needs in addition to those in the Dockerfile's instructions.
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
