//! `examples/one-to-many`: from one machine to many, as the README has it, step by step.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use acrtask_tests::{World, checkout};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

mod common;
use common::{law_holds, postgres};

#[tokio::test]
async fn from_one_machine_to_many() {
    let Some(world) = World::find() else { return };
    let Some(database) = postgres().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority
        .distinguished_name
        .push(DnType::CommonName, "authority of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let server = server.signed_by(&key, &authority).unwrap();
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    std::fs::write(path("cert.pem"), server.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let programs = world.program().parent().unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new(checkout().join("examples/one-to-many/steps.sh"))
        .env("PATH", search)
        .env("REGISTRY", &world.registry)
        .env("DATABASE", &database)
        .env("CERT", path("cert.pem"))
        .env("KEY", path("key.pem"))
        .env("CA", path("ca.pem"))
        .env("DIR", folder.path())
        .env_remove("ACRTASK_SERVER")
        .env_remove("ACRTASK_TOKEN")
        .output()
        .unwrap();
    let printed = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{printed}");
    // Steps 3 and 5 run the same task, once on each service.
    assert_eq!(printed.matches("hello from hello").count(), 4, "{printed}");
    assert!(
        printed.contains("runner1") && printed.contains("runner2"),
        "{printed}"
    );
    law_holds(&database).await;
    // What the README shows is what was run.
    let readme = std::fs::read_to_string(checkout().join("README.md")).unwrap();
    let script = std::fs::read_to_string(checkout().join("examples/one-to-many/steps.sh")).unwrap();
    let shown = readme
        .split("<!-- steps -->")
        .nth(1)
        .expect("the README shows the steps");
    let shown = shown.split("\n## ").next().unwrap_or_default();
    let shown = shown
        .lines()
        .filter(|line| line.starts_with("acrtask ") || line.starts_with("    acrtask "));
    for line in shown {
        let words: Vec<&str> = line.split_whitespace().take(3).collect();
        assert!(
            script.contains(&words.join(" ")),
            "the README shows what was not run: {line}"
        );
    }
}
