//! Checks for paths of a build line that no build can read. They fail before the run starts.

use super::span_of_word;
use crate::{
    build_line::{BuildLine, ContextRef},
    plan::{LineRefusal, Volume, VolumeMount},
};

/// Folders that a build can read.
const READABLE: [&str; 2] = ["/workspace", "/acb/home"];

/// Folders and volumes that determine which files a build line can read.
pub(super) struct BuildInputs<'p> {
    /// `workingDirectory`, as written.
    pub(super) working_directory: &'p str,
    pub(super) mounts: Vec<VolumeMount>,
    pub(super) volumes: &'p [Volume],
}

/// Refuses a path outside the workspace and the home folder. Only `--secret` may read files of a
/// volume.
pub(super) fn check_paths(
    line: BuildLine,
    text: &str,
    inputs: &BuildInputs<'_>,
) -> Result<BuildLine, LineRefusal> {
    for path in line.local_paths() {
        if !inputs.is_readable(path)
            && !path_in_context(&line, path).is_some_and(|p| inputs.is_readable(&p))
        {
            return Err(unreadable_path(path, text));
        }
    }
    for path in line
        .secrets
        .iter()
        .filter_map(|secret| secret.src.as_deref())
    {
        let absolute = inputs.absolute_path(path);
        match inputs.find_mount(&absolute) {
            Some((mount, file)) => inputs.check_file(mount, file, path, text)?,
            None if is_readable(&absolute) => {}
            None => return Err(unreadable_path(path, text)),
        }
    }
    Ok(line)
}

impl BuildInputs<'_> {
    fn absolute_path(&self, path: &str) -> String {
        absolute_path(self.working_directory, path)
    }

    fn is_readable(&self, path: &str) -> bool {
        let absolute = self.absolute_path(path);
        self.find_mount(&absolute).is_none() && is_readable(&absolute)
    }

    /// Returns the mount that contains `path`, and the file name in it.
    fn find_mount<'m>(&'m self, path: &'m str) -> Option<(&'m VolumeMount, &'m str)> {
        find_mount(&self.mounts, path)
    }

    fn check_file(
        &self,
        mount: &VolumeMount,
        file: &str,
        path: &str,
        text: &str,
    ) -> Result<(), LineRefusal> {
        let Some(volume) = self.volumes.iter().find(|v| v.name == mount.name) else {
            return Ok(());
        };
        if volume.files.contains_key(file) {
            return Ok(());
        }
        let names: Vec<&str> = volume.files.keys().map(String::as_str).collect();
        Err(LineRefusal {
            message: format!("the volume `{}` has no file `{file}`", volume.name),
            span: span_of_word(text, path),
            help: Some(match names.as_slice() {
                [] => format!("add `{file}` under `secret:` of the volume"),
                names => format!("name one of its files: {}", names.join(", ")),
            }),
        })
    }
}

/// Returns the deepest mount that contains the absolute `path`, and the rest of the path.
pub fn find_mount<'m>(
    mounts: &'m [VolumeMount],
    path: &'m str,
) -> Option<(&'m VolumeMount, &'m str)> {
    let below = |mount: &'m VolumeMount| {
        let rest = path.strip_prefix(mount.mount_path.trim_end_matches('/'))?;
        let rest = rest.strip_prefix('/').or(rest.is_empty().then_some(""))?;
        Some((mount, rest))
    };
    mounts
        .iter()
        .filter_map(below)
        .min_by_key(|(_, rest)| rest.len())
}

/// Returns the path of a Dockerfile relative to the context, where a build finds it too.
fn path_in_context(line: &BuildLine, path: &str) -> Option<String> {
    let ContextRef::Path(context) = &line.context else {
        return None;
    };
    let is_file = line.file.as_deref() == Some(path) && !path.starts_with('/');
    is_file.then(|| format!("{context}/{path}"))
}

/// Resolves `path` against the working directory of a step, without `.` and `..`.
fn absolute_path(working_directory: &str, path: &str) -> String {
    let base = normalize_path(READABLE[0], working_directory.trim());
    normalize_path(&base, path)
}

/// Resolves `path` against the folder `base`. The result is absolute, without `.` and `..`.
pub fn normalize_path(base: &str, path: &str) -> String {
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

fn is_readable(path: &str) -> bool {
    READABLE.iter().any(|root| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn unreadable_path(path: &str, text: &str) -> LineRefusal {
    LineRefusal {
        message: format!("a build cannot read `{path}`"),
        span: span_of_word(text, path),
        help: Some(
            "a build reads files below /workspace and /acb/home, and of a volume in its `volumeMounts` the files \
             that `--secret id=ID,src=/MOUNT/FILE` names; let a cmd step copy other files to the workspace"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build_line;

    fn check(line: &str, folder: &str) -> Result<BuildLine, String> {
        let volumes = [Volume {
            name: "keys".into(),
            files: [("npmrc".to_owned(), acrtask_model::Secret::new("x"))].into(),
        }];
        let inputs = BuildInputs {
            working_directory: folder,
            mounts: vec![VolumeMount {
                name: "keys".into(),
                mount_path: "/run/keys/".into(),
            }],
            volumes: &volumes,
        };
        let parsed = build_line::parse(line).unwrap();
        check_paths(parsed, line, &inputs).map_err(|refused| refused.message)
    }

    #[test]
    fn builds_may_read_workspace_home_folder_and_volume_secrets() {
        for (line, folder) in [
            (".", ""),
            ("-f ../Dockerfile .", "sub"),
            ("-f /workspace/Dockerfile /acb/home/app", ""),
            (
                "--build-context a=/acb/home --build-context b=docker-image://x .",
                "",
            ),
            ("--secret id=a,src=/run/keys/npmrc .", ""),
            ("--secret id=a,src=npmrc /workspace", "/run/keys"),
            (
                "--secret id=a,src=/acb/home/.npmrc --secret id=b,env=B .",
                "",
            ),
            ("-f /anywhere https://example.com/repo.git", ""),
            ("-f - .", ""),
            ("-f ../Dockerfile sub", ""),
        ] {
            assert!(check(line, folder).is_ok(), "{line} in {folder}");
        }
    }

    #[test]
    fn other_paths_are_refused_with_one_message() {
        for (line, path) in [
            ("/run/keys", "/run/keys"),
            ("-f /run/keys/Dockerfile .", "/run/keys/Dockerfile"),
            ("--build-context a=/run/keys .", "/run/keys"),
            (
                "--build-context a=oci-layout:///srv/layout@sha256:0 .",
                "/srv/layout",
            ),
            ("--secret id=a,src=/etc/npmrc .", "/etc/npmrc"),
            ("--secret id=a,src=/run/keysx .", "/run/keysx"),
            ("../..", "../.."),
        ] {
            let refused = check(line, "sub").unwrap_err();
            assert_eq!(refused, format!("a build cannot read `{path}`"), "{line}");
        }
        let missing = check("--secret id=a,src=/run/keys/other .", "").unwrap_err();
        assert_eq!(missing, "the volume `keys` has no file `other`");
    }
}
