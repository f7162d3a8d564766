//! Ways in which a registry misbehaves. Each row is a scenario.

use acrtask_registry::manifest::{OCI_INDEX, OCI_MANIFEST, sha256};
use acrtask_tests::misbehaving::{ReceivedRequest, Reply, owned_headers};
use serde_json::json;

pub(crate) const INDEX: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Operation of the client.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Resolve,
    Manifest,
    Blob,
    Push,
    Tags,
    /// Fetches an artifact as the context of a run.
    Context,
}

/// Way in which a registry misbehaves.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) operation: Operation,
    /// Response of `reg.hosts.test`. The second argument is the part of the path after the
    /// repository.
    pub(crate) answer: fn(&ReceivedRequest, &str) -> Reply,
    /// Expected part of the error. `None` if the operation succeeds.
    pub(crate) error: Option<&'static str>,
}

const fn refused(
    name: &'static str,
    operation: Operation,
    error: &'static str,
    answer: fn(&ReceivedRequest, &str) -> Reply,
) -> Scenario {
    Scenario {
        name,
        operation,
        answer,
        error: Some(error),
    }
}

const fn succeeds(
    name: &'static str,
    operation: Operation,
    answer: fn(&ReceivedRequest, &str) -> Reply,
) -> Scenario {
    Scenario {
        name,
        operation,
        answer,
        error: None,
    }
}

const PRIVATE: &str = "is not a public address";
const UNREACHABLE: &str = "cannot be reached";
const DIGEST: &str = "its digest should be";

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Operation::{Blob, Context, Manifest, Push, Resolve, Tags};
    vec![
        // Redirects.
        refused("redirect-private", Manifest, PRIVATE, |_, _| {
            Reply::redirect("https://private-0.hosts.test/x")
        }),
        refused("redirect-network", Blob, PRIVATE, |_, _| {
            Reply::redirect("https://private-1.hosts.test/x")
        }),
        refused("redirect-metadata", Manifest, PRIVATE, |_, _| {
            Reply::redirect("https://169.254.169.254/latest")
        }),
        refused("redirect-head-private", Resolve, PRIVATE, |_, _| {
            Reply::redirect("https://private-2.hosts.test/x")
        }),
        refused("redirect-rebinding", Blob, PRIVATE, |_, _| {
            Reply::redirect("https://flip-blob.hosts.test/again")
        }),
        refused(
            "redirect-loop",
            Manifest,
            "more than 5 redirects",
            |seen, _| Reply::redirect(&seen.request.path),
        ),
        refused("redirect-clear", Blob, "from https to http", |_, _| {
            Reply::redirect("http://other.hosts.test/x")
        }),
        refused("redirect-file", Blob, "redirects to `file:`", |_, _| {
            Reply::redirect("file:///etc/passwd")
        }),
        succeeds("redirect-elsewhere", Blob, |seen, _| {
            match seen.authorization() {
                Some(_) => Reply::redirect("https://other.hosts.test/blob"),
                None => Reply::status(401, &[("WWW-Authenticate", "Basic")]),
            }
        }),
        refused(
            "redirect-asks",
            Blob,
            "denied access",
            |seen, _| match seen.authorization() {
                Some(_) => Reply::redirect("https://other.hosts.test/asks"),
                None => Reply::status(401, &[("WWW-Authenticate", "Basic")]),
            },
        ),
        // Token servers.
        refused("realm-private", Resolve, PRIVATE, |_, _| {
            bearer_challenge("https://private-0.hosts.test/token")
        }),
        refused("realm-network", Resolve, PRIVATE, |_, _| {
            bearer_challenge("https://10.1.2.3/token")
        }),
        refused("realm-metadata", Resolve, PRIVATE, |_, _| {
            bearer_challenge("http://169.254.169.254/token")
        }),
        // Plain HTTP to a public address. No process listens there, and no request is sent.
        refused("realm-clear", Resolve, UNREACHABLE, |_, _| {
            bearer_challenge("http://other.hosts.test/token")
        }),
        refused("realm-no-url", Resolve, "not a URL", |_, _| {
            bearer_challenge("token")
        }),
        refused("realm-without-login", Resolve, "denied access", |_, _| {
            bearer_challenge("https://other.hosts.test/token")
        }),
        // The client has a login for this token server, but it belongs to another registry.
        refused("realm-of-another", Resolve, "denied access", |_, _| {
            bearer_challenge("https://victim.hosts.test/token")
        }),
        refused(
            "realm-endless",
            Resolve,
            "bigger than the limit",
            |_, rest| match rest {
                "token" => Reply::Endless(200, Vec::new(), vec![b' '; 1 << 16]),
                _ => bearer_challenge("https://reg.hosts.test/v2/realm-endless/token"),
            },
        ),
        refused(
            "realm-empty",
            Resolve,
            "without a token",
            |_, rest| match rest {
                "token" => Reply::body("application/json", r#"{"token":"a\nb"}"#),
                _ => bearer_challenge("https://reg.hosts.test/v2/realm-empty/token"),
            },
        ),
        refused(
            "asks-for-ever",
            Resolve,
            "denied access",
            |_, rest| match rest {
                "token" => Reply::body("application/json", r#"{"token":"t"}"#),
                _ => bearer_challenge("https://reg.hosts.test/v2/asks-for-ever/token"),
            },
        ),
        refused(
            "asks-oddly",
            Resolve,
            "an unsupported kind of authorization",
            |_, _| Reply::status(401, &[("WWW-Authenticate", "Negotiate")]),
        ),
        // Sizes.
        refused("manifest-endless", Manifest, "limit of 4194304", |_, _| {
            Reply::Endless(
                200,
                owned_headers(&[("Content-Type", OCI_INDEX)]),
                vec![b' '; 1 << 16],
            )
        }),
        refused("blob-endless", Blob, "limit of 1048576", |_, _| {
            Reply::Endless(200, Vec::new(), vec![0; 1 << 16])
        }),
        refused("head-endless", Resolve, UNREACHABLE, |_, _| {
            Reply::RawEndless(Vec::new(), b"HTTP/1.1 200 OK\r\n".repeat(64))
        }),
        refused("headers-endless", Resolve, UNREACHABLE, |_, _| {
            Reply::Raw(
                [
                    b"HTTP/1.1 200 OK\r\n".to_vec(),
                    b"X-Large: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n".repeat(1 << 16),
                ]
                .concat(),
            )
        }),
        refused("manifest-deep", Manifest, "manifest", |_, _| {
            Reply::body(OCI_INDEX, "[".repeat(4_000_000))
        }),
        refused("manifest-packed", Manifest, "manifest", |_, _| {
            // The client did not request compression, so it must not decompress.
            Reply::body(OCI_INDEX, b"\x1f\x8b\x08bomb".to_vec()).with("Content-Encoding", "gzip")
        }),
        refused("tags-endless", Tags, "limit of 4194304", |_, _| {
            Reply::Endless(200, Vec::new(), b"\"tag\",".repeat(1 << 12))
        }),
        refused("tags-circle", Tags, "names itself", |_, _| {
            let link = "</v2/tags-circle/tags/list?n=1&last=a>; rel=\"next\"";
            Reply::body("application/json", r#"{"tags":["a"]}"#).with("Link", link)
        }),
        succeeds("tags-elsewhere", Tags, |seen, _| {
            let body = Reply::body("application/json", r#"{"tags":["a"]}"#);
            match seen.request.query.contains("last") {
                true => body,
                false => body.with("Link", "<https://other.hosts.test/x?last=a>; rel=next"),
            }
        }),
        // Responses that differ from their announcement.
        refused("manifest-short", Manifest, UNREACHABLE, |_, _| {
            Reply::Truncated(
                1000,
                owned_headers(&[("Content-Type", OCI_INDEX)]),
                INDEX.into(),
            )
        }),
        refused("blob-short", Blob, UNREACHABLE, |_, _| {
            Reply::Truncated(1000, Vec::new(), b"a blob".to_vec())
        }),
        refused("blob-other", Blob, DIGEST, |_, _| {
            Reply::body("application/octet-stream", "another blob")
        }),
        refused("digest-other", Manifest, DIGEST, |_, _| {
            let other = sha256(b"other").to_string();
            Reply::body(OCI_INDEX, INDEX).with("Docker-Content-Digest", &other)
        }),
        refused("type-other", Manifest, "manifest", |_, _| {
            Reply::body("text/html", "<html>hello")
        }),
        refused("head-is-not-get", Manifest, DIGEST, |seen, _| {
            let (digest, body) = match seen.request.method.as_str() {
                "HEAD" => (sha256(b"what was tested"), "what was tested"),
                _ => (sha256(INDEX.as_bytes()), INDEX),
            };
            Reply::body(OCI_INDEX, body).with("Docker-Content-Digest", digest.as_str())
        }),
        refused("chunks-junk", Manifest, UNREACHABLE, |_, _| {
            Reply::Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZZ\r\n".to_vec())
        }),
        refused("no-http", Resolve, UNREACHABLE, |_, _| {
            Reply::Raw(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec())
        }),
        refused("two-lengths", Manifest, UNREACHABLE, |_, _| {
            Reply::Raw(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!".to_vec(),
            )
        }),
        // Waits.
        refused("waits-for-ever", Resolve, "limits the rate", |_, _| {
            Reply::status(429, &[("Retry-After", "999999999")])
        }),
        refused("waits-too-much", Resolve, "limits the rate", |_, _| {
            Reply::status(429, &[("Retry-After", "18446744073709551615")])
        }),
        refused("waits-oddly", Resolve, "limits the rate", |_, _| {
            Reply::status(429, &[("Retry-After", "-1")])
        }),
        refused("gateway-waits", Resolve, "503", |_, _| {
            Reply::status(503, &[("Retry-After", "999999999")])
        }),
        // Uploads.
        succeeds("upload-elsewhere", Push, |seen, _| {
            upload(seen, "https://other.hosts.test/up?x=1")
        }),
        refused("upload-private", Push, PRIVATE, |seen, _| {
            upload(seen, "https://private-1.hosts.test/up")
        }),
        refused("upload-metadata", Push, PRIVATE, |seen, _| {
            upload(seen, "https://169.254.169.254/up")
        }),
        refused("upload-clear", Push, "instead of `https:`", |seen, _| {
            upload(seen, "http://other.hosts.test/up")
        }),
        refused("upload-file", Push, "instead of `https:`", |seen, _| {
            upload(seen, "file:///etc/x")
        }),
        refused(
            "upload-nowhere",
            Push,
            "named no upload location",
            |seen, _| match seen.request.method.as_str() {
                "POST" => Reply::status(202, &[]),
                _ => Reply::status(404, &[]),
            },
        ),
        refused("upload-redirects", Push, "307", |seen, _| {
            match seen.request.method.as_str() {
                "PUT" => Reply::redirect("https://other.hosts.test/up"),
                "POST" => Reply::status(202, &[("Location", "/v2/upload-redirects/up")]),
                _ => Reply::status(404, &[]),
            }
        }),
        // Artifacts.
        refused("title-up", Context, "", |_, rest| artifact(rest, "../x")),
        refused("title-absolute", Context, "", |_, rest| {
            artifact(rest, "/etc/x")
        }),
        refused("title-far-up", Context, "", |_, rest| {
            artifact(rest, "a/../../x")
        }),
        refused("title-nothing", Context, "", |_, rest| artifact(rest, ".")),
        refused("title-null", Context, "", |_, rest| {
            artifact(rest, "a\u{0}b")
        }),
        succeeds("title-below", Context, |_, rest| artifact(rest, "a/b")),
        refused(
            "layer-endless",
            Context,
            "bigger than the limit",
            |_, rest| match rest {
                "manifests/1" => artifact(rest, "a"),
                _ => Reply::Endless(200, Vec::new(), vec![0; 1 << 16]),
            },
        ),
        refused("layer-huge", Context, "bytes to download", |_, _| {
            Reply::body(OCI_MANIFEST, manifest("a", u64::MAX / 2))
        }),
        refused(
            "artifact-redirects",
            Context,
            PRIVATE,
            |_, rest| match rest {
                "manifests/1" => artifact(rest, "a"),
                _ => Reply::redirect("https://private-0.hosts.test/x"),
            },
        ),
    ]
}

/// Returns a challenge that requests a token for a repository of another owner.
pub(crate) fn bearer_challenge(realm: &str) -> Reply {
    let challenge =
        format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:secret/app:pull,push\"");
    Reply::status(401, &[("WWW-Authenticate", &challenge)])
}

/// Requests a login and redirects the upload to `location`.
fn upload(seen: &ReceivedRequest, location: &str) -> Reply {
    match (seen.authorization(), seen.request.method.as_str()) {
        (None, _) => Reply::status(401, &[("WWW-Authenticate", "Basic")]),
        (_, "POST") => Reply::status(202, &[("Location", location)]),
        _ => Reply::status(404, &[]),
    }
}

fn manifest(title: &str, size: u64) -> String {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2},
        "layers": [{
            "mediaType": "application/octet-stream",
            "digest": sha256(b"a blob"),
            "size": size,
            "annotations": {"org.opencontainers.image.title": title},
        }],
    })
    .to_string()
}

fn artifact(rest: &str, title: &str) -> Reply {
    match rest {
        "manifests/1" => Reply::body(OCI_MANIFEST, manifest(title, 6)),
        _ => Reply::body("application/octet-stream", "a blob"),
    }
}
