//! The listener: protocols, TLS, health checks and shutdown.

use std::time::Duration;

use acrtask_server::{
    Config,
    serve::{ServeError, TlsFiles, start},
};
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::{
    support::{FakeRunner, enqueue, new_run},
    test_db::TestDb,
};

fn new_http_client() -> reqwest::ClientBuilder {
    acrtask_registry::install_crypto_provider();
    reqwest::Client::builder().timeout(Duration::from_secs(10))
}

#[tokio::test]
async fn plain_http_beyond_loopback_requires_allow_plaintext() {
    let db = TestDb::sqlite();
    let mut options = db.options(Config::default());
    options.listen = "0.0.0.0:0".parse().unwrap();
    let refused = start(options.clone()).await.unwrap_err();
    assert!(matches!(refused, ServeError::Plaintext(_)));
    options.allow_plaintext = true;
    let server = start(options).await.unwrap();
    assert_ne!(server.addr().port(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_is_served_on_one_port() {
    let db = TestDb::sqlite();
    let server = db.start_server(Config::default()).await;
    let url = |path: &str| format!("http://{}{path}", server.addr());
    for client in [new_http_client(), new_http_client().http2_prior_knowledge()] {
        let client = client.build().unwrap();
        for (path, text) in [("/healthz", "alive\n"), ("/readyz", "ready\n")] {
            let response = client.get(url(path)).send().await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.text().await.unwrap(), text);
        }
    }
    // The same port also serves gRPC.
    let runner = FakeRunner::register(&server, "one").await.with_slots(3);
    let mut stream = runner.connect(&server).await;
    enqueue(server.app(), new_run("rone")).await;
    enqueue(server.app(), {
        let mut run = new_run("rtwo");
        run.queue.pool = Some("far".into());
        run
    })
    .await;
    stream.receive_lease().await;
    let client = new_http_client().build().unwrap();
    let text = client.get(url("/metrics")).send().await.unwrap();
    assert_eq!(
        text.headers()["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = text.text().await.unwrap();
    for expected in [
        "acrtask_queue_runs{pool=\"default\",state=\"leased\"} 1",
        "acrtask_queue_runs{pool=\"far\",state=\"queued\"} 1",
        "acrtask_runners{pool=\"default\"} 1",
        "acrtask_runner_slots{pool=\"default\"} 3",
        "acrtask_runner_slots_busy{pool=\"default\"} 1",
        "acrtask_unaccounted_triggers 0",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected} in {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_serves_http1_and_http2() {
    let db = TestDb::sqlite();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: db.folder().join("cert.pem"),
        key: db.folder().join("key.pem"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    let mut options = db.options(Config::default());
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
        (new_http_client(), http::Version::HTTP_2),
        (new_http_client().http1_only(), http::Version::HTTP_11),
    ] {
        let client = client
            .tls_certs_only([root.clone()])
            .resolve("localhost", server.addr())
            .build()
            .unwrap();
        let response = client.get(format!("{url}/healthz")).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.version()),
            (200, version)
        );
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
async fn server_shuts_down_quickly_and_frees_its_address() {
    let db = TestDb::sqlite();
    let server = db.start_server(Config::default()).await;
    let runner = FakeRunner::register(&server, "one").await;
    let mut stream = runner.connect(&server).await;
    let mut options = db.options(Config::default());
    options.listen = server.addr();
    // A connection that sends no request.
    let _idle = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    let started = std::time::Instant::now();
    server.shutdown().await;
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    stream.receive_end().await;
    let server = start(options).await.unwrap();
    let mut stream = runner.connect(&server).await;
    enqueue(server.app(), new_run("rone")).await;
    stream.execute_next_lease().await;
}
