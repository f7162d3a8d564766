//! Static files. Their URLs contain a hash of their content, so browsers may keep them forever.

use std::{fmt::Write as _, sync::LazyLock};

use sha2::{Digest as _, Sha256};

/// A static file.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Name of the file.
    pub name: &'static str,
    /// Media type.
    pub content_type: &'static str,
    /// Content.
    pub bytes: &'static [u8],
    /// First 16 hexadecimal digits of the SHA-256 of the content.
    pub hash: String,
}

const SVG: &str = "image/svg+xml";

static ASSETS: LazyLock<[Asset; 7]> = LazyLock::new(|| {
    [
        new_asset(
            "style.css",
            "text/css; charset=utf-8",
            include_bytes!("../assets/style.css"),
        ),
        new_asset(
            "page.js",
            "text/javascript; charset=utf-8",
            include_bytes!("../assets/page.js"),
        ),
        new_asset("icon.svg", SVG, include_bytes!("../assets/icon.svg")),
        new_asset(
            "icon-good.svg",
            SVG,
            include_bytes!("../assets/icon-good.svg"),
        ),
        new_asset(
            "icon-bad.svg",
            SVG,
            include_bytes!("../assets/icon-bad.svg"),
        ),
        new_asset(
            "icon-running.svg",
            SVG,
            include_bytes!("../assets/icon-running.svg"),
        ),
        new_asset(
            "icon-waiting.svg",
            SVG,
            include_bytes!("../assets/icon-waiting.svg"),
        ),
    ]
});

fn new_asset(name: &'static str, content_type: &'static str, bytes: &'static [u8]) -> Asset {
    let mut hash = String::new();
    for byte in &Sha256::digest(bytes)[..8] {
        let _ = write!(hash, "{byte:02x}");
    }
    Asset {
        name,
        content_type,
        bytes,
        hash,
    }
}

/// Returns the static file with this hash and name. `None` if there is none.
pub fn asset(hash: &str, name: &str) -> Option<&'static Asset> {
    ASSETS
        .iter()
        .find(|asset| asset.name == name && asset.hash == hash)
}

/// Returns the URL of the static file `name`: `/assets/HASH/NAME`. Empty if there is none.
pub fn asset_url(name: &str) -> String {
    ASSETS
        .iter()
        .find(|asset| asset.name == name)
        .map_or_else(String::new, |asset| {
            format!("/assets/{}/{}", asset.hash, asset.name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_small_and_have_a_url_each() {
        let mut size = 0;
        for file in ASSETS.iter() {
            let url = asset_url(file.name);
            let parts: Vec<&str> = url.split('/').collect();
            assert_eq!(asset(parts[2], parts[3]).unwrap().bytes, file.bytes);
            size += file.bytes.len();
        }
        assert!(size < 60_000, "{size}");
        assert!(asset("0000000000000000", "style.css").is_none());
    }
}
