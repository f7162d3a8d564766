//! Errors of failed builds.

use std::time::{Duration, Instant};

use acrtask_buildkit::*;
use tokio_util::sync::CancellationToken;

use crate::harness::{context, on_each};

#[tokio::test(flavor = "multi_thread")]
async fn failed_command_shows_its_lines() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[(
                "Dockerfile",
                "FROM BASE\nRUN echo one && \\\n    echo two && \\\n    exit 7\nRUN true\n",
            )],
        );
        let built = builder.build(builder.request(&dir)).await;
        let BuildError::Failed(failure) = built.error() else {
            panic!("{:?}", built.error())
        };
        assert_eq!(failure.exit_code, Some(7));
        assert_eq!(failure.log_tail, ["one", "two"]);
        assert!(failure.vertex.is_some());
        let excerpt = built
            .error()
            .render_excerpt()
            .unwrap()
            .replace(&builder.base(), "BASE");
        insta::allow_duplicates! {
            insta::assert_snapshot!(excerpt, @r"
            Dockerfile:2
            --------------------
               1 |     FROM BASE
               2 | >>> RUN echo one && \
               3 | >>>     echo two && \
               4 | >>>     exit 7
               5 |     RUN true
            --------------------
            ");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn syntax_error_shows_its_line() {
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE\nRUNN true\n")]);
        let built = builder.build(builder.request(&dir)).await;
        assert!(
            built.error().to_string().contains("unknown instruction"),
            "{}",
            built.error()
        );
        assert!(
            built
                .error()
                .render_excerpt()
                .unwrap()
                .contains(">>> RUNN true")
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_frontend_is_named() {
    on_each(async |builder| {
        let image = format!("{}/absent/frontend:9", builder.registry);
        let dir = context(builder, &[("Dockerfile", &format!("# syntax={image}\nFROM BASE\n"))]);
        let built = builder.build(builder.request(&dir)).await;
        assert!(matches!(built.error(), BuildError::HelperImage { image: named, .. } if *named == image), "{:?}", built.error());
        assert!(built.error().help().unwrap().contains("remove the `# syntax=` line"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_scanner_is_named() {
    on_each(async |builder| {
        let dir = context(builder, &[("Dockerfile", "FROM BASE\nRUN true\n")]);
        let scanner = format!("{}/absent/scanner:1", builder.registry);
        let mut request = builder.request(&dir);
        request.sbom = Some(format!("generator={scanner}"));
        let built = builder.build(request).await;
        assert!(
            matches!(built.error(), BuildError::HelperImage { image, .. } if *image == scanner),
            "{:?}",
            built.error()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_secret_fails_the_step() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[(
                "Dockerfile",
                "FROM BASE\nRUN --mount=type=secret,id=absent,required=true true\n",
            )],
        );
        let built = builder.build(builder.request(&dir)).await;
        assert!(
            built.error().to_string().contains("absent"),
            "{}",
            built.error()
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn canceled_build_stops_before_its_command_ends() {
    on_each(async |builder| {
        let dir = context(
            builder,
            &[("Dockerfile", "FROM BASE\nRUN echo started && sleep 600\n")],
        );
        let cancel = CancellationToken::new();
        let mut canceled_at = None;
        let trigger = cancel.clone();
        let built = builder
            .build_until(builder.request(&dir), cancel, |event| {
                if matches!(event, BuildEvent::Log(log) if log.bytes.starts_with(b"started")) {
                    canceled_at = Some(Instant::now());
                    trigger.cancel();
                }
            })
            .await;
        assert!(
            matches!(built.error(), BuildError::Canceled),
            "{:?}",
            built.error()
        );
        let took = canceled_at.expect("the step had started").elapsed();
        assert!(took < Duration::from_secs(10), "took {took:?}");
    })
    .await;
}

#[tokio::test]
async fn unreachable_address_is_named() {
    for url in [
        "unix:///absent/buildkitd.sock",
        "tcp://127.0.0.1:1",
        "docker:///absent/docker.sock",
    ] {
        let error = Client::connect(Endpoint::parse(url).unwrap())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot connect to BuildKit at {url}")
        );
        assert!(std::error::Error::source(&error).is_some());
    }
}
