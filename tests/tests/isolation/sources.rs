//! Sources of builds: no spelling of an address lets a build fetch from the loopback of the
//! builder's machine.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use acrtask_tests::{TestEnvironment, project::create_folder, service::TestServer};

/// Server on loopback that counts connections and returns the same small file to every request.
struct Trap {
    port: u16,
    connections: Arc<AtomicU32>,
}

impl Trap {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicU32::new(0));
        let counted = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    use std::io::{Read as _, Write as _};
                    let mut stream = stream;
                    let _ = stream.read(&mut [0; 4096]);
                    let answer =
                        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\ninside";
                    let _ = stream.write_all(answer.as_bytes());
                });
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Spellings of hosts that resolve to this machine.
const SPELLINGS: [&str; 10] = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "[::ffff:127.0.0.1]",
    "user:word@127.0.0.1",
];

#[test]
fn builds_fetch_nothing_from_the_loopback_of_the_builder() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &[]);
    let trap = Trap::start();
    let port = trap.port;
    let base = format!("FROM {}\n", environment.busybox());
    let mut dockerfiles: Vec<String> = SPELLINGS
        .iter()
        .map(|host| format!("{base}ADD http://{host}:{port}/x /x\n"))
        .collect();
    dockerfiles.extend([
        format!("ARG H=127.0.0.1\n{base}ARG H=127.0.0.1\nADD http://$H:{port}/x /x\n"),
        // The check of the Dockerfile does not understand this form, so the builder has to refuse
        // it.
        format!("{base}ARG H=127.0.0.1x\nADD http://${{H%x}}:{port}/x /x\n"),
        format!("{base}ADD http://127.0.0.1:{port}/a.git#main /x\n"),
        format!("{base}ADD ssh://git@127.0.0.1:{port}/a.git#main /x\n"),
        format!(
            "{base}ADD --checksum=sha256:{} http://127.0.0.1:{port}/x /x\n",
            "0".repeat(64)
        ),
    ]);
    let mut lines: Vec<String> = (0..dockerfiles.len())
        .map(|number| format!("-f D{number} ."))
        .collect();
    lines.extend([
        format!("http://127.0.0.1:{port}/context.tar.gz"),
        format!("http://localhost:{port}/a.git#main"),
        format!("-f DX --build-context far=http://127.0.0.1:{port}/x ."),
        format!("-f DX --build-context far=http://127.0.0.1:{port}/a.git#main ."),
        "--cache-from type=s3,region=eu,bucket=b -f DX .".to_owned(),
        "--cache-to type=gha -f DX .".to_owned(),
    ]);
    let mut task = "version: v1.1.0\nsteps:\n".to_owned();
    for (number, line) in lines.iter().enumerate() {
        task.push_str(&format!(
            "  - {{id: s{number}, build: \"{line}\", ignoreErrors: true, when: [\"-\"]}}\n"
        ));
    }
    let names: Vec<String> = (0..dockerfiles.len())
        .map(|number| format!("D{number}"))
        .collect();
    let copy = format!("{base}COPY --from=far / /far\n");
    let mut files = vec![("acr-task.yaml", task.as_str()), ("DX", copy.as_str())];
    files.extend(
        names
            .iter()
            .zip(&dockerfiles)
            .map(|(name, text)| (name.as_str(), text.as_str())),
    );
    let files = create_folder(&files);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    for (number, line) in lines.iter().enumerate() {
        let dockerfile = dockerfiles.get(number).map_or("", String::as_str);
        let state = outcome.step_state(&format!("s{number}"));
        assert_eq!(
            state,
            "failed",
            "{line}\n{dockerfile}\n{}",
            outcome.transcript()
        );
    }
    assert_eq!(trap.connections(), 0, "{}", outcome.transcript());
    // The builder itself refuses the forms that the check does not recognize.
    assert!(
        outcome.stdout.contains("denied by policy"),
        "{}",
        outcome.transcript()
    );
    assert!(
        outcome.stdout.contains("--allow-private-addresses"),
        "{}",
        outcome.transcript()
    );
}

#[test]
fn operator_can_allow_private_addresses_for_builds() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let server = TestServer::start(&environment, &["--allow-private-addresses"]);
    let trap = Trap::start();
    let dockerfile = format!(
        "FROM {}\nADD http://127.0.0.1:{}/x /x\nRUN cat /x\n",
        environment.busybox(),
        trap.port
    );
    let files = create_folder(&[
        ("Dockerfile", &dockerfile),
        (
            "acr-task.yaml",
            "version: v1.1.0\nsteps:\n  - {id: image, build: .}\n",
        ),
    ]);
    let outcome = server.run(files.path(), &["run", "-o", "json", "."]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    assert!(trap.connections() > 0, "{}", outcome.transcript());
}
