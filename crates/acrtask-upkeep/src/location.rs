//! Location of an image: a repository at a registry, or a folder with OCI image layout.

use std::{fmt, str::FromStr};

use acrtask_model::{Digest, ImageRef};

use crate::layout::Layout;

/// Location of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Image at a registry.
    Registry(ImageRef),
    /// Image in a folder: `oci:FOLDER[:TAG]` or `oci:FOLDER@DIGEST`.
    Layout {
        /// The folder.
        layout: Layout,
        /// Tag of the image.
        tag: Option<String>,
        /// Digest of the image.
        digest: Option<Digest>,
    },
}

impl Location {
    /// Returns the tag.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Registry(image) => image.tag(),
            Self::Layout { tag, .. } => tag.as_deref(),
        }
    }

    /// Returns the digest.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(image) => image.digest(),
            Self::Layout { digest, .. } => digest.as_ref(),
        }
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("oci:") else {
            let image = text.parse::<ImageRef>();
            return image.map(Self::Registry).map_err(|error| {
                format!("{error}; write REGISTRY/REPOSITORY:TAG, or oci:FOLDER:TAG for a folder")
            });
        };
        let (rest, digest) = match rest.rsplit_once('@') {
            Some((folder, digest)) if digest.starts_with("sha") => {
                let digest = digest.parse::<Digest>();
                (folder, Some(digest.map_err(|error| error.to_string())?))
            }
            _ => (rest, None),
        };
        let (folder, tag) = match rest.rsplit_once(':') {
            Some((folder, tag)) if !tag.contains('/') => (folder, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if folder.is_empty() || tag.as_deref() == Some("") {
            return Err(format!("`{text}` names no folder; write oci:FOLDER:TAG"));
        }
        Ok(Self::Layout {
            layout: Layout::new(folder),
            tag,
            digest,
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(image) => write!(f, "{image}"),
            Self::Layout {
                layout,
                tag,
                digest,
            } => {
                write!(f, "oci:{}", layout.folder().display())?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                match digest {
                    Some(digest) => write!(f, "@{digest}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_parsed() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, folder, tag) in [
            ("oci:backup", "backup", None),
            ("oci:./a/b:v1", "./a/b", Some("v1")),
            ("oci:/srv/x:y/z", "/srv/x:y/z", None),
        ] {
            let Location::Layout {
                layout,
                tag: found,
                digest: None,
            } = text.parse().unwrap()
            else {
                panic!("{text}")
            };
            assert_eq!(layout.folder().to_str(), Some(folder), "{text}");
            assert_eq!(found.as_deref(), tag, "{text}");
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), text);
        }
        let location: Location = format!("oci:x@{digest}").parse().unwrap();
        assert_eq!(location.digest().map(Digest::as_str), Some(digest.as_str()));
        let location: Location = "127.0.0.1:5000/a:v1".parse().unwrap();
        assert!(matches!(&location, Location::Registry(_)) && location.tag() == Some("v1"));
        for bad in ["oci:", "oci::v1", "oci:x:", "oci:x@sha256:1", "A B"] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }
}
