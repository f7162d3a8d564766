//! Programs of others for registries: `crane`, `oras`, `cosign` and `notation`. Tests prove with
//! them that images are complete and signatures valid. `cargo xtask test` installs them.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{environment::isolated, service::free_port};

/// Trust policy of `notation` that requires a valid signature for every repository.
const TRUST_POLICY: &str = r#"{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
"signatureVerification": {"level": "strict"}, "trustStores": ["ca:test"], "trustedIdentities": ["*"]}]}"#;

/// Programs with a configuration of their own.
#[derive(Debug)]
pub struct RegistryTools {
    folder: PathBuf,
    home: TempDir,
}

impl RegistryTools {
    /// Finds the programs. `None` if `ACRTASK_TEST_SKIP_ENGINE` is set and they are missing.
    pub fn find() -> Option<Self> {
        let Some(folder) = std::env::var_os("ACRTASK_TEST_REGISTRY_TOOLS") else {
            assert!(
                std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
                "ACRTASK_TEST_REGISTRY_TOOLS is not set: run `cargo xtask test`"
            );
            return None;
        };
        Some(Self {
            folder: folder.into(),
            home: tempfile::tempdir().expect("a folder can be created"),
        })
    }

    /// Runs a program in the folder of the keys. Returns its output.
    pub fn try_run(&self, program: &str, args: &[&str]) -> Output {
        isolated(self.folder.join(program), self.home.path())
            .current_dir(self.home.path())
            .env("COSIGN_PASSWORD", "")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs a program that must succeed. Returns its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.try_run(program, args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{program} {}:\n{}{}",
            args.join(" "),
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Creates the keys of `cosign` and `notation`, and trusts the latter.
    pub fn create_keys(&self) {
        self.run("cosign", &["generate-key-pair"]);
        self.run(
            "notation",
            &["certificate", "generate-test", "--default", "test"],
        );
        let policy = self.home.path().join("config/notation/trustpolicy.json");
        std::fs::write(policy, TRUST_POLICY).expect("the trust policy can be written");
    }

    /// Signs an image with `notation` and `cosign`.
    pub fn sign(&self, image: &str) {
        self.run("notation", &["sign", "--insecure-registry", image]);
        let flags = [
            "sign",
            "--key",
            "cosign.key",
            "--tlog-upload=false",
            "--allow-http-registry",
            "--yes",
        ];
        self.run("cosign", &[&flags[..], &[image]].concat());
    }

    /// Verifies both signatures of an image.
    pub fn verify(&self, image: &str) {
        self.run("notation", &["verify", "--insecure-registry", image]);
        let flags = [
            "verify",
            "--key",
            "cosign.pub",
            "--insecure-ignore-tlog",
            "--allow-http-registry",
        ];
        self.run("cosign", &[&flags[..], &[image]].concat());
    }

    /// Attaches an SBOM to an image.
    pub fn attach(&self, image: &str, content: &str) {
        let file = self.home.path().join("sbom.json");
        std::fs::write(&file, content).expect("the SBOM can be written");
        let flags = [
            "attach",
            "--plain-http",
            "--artifact-type",
            "application/x-sbom",
        ];
        self.run("oras", &[&flags[..], &[image, "sbom.json"]].concat());
    }

    /// Returns the types of the artifacts that refer to an image, sorted.
    pub fn discover(&self, image: &str) -> Vec<String> {
        let flags = [
            "discover",
            "--plain-http",
            "--format",
            "json",
            "--depth",
            "1",
        ];
        let text = self.run("oras", &[&flags[..], &[image]].concat());
        let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let referrers = found["referrers"]
            .as_array()
            .or(found["manifests"].as_array());
        let types = referrers
            .into_iter()
            .flatten()
            .map(|one| one["artifactType"].as_str());
        let mut types: Vec<String> = types.flatten().map(str::to_owned).collect();
        types.sort();
        types
    }

    /// Checks that every blob and manifest of an image exists and has its digest.
    pub fn validate(&self, image: &str) {
        self.run("crane", &["validate", "--remote", image]);
    }

    /// Starts a registry without data. It deletes single tags, and keeps the tags of deleted
    /// manifests.
    pub fn start_crane_registry(&self) -> CraneRegistry {
        let host = format!("127.0.0.1:{}", free_port());
        let child = isolated(self.folder.join("crane"), self.home.path())
            .args(["registry", "serve", "--address", &host])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("crane can be started");
        let registry = CraneRegistry { host, child };
        let begun = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the registry at {} is not reachable",
                registry.host
            );
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}

/// Registry of `crane`, which ends with its handle.
#[derive(Debug)]
pub struct CraneRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    child: Child,
}

impl Drop for CraneRegistry {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
