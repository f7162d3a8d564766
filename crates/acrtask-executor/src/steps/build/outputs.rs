//! `--output`, and `--cache-to` of type local: what a build makes beside, or instead of, an image. It goes into the
//! workspace and nowhere else.

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
    error::chain,
    image_names::check_name,
    selection::Selection,
    workspace::{FILE_SYSTEM, Scratch, resolve_path},
};

/// What a line's outputs come to.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    wanted: Vec<Wanted>,
    /// Of the exported caches of type local, in the line's order.
    caches: Vec<Wanted>,
    images: Vec<ImageExport>,
    /// The names of those that are pushed.
    pushed: Vec<ImageRef>,
    /// The names of the others.
    kept: Vec<ImageRef>,
}

#[derive(Debug)]
struct Wanted {
    kind: Kind,
    /// Where the builder writes on this machine.
    scratch: Scratch,
    /// Where it is to be in the workspace.
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
    /// Reads the flags. No flag: an image, as ever.
    pub(crate) fn plan(
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
                resolve_path(&working_folder(&ctx.step), dest).map_err(|error| chain(&error))
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
                    let push_by_digest = push && ctx.run.hold;
                    for name in &names {
                        let name: ImageRef = name
                            .parse()
                            .map_err(|error: ReferenceError| chain(&error))?;
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
                        "--output type={other} is not supported; it is local, tar, oci, image or registry"
                    ));
                }
            };
            out.wanted.push(Wanted {
                kind,
                scratch: ctx.run.workspace.scratch().map_err(|error| chain(&error))?,
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
            out.caches.push(Wanted {
                kind: Kind::Folder,
                scratch: ctx.run.workspace.scratch().map_err(|error| chain(&error))?,
                target: resolve_path(&working_folder(&ctx.step), dest)
                    .map_err(|error| chain(&error))?,
                names: Vec::new(),
            });
        }
        Ok(out)
    }

    /// True where the line names no output.
    pub(crate) fn is_default(&self) -> bool {
        self.wanted.is_empty() && self.images.is_empty()
    }

    /// The names of images that are pushed, without their tags where the run holds these back.
    pub(crate) fn pushed_names(&self) -> Vec<ImageRef> {
        self.pushed.clone()
    }

    /// Returns the names of images that are not pushed.
    pub(crate) fn kept_names(&self) -> Vec<ImageRef> {
        self.kept.clone()
    }

    /// What the builder is asked for. An engine's own gives images the name `stored` and pushes nothing: they are pushed
    /// from the engine afterwards.
    pub(crate) fn exports(&self, builder: &Builder, stored: &ImageRef) -> Vec<Export> {
        let files = self.wanted.iter().map(|wanted| match wanted.kind {
            Kind::Folder => Export::Local {
                dir: wanted.scratch.path(),
            },
            Kind::Tar => Export::Tar(Sink::File(wanted.file())),
            Kind::Oci => Export::Oci {
                names: wanted.names.clone(),
                archive: Sink::File(wanted.file()),
            },
        });
        let images = self.images.iter().map(|image| {
            if builder.is_engine() {
                super::load(std::slice::from_ref(stored))
            } else if image.push_by_digest {
                Export::Image(ImageExport {
                    names: super::without_tags(&self.pushed),
                    ..image.clone()
                })
            } else {
                Export::Image(image.clone())
            }
        });
        files.chain(images).collect()
    }

    /// Names the folders that exported caches of type local are written to.
    pub(crate) fn redirect_caches(&self, exports: &mut [CacheSpec]) {
        let local = exports.iter_mut().filter(|cache| cache.kind == LOCAL_CACHE);
        for (cache, wanted) in local.zip(&self.caches) {
            let folder = wanted.scratch.path().to_string_lossy().into_owned();
            cache.attrs.insert("dest".into(), folder);
        }
    }

    /// Carries what the builder wrote into the workspace.
    pub(crate) async fn deliver(&self, ctx: &StepContext) -> Result<(), String> {
        for wanted in self.wanted.iter().chain(&self.caches) {
            let relative = |path: &str| PathBuf::from(path.trim_start_matches('/'));
            // From the root, so that folders on the way are made where they are missing.
            let (root, rest) = split_root(&wanted.target);
            let (root, pack) = match wanted.kind {
                Kind::Folder => {
                    let pack = Pack::Folder {
                        from: wanted.scratch.path(),
                        at: relative(&wanted.target),
                        with_root: !rest.is_empty(),
                        selection: Selection::default(),
                    };
                    (FILE_SYSTEM, pack)
                }
                Kind::Tar | Kind::Oci => {
                    let pack = Pack::File {
                        from: wanted.file(),
                        at: relative(rest),
                        mode: 0o644,
                    };
                    (root, pack)
                }
            };
            let put = ctx.run.workspace.put(root, vec![pack]).await;
            put.map_err(|error| chain(&error))?;
        }
        Ok(())
    }
}

impl Wanted {
    fn file(&self) -> PathBuf {
        self.scratch.path().join("output")
    }
}

/// `/workspace/a/b` as `/workspace` and `a/b`.
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
            // A path alone: a folder; `-` would be a tar on a standard output that nobody reads.
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
            return Err(format!("--output {text}: say which with type="));
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_outputs() {
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
