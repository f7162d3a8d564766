//! Pointer file in the place of a large file.
//!
//! Source: git-lfs, `docs/spec.md`.

use acrtask_model::Digest;

/// Maximum size of a pointer file, in bytes.
pub(super) const MAX_POINTER: u64 = 1024;
const VERSION: &str = "version https://git-lfs.github.com/spec/v1";

/// Pointer to an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pointer {
    /// SHA-256 of the object: 64 lower-case digits.
    pub(super) oid: String,
    /// Size of the object, in bytes.
    pub(super) size: u64,
}

/// Parses a pointer. `None` if the text is not a pointer. An error if the pointer is unsupported.
pub(super) fn parse(text: &[u8]) -> Result<Option<Pointer>, String> {
    let Some(text) = std::str::from_utf8(text).ok() else {
        return Ok(None);
    };
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) {
        return Ok(None);
    }
    let (mut oid, mut size) = (None, None);
    for line in lines {
        match line.split_once(' ') {
            Some(("oid", value)) => oid = Some(value),
            Some(("size", value)) => size = Some(value),
            Some((key, _)) if key.starts_with("ext-") => {
                return Err(format!(
                    "its pointer has the extension `{key}`, which needs a program"
                ));
            }
            _ => {}
        }
    }
    let digest = oid.filter(|oid| oid.parse::<Digest>().is_ok());
    let oid = digest.and_then(|oid| oid.strip_prefix("sha256:"));
    match (oid, size.and_then(|size| size.parse().ok())) {
        (Some(oid), Some(size)) => Ok(Some(Pointer {
            oid: oid.to_owned(),
            size,
        })),
        _ => Err("its pointer has no `oid sha256:...` or no `size`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_only_valid_pointers() {
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let pointer = |oid: &str, rest: &str| format!("{VERSION}\noid {oid}\n{rest}");
        let good = Pointer {
            oid: oid.into(),
            size: 12345,
        };
        let sha = format!("sha256:{oid}");
        assert_eq!(
            parse(pointer(&sha, "size 12345\n").as_bytes()),
            Ok(Some(good))
        );
        for text in [
            "",
            "hello\n",
            "version https://example.com/spec/v1\noid x\n",
            "\u{0}\u{1}",
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(None), "{text:?}");
        }
        for (oid, rest) in [
            (&sha[..], ""),
            (&sha[..], "size -1\n"),
            (&sha[..], "size 99999999999999999999\n"),
            ("sha256:../../etc/passwd", "size 1\n"),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", "size 1\n"),
            (&sha[..], "ext-0-foo sha256:x\nsize 1\n"),
        ] {
            assert!(
                parse(pointer(oid, rest).as_bytes()).is_err(),
                "{oid} {rest}"
            );
        }
    }
}
