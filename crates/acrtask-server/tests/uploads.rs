//! A test that uploads a large context over a real connection.
//!
//! The server streams a context of any size to storage and does not keep it in memory.
//! The test has its own binary, because it measures the memory of the whole process.

use std::sync::Arc;

use acrtask_api::run::Context;
use acrtask_server::{App, Config, api, auth, blobs::Blobs, clock::Clock, vault::Vault};
use acrtask_store::Store;
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;
const PARTS: usize = 3;
const PART_SIZE: usize = 48 * MIB;
/// Limit of the additional peak memory, in bytes.
const MAX_GROWTH: usize = 72 * MIB;

/// Returns the peak memory of this process, in bytes.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .expect("a number")
        * 1024
}

fn new_piece(index: usize) -> bytes::Bytes {
    bytes::Bytes::from(vec![u8::try_from(index % 251).expect("small"); MIB])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_context_is_streamed_to_storage() {
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
        Clock::system(),
    ));
    let token = auth::create_first_token(&app).await.unwrap().unwrap().0;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api/v1", listener.local_addr().unwrap());
    let router = api::router(app.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    acrtask_registry::install_crypto_provider();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();

    let mut hash = Sha256::new();
    let count = PARTS * PART_SIZE / MIB;
    (0..count).for_each(|index| hash.update(new_piece(index)));
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let before = peak_memory();
    let mut context: Context = client
        .post(format!("{base}/contexts"))
        .bearer_auth(&token)
        .json(&serde_json::json!({"size": PARTS * PART_SIZE, "digest": format!("sha256:{hex}")}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    while !context.complete {
        let first = usize::try_from(context.received).unwrap() / MIB;
        let pieces =
            (first..first + PART_SIZE / MIB).map(|index| Ok::<_, std::io::Error>(new_piece(index)));
        let response = client
            .patch(format!("{base}/contexts/{}", context.id))
            .bearer_auth(&token)
            .header("upload-offset", context.received)
            .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        context = response.json().await.unwrap();
    }
    let growth = peak_memory() - before;
    assert!(growth < MAX_GROWTH, "{} MiB more", growth / MIB);
    let row = app.store.context(&context.id).await.unwrap();
    let parts = app.store.context_parts(&context.id).await.unwrap();
    assert_eq!(parts.len(), PARTS);
    assert_eq!(row.received, (PARTS * PART_SIZE) as u64);
}
