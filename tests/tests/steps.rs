//! Step-by-step examples of the documentation: `examples/one-to-many`, from one machine to many,
//! and `examples/patch-fleet`, a patched base.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{TestEnvironment, checkout, service::free_port};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

mod common;
use common::{assert_triggers_accounted, create_postgres_database};

#[tokio::test]
async fn example_one_to_many_runs_as_the_guide_shows() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(database) = create_postgres_database().await else {
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
    let programs = environment.program().parent().unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = environment
        .command_for(checkout().join("examples/one-to-many/steps.sh"))
        .env("PATH", search)
        .env("REGISTRY", &environment.registry)
        .env("DATABASE", &database)
        .env("CERT", path("cert.pem"))
        .env("KEY", path("key.pem"))
        .env("CA", path("ca.pem"))
        .env("DIR", folder.path())
        // The default ports may be in use on this machine.
        .env("ONE", free_port().to_string())
        .env("TWO", free_port().to_string())
        .env("THREE", free_port().to_string())
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
    assert_triggers_accounted(&database).await;
    // The script contains every command that the guide shows.
    let guide = std::fs::read_to_string(checkout().join("docs/getting-started.md")).unwrap();
    let script = std::fs::read_to_string(checkout().join("examples/one-to-many/steps.sh")).unwrap();
    let script = [("$ONE", "7070"), ("$TWO", "7071"), ("$THREE", "7072")]
        .iter()
        .fold(script, |script, (name, port)| script.replace(name, port));
    let shown = guide
        .split("<!-- steps -->")
        .nth(1)
        .expect("the guide shows the steps");
    let shown = shown.split("\n## ").next().unwrap_or_default();
    let shown = shown
        .lines()
        .filter(|line| line.starts_with("acrtask ") || line.starts_with("    acrtask "));
    for line in shown {
        let words: Vec<&str> = line.split_whitespace().take(3).collect();
        assert!(
            script.contains(&words.join(" ")),
            "the guide shows a command that the script lacks: {line}"
        );
    }
}

#[test]
fn example_patch_fleet_runs_as_the_readme_shows() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let programs = environment.program().parent().unwrap();
    let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = environment
        .command_for(checkout().join("examples/patch-fleet/steps.sh"))
        .env("PATH", search)
        .env("REGISTRY", &environment.registry)
        .env("DIR", folder.path())
        // The default ports may be in use on this machine.
        .env("PORT", free_port().to_string())
        .env("GIT_PORT", free_port().to_string())
        .output()
        .unwrap();
    let printed =
        String::from_utf8_lossy(&output.stdout).replace(&environment.registry, "reg.example.com");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{errors}");
    assert!(printed.contains("9 succeeded"), "{printed}");
    assert!(printed.contains("no image is stale"), "{printed}");
    // The output contains every line that the README shows, except for digests, times and runs.
    let readme = std::fs::read_to_string(checkout().join("README.md")).unwrap();
    let shown = readme
        .split("<!-- fleet -->")
        .nth(1)
        .expect("the README shows the fleet");
    let shown = shown.split("\n## ").next().unwrap_or_default();
    let blocks: Vec<&str> = shown.split("\n```\n").skip(1).step_by(2).collect();
    assert!(blocks.len() >= 3, "{shown}");
    let printed: Vec<String> = printed.lines().map(normalize).collect();
    for line in blocks.iter().flat_map(|block| block.lines()) {
        let line = normalize(line);
        assert!(
            printed.contains(&line),
            "the README shows a line that the output lacks: {line}\n{}",
            printed.join("\n")
        );
    }
}

/// Removes the parts of a line that vary: digests, run ids, numbers, times and column widths.
fn normalize(line: &str) -> String {
    let changes = |word: &str| {
        let word = word.trim_end_matches(',');
        let digest = word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let run = word.len() == 13 && word.starts_with('r');
        digest
            || run
            || word.starts_with(|c: char| c.is_ascii_digit())
            || word == "s"
            || word == "ms"
    };
    let words = line.trim_start_matches("$ ").split_whitespace();
    let words: Vec<&str> = words.filter(|word| !changes(word)).collect();
    words.join(" ")
}
