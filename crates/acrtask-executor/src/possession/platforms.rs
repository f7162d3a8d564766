//! Selection of the images of an index by platform. Pure.

use acrtask_registry::Platform;

/// Operating systems in the normal form of engines and builders. They normalize other spellings to
/// one of these.
const SYSTEMS: [&str; 3] = ["linux", "windows", "unknown"];
/// Processors in the normal form of engines and builders.
const ARCHITECTURES: [&str; 14] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "unknown",
];

/// Platforms of the usable images of an index, such as `linux/arm64/v8`. If empty, all images may
/// be used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Platforms(pub(crate) Vec<String>);

impl Platforms {
    /// Returns a value that includes the images for all platforms.
    pub(crate) fn all() -> Self {
        Self(Vec::new())
    }

    /// Returns `true` if an image for `platform` may be used. An engine for `amd64` also runs
    /// `386`. A spelling that engines may normalize to another one counts as used.
    pub(super) fn include(&self, platform: Option<&Platform>) -> bool {
        let Some(platform) = platform.filter(|_| !self.0.is_empty()) else {
            return true;
        };
        let is_normalized = |os: &str, architecture: &str| {
            SYSTEMS.contains(&os) && ARCHITECTURES.contains(&architecture)
        };
        if !is_normalized(&platform.os, &platform.architecture) {
            return true;
        }
        let family = |architecture: &str| match architecture {
            "386" | "amd64" => "x86",
            "arm" | "arm64" => "arm",
            _ => "",
        };
        self.0.iter().any(|wanted| {
            let mut parts = wanted.split('/');
            let os = parts.next().unwrap_or_default();
            let architecture = parts.next().unwrap_or_default();
            let same_family = !family(architecture).is_empty()
                && family(architecture) == family(&platform.architecture);
            !is_normalized(os, architecture)
                || os == platform.os && (same_family || architecture == platform.architecture)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_include_all_images_that_an_engine_may_choose() {
        let platform = |text: &str| {
            let (os, architecture) = text.split_once('/').unwrap();
            Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: None,
                os_version: None,
                os_features: Vec::new(),
            }
        };
        for (wanted, offered, expected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64/v2", "linux/386", true),
            ("linux/arm64/v8", "linux/arm", true),
            ("linux/s390x", "linux/s390x", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/s390x", "linux/riscv64", false),
            ("linux/amd64", "unknown/unknown", false),
            // Spellings that an engine normalizes to linux/amd64 or linux/arm.
            ("linux/amd64", "/amd64", true),
            ("linux/amd64", "/", true),
            ("linux/amd64", "linux/x86-64", true),
            ("linux/amd64", "linux/AMD64", true),
            ("linux/amd64", "Linux/arm64", true),
            ("linux/armhf", "linux/s390x", true),
            ("arm", "linux/s390x", true),
            ("LINUX/amd64", "linux/s390x", true),
        ] {
            let included = Platforms(vec![wanted.to_owned()]).include(Some(&platform(offered)));
            assert_eq!(included, expected, "{wanted} {offered}");
        }
        assert!(Platforms(vec!["linux/amd64".into()]).include(None));
    }
}
