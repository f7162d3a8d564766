//! Errors, grouped by the action that the user can take.
//!
//! BuildKit attaches details to a failed call: a `google.rpc.Status` with `Any` values, in JSON if
//! the type URL ends in `+json`. The parser is lenient: it skips an unknown detail, and keeps the
//! message.

use std::io;
use std::path::PathBuf;

use base64::Engine;
use bollard_buildkit_proto::google::rpc;
use prost::Message;
use serde_json::Value;
use tonic::{Code, Status};

use crate::excerpt::SourceExcerpt;
use crate::session::SecretError;

/// Error of connecting to a BuildKit.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No program responds at the address.
    #[error("cannot connect to BuildKit at {endpoint}")]
    Unreachable {
        /// Address of the endpoint.
        endpoint: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program responds, but not as BuildKit.
    #[error("{endpoint} does not respond as BuildKit: {request} failed")]
    NotBuildKit {
        /// Address of the endpoint.
        endpoint: String,
        /// Failed request.
        request: &'static str,
        /// Response.
        source: Box<Status>,
    },
    /// A program responds, but not as a Docker Engine.
    #[error("{endpoint} does not respond as a Docker Engine: {request} failed")]
    NotAnEngine {
        /// Address of the endpoint.
        endpoint: String,
        /// Failed request.
        request: &'static str,
        /// Cause.
        source: io::Error,
    },
}

/// Error of a build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The build itself failed.
    #[error("{0}")]
    Failed(Box<BuildFailure>),
    /// The caller's token canceled the build.
    #[error("the build was canceled")]
    Canceled,
    /// The connection broke.
    #[error("lost the connection to BuildKit at {endpoint}")]
    Transport {
        /// Address of the endpoint.
        endpoint: String,
        /// Error of the connection.
        source: Box<Status>,
    },
    /// The endpoint does not support the request. Detected before the build starts.
    #[error("{endpoint} cannot do this: {feature}")]
    Unsupported {
        /// Missing feature.
        feature: String,
        /// Address of the endpoint.
        endpoint: String,
        /// Advice to the user.
        help: String,
    },
    /// An image that the build itself uses (a `# syntax=` frontend, an SBOM scanner) could not be
    /// fetched.
    #[error("cannot fetch {image}, {role}")]
    HelperImage {
        /// Name of the image.
        image: String,
        /// Purpose of the image: the end of a sentence.
        role: &'static str,
        /// Advice to the user.
        help: String,
        /// Message of the builder.
        message: String,
    },
    /// A secret cannot be passed to the build.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The request is contradictory or incomplete.
    #[error("the build cannot be started: {0}")]
    Request(String),
    /// A local file or folder is unusable.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Attempted operation: a verb.
        action: &'static str,
        /// Target of the operation.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Details that BuildKit attached to a failed build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFailure {
    /// Message, without the prefixes of the transport.
    pub message: String,
    /// Lines of the Dockerfile.
    pub excerpt: Option<SourceExcerpt>,
    /// Exit code of the failed command. `None` if no command failed.
    pub exit_code: Option<i32>,
    /// Digest of the failed vertex.
    pub vertex: Option<String>,
    /// Last lines that the vertex printed.
    pub log_tail: Vec<String>,
}

impl std::fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// Part of a builder's message about a source that the request's rules deny.
const DENIED: &str = "denied by policy";
const DENIED_IMAGE_HELP: &str = "a runner's builds use images that the run's own login may pull; name the image in the \
                                 Dockerfile, with a reachable registry";
const DENIED_GIT_HELP: &str = "a runner's builder fetches no git repositories, because it stores them by commit for all tasks; write \
                               `--build-context src=https://HOST/REPOSITORY.git#REF` in the build line, and \
                               `COPY --from=src` in the Dockerfile";
const IMAGE_SCHEME: &str = "docker-image://";
const GIT_SCHEME: &str = "git://";
/// Messages of a builder that could not start the container of a `RUN`.
const START_FAULTS: [&str; 2] = [
    "unable to start container process",
    "OCI runtime create failed",
];
/// Causes in these messages that are independent of the build.
const START_CAUSES: [&str; 3] = [
    "read init-p: connection reset by peer",
    "read init-p: EOF",
    "resource temporarily unavailable",
];
/// Prefix of the line that runc writes to the log of a step whose container did not start.
const RUNC_ERROR: &str = "runc run failed: ";
const DENIED_HELP: &str = "builds may fetch only from public addresses, written with a full host name; an operator who trusts the task \
                           allows others with `--allow-private-addresses`";

impl BuildError {
    /// Formats the Dockerfile's lines as `docker build` does.
    pub fn render_excerpt(&self) -> Option<String> {
        match self {
            Self::Failed(failure) => failure.excerpt.as_ref()?.render(),
            _ => None,
        }
    }

    /// Returns advice to the user, if there is any.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Unsupported { help, .. } | Self::HelperImage { help, .. } => Some(help),
            Self::Failed(_) if self.denied_image().is_some() => Some(DENIED_IMAGE_HELP),
            Self::Failed(_) if self.denied_source(&[GIT_SCHEME]).is_some() => Some(DENIED_GIT_HELP),
            Self::Failed(failure) if failure.message.contains(DENIED) => Some(DENIED_HELP),
            _ => None,
        }
    }

    /// Returns the image that the request denies to the build, as the builder names it.
    pub fn denied_image(&self) -> Option<&str> {
        let source = self.denied_source(&[IMAGE_SCHEME])?;
        source.strip_prefix(IMAGE_SCHEME)
    }

    /// Returns the URL of the file that the request denies to the builder.
    pub fn denied_file(&self) -> Option<&str> {
        self.denied_source(&["https://", "http://"])
    }

    /// Returns the source that the builder's policy denied, if it has one of these schemes.
    fn denied_source(&self, schemes: &[&str]) -> Option<&str> {
        let Self::Failed(failure) = self else {
            return None;
        };
        let (before, _) = failure.message.split_once(DENIED)?;
        let before = before.trim_end_matches(['"', '\'', ' ', ':', '\\']);
        let (_, source) = before.rsplit_once(['"', '\'', ' ', '\\'])?;
        schemes
            .iter()
            .any(|scheme| source.starts_with(scheme))
            .then_some(source)
    }

    /// Returns `true` if the builder itself failed, usually under load. The same build may then
    /// succeed.
    ///
    /// BuildKit reports a container that did not start in one of two ways. Either the message
    /// contains runc's error. Or the message has exit code 1, and runc's error is the only line of
    /// the step's log.
    pub fn is_builder_fault(&self) -> bool {
        let failure = match self {
            Self::Failed(failure) => failure,
            // The builds of all runs share the connection, and each of them can break it.
            Self::Transport { .. } => return true,
            _ => return false,
        };
        let text = match (failure.exit_code, failure.log_tail.as_slice()) {
            (None, _) => failure.message.as_str(),
            (Some(1), [line]) if line.starts_with(RUNC_ERROR) => line.as_str(),
            _ => return false,
        };
        START_FAULTS.iter().any(|start| text.contains(start))
            && START_CAUSES.iter().any(|cause| text.contains(cause))
    }

    /// Parses the status of a failed `Solve`.
    pub(crate) fn from_status(status: Status, endpoint: &str, helpers: &HelperImages) -> Self {
        let details = Details::parse(&status);
        if details.is_empty() && is_transport_error(&status) {
            return Self::Transport {
                endpoint: endpoint.to_owned(),
                source: Box::new(status),
            };
        }
        if let Some(error) = helpers.find_error(status.message()) {
            return error;
        }
        Self::Failed(Box::new(BuildFailure {
            message: clean_message(status.message()),
            excerpt: details.excerpt,
            exit_code: details.exit_code,
            vertex: details.vertex,
            log_tail: Vec::new(),
        }))
    }
}

/// Images that a build needs although no Dockerfile instruction names them.
#[derive(Debug, Default, Clone)]
pub(crate) struct HelperImages {
    /// Frontend from the `# syntax=` line or its override.
    pub(crate) frontend: Option<String>,
    pub(crate) sbom_scanner: Option<String>,
}

impl HelperImages {
    /// Returns the error for a message about one of the images.
    fn find_error(&self, message: &str) -> Option<BuildError> {
        let unreachable = [
            "failed to resolve source metadata",
            "failed to do request",
            "failed to resolve image",
            "pull access denied",
            "not found",
        ]
        .iter()
        .any(|phrase| message.contains(phrase));
        if !unreachable {
            return None;
        }
        let mentioned = |image: &Option<String>| {
            image
                .as_ref()
                .filter(|image| message.contains(strip_tag(image)))
                .cloned()
        };
        let message_text = clean_message(message);
        if let Some(image) = mentioned(&self.frontend) {
            return Some(BuildError::HelperImage {
                image,
                role: "the frontend that the Dockerfile's `# syntax=` line names",
                help: "remove the `# syntax=` line to use the frontend that is built into BuildKit, or name one in a registry \
                       that the builder can reach"
                    .to_owned(),
                message: message_text,
            });
        }
        mentioned(&self.sbom_scanner).map(|image| BuildError::HelperImage {
            image,
            role: "the scanner that writes the SBOM",
            help: "build without an SBOM attestation, or name a scanner in a registry that the builder can reach: \
                   sbom: generator=REGISTRY/IMAGE"
                .to_owned(),
            message: message_text,
        })
    }
}

/// Removes the tag and the digest of a reference. All kinds of messages contain the remaining name.
fn strip_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn is_transport_error(status: &Status) -> bool {
    use std::error::Error;
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => {
            status.source().is_some()
                || status.message().contains("h2 protocol error")
                || status.message().contains("transport error")
        }
        _ => false,
    }
}

/// Removes the prefixes that gRPC adds to a message: `rpc error: code = Unknown desc = `.
pub(crate) fn clean_message(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find("rpc error: code = ") {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        match tail.find(" desc = ") {
            Some(end) => rest = &tail[end + " desc = ".len()..],
            None => {
                out.push_str(tail);
                return out;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Details attached to a status.
#[derive(Debug, Default, PartialEq, Eq)]
struct Details {
    excerpt: Option<SourceExcerpt>,
    exit_code: Option<i32>,
    vertex: Option<String>,
}

impl Details {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn parse(status: &Status) -> Self {
        let mut details = Self {
            exit_code: find_exit_code(status.message()),
            ..Self::default()
        };
        let Ok(decoded) = rpc::Status::decode(status.details()) else {
            return details;
        };
        for any in &decoded.details {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            let Ok(value) = serde_json::from_slice::<Value>(&any.value) else {
                continue;
            };
            if name.ends_with("errdefs.Source+json") {
                // An error can contain several, from the outermost frontend to the innermost. The
                // last is the nearest.
                details.excerpt = parse_excerpt(&value).or(details.excerpt);
            } else if name.ends_with("errdefs.Vertex+json") {
                details.vertex = value["digest"]
                    .as_str()
                    .map(str::to_owned)
                    .or(details.vertex);
            } else if name.contains("ExitMessage")
                && let Some(code) = value["Code"].as_i64().or_else(|| value["code"].as_i64())
            {
                details.exit_code = i32::try_from(code).ok().or(details.exit_code);
            }
        }
        details
    }
}

fn parse_excerpt(value: &Value) -> Option<SourceExcerpt> {
    let info = value.get("info")?;
    let data = base64::engine::general_purpose::STANDARD
        .decode(info["data"].as_str()?)
        .ok()?;
    let line = |position: &Value| {
        position["line"]
            .as_u64()
            .and_then(|line| usize::try_from(line).ok())
    };
    let lines = value["ranges"]
        .as_array()?
        .iter()
        .filter_map(|range| {
            let start = line(&range["start"])?;
            Some(start..=line(&range["end"]).unwrap_or(start).max(start))
        })
        .collect();
    Some(SourceExcerpt {
        filename: info["filename"].as_str().unwrap_or("Dockerfile").to_owned(),
        lines,
        data: String::from_utf8_lossy(&data).into_owned(),
    })
}

/// Finds the code in `… did not complete successfully: exit code: 3`.
fn find_exit_code(message: &str) -> Option<i32> {
    let (_, rest) = message.rsplit_once("exit code: ")?;
    rest.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::google::protobuf::Any;

    use super::*;

    fn status(message: &str, details: &[(&str, Value)]) -> Status {
        let details = details
            .iter()
            .map(|(url, value)| Any {
                type_url: (*url).into(),
                value: value.to_string().into_bytes(),
            })
            .collect();
        let encoded = rpc::Status {
            code: 2,
            message: message.into(),
            details,
        }
        .encode_to_vec();
        Status::with_details(Code::Unknown, message, encoded.into())
    }

    #[test]
    fn from_status_parses_the_details() {
        let data = base64::engine::general_purpose::STANDARD.encode("FROM a\nRUN false\n");
        let status = status(
            "failed to solve: process \"/bin/sh -c false\" did not complete successfully: exit code: 1",
            &[
                (
                    "github.com/moby/buildkit/stack.Stack+json",
                    serde_json::json!({"frames": []}),
                ),
                (
                    "github.com/moby/buildkit/errdefs.Vertex+json",
                    serde_json::json!({"digest": "sha256:ab"}),
                ),
                (
                    "github.com/moby/buildkit/errdefs.Source+json",
                    serde_json::json!({"info": {"filename": "Dockerfile", "data": data}, "ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}),
                ),
                (
                    "github.com/moby/buildkit/pb.ExitMessage+json",
                    serde_json::json!({"Code": 7}),
                ),
            ],
        );
        let BuildError::Failed(failure) =
            BuildError::from_status(status, "unix:///x", &HelperImages::default())
        else {
            panic!("not a failed build")
        };
        assert_eq!(failure.vertex.as_deref(), Some("sha256:ab"));
        assert_eq!(failure.exit_code, Some(7));
        assert_eq!(failure.excerpt.unwrap().lines, [2..=2]);
    }

    #[test]
    fn from_status_ignores_invalid_details() {
        let status = Status::with_details(
            Code::Unknown,
            "boom",
            bytes::Bytes::from_static(b"\xff\xff"),
        );
        assert!(matches!(
            BuildError::from_status(status, "e", &HelperImages::default()),
            BuildError::Failed(_)
        ));
    }

    #[test]
    fn broken_connection_is_not_a_failed_build() {
        let error = BuildError::from_status(
            Status::unavailable("tcp connect error"),
            "tcp://h:1",
            &HelperImages::default(),
        );
        assert!(matches!(error, BuildError::Transport { .. }));
    }

    #[test]
    fn clean_message_removes_grpc_prefixes() {
        assert_eq!(
            clean_message(
                "failed to solve: rpc error: code = Unknown desc = a: rpc error: code = NotFound desc = b"
            ),
            "failed to solve: a: b"
        );
        assert_eq!(
            clean_message("rpc error: code = odd"),
            "rpc error: code = odd"
        );
    }

    #[test]
    fn is_builder_fault_detects_container_start_errors() {
        for (message, expected) in [
            (
                "process \"/bin/sh -c true\" did not complete successfully: runc run failed: unable to start container \
                 process: waiting for init preliminary setup: read init-p: connection reset by peer",
                true,
            ),
            (
                "OCI runtime create failed: fork/exec: resource temporarily unavailable: unknown",
                true,
            ),
            (
                "runc run failed: unable to start container process: exec: \"/bin/sh\": no such file or directory",
                false,
            ),
            (
                "process \"echo OCI runtime create failed: resource temporarily unavailable\" did not complete \
                 successfully: exit code: 1",
                false,
            ),
            ("resource temporarily unavailable", false),
        ] {
            let error =
                BuildError::from_status(status(message, &[]), "e", &HelperImages::default());
            assert_eq!(error.is_builder_fault(), expected, "{message}");
        }
    }

    #[test]
    fn is_builder_fault_detects_runc_errors_in_the_log() {
        let runc = "runc run failed: unable to start container process: waiting for init preliminary setup: \
                    read init-p: connection reset by peer";
        let no_file = "runc run failed: unable to start container process: exec: \"x\": no such file or directory";
        for (exit_code, lines, expected) in [
            (1, vec![runc], true),
            (1, vec!["hello", runc], false),
            (1, vec![runc, "hello"], false),
            (1, vec![no_file], false),
            (1, vec![], false),
            (2, vec![runc], false),
        ] {
            let error = BuildError::Failed(Box::new(BuildFailure {
                message:
                    "process \"/bin/sh -c cat /a\" did not complete successfully: exit code: 1"
                        .to_owned(),
                excerpt: None,
                exit_code: Some(exit_code),
                vertex: None,
                log_tail: lines.iter().map(|&line| line.to_owned()).collect(),
            }));
            assert_eq!(error.is_builder_fault(), expected, "{exit_code} {lines:?}");
        }
    }

    #[test]
    fn find_exit_code_parses_messages() {
        assert_eq!(
            find_exit_code("x did not complete successfully: exit code: 137"),
            Some(137)
        );
        assert_eq!(find_exit_code("exit code: 3: more"), Some(3));
        assert_eq!(find_exit_code("no"), None);
    }

    #[test]
    fn unreachable_helper_image_is_named() {
        let helpers = HelperImages {
            frontend: Some("docker/dockerfile:1".into()),
            sbom_scanner: Some("scan.example/s:2".into()),
        };
        let about = |message: &str| BuildError::from_status(status(message, &[]), "e", &helpers);
        let error = about(
            "failed to solve: docker/dockerfile:1: failed to resolve source metadata for docker.io/docker/dockerfile:1: failed to do request",
        );
        assert!(
            matches!(&error, BuildError::HelperImage { image, .. } if image == "docker/dockerfile:1"),
            "{error}"
        );
        assert!(error.help().unwrap().contains("# syntax="));
        let error = about("scan.example/s: failed to resolve source metadata");
        assert!(
            matches!(&error, BuildError::HelperImage { image, .. } if image == "scan.example/s:2"),
            "{error}"
        );
        assert!(matches!(
            about("failed to resolve source metadata for docker.io/library/absent"),
            BuildError::Failed(_)
        ));
    }
}
