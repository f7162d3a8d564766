//! A separate database for each test, and common steps of tests.

use acrtask_api::{
    run::RunResult,
    spec::RunSpec,
    task::{Concurrency, QueueOptions},
};
use acrtask_model::{Principal, RunId, RunState, TrustDomain};
use acrtask_store::{
    AttemptReport, Claim, Ms, NewRun, NewRunner, Report, RunRow, RunnerTokenRow, Store, Verdict,
};
use sqlx::{ConnectOptions, Connection, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};
use std::str::FromStr;

pub(crate) const LEASE: i64 = 30_000;
pub(crate) const ACCEPT: i64 = 15_000;
/// Start time of the tests.
pub(crate) const NOW: Ms = 1_780_000_000_000;

/// Creates one test per database from a function that takes a [`TestDb`].
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn sqlite() {
                    super::$name(&crate::support::TestDb::sqlite().await).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn postgres() {
                    if let Some(db) = crate::support::TestDb::postgres().await {
                        super::$name(&db).await;
                    }
                }
            }
        )*
    };
}
pub(crate) use on_both;

/// An empty database with up-to-date tables.
pub(crate) struct TestDb {
    pub(crate) store: Store,
    pub(crate) url: String,
    _database: Database,
}

/// A database that is removed on drop.
pub(crate) enum Database {
    Folder(#[expect(dead_code, reason = "removed when dropped")] tempfile::TempDir),
    Postgres { server: String, name: String },
}

impl Drop for Database {
    fn drop(&mut self) {
        let Self::Postgres { server, name } = self else {
            return;
        };
        let (server, name) = (server.clone(), name.clone());
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(execute_as_admin(
                &server,
                format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
            ));
        });
        let _ = removed.join();
    }
}

async fn execute_as_admin(server: &str, sql: String) {
    let options = PgConnectOptions::from_str(server).unwrap();
    let mut connection = options.connect().await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

/// Creates an empty database. Returns `None` if tests that need a server are disabled.
pub(crate) async fn empty_postgres() -> Option<(String, Database)> {
    let Ok(server) = std::env::var("ACRTASK_TEST_POSTGRES") else {
        assert!(
            std::env::var("ACRTASK_TEST_SKIP_ENGINE").is_ok(),
            "ACRTASK_TEST_POSTGRES does not name a PostgreSQL: run `cargo xtask test`, or \
             `eval \"$(cargo xtask env)\"` before this, or set ACRTASK_TEST_SKIP_ENGINE to leave these tests out"
        );
        return None;
    };
    let name = format!("acrtask_test_{:016x}", rand::random::<u64>());
    // Names are compared by bytes, whatever the locale of the database is. This locale ignores
    // punctuation.
    let locale = "TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'en-u-ka-shifted'";
    execute_as_admin(&server, format!("CREATE DATABASE {name} {locale}")).await;
    let (before, _) = server.rsplit_once('/').unwrap();
    let url = format!("{before}/{name}");
    Some((url, Database::Postgres { server, name }))
}

pub(crate) fn empty_sqlite() -> (String, Database) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("acrtask.db").display());
    (url, Database::Folder(folder))
}

impl TestDb {
    pub(crate) async fn sqlite() -> Self {
        Self::open(empty_sqlite()).await
    }

    pub(crate) async fn postgres() -> Option<Self> {
        Some(Self::open(empty_postgres().await?).await)
    }

    async fn open((url, database): (String, Database)) -> Self {
        Self {
            store: Store::open(&url).await.unwrap(),
            url,
            _database: database,
        }
    }

    /// Opens a PostgreSQL session in addition to those of the store.
    pub(crate) async fn connect(&self) -> sqlx::PgConnection {
        let options = PgConnectOptions::from_str(&self.url).unwrap();
        options.connect().await.unwrap()
    }

    /// Executes a statement that the store has no function for.
    pub(crate) async fn execute(&self, sql: &str) -> u64 {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        if self.store.is_postgres() {
            let mut connection = self.connect().await;
            let done = sqlx::query(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            done.rows_affected()
        } else {
            let options = SqliteConnectOptions::from_str(&self.url).unwrap();
            let mut connection = options.connect().await.unwrap();
            let done = sqlx::query(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            done.rows_affected()
        }
    }

    /// Adds a queued run.
    pub(crate) async fn enqueue(&self, id: &str, now: Ms) -> RunRow {
        self.store
            .enqueue(new_run(id), now)
            .await
            .unwrap()
            .into_row()
    }

    /// Claims up to `limit` ready runs for one runner.
    pub(crate) async fn claim(&self, runner: &str, limit: u32, now: Ms) -> Vec<RunRow> {
        let requirements = self.store.ready_requirements().await.unwrap();
        let requirements: Vec<i64> = requirements
            .iter()
            .map(|requirement| requirement.id)
            .collect();
        self.store
            .claim(&requirements, limit, now, LEASE, ACCEPT, |candidates| {
                candidates
                    .iter()
                    .map(|candidate| Claim {
                        run: candidate.id.clone(),
                        runner_id: runner.into(),
                    })
                    .collect()
            })
            .await
            .unwrap()
    }

    /// Adds a run that runs at its first attempt on the runner `a`.
    pub(crate) async fn start_run(&self, id: &str, now: Ms) -> RunRow {
        self.enqueue(id, now).await;
        let claimed = self.claim("a", 1, now).await;
        assert_eq!(claimed[0].id.as_str(), id);
        self.report_all(
            "a",
            &claimed[0],
            now,
            vec![Report::Accepted, Report::Started],
        )
        .await;
        self.store.run(&run_id(id)).await.unwrap()
    }

    pub(crate) async fn report_all(
        &self,
        runner: &str,
        run: &RunRow,
        now: Ms,
        reports: Vec<Report>,
    ) -> Vec<Verdict> {
        let batch: Vec<AttemptReport> = reports
            .into_iter()
            .map(|report| AttemptReport {
                run: run.id.clone(),
                attempt: run.attempt,
                runner_id: runner.into(),
                report,
            })
            .collect();
        self.store.report(&batch, now, LEASE).await.unwrap()
    }

    pub(crate) async fn report(
        &self,
        runner: &str,
        run: &RunRow,
        now: Ms,
        report: Report,
    ) -> Verdict {
        self.report_all(runner, run, now, vec![report])
            .await
            .remove(0)
    }

    pub(crate) async fn run_state(&self, id: &str) -> RunState {
        self.store.run(&run_id(id)).await.unwrap().state
    }

    /// Registers a runner.
    pub(crate) async fn register_runner(&self, id: &str, name: &str) {
        let token = RunnerTokenRow {
            id: format!("token-of-{id}"),
            hash: vec![1],
            pool: None,
            labels: Default::default(),
            max_slots: None,
            tasks: None,
            created_at: NOW,
            expires_at: NOW + 1000,
        };
        self.store.create_runner_token(&token).await.unwrap();
        let runner = NewRunner {
            id: id.into(),
            name: name.into(),
            key_hash: vec![2],
        };
        self.store
            .register_runner(&token.id, &runner, NOW)
            .await
            .unwrap();
    }
}

/// Returns the owner of the contexts of tests.
pub(crate) fn context_owner() -> Principal {
    Principal::Token { id: "t1".into() }
}

pub(crate) fn run_id(id: &str) -> RunId {
    RunId::new(id).unwrap()
}

pub(crate) fn new_run(id: &str) -> NewRun {
    NewRun {
        id: run_id(id),
        task_id: None,
        task_name: None,
        spec: RunSpec::default(),
        queue: QueueOptions::default(),
        platform: "linux/amd64".into(),
        context_id: None,
        secrets: None,
        trigger: "manual".into(),
        requested_by: Some("ann".into()),
        rerun_of: None,
        idempotency_key: None,
        timeout_secs: None,
        traceparent: String::new(),
        affinity_key: "warm".into(),
        max_attempts: 3,
        origin: Default::default(),
        trust_domain: TrustDomain::Local,
    }
}

pub(crate) fn grouped(id: &str, group: &str, max: u32, cancel_superseded: bool) -> NewRun {
    let mut new = new_run(id);
    new.queue.concurrency = Some(Concurrency {
        group: Some(group.into()),
        max,
        cancel_superseded,
    });
    new
}

pub(crate) fn log_chunk(offset: u64, length: u32) -> Report {
    Report::LogChunk {
        offset,
        length,
        blob: format!("logs/x/{offset}"),
    }
}

pub(crate) fn finished_report(state: RunState, log_length: u64) -> Report {
    Report::Finished {
        state,
        reason: (state != RunState::Succeeded).then(|| "a step failed".into()),
        result: Box::new(RunResult {
            vertices: 7,
            ..RunResult::default()
        }),
        log_length,
        log_sha256: "ab".repeat(32),
    }
}

pub(crate) fn run_ids(rows: &[RunRow]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}
