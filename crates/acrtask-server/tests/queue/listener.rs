//! The listener itself: protocols, TLS, health, and its end.

use std::time::Duration;

use acrtask_server::{
    Config,
    serve::{ServeError, TlsFiles, start},
};
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::{
    place::Place,
    support::{FakeRunner, enqueue, new_run},
};

fn http() -> reqwest::ClientBuilder {
    acrtask_registry::install_crypto_provider();
    reqwest::Client::builder().timeout(Duration::from_secs(10))
}

#[tokio::test]
async fn plain_http_stays_on_the_machine() {
    let place = Place::sqlite();
    let mut options = place.options(Config::default());
    options.listen = "0.0.0.0:0".parse().unwrap();
    let refused = start(options.clone()).await.unwrap_err();
    assert!(matches!(refused, ServeError::Plaintext(_)));
    options.allow_plaintext = true;
    let server = start(options).await.unwrap();
    assert_ne!(server.addr().port(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_speaks_every_protocol() {
    let place = Place::sqlite();
    let server = place.server(Config::default()).await;
    let url = |path: &str| format!("http://{}{path}", server.addr());
    for client in [http(), http().http2_prior_knowledge()] {
        let client = client.build().unwrap();
        for (path, text) in [("/healthz", "alive\n"), ("/readyz", "ready\n")] {
            let answer = client.get(url(path)).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.text().await.unwrap(), text);
        }
    }
    // And gRPC beside it.
    let runner = FakeRunner::register(&server, "one").await.slots(3);
    let mut line = runner.connect(&server).await;
    enqueue(server.app(), new_run("rone")).await;
    enqueue(server.app(), {
        let mut run = new_run("rtwo");
        run.queue.pool = Some("far".into());
        run
    })
    .await;
    line.lease().await;
    let client = http().build().unwrap();
    let text = client.get(url("/metrics")).send().await.unwrap();
    assert_eq!(
        text.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = text.text().await.unwrap();
    for line in [
        "acrtask_queue_runs{pool=\"default\",state=\"leased\"} 1",
        "acrtask_queue_runs{pool=\"far\",state=\"queued\"} 1",
        "acrtask_runners{pool=\"default\"} 1",
        "acrtask_runner_slots{pool=\"default\"} 3",
        "acrtask_runner_slots_busy{pool=\"default\"} 1",
        "acrtask_unaccounted_triggers 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_offered_with_both_protocols() {
    let place = Place::sqlite();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: place.folder().join("cert.pem"),
        key: place.folder().join("key.pem"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    let mut options = place.options(Config::default());
    options.tls = Some(files.clone());
    let refused = start(options.clone()).await.unwrap_err();
    assert!(
        matches!(&refused, ServeError::Tls { file, .. } if *file == files.key),
        "{refused}"
    );
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let server = start(options).await.unwrap();
    let url = format!("https://localhost:{}", server.addr().port());
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    for (client, version) in [
        (http(), http::Version::HTTP_2),
        (http().http1_only(), http::Version::HTTP_11),
    ] {
        let client = client
            .tls_certs_only([root.clone()])
            .resolve("localhost", server.addr())
            .build()
            .unwrap();
        let answer = client.get(format!("{url}/healthz")).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
    }
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem()));
    let channel = tonic::transport::Channel::from_shared(url)
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = acrtask_proto::runner::runners_client::RunnersClient::new(channel);
    let refused = client.connect(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_soon_and_its_address_is_free_again() {
    let place = Place::sqlite();
    let server = place.server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut line = runner.connect(&server).await;
    let mut options = place.options(Config::default());
    options.listen = server.addr();
    // A connection that never asks for anything.
    let _idle = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    let begun = std::time::Instant::now();
    server.shutdown().await;
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    line.end().await;
    let server = start(options).await.unwrap();
    let mut line = runner.connect(&server).await;
    enqueue(server.app(), new_run("rone")).await;
    line.work().await;
}
