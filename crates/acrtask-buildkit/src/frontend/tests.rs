//! Tests of requests and their attributes.

use acrtask_model::{CacheNamespace, Secret};

use super::*;
use crate::request::{Sink, SourcePin};
use crate::session::{BuildSecret, SecretSource};

fn request() -> BuildRequest {
    BuildRequest::new(BuildContext::Local { dir: "/ctx".into() })
}

fn attrs(request: &BuildRequest, kind: EndpointKind) -> Vec<String> {
    let capabilities = Capabilities::for_kind(kind, Some("v0.30.0"));
    let frontend = build_frontend(request, &capabilities, &HashMap::new()).unwrap();
    let mut list: Vec<_> = frontend
        .attrs
        .into_iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    list.sort();
    list
}

#[test]
fn plain_build_has_minimal_attributes() {
    assert_eq!(
        attrs(&request(), EndpointKind::Buildkitd),
        ["attest:provenance=mode=max", "filename=Dockerfile"]
    );
    assert_eq!(
        attrs(&request(), EndpointKind::EngineClassicStore),
        ["filename=Dockerfile"]
    );
}

#[test]
fn all_options_become_attributes() {
    let mut request = request();
    request.dockerfile = DockerfileSource::InContext("docker/app.Dockerfile".into());
    request.target = Some("final".into());
    request.platforms = vec!["linux/amd64".into(), "linux/arm64".into()];
    request.build_args = vec![
        ("A".into(), Some("1".into())),
        ("ACRTASK_SURELY_UNSET".into(), None),
    ];
    request.labels.insert("l".into(), "v".into());
    request.no_cache = NoCache::Stages(vec!["a".into(), "b".into()]);
    request.add_hosts = vec![
        ("h".into(), "10.0.0.1".into()),
        ("g".into(), "host-gateway".into()),
    ];
    request.network = Network::None;
    request.shm_size = Some(64);
    request.ulimits = vec!["nofile=1:2".into()];
    request
        .named_contexts
        .insert("context".into(), NamedContext::Local("/x".into()));
    request.named_contexts.insert(
        "base".into(),
        NamedContext::Reference("docker-image://b".into()),
    );
    request.provenance = Provenance::Min;
    request.sbom = Some(String::new());
    request.syntax = Some("my/frontend:1 extra".into());
    request.cache_imports = vec![CacheSpec {
        kind: "registry".into(),
        attrs: [("ref".to_owned(), "r/c".to_owned())].into(),
    }];
    insta::assert_snapshot!(attrs(&request, EndpointKind::EngineContainerdStore).join("\n"), @r#"
    add-hosts=h=10.0.0.1,g=172.17.0.1
    attest:provenance=mode=min
    attest:sbom=generator=docker/buildkit-syft-scanner:stable-1
    build-arg:A=1
    cache-imports=[{"Type":"registry","Attrs":{"ref":"r/c"}}]
    cmdline=my/frontend:1 extra
    context:base=docker-image://b
    context:context=local:_context
    filename=app.Dockerfile
    force-network-mode=none
    label:l=v
    no-cache=a,b
    platform=linux/amd64,linux/arm64
    shm-size=64
    source=my/frontend:1
    target=final
    ulimit=nofile=1:2
    "#);
}

#[test]
fn unsupported_features_are_refused_by_name() {
    let classic = Capabilities::for_kind(EndpointKind::EngineClassicStore, None);
    let refusal = |change: &dyn Fn(&mut BuildRequest)| {
        let mut request = request();
        change(&mut request);
        check_request(&request, &classic).unwrap_err().to_string()
    };
    insta::assert_snapshot!(
        [
            refusal(&|r| r.cache_exports = vec![CacheSpec { kind: "registry".into(), attrs: Default::default() }]),
            refusal(&|r| r.platforms = vec!["linux/amd64".into(), "linux/arm64".into()]),
            refusal(&|r| r.sbom = Some(String::new())),
            refusal(&|r| r.exports = vec![Export::Image(ImageExport { push: true, names: vec!["a".into()], ..Default::default() })]),
            refusal(&|r| r.exports = vec![Export::Oci { names: vec![], archive: Sink::File("x".into()) }]),
        ]
        .join("\n"),
        @r"
    docker:///d.sock cannot do this: exporting a cache to a registry or a folder: the Docker Engine stores its images in the classic store, not in containerd's
    docker:///d.sock cannot do this: building for several platforms at once: the Docker Engine stores its images in the classic store, not in containerd's
    docker:///d.sock cannot do this: provenance and SBOM attestations: the Docker Engine stores its images in the classic store, not in containerd's
    docker:///d.sock cannot do this: pushing as part of a build: the Docker Engine stores its images in the classic store, not in containerd's
    docker:///d.sock cannot do this: writing an image archive (oci, docker): the Docker Engine stores its images in the classic store, not in containerd's
    "
    );
    let mut inline = request();
    inline.cache_exports = vec![CacheSpec {
        kind: "inline".into(),
        attrs: Default::default(),
    }];
    check_request(&inline, &classic).unwrap();
}

#[test]
fn contradictory_requests_are_refused() {
    let buildkitd = Capabilities::for_kind(EndpointKind::Buildkitd, None);
    let mut twice = request();
    twice.secrets = vec![
        BuildSecret {
            id: "t".into(),
            source: SecretSource::Text(Secret::new("v"))
        };
        2
    ];
    assert!(matches!(
        check_request(&twice, &buildkitd),
        Err(BuildError::Request(_))
    ));
    let mut unloadable = request();
    unloadable.exports = vec![Export::Load {
        names: vec![],
        archive: None,
    }];
    assert!(matches!(
        check_request(&unloadable, &buildkitd),
        Err(BuildError::Request(_))
    ));
    let mut gateway = request();
    gateway.add_hosts = vec![("h".into(), "host-gateway".into())];
    assert!(matches!(
        build_frontend(&gateway, &buildkitd, &HashMap::new()),
        Err(BuildError::Unsupported { .. })
    ));
}

#[test]
fn pins_become_policy_rules() {
    let mut request = request();
    request.pins = vec![SourcePin {
        reference: "docker.io/library/busybox:1.36".into(),
        digest: "sha256:aa".into(),
    }];
    let policy = source_policy(&request).unwrap();
    let rule = &policy.rules[0];
    assert_eq!(
        rule.selector.as_ref().unwrap().identifier,
        "docker-image://docker.io/library/busybox:1.36"
    );
    assert_eq!(
        rule.updates.as_ref().unwrap().identifier,
        "docker-image://docker.io/library/busybox:1.36@sha256:aa"
    );
}

#[test]
fn pins_become_named_contexts_for_an_engine() {
    for (reference, name) in [
        ("docker.io/library/busybox:1.36", "busybox:1.36"),
        ("docker.io/library/busybox:latest", "busybox"),
        ("docker.io/me/tool:1", "me/tool:1"),
        (
            "127.0.0.1:5000/base/busybox:1.36",
            "127.0.0.1:5000/base/busybox:1.36",
        ),
    ] {
        let mut request = request();
        request.provenance = Provenance::Off;
        request.pins = vec![SourcePin {
            reference: reference.into(),
            digest: "sha256:aa".into(),
        }];
        let want = format!("context:{name}=docker-image://{reference}@sha256:aa");
        assert!(
            attrs(&request, EndpointKind::EngineContainerdStore).contains(&want),
            "{want}"
        );
        assert_eq!(
            attrs(&request, EndpointKind::Buildkitd),
            ["filename=Dockerfile"]
        );
    }
}

#[test]
fn syntax_line_is_parsed() {
    for (text, want) in [
        (
            "# syntax=docker/dockerfile:1\nFROM a",
            Some("docker/dockerfile:1"),
        ),
        ("#escape=`\n# Syntax = a/b:2 x\n", Some("a/b:2 x")),
        ("FROM a\n# syntax=x", None),
        ("# a comment\n# syntax=x", None),
        ("", None),
    ] {
        assert_eq!(syntax_line(text.as_bytes()).as_deref(), want, "{text:?}");
    }
}

#[test]
fn pin_frontend_sets_the_pinned_digest() {
    for (line, pinned) in [
        (
            "docker/dockerfile:1",
            Some("docker.io/docker/dockerfile:1@sha256:aa"),
        ),
        ("docker/dockerfile:1@sha256:bb", None),
        ("docker/dockerfile:2", None),
    ] {
        let mut request = request();
        request.pins = vec![SourcePin {
            reference: "docker.io/docker/dockerfile:1".into(),
            digest: "sha256:aa".into(),
        }];
        let text = format!("# syntax={line}\nFROM a");
        let helpers = helper_images(&request, Some(text.as_bytes()));
        pin_frontend(&mut request, &helpers);
        assert_eq!(request.syntax.as_deref(), pinned, "{line}");
    }
}

#[test]
fn namespaces_separate_cache_mounts_and_layers() {
    let (mounts, layers) = ("07".repeat(16), "08".repeat(16));
    let host = format!("{layers}.acrtask.invalid=192.0.2.1");
    let mut request = BuildRequest::new(BuildContext::None);
    request.cache_namespaces = Some(CacheNamespaces {
        mounts: CacheNamespace::from_bytes([7; 16]),
        layers: CacheNamespace::from_bytes([8; 16]),
    });
    let capabilities = Capabilities::for_kind(EndpointKind::EngineClassicStore, Some("v0.30.0"));
    let attributes = |request: &BuildRequest| {
        build_frontend(request, &capabilities, &HashMap::new())
            .unwrap()
            .attrs
    };
    let plain = attributes(&request);
    assert_eq!(plain["build-arg:BUILDKIT_CACHE_MOUNT_NS"], mounts);
    assert_eq!(plain["add-hosts"], host);
    // Values from the user stay inside the namespace.
    request.build_args = vec![("BUILDKIT_CACHE_MOUNT_NS".into(), Some("other".into()))];
    request.add_hosts = vec![("a".into(), "1.2.3.4".into())];
    let own = attributes(&request);
    let inside = format!("{mounts}/other");
    assert_eq!(own["build-arg:BUILDKIT_CACHE_MOUNT_NS"], inside);
    assert_eq!(own["add-hosts"], format!("a=1.2.3.4,{host}"));
}

#[test]
fn provenance_modes_decide_its_content() {
    for (provenance, hosts, instructions) in [
        (Provenance::Off, false, false),
        (Provenance::Min, true, false),
        (Provenance::Max, true, true),
        (Provenance::Attrs("mode=min,version=v1".into()), true, false),
        (Provenance::Attrs("version=v1".into()), true, true),
        (Provenance::Attrs("mode=minimal".into()), true, true),
        (Provenance::Attrs("mode=min,mode=max".into()), true, true),
    ] {
        assert_eq!(provenance.lists_hosts(), hosts, "{provenance:?}");
        assert_eq!(
            provenance.lists_instructions(),
            instructions,
            "{provenance:?}"
        );
    }
}
