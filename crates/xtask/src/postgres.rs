//! A real PostgreSQL on loopback with its data in the cache, beside any service of the machine. The
//! programs are the machine's if it has them, otherwise Debian's, unpacked and not installed.
//!
//! PostgreSQL refuses to run as root, so root starts it in a user namespace where root has another
//! number. `postgres/bin` of the cache contains scripts named `initdb` and `postgres` that do so,
//! for tests that start an instance themselves. Each commit reaches the disk, so benchmarks are
//! realistic.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use crate::cache::{self, Cache, Lock};
use crate::process::{Service, log_tail, run_logged, start_detached, wait_until};
use crate::{packages, progress};

/// Packages of the server and of its libraries that a minimal Debian 12 lacks.
const PACKAGES: &[&str] = &[
    "postgresql-15",
    "libcom-err2",
    "libgssapi-krb5-2",
    "libicu72",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap-2.5-0",
    "libpq5",
    "libreadline8",
    "libsasl2-2",
    "libssl3",
    "libxml2",
];

/// Limit of connections. A test suite opens many pools at once.
const CONNECTIONS: u32 = 300;

/// A PostgreSQL that accepts connections.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// `postgres://postgres@127.0.0.1:PORT/postgres`.
    pub(crate) url: String,
    /// The folder with `initdb` and `postgres`.
    pub(crate) programs: PathBuf,
}

/// Returns the PostgreSQL that the user named, or the one in the cache. Starts the latter.
pub(crate) fn get(cache: &Cache, lock: &Lock) -> Result<Postgres> {
    let programs = programs(cache)?;
    let url = match named(cache) {
        Some(url) => {
            progress::report("the PostgreSQL of ACRTASK_TEST_POSTGRES is used as it is");
            url
        }
        None => own(cache, lock, &programs)?,
    };
    Ok(Postgres { url, programs })
}

/// Stops the PostgreSQL of the cache if it runs.
pub(crate) fn down(cache: &Cache, _lock: &Lock) -> Result<()> {
    let service = service(cache);
    let running = service.processes();
    if running.is_empty() {
        return Ok(());
    }
    // SIGINT ends sessions, too. SIGTERM alone would wait for them.
    for pid in running {
        let _ = kill(pid, Signal::SIGINT);
    }
    wait_until(Duration::from_secs(5), || service.processes().is_empty());
    service.stop(None, Duration::from_secs(5))?;
    progress::announce("Stopped PostgreSQL");
    Ok(())
}

/// Returns the PostgreSQL that the user named. Ignores the value that an earlier `up` printed.
fn named(cache: &Cache) -> Option<String> {
    let named = std::env::var("ACRTASK_TEST_POSTGRES").ok()?;
    let own = port_of_last_time(cache).map(url);
    Some(named).filter(|named| !named.is_empty() && Some(named) != own.as_ref())
}

fn own(cache: &Cache, _lock: &Lock, programs: &Path) -> Result<String> {
    let service = service(cache);
    let last_port = port_of_last_time(cache);
    if let Some(port) = last_port
        && !service.processes().is_empty()
        && answers(port)
    {
        progress::report(format!(
            "the PostgreSQL set up earlier runs at 127.0.0.1:{port}"
        ));
        return Ok(url(port));
    }
    service.stop(None, Duration::from_secs(5))?;
    let data = data(cache);
    let log = cache.dir("logs")?.join("initdb.log");
    if !data.is_dir() {
        progress::announce(format!("Making a PostgreSQL in {}", data.display()));
        let partial = cache.path("postgres/data.partial");
        cache::remove_tree(&partial)?;
        run_logged(
            Command::new(programs.join("initdb"))
                .args(["--username=postgres", "--auth=trust"])
                .args(["--locale=C", "--encoding=UTF8", "--no-sync", "-D"])
                .arg(&partial),
            &log,
        )
        .context(
            "cannot make a PostgreSQL (set ACRTASK_TEST_POSTGRES to the URL of one to use that)",
        )?;
        fs::rename(&partial, &data)
            .with_context(|| format!("cannot rename {}", partial.display()))?;
    }
    let port = free_port(last_port)?;
    progress::announce(format!("Starting PostgreSQL at 127.0.0.1:{port}"));
    cache::write_whole(&cache.path("postgres/port"), &format!("{port}\n"))?;
    let log = cache.dir("logs")?.join("postgres.log");
    let mut command = Command::new("setsid");
    command
        .arg(programs.join("postgres"))
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-k", ""])
        .args(["-c", "listen_addresses=127.0.0.1"])
        .args(["-c", &format!("max_connections={CONNECTIONS}")])
        // The compiler of queries is a separate library, which is not unpacked.
        .args(["-c", "jit=off"]);
    let mut child = start_detached(command, &log)?;
    let mut ended = None;
    // Long enough for recovery after a kill.
    wait_until(Duration::from_secs(180), || {
        ended = child.try_wait().ok().flatten();
        ended.is_some() || answers(port)
    });
    if ended.is_some() || !answers(port) {
        bail!(
            "PostgreSQL at 127.0.0.1:{port} did not start; the end of {}:\n{}",
            log.display(),
            log_tail(&log, 10)
        );
    }
    Ok(url(port))
}

fn service(cache: &Cache) -> Service {
    Service {
        mark: data(cache).display().to_string(),
        programs: &["postgres"],
    }
}

fn data(cache: &Cache) -> PathBuf {
    cache.path("postgres/data")
}

fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

fn port_of_last_time(cache: &Cache) -> Option<u16> {
    let text = fs::read_to_string(cache.path("postgres/port")).ok()?;
    text.trim().parse().ok()
}

/// Returns `preferred` if it is free, otherwise any free port.
fn free_port(preferred: Option<u16>) -> Result<u16> {
    let preferred = preferred.and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let listener = preferred.map_or_else(|| TcpListener::bind(("127.0.0.1", 0)), Ok);
    let address = listener.and_then(|listener| listener.local_addr());
    Ok(address.context("no port of 127.0.0.1 is free")?.port())
}

/// Returns `true` if a PostgreSQL accepts sessions: its first message is `R`, authentication.
fn answers(port: u16) -> bool {
    const HELLO: &[u8] = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let limit = Duration::from_secs(5);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let ask = || -> std::io::Result<u8> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(HELLO)?;
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        Ok(kind[0])
    };
    ask().is_ok_and(|kind| kind == b'R')
}

/// Returns the folder of the scripts `initdb` and `postgres`, which work for root, too.
fn programs(cache: &Cache) -> Result<PathBuf> {
    let (found, libraries) = match installed() {
        Some(found) => (found, None),
        None => {
            let root = packages::unpacked(
                cache,
                "postgres",
                PACKAGES,
                "ACRTASK_TEST_POSTGRES to the URL of a PostgreSQL",
            )?;
            let found = newest(&root.join("usr/lib/postgresql"))
                .context("Debian's package of PostgreSQL holds no server")?;
            (found, Some(packages::libraries(&root)?))
        }
    };
    let folder = cache.dir("postgres/bin")?;
    for program in ["initdb", "postgres"] {
        let path = folder.join(program);
        let text = script(&found.join(program), libraries.as_deref());
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        cache::write_whole(&path, &text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", path.display()))?;
    }
    Ok(folder)
}

fn script(program: &Path, libraries: Option<&str>) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let libraries = libraries.map_or_else(String::new, |path| {
        format!("export LD_LIBRARY_PATH={}\n", quoted(path))
    });
    let program = quoted(&program.to_string_lossy());
    format!(
        "#!/bin/sh\n# PostgreSQL refuses to run as root: where we are root, we are called otherwise.\n{libraries}\
         if [ \"$(id -u)\" = 0 ]; then\n  \
         exec unshare --user --map-user=65534 --map-group=65534 -- {program} \"$@\"\nfi\n\
         exec {program} \"$@\"\n"
    )
}

fn installed() -> Option<PathBuf> {
    newest(Path::new("/usr/lib/postgresql"))
}

/// Returns the folder `VERSION/bin` of the highest version that has a server.
fn newest(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
            let programs = path.join("bin");
            let whole = ["initdb", "postgres"]
                .iter()
                .all(|program| programs.join(program).is_file());
            whole.then_some((version, programs))
        })
        .max()
        .map(|(_, programs)| programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_quote_their_paths() {
        let text = script(Path::new("/a b/it's/postgres"), Some("/lib"));
        assert!(
            text.contains(r"exec '/a b/it'\''s/postgres' "),
            "unexpected script:\n{text}"
        );
        assert!(text.contains("export LD_LIBRARY_PATH='/lib'\n"));
    }

    #[test]
    fn the_newest_whole_version_is_taken() {
        let base = std::env::temp_dir().join(format!("xtask-postgres-{}", std::process::id()));
        for (version, programs) in [
            ("9", &["initdb", "postgres"][..]),
            ("15", &["initdb", "postgres"]),
            ("17", &["psql"]),
        ] {
            let folder = base.join(version).join("bin");
            fs::create_dir_all(&folder).unwrap();
            for program in programs {
                fs::write(folder.join(program), "").unwrap();
            }
        }
        assert_eq!(newest(&base), Some(base.join("15/bin")));
        fs::remove_dir_all(base).unwrap();
    }
}
