//! Base images for examples and tests, built from Debian's static busybox and bash and pushed to a
//! local registry. No image comes from outside.
//!
//! Owner, time and order of all files are fixed, so a base has the same digest on every machine.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::http::{self, Address};
use crate::packages::Tools;
use crate::progress;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const WAIT: Duration = Duration::from_secs(30);

struct Base {
    repository: &'static str,
    tag: &'static str,
    with_bash: bool,
}

const BASES: &[Base] = &[
    Base {
        repository: "base/busybox",
        tag: "1.36",
        with_bash: false,
    },
    Base {
        repository: "base/bash",
        tag: "5.2",
        with_bash: true,
    },
];

/// Pushes the base images that are missing in `registry` (`host:port`).
pub(crate) fn put(registry: &str, tools: &Tools) -> Result<()> {
    let address = Address::Tcp(registry.to_owned());
    for base in BASES {
        let path = format!("/v2/{}/manifests/{}", base.repository, base.tag);
        let head = http::request(&address, "HEAD", &path, &[("Accept", MANIFEST)], b"", WAIT)?;
        if head.status == 200 {
            continue;
        }
        progress::announce(format!(
            "Making the base image {registry}/{}:{}",
            base.repository, base.tag
        ));
        push(&address, base, tools)
            .with_context(|| format!("cannot make {registry}/{}:{}", base.repository, base.tag))?;
    }
    Ok(())
}

fn push(address: &Address, base: &Base, tools: &Tools) -> Result<()> {
    let layer = layer(base, tools)?;
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": [if base.with_bash { "/bin/bash" } else { "/bin/sh" }],
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask up" }],
        "created": "1970-01-01T00:00:00Z",
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": put_blob(address, base.repository, CONFIG, &config)?,
        "layers": [put_blob(address, base.repository, LAYER, &layer)?],
    }))?;
    let path = format!("/v2/{}/manifests/{}", base.repository, base.tag);
    let answer = http::request(
        address,
        "PUT",
        &path,
        &[("Content-Type", MANIFEST)],
        &manifest,
        WAIT,
    )?;
    if answer.status != 201 {
        bail!(
            "the registry answered {} to the manifest: {}",
            answer.status,
            answer.text()
        );
    }
    Ok(())
}

/// Uploads one blob and returns its descriptor (OCI distribution, "Pushing a blob monolithically").
fn put_blob(
    address: &Address,
    repository: &str,
    media_type: &str,
    content: &[u8],
) -> Result<Value> {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let begun = http::request(address, "POST", &path, &[], b"", WAIT)?;
    let location = begun.header("location").with_context(|| {
        format!(
            "the registry answered {} to a new upload: {}",
            begun.status,
            begun.text()
        )
    })?;
    // A registry may send an absolute or a relative location.
    let path = location
        .find("/v2/")
        .map_or(location, |start| &location[start..]);
    let joint = if path.contains('?') { '&' } else { '?' };
    let digest = digest(content);
    let path = format!("{path}{joint}digest={digest}");
    let octets = [("Content-Type", "application/octet-stream")];
    let put = http::request(address, "PUT", &path, &octets, content, WAIT)?;
    if put.status != 201 {
        bail!(
            "the registry answered {} to a blob: {}",
            put.status,
            put.text()
        );
    }
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": content.len() }))
}

fn layer(base: &Base, tools: &Tools) -> Result<Vec<u8>> {
    let busybox = tools.path("/bin/busybox");
    let program =
        fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut layer = Layer::new();
    for (dir, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("var", 0o755),
    ] {
        layer.dir(dir, mode)?;
    }
    layer.link("sbin", "bin")?;
    layer.link("usr/bin", "../bin")?;
    layer.link("usr/sbin", "../bin")?;
    layer.file("bin/busybox", 0o755, &program)?;
    for applet in applets(&busybox)? {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    if base.with_bash {
        let bash = tools.path("/bin/bash-static");
        let program = fs::read(&bash).with_context(|| format!("cannot read {}", bash.display()))?;
        layer.file("bin/bash", 0o755, &program)?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    layer.file("etc/passwd", 0o644, passwd.as_bytes())?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    layer.file(
        "etc/os-release",
        0o644,
        b"ID=acrtask-base\nNAME=\"acrtask test base\"\n",
    )?;
    layer.finish()
}

/// Returns the applet names of busybox.
fn applets(busybox: &std::path::Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    let names = String::from_utf8(output.stdout).context("the list of applets is not text")?;
    let mut names: Vec<String> = names
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect();
    if !names.iter().any(|name| name == "sh") {
        bail!("{} lists no `sh`", busybox.display());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Packs a tar archive whose bytes depend on the files only.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        Ok(self
            .0
            .append_data(&mut header, format!("{path}/"), &b""[..])?)
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.0.append_link(&mut header, path, target)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Returns this machine's architecture as images name it (Go's GOARCH).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_has_the_same_bytes_each_time() {
        let make = || {
            let mut layer = Layer::new();
            layer.dir("bin", 0o755).unwrap();
            layer.file("bin/x", 0o755, b"content").unwrap();
            layer.link("bin/y", "x").unwrap();
            layer.finish().unwrap()
        };
        assert_eq!(digest(&make()), digest(&make()));
    }
}
