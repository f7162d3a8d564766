//! A large context over a real connection: it is streamed to its place, whatever its size, and never sits in memory.
//!
//! A binary of its own, because it looks at the memory of the whole process.

use std::sync::Arc;

use acrtask_api::run::Context;
use acrtask_server::{App, Config, api, auth, blobs::Blobs, clock::Clock, vault::Vault};
use acrtask_store::Store;
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;
const PARTS: usize = 3;
const PART: usize = 48 * MIB;
/// What the process may need beside what it needed before.
const MOST: usize = 72 * MIB;

/// The highest memory of this process so far, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .expect("a number")
        * 1024
}

fn piece(at: usize) -> bytes::Bytes {
    bytes::Bytes::from(vec![u8::try_from(at % 251).expect("small"); MIB])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_context_does_not_sit_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let store = Store::open(&format!("sqlite:{}", path("db")))
        .await
        .unwrap();
    let blobs = Blobs::open(&path("blobs")).unwrap();
    let vault = Vault::load_or_create(&folder.path().join("key")).unwrap();
    let app = Arc::new(App::new(
        Config::default(),
        store,
        blobs,
        vault,
        Clock::real(),
    ));
    let token = auth::bootstrap(&app).await.unwrap().unwrap().0;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api/v1", listener.local_addr().unwrap());
    let router = api::router(app.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    acrtask_registry::install_crypto_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();

    let mut hash = Sha256::new();
    let all = PARTS * PART / MIB;
    (0..all).for_each(|at| hash.update(piece(at)));
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let before = peak();
    let mut context: Context = client
        .post(format!("{base}/contexts"))
        .bearer_auth(&token)
        .json(&serde_json::json!({"size": PARTS * PART, "digest": format!("sha256:{hex}")}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    while !context.complete {
        let first = usize::try_from(context.received).unwrap() / MIB;
        let pieces = (first..first + PART / MIB).map(|at| Ok::<_, std::io::Error>(piece(at)));
        let answer = client
            .patch(format!("{base}/contexts/{}", context.id))
            .bearer_auth(&token)
            .header("upload-offset", context.received)
            .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        context = answer.json().await.unwrap();
    }
    let grown = peak() - before;
    assert!(grown < MOST, "{} MiB more", grown / MIB);
    let row = app.store.context(&context.id).await.unwrap();
    assert_eq!(row.parts.len(), PARTS);
    assert_eq!(row.received, (PARTS * PART) as u64);
}
