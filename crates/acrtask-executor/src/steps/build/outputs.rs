//! Outputs of a build other than its default image: `--output`, and `--cache-to` of type local.
//! They are written only to the workspace.

use std::path::PathBuf;

use acrtask_buildkit::{CacheSpec, Export, ImageExport, Sink};
use acrtask_model::{ImageRef, ReferenceError};
use acrtask_spec::build_line::BuildLine;

use super::recipe::LOCAL_CACHE;
use crate::{
    archive::Pack,
    builder::Builder,
    cmd::body::working_folder,
    context::StepContext,
    error::error_chain,
    image_names::check_name,
    selection::Selection,
    workspace::{FILE_SYSTEM, Scratch, resolve_path},
};

/// The outputs of a line.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    files: Vec<FileOutput>,
    /// The exported caches of type local, in the line's order.
    caches: Vec<FileOutput>,
    images: Vec<ImageExport>,
    /// Names of the images that are pushed.
    pushed: Vec<ImageRef>,
    /// Names of the images that are not pushed.
    kept: Vec<ImageRef>,
}

#[derive(Debug)]
struct FileOutput {
    kind: Kind,
    /// Folder on this machine that the builder writes to.
    scratch: Scratch,
    /// Path in the workspace.
    target: String,
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Tar,
    Oci,
}

impl Outputs {
    /// Parses the flags. Without a flag, the output is an image.
    pub(crate) fn parse(
        ctx: &StepContext,
        line: &BuildLine,
        names: &[ImageRef],
    ) -> Result<Self, String> {
        let mut out = Self::default();
        for text in &line.outputs {
            let spec = Spec::parse(text)?;
            let dest = || {
                let dest = spec.dest.as_deref().filter(|d| *d != "-");
                let dest =
                    dest.ok_or_else(|| format!("--output {text}: name a path with dest="))?;
                resolve_path(&working_folder(&ctx.step), dest).map_err(|error| error_chain(&error))
            };
            let kind = match spec.kind.as_str() {
                "local" => Kind::Folder,
                "tar" => Kind::Tar,
                "oci" => Kind::Oci,
                "image" | "registry" | "docker" if spec.dest.is_none() => {
                    let push = spec.push || spec.kind == "registry";
                    let push = push && !ctx.run.no_push;
                    let given = spec.name.map(|name| vec![name]);
                    let names =
                        given.unwrap_or_else(|| names.iter().map(ToString::to_string).collect());
                    let push_by_digest = push && ctx.run.push_by_digest;
                    for name in &names {
                        let name: ImageRef = name
                            .parse()
                            .map_err(|error: ReferenceError| error_chain(&error))?;
                        let name = name.or_latest();
                        check_name(&name)?;
                        let of_kind = if push { &mut out.pushed } else { &mut out.kept };
                        of_kind.push(name);
                    }
                    out.images.push(ImageExport {
                        insecure: names.iter().any(|name| {
                            let parsed = name.parse::<ImageRef>();
                            parsed.is_ok_and(|name| ctx.run.is_insecure(name.registry()))
                        }),
                        names,
                        push,
                        push_by_digest,
                        attrs: super::no_store(),
                    });
                    continue;
                }
                other => {
                    return Err(format!(
                        "--output type={other} is not supported; write local, tar, oci, image or registry"
                    ));
                }
            };
            out.files.push(FileOutput {
                kind,
                scratch: ctx
                    .run
                    .workspace
                    .scratch()
                    .map_err(|error| error_chain(&error))?,
                target: dest()?,
                names: names.iter().map(ToString::to_string).collect(),
            });
        }
        for cache in line
            .cache_to
            .iter()
            .filter(|cache| cache.kind == LOCAL_CACHE)
        {
            let dest = cache.attrs.iter().find(|(key, _)| key == "dest");
            let (_, dest) = dest.ok_or("--cache-to type=local: name a folder with dest=")?;
            out.caches.push(FileOutput {
                kind: Kind::Folder,
                scratch: ctx
                    .run
                    .workspace
                    .scratch()
                    .map_err(|error| error_chain(&error))?,
                target: resolve_path(&working_folder(&ctx.step), dest)
                    .map_err(|error| error_chain(&error))?,
                names: Vec::new(),
            });
        }
        Ok(out)
    }

    /// Returns `true` if the line has no `--output`.
    pub(crate) fn is_default(&self) -> bool {
        self.files.is_empty() && self.images.is_empty()
    }

    /// Returns the names of images that are pushed, including those that the run stages.
    pub(crate) fn pushed_names(&self) -> Vec<ImageRef> {
        self.pushed.clone()
    }

    /// Returns the names of images that are not pushed.
    pub(crate) fn kept_names(&self) -> Vec<ImageRef> {
        self.kept.clone()
    }

    /// Returns the exports for the builder. An engine's own builder stores images under the name
    /// `stored` and pushes nothing. They are pushed from the engine afterwards.
    pub(crate) fn exports(&self, builder: &Builder, stored: &ImageRef) -> Vec<Export> {
        let files = self.files.iter().map(|output| match output.kind {
            Kind::Folder => Export::Local {
                dir: output.scratch.path(),
            },
            Kind::Tar => Export::Tar(Sink::File(output.file_path())),
            Kind::Oci => Export::Oci {
                names: output.names.clone(),
                archive: Sink::File(output.file_path()),
            },
        });
        let images = self.images.iter().map(|image| {
            if builder.is_engine() {
                super::load_export(std::slice::from_ref(stored))
            } else if image.push_by_digest {
                Export::Image(ImageExport {
                    names: super::repositories(&self.pushed),
                    ..image.clone()
                })
            } else {
                Export::Image(image.clone())
            }
        });
        files.chain(images).collect()
    }

    /// Sets the folders to which the builder writes exported caches of type local.
    pub(crate) fn redirect_caches(&self, exports: &mut [CacheSpec]) {
        let local = exports.iter_mut().filter(|cache| cache.kind == LOCAL_CACHE);
        for (cache, output) in local.zip(&self.caches) {
            let folder = output.scratch.path().to_string_lossy().into_owned();
            cache.attrs.insert("dest".into(), folder);
        }
    }

    /// Uploads the files that the builder wrote to the workspace.
    pub(crate) async fn upload(&self, ctx: &StepContext) -> Result<(), String> {
        for output in self.files.iter().chain(&self.caches) {
            let relative = |path: &str| PathBuf::from(path.trim_start_matches('/'));
            // Relative to the root, so that missing parent folders are created.
            let (root, rest) = split_root(&output.target);
            let (root, pack) = match output.kind {
                Kind::Folder => {
                    let pack = Pack::Folder {
                        from: output.scratch.path(),
                        at: relative(&output.target),
                        with_root: !rest.is_empty(),
                        selection: Selection::default(),
                    };
                    (FILE_SYSTEM, pack)
                }
                Kind::Tar | Kind::Oci => {
                    let pack = Pack::File {
                        from: output.file_path(),
                        at: relative(rest),
                        mode: 0o644,
                    };
                    (root, pack)
                }
            };
            let put = ctx.run.workspace.put_files(root, vec![pack]).await;
            put.map_err(|error| error_chain(&error))?;
        }
        Ok(())
    }
}

impl FileOutput {
    fn file_path(&self) -> PathBuf {
        self.scratch.path().join("output")
    }
}

/// Splits `/workspace/a/b` into `/workspace` and `/a/b`.
fn split_root(path: &str) -> (&str, &str) {
    for root in [crate::workspace::WORKSPACE, crate::workspace::HOME] {
        if let Some(rest) = path.strip_prefix(root) {
            return (root, rest);
        }
    }
    ("/", path)
}

/// The attributes of one `--output`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Spec {
    kind: String,
    dest: Option<String>,
    name: Option<String>,
    push: bool,
}

impl Spec {
    fn parse(text: &str) -> Result<Self, String> {
        if !text.contains('=') {
            // A path alone is a folder. `-` would be a tar on standard output, which has no reader
            // here.
            return Ok(Self {
                kind: "local".into(),
                dest: Some(text.into()),
                ..Self::default()
            });
        }
        let mut spec = Self::default();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
            match key.trim().to_ascii_lowercase().as_str() {
                "type" => spec.kind = value.into(),
                "dest" => spec.dest = Some(value.into()),
                "name" => spec.name = Some(value.into()),
                "push" => spec.push = value != "false",
                other => {
                    return Err(format!(
                        "--output {text}: the attribute {other} is not supported"
                    ));
                }
            }
        }
        if spec.kind.is_empty() {
            return Err(format!("--output {text}: name the type with type="));
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_flags_are_parsed() {
        let folder = Spec {
            kind: "local".into(),
            dest: Some("out".into()),
            ..Spec::default()
        };
        assert_eq!(
            Spec::parse("out"),
            Ok(Spec {
                kind: "local".into(),
                dest: Some("out".into()),
                ..Spec::default()
            })
        );
        assert_eq!(Spec::parse("type=local,dest=out"), Ok(folder));
        assert!(Spec::parse("type=image,push=true,name=a").unwrap().push);
        assert!(Spec::parse("dest=out").is_err());
        assert!(Spec::parse("type=local,colour=red").is_err());
        assert_eq!(split_root("/workspace/a/b"), ("/workspace", "/a/b"));
    }
}
