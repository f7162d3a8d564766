//! Tests with a PostgreSQL that disappears silently: sent bytes get lost, and connections stay
//! open.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Instant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// Copies bytes until `lost` is set. Afterwards the connection copies nothing.
async fn copy_until_lost(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    lost: Arc<AtomicBool>,
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if lost.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

/// Starts a proxy to `server` that can lose all bytes. Returns its port.
async fn start_proxy(server: String, lost: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&server).await.unwrap();
            let (near, far) = (near.into_split(), far.into_split());
            tokio::spawn(copy_until_lost(near.0, far.1, lost.clone()));
            tokio::spawn(copy_until_lost(far.0, near.1, lost.clone()));
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_time_out_if_database_disappears() {
    let Ok(server) = std::env::var("ACRTASK_TEST_POSTGRES") else {
        assert!(std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok());
        return;
    };
    let options = PgConnectOptions::from_str(&server).unwrap();
    let name = format!("acrtask_test_gone_{}", std::process::id());
    let mut admin = PgConnection::connect_with(&options).await.unwrap();
    let execute = async |admin: &mut PgConnection, text: String| {
        sqlx::query(AssertSqlSafe(text))
            .execute(admin)
            .await
            .unwrap();
    };
    execute(&mut admin, format!("CREATE DATABASE {name}")).await;
    let lost = Arc::new(AtomicBool::new(false));
    let address = format!("{}:{}", options.get_host(), options.get_port());
    let port = start_proxy(address, lost.clone()).await;
    let url = format!("postgres://postgres@127.0.0.1:{port}/{name}");
    let db = open_postgres(&url, Duration::from_secs(3)).await.unwrap();

    // Every connection waits for a result when the database disappears.
    const SLOW: &str = "SELECT CAST(1 AS BIGINT) FROM pg_sleep(1)";
    let waiting: Vec<_> = (0..10)
        .map(|number| {
            let db = db.clone();
            tokio::spawn(async move {
                if number % 2 == 0 {
                    return db.fetch_all::<(i64,)>(SLOW, Vec::new()).await;
                }
                let mut tx = db.begin().await?;
                tx.fetch_all::<(i64,)>(SLOW, Vec::new()).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    lost.store(true, Ordering::SeqCst);
    for one in waiting {
        let failed = tokio::time::timeout(Duration::from_secs(20), one).await;
        let error = failed
            .expect("the statement waits forever")
            .unwrap()
            .unwrap_err();
        assert!(error.is_unavailable(), "{error:?}");
    }

    // New connections succeed when it is back: no slot of the pool was lost.
    lost.store(false, Ordering::SeqCst);
    let back = Instant::now();
    let ping = || async {
        db.fetch_all::<(i64,)>("SELECT CAST(1 AS BIGINT)", Vec::new())
            .await
    };
    while let Err(error) = ping().await {
        assert!(back.elapsed() < Duration::from_secs(20), "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = futures::future::join_all((0..10).map(|_| ping())).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    drop(db);
    execute(&mut admin, format!("DROP DATABASE {name} WITH (FORCE)")).await;
}
