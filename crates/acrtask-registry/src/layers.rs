//! Layers of an image, and the content that its configuration claims for them.
//!
//! An engine stores an unpacked layer under the `diff_ids` of the configuration, and a builder does
//! not check them. A forged configuration could therefore read or replace the layers of another
//! image.
//!
//! Source: OCI image specification 1.1, "Image Configuration" (`rootfs.diff_ids`) and "Image Layer
//! Filesystem Changeset". `DiffCompression` and `DecompressStream` of containerd decide how an
//! engine unpacks a layer.

use std::{
    io::{Cursor, Error},
    pin::Pin,
};

use acrtask_model::Digest;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use bytes::Bytes;
use futures::Stream;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::StreamReader;

use crate::{
    json_keys::{self, Keys},
    manifest::Hasher,
};

/// Maximum size of the content of a layer, in bytes.
const MAX_CONTENT: u64 = 64 << 30;
/// Number of bytes hashed at a time.
const PIECE: usize = 128 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Bytes 2 to 4 of a zstd frame without content.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// Returns the digests of the contents of an image's layers, lowest first. Empty if `config` is not
/// the configuration of an image.
///
/// # Errors
/// A sentence: the configuration cannot be read, or other programs may read it differently.
pub fn diff_ids(config: &[u8]) -> Result<Vec<Digest>, String> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: Option<Rootfs>,
    }
    #[derive(Deserialize)]
    struct Rootfs {
        #[serde(default)]
        diff_ids: Vec<Digest>,
    }
    let invalid = |why: String| format!("the configuration is not valid: {why}");
    json_keys::check(config, KEYS).map_err(invalid)?;
    let config: Config =
        serde_json::from_slice(config).map_err(|error| invalid(error.to_string()))?;
    Ok(config
        .rootfs
        .map_or_else(Vec::new, |rootfs| rootfs.diff_ids))
}

/// Keys of a configuration that decide its layers. Names of labels and volumes may have any case.
const KEYS: Keys = Keys {
    names: &[
        "rootfs",
        "diff_ids",
        "type",
        "os",
        "architecture",
        "variant",
    ],
    is_free: |key| key != "rootfs",
};

/// Computes the digest of a layer's content with the algorithm of `like`. `media_type` comes from
/// the layer's descriptor.
///
/// # Errors
/// A sentence: the layer cannot be read or unpacked, or engines may unpack it differently.
pub async fn content_digest<E>(
    media_type: &str,
    layer: impl Stream<Item = Result<Bytes, E>> + Send,
    like: &Digest,
) -> Result<Digest, String>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let layer = Box::pin(futures::TryStreamExt::map_err(layer, Error::other));
    let mut reader = StreamReader::new(layer);
    let read = async {
        let mut head = Vec::new();
        (&mut reader).take(4).read_to_end(&mut head).await?;
        let compression = Compression::detect(&head);
        let whole = Cursor::new(head).chain(reader);
        let content: Pin<Box<dyn AsyncRead + Send + '_>> = match compression {
            Some(_) if !is_compressed(media_type) => {
                return Ok(Err(format!(
                    "the layer is compressed, but its type `{media_type}` is for a plain one"
                )));
            }
            Some(Compression::Gzip) => {
                let mut decoder = GzipDecoder::new(whole);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Some(Compression::Zstd) => {
                let mut decoder = ZstdDecoder::new(whole);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            None => Box::pin(whole),
        };
        Ok(hash_stream(content, like)
            .await?
            .ok_or_else(|| format!("the layer unpacks to more than {MAX_CONTENT} bytes")))
    };
    let read: Result<_, Error> = read.await;
    read.map_err(|error| format!("the layer cannot be read: {error}"))?
}

/// Computes the digest of a file with the algorithm of `like`.
///
/// # Errors
/// The file cannot be read, or has more than 64 GiB.
pub async fn file_digest(file: impl AsyncRead + Unpin, like: &Digest) -> Result<Digest, Error> {
    let digest = hash_stream(file, like).await?;
    digest.ok_or_else(|| Error::other(format!("it has more than {MAX_CONTENT} bytes")))
}

/// Computes the digest of a stream. `None` if the stream has more than [`MAX_CONTENT`] bytes.
async fn hash_stream(
    mut content: impl AsyncRead + Unpin,
    like: &Digest,
) -> Result<Option<Digest>, Error> {
    let mut hasher = Hasher::for_digest(like);
    let mut piece = vec![0; PIECE];
    let mut length = 0;
    loop {
        let read = content.read(&mut piece).await?;
        if read == 0 {
            return Ok(Some(hasher.finish()));
        }
        length += read as u64;
        if length > MAX_CONTENT {
            return Ok(None);
        }
        hasher.update(&piece[..read]);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    /// Detects the compression from the first four bytes of a layer. `None` if engines would not
    /// unpack it.
    fn detect(head: &[u8]) -> Option<Self> {
        if head.starts_with(GZIP) {
            return Some(Self::Gzip);
        }
        let skippable = head.len() == 4 && head[0] & 0xf0 == 0x50 && &head[1..] == ZSTD_SKIPPABLE;
        (head.starts_with(ZSTD) || skippable).then_some(Self::Zstd)
    }
}

/// Returns `true` if engines detect a compression in layers of this type. The same bytes are two
/// different layers: one if an engine unpacks them, and another if not.
pub fn is_compressed(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
    )
}

#[cfg(test)]
mod tests {
    use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};

    use super::*;
    use crate::manifest::sha256;

    const GZIP_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const PLAIN_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
    const CONTENT: &[u8] = b"the content of a layer";

    /// Computes the digest of a layer that arrives in pieces of `piece` bytes.
    async fn digest_of(media_type: &str, layer: &[u8], piece: usize) -> Result<Digest, String> {
        let pieces = layer
            .chunks(piece)
            .map(|piece| Ok::<_, Error>(Bytes::copy_from_slice(piece)));
        content_digest(media_type, futures::stream::iter(pieces), &sha256(b"")).await
    }

    async fn pack(mut encoder: impl AsyncRead + Unpin) -> Vec<u8> {
        let mut packed = Vec::new();
        encoder.read_to_end(&mut packed).await.unwrap();
        packed
    }

    #[tokio::test]
    async fn content_digest_unpacks_layers_as_engines_do() {
        let gzip = pack(GzipEncoder::new(CONTENT)).await;
        let zstd = pack(ZstdEncoder::new(CONTENT)).await;
        let mut skipped = vec![0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        skipped.extend(&zstd);
        let twice = [gzip.clone(), gzip.clone()].concat();
        let garbage = [gzip.clone(), b"garbage".to_vec()].concat();
        let double = [CONTENT, CONTENT].concat();
        for (name, media_type, layer, expected) in [
            ("gzip", GZIP_TYPE, gzip.as_slice(), Some(CONTENT)),
            ("zstd", GZIP_TYPE, &zstd, Some(CONTENT)),
            ("skippable frame", GZIP_TYPE, &skipped, Some(CONTENT)),
            ("members", GZIP_TYPE, &twice, Some(&double)),
            ("garbage", GZIP_TYPE, &garbage, None),
            ("cut", GZIP_TYPE, &gzip[..gzip.len() - 9], None),
            ("plain", PLAIN_TYPE, CONTENT, Some(CONTENT)),
            ("plain as gzip", GZIP_TYPE, CONTENT, Some(CONTENT)),
            ("gzip as plain", PLAIN_TYPE, &gzip, None),
            ("zstd as another type", "text/plain", &zstd, None),
            (
                "another type",
                "application/vnd.in-toto+json",
                CONTENT,
                Some(CONTENT),
            ),
            ("empty", PLAIN_TYPE, b"", Some(b"")),
        ] {
            for piece in [1, 3, 1000] {
                let digest = digest_of(media_type, layer, piece).await;
                assert_eq!(digest.ok(), expected.map(sha256), "{name} {piece}");
            }
        }
    }

    #[test]
    fn diff_ids_are_read_from_the_configuration() {
        let id = format!("sha256:{}", "a".repeat(64));
        let good = format!(
            r#"{{"rootfs":{{"type":"layers","diff_ids":["{id}"]}},"config":{{"Labels":{{"OS":"x"}}}}}}"#
        );
        assert_eq!(diff_ids(good.as_bytes()), Ok(vec![id.parse().unwrap()]));
        for none in [
            "{}",
            r#"{"rootfs":null}"#,
            r#"{"rootfs":{"type":"layers"}}"#,
        ] {
            assert_eq!(diff_ids(none.as_bytes()), Ok(Vec::new()), "{none}");
        }
        for bad in [
            good.replace("rootfs", "RootFS"),
            good.replace("diff_ids", "Diff_IDs"),
            good.replace("diff_ids", "diff_idſ"),
            good.replace("},\"config", "},\"rootfs\":{},\"config"),
            good.replace("\"type\"", "\"diff_ids\":[],\"type\""),
            good.replace(&id, "sha256:short"),
            "[]".to_owned(),
        ] {
            assert!(diff_ids(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
