//! Opening of databases: empty, shared, newer than the program, and unreachable.

use acrtask_store::{Store, StoreError, check_database_exists, snapshot_sqlite};

use crate::support::{
    Database, NOW, TestDb, empty_postgres, empty_sqlite, new_run, on_both, run_id,
};

on_both!(
    reopened_database_contains_written_rows,
    newer_database_is_rejected,
    manually_changed_migrations_are_rejected
);

async fn reopened_database_contains_written_rows(db: &TestDb) {
    let written = db.enqueue("one", NOW).await;
    let again = Store::open(&db.url).await.unwrap();
    again.ping().await.unwrap();
    assert_eq!(again.run(&written.id).await.unwrap(), written);
}

async fn newer_database_is_rejected(db: &TestDb) {
    let checksum = if db.store.is_postgres() {
        "'\\x00'"
    } else {
        "x'00'"
    };
    db.execute(&format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'from the future', TRUE, {checksum}, 0)"
    ))
    .await;
    let error = Store::open(&db.url).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 9999, supported } if supported < 9999),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("newer than this program"),
        "{error}"
    );
}

async fn manually_changed_migrations_are_rejected(db: &TestDb) {
    let checksum = if db.store.is_postgres() {
        "'\\x00'"
    } else {
        "x'00'"
    };
    db.execute(&format!(
        "UPDATE _sqlx_migrations SET checksum = {checksum}"
    ))
    .await;
    let error = Store::open(&db.url).await.unwrap_err();
    assert!(matches!(error, StoreError::Database(_)), "{error:?}");
}

async fn open_concurrently(url: &str) {
    let opened = (0..6).map(|_| {
        let url = url.to_owned();
        tokio::spawn(async move { Store::open(&url).await })
    });
    let opened: Vec<_> = opened.collect();
    for (number, store) in opened.into_iter().enumerate() {
        let store = store.await.unwrap().unwrap();
        let new = new_run(&format!("run-{number}"));
        store.enqueue(new, NOW).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_sqlite_is_opened_concurrently() {
    let (url, _database) = empty_sqlite();
    open_concurrently(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_postgres_is_opened_concurrently() {
    if let Some((url, _database)) = empty_postgres().await {
        open_concurrently(&url).await;
    }
}

#[tokio::test]
async fn closed_sqlite_file_contains_all_data() {
    let (url, _database) = empty_sqlite();
    let store = Store::open(&url).await.unwrap();
    let row = store.enqueue(new_run("one"), NOW).await.unwrap().into_row();
    store.close().await.unwrap();
    let file = std::path::PathBuf::from(url.trim_start_matches("sqlite:"));
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("copy.db");
    std::fs::copy(&file, &copy).unwrap();
    let copied = Store::open(&format!("sqlite:{}", copy.display()))
        .await
        .unwrap();
    assert_eq!(copied.run(&row.id).await.unwrap(), row);
    Store::open("sqlite::memory:")
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
}

#[tokio::test]
async fn snapshot_contains_the_log_of_an_open_database() {
    let (url, _database) = empty_sqlite();
    let store = Store::open(&url).await.unwrap();
    let row = store.enqueue(new_run("one"), NOW).await.unwrap().into_row();
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("copy.db");
    snapshot_sqlite(&url, &copy).await.unwrap();
    store.enqueue(new_run("two"), NOW).await.unwrap();
    let copied = Store::open(&format!("sqlite:{}", copy.display()))
        .await
        .unwrap();
    assert_eq!(copied.run(&row.id).await.unwrap(), row);
    assert!(copied.run(&run_id("two")).await.is_err());
    let missing = format!("sqlite:{}/none.db", elsewhere.path().display());
    let again = elsewhere.path().join("again.db");
    let error = snapshot_sqlite(&missing, &again).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    assert!(check_database_exists(&missing).is_err());
    assert!(check_database_exists(&url).is_ok());
}

#[tokio::test]
async fn memory_database_works() {
    let store = Store::open("sqlite::memory:").await.unwrap();
    let row = store.enqueue(new_run("one"), NOW).await.unwrap().into_row();
    assert_eq!(store.run(&row.id).await.unwrap(), row);
}

#[tokio::test]
async fn errors_distinguish_invalid_and_unreachable_databases() {
    for url in ["mysql://x", "nothing", "postgres:///\u{0}?sslmode=perhaps"] {
        let error = Store::open(url).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Invalid { .. }),
            "{url}: {error:?}"
        );
    }
    let error = Store::open("postgres://none@127.0.0.1:1/none")
        .await
        .unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/no/such/folder/x.db", folder.path().display());
    assert!(Store::open(&url).await.is_err());
}

/// Responds like a PostgreSQL without TLS, or like an attacker that removes TLS. Returns the port,
/// and the bytes that the client sends after the response.
async fn without_tls() -> (u16, tokio::task::JoinHandle<Vec<u8>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(b"N").await.unwrap();
        let mut rest = Vec::new();
        let reading = stream.read_to_end(&mut rest);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), reading).await;
        rest
    });
    (port, seen)
}

#[tokio::test]
async fn postgres_connection_is_not_downgraded() {
    for mode in ["require", "verify-ca", "verify-full"] {
        let (port, seen) = without_tls().await;
        let url = format!("postgres://acrtask:hunter2@127.0.0.1:{port}/x?sslmode={mode}");
        let error = Store::open(&url).await.unwrap_err();
        assert!(error.is_unavailable(), "{mode}: {error:?}");
        let text = format!("{error:?}");
        assert!(text.contains("TLS") && !text.contains("hunter2"), "{text}");
        assert_eq!(
            seen.await.unwrap(),
            b"",
            "{mode}: the client sent clear text"
        );
    }
}

#[tokio::test]
async fn remote_postgres_needs_a_named_protection() {
    for host in ["db.example.com", "10.1.2.3", "[fd00::1]"] {
        let url = format!("postgres://acrtask:hunter2@{host}/x");
        match Store::open(&url).await.unwrap_err() {
            StoreError::Invalid { what } => {
                assert!(what.contains("?sslmode=verify-full"), "{what}");
                assert!(!what.contains("hunter2"), "{what}");
            }
            other => panic!("{host}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_database_is_unavailable() {
    let Some((url, database)) = empty_postgres().await else {
        return;
    };
    let store = Store::open(&url).await.unwrap();
    store.ping().await.unwrap();
    // Dropping the database ends every session, like a server shutdown.
    drop::<Database>(database);
    let error = store.ping().await.unwrap_err();
    assert!(
        matches!(error, StoreError::Unavailable(_) | StoreError::Database(_)),
        "{error:?}"
    );
}
