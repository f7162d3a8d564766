//! Inputs of builds.

use std::sync::Arc;

use acrtask_buildkit::*;
use acrtask_model::Secret;

use crate::harness::{context, on_each};

#[tokio::test(flavor = "multi_thread")]
async fn context_excludes_files_of_dockerignore() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[
                ("Dockerfile", "FROM BASE\nCOPY . /c\nRUN cd /c && find . -type f -o -type l | sort\n"),
                (".dockerignore", "**/*.log\nnode_modules\n!keep.log\ndocs/*\n!docs/README.md\nDockerfile\n"),
                ("a.log", ""),
                ("keep.log", ""),
                ("docs/README.md", ""),
                ("docs/other.md", ""),
                ("node_modules/x/y", ""),
                ("src/deep/er/main.c", ""),
                ("src/b.log", ""),
                ("ü name", ""),
            ],
        );
        std::os::unix::fs::symlink("src/deep", dir.path().join("link")).unwrap();
        let built = builder.build(builder.request(&dir)).await;
        built.outcome();
        assert_eq!(
            built.log(),
            "./.dockerignore\n./docs/README.md\n./keep.log\n./link\n./src/deep/er/main.c\n./ü name\n"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_ignore_file_is_supported() {
    on_each(async |builder| {
        let mut patterns: String = (0..3000)
            .map(|i| format!("left/out/number-{i}\n"))
            .collect();
        patterns.push_str("last\n");
        let dir = context(
            builder,
            &[
                (
                    "Dockerfile",
                    "FROM BASE\nCOPY . /c\nRUN cd /c && find . -type f | sort\n",
                ),
                (".dockerignore", &patterns),
                ("last", ""),
                ("kept", ""),
            ],
        );
        let built = builder.build(builder.request(&dir)).await;
        built.outcome();
        assert_eq!(built.log(), "./.dockerignore\n./Dockerfile\n./kept\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerfile_can_have_its_own_ignore_file() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[
                (
                    "build/app.Dockerfile",
                    "FROM BASE\nCOPY . /c\nRUN cd /c && find . -type f | sort\n",
                ),
                ("build/app.Dockerfile.dockerignore", "*\n!b\n"),
                (".dockerignore", "b\n"),
                ("a", ""),
                ("b", ""),
            ],
        );
        let mut request = builder.request(&dir);
        request.dockerfile = DockerfileSource::InContext("build/app.Dockerfile".into());
        let built = builder.build(request).await;
        built.outcome();
        assert_eq!(built.log(), "./b\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn context_preserves_modes_links_and_times() {
    use std::os::unix::fs::PermissionsExt;
    on_each(async |builder| {
        let dir = context(
            builder,
            &[
                ("Dockerfile", "FROM BASE\nCOPY . /c\nRUN cd /c && stat -c '%n %a %h %u' bin one two && stat -c %Y bin && cat two\n"),
                ("bin", "x"),
                ("one", "same"),
            ],
        );
        let bin = dir.path().join("bin");
        std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o4755)).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
        std::fs::File::open(&bin).unwrap().set_modified(time).unwrap();
        std::fs::set_permissions(dir.path().join("one"), std::fs::Permissions::from_mode(0o640)).unwrap();
        std::fs::hard_link(dir.path().join("one"), dir.path().join("two")).unwrap();
        let built = builder.build(builder.request(&dir)).await;
        built.outcome();
        assert_eq!(built.log(), "bin 4755 1 0\none 640 2 0\ntwo 640 2 0\n1500000000\nsame");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_context_is_cached_and_changes_are_detected() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[
                ("Dockerfile", "FROM BASE\nCOPY a /a\nRUN cat /a\n"),
                ("a", &format!("{:?}", std::time::SystemTime::now())),
            ],
        );
        let request = || {
            let mut request = builder.request(&dir);
            request.no_cache = NoCache::UseCache;
            request
        };
        let cached = |built: &crate::harness::Built| {
            built.events.iter().any(
                |e| matches!(e, BuildEvent::Vertex(v) if v.name.contains("COPY a") && v.cached),
            )
        };
        let first = builder.build(request()).await;
        first.outcome();
        assert!(!cached(&first));
        let second = builder.build(request()).await;
        second.outcome();
        assert!(cached(&second));
        let changed = format!("changed {:?}", std::time::SystemTime::now());
        std::fs::write(dir.path().join("a"), &changed).unwrap();
        let third = builder.build(request()).await;
        third.outcome();
        assert!(!cached(&third));
        assert_eq!(third.log(), changed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn build_applies_arguments_targets_and_hosts_to_an_inline_dockerfile() {
    on_each(async |builder| {
        let text = format!(
            "FROM {} AS one\nARG A\nARG B=default\nRUN echo \"$A $B\" && grep -c 10.1.2.3 /etc/hosts && cat /proc/sys/kernel/ostype\nFROM one AS two\nRUN false\n",
            builder.base()
        );
        let mut request = BuildRequest::new(BuildContext::None);
        request.dockerfile = DockerfileSource::Inline(text.into_bytes());
        request.no_cache = NoCache::All;
        request.target = Some("one".into());
        request.build_args = vec![("A".into(), Some("given".into()))];
        request.add_hosts = vec![("other".into(), "10.1.2.3".into())];
        let built = builder.build(request).await;
        built.outcome();
        assert_eq!(built.log(), "given default\n1\nLinux\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn named_contexts_are_available_to_the_dockerfile() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[(
                "Dockerfile",
                "FROM mybase\nCOPY --from=extra f /f\nRUN cat /f\n",
            )],
        );
        let extra = context(builder, &[("f", "from extra")]);
        let mut request = builder.request(&dir);
        request
            .named_contexts
            .insert("extra".into(), NamedContext::Local(extra.path().into()));
        request.named_contexts.insert(
            "mybase".into(),
            NamedContext::Reference(format!("docker-image://{}", builder.base())),
        );
        let built = builder.build(request).await;
        built.outcome();
        assert_eq!(built.log(), "from extra");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_mounted_but_not_stored() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[(
                "Dockerfile",
                "FROM BASE\nRUN --mount=type=secret,id=text sha256sum /run/secrets/text\nRUN --mount=type=secret,id=file,target=/s cat /s\nRUN ls /run/secrets 2>&1 | wc -l\n",
            )],
        );
        let file = dir.path().join("value");
        std::fs::write(&file, "from a file\n").unwrap();
        let mut request = builder.request(&dir);
        request.secrets = vec![
            BuildSecret { id: "text".into(), source: SecretSource::Text(Secret::new("hello")) },
            BuildSecret { id: "file".into(), source: SecretSource::File(file) },
        ];
        let built = builder.build(request).await;
        built.outcome();
        assert!(built.log().starts_with("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"), "{}", built.log());
        assert!(built.log().contains("from a file\n"));
    })
    .await;
}

// Other tests cover the bytes through the socket: the base image has no program for Unix sockets.
#[tokio::test(flavor = "multi_thread")]
async fn ssh_agent_is_announced_and_mounted() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[("Dockerfile", "FROM BASE\nRUN --mount=type=ssh,required=true test -S $SSH_AUTH_SOCK && echo socket\n")],
        );
        let agent = dir.path().join("agent.sock");
        let _listener = tokio::net::UnixListener::bind(&agent).unwrap();
        let mut request = builder.request(&dir);
        request.ssh = vec![SshSource { id: "default".into(), agent }];
        let built = builder.build(request).await;
        built.outcome();
        assert_eq!(built.log(), "socket\n");
        let without = builder.build(builder.request(&dir)).await;
        assert!(without.error().to_string().contains("no SSH key"), "{}", without.error());
    })
    .await;
}

struct Tester;

#[tonic::async_trait]
impl Credentials for Tester {
    async fn for_host(&self, host: &str) -> Option<RegistryCredential> {
        (host == std::env::var("ACRTASK_TEST_AUTH_REGISTRY").ok()?).then(|| RegistryCredential {
            username: std::env::var("ACRTASK_TEST_AUTH_USER").unwrap_or_default(),
            secret: Secret::new(std::env::var("ACRTASK_TEST_AUTH_PASSWORD").unwrap_or_default()),
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_registry_receives_credentials() {
    let Ok(registry) = std::env::var("ACRTASK_TEST_AUTH_REGISTRY") else {
        return println!("skipped: no registry with passwords");
    };
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE\nRUN true\n")]);
        let push = |credentials: Arc<dyn Credentials>| {
            let mut request = builder.request(&dir);
            let names = vec![format!("{registry}/acrtask/auth:1")];
            request.exports = vec![Export::Image(ImageExport {
                names,
                push: true,
                insecure: true,
                ..Default::default()
            })];
            request.credentials = credentials;
            builder.build(request)
        };
        assert!(
            push(Arc::new(Tester))
                .await
                .outcome()
                .image_digest
                .is_some()
        );
        let refused = push(Arc::new(Anonymous)).await;
        assert!(
            refused
                .error()
                .to_string()
                .contains("no basic auth credentials")
                || refused.error().to_string().contains("401"),
            "{}",
            refused.error()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pin_decides_the_base() {
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE\nRUN true\n")]);
        let digest = builder
            .build(builder.request(&dir))
            .await
            .outcome()
            .provenance[0]
            .digest
            .clone();
        let mut request = builder.request(&dir);
        request.pins = vec![SourcePin {
            reference: builder.base(),
            digest: digest.clone(),
        }];
        let built = builder.build(request).await;
        assert!(
            built
                .outcome()
                .provenance
                .iter()
                .any(|used| used.digest == digest)
        );
        let mut request = builder.request(&dir);
        request.pins = vec![SourcePin {
            reference: builder.base(),
            digest: format!("sha256:{}", "0".repeat(64)),
        }];
        assert!(
            builder.build(request).await.result.is_err(),
            "a pin to a missing digest must fail"
        );
    })
    .await;
}
