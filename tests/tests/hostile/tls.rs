//! Servers behind TLS with valid and invalid certificates. Clients and runners must refuse the
//! invalid ones and send nothing to them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use acrtask_tests::{TestEnvironment, project, service::free_port};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

/// Token that no server accepts. A server that rejects it has received it.
const TOKEN: &str = "acrt_0000000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = project::create_folder(&[("ca.pem", &issuer.pem())]);
        Self { issuer, folder }
    }

    fn file(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    /// Writes a certificate for `name`, valid until the end of `year`, and its key.
    fn issue(&self, folder: &Path, name: &str, year: i32) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = [
            ("cert.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ];
        files.map(|(file, text)| {
            project::write_file(folder, file, &text);
            folder.join(file).display().to_string()
        })
    }
}

#[test]
fn clients_and_runners_refuse_servers_they_cannot_trust() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let (own, other) = (Authority::new(), Authority::new());
    for (what, name, year, trusted, fine) in [
        ("valid", "localhost", 2040, &own, true),
        ("of another authority", "localhost", 2040, &other, false),
        ("for another name", "ci.example.com", 2040, &own, false),
        ("expired", "localhost", 2020, &own, false),
    ] {
        let files = tempfile::tempdir().unwrap();
        let [cert, key] = own.issue(files.path(), name, year);
        let port = free_port();
        let (listen, url) = (
            format!("127.0.0.1:{port}"),
            format!("https://localhost:{port}"),
        );
        let folder = files.path().display().to_string();
        let data = format!("{folder}/data");
        let serve = [
            "serve",
            "--listen",
            &listen,
            "--data-dir",
            &data,
            "--no-runner",
        ];
        let tls = ["--tls-cert", &cert, "--tls-key", &key];
        let server = environment.start_plain(files.path(), &[&serve[..], &tls[..]].concat(), &[]);
        server.wait_for("acrt_");
        let ca = trusted.file();
        let client = |args: &[&str], url: &str, ca: Option<&str>| {
            let mut variables = vec![
                ("ACRTASK_SERVER", url),
                ("ACRTASK_TOKEN", TOKEN),
                ("XDG_CONFIG_HOME", folder.as_str()),
            ];
            variables.extend(ca.map(|ca| ("ACRTASK_CA", ca)));
            let begun = Instant::now();
            let outcome = environment
                .start_plain(files.path(), args, &variables)
                .wait();
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{what}: {}",
                outcome.transcript()
            );
            outcome
        };
        let listed = client(&["task", "list"], &url, Some(&ca));
        assert_ne!(listed.code, Some(0), "{what}: {}", listed.transcript());
        let expected = if fine { "token" } else { "certificate" };
        assert!(
            listed.stderr.contains(expected),
            "{what}: {}",
            listed.transcript()
        );
        // Neither the authorities of the system nor plain HTTP may succeed.
        let listed = client(&["task", "list"], &url, None);
        assert!(
            listed.stderr.contains("certificate"),
            "{what}: {}",
            listed.transcript()
        );
        let clear = url.replace("https", "http");
        let listed = client(&["task", "list"], &clear, None);
        assert_ne!(listed.code, Some(0), "{what}: {}", listed.transcript());

        if !fine {
            let token = files.path().join("token");
            std::fs::write(&token, "acrr_nothing_nothing").unwrap();
            let args = [
                "runner",
                "start",
                "--token-file",
                token.to_str().unwrap(),
                "--state-dir",
                &format!("{folder}/state"),
            ];
            let running = environment.start_plain(
                files.path(),
                &args,
                &[("ACRTASK_SERVER", &url), ("ACRTASK_CA", &ca)],
            );
            running.wait_for("certificate");
            running.signal("KILL");
            running.wait();
        }
        server.signal("KILL");
        server.wait();
    }
}
