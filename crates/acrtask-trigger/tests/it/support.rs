//! Fixtures, and the proofs of their senders.

use std::path::{Path, PathBuf};

use acrtask_model::Secret;
use acrtask_trigger::{
    Delivery, Provider, RegistryDelivery, RegistrySource, Rejection, registry, verify_and_parse,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::Sha256;

pub(crate) const SECRET: &str = "a secret that both sides know";

/// A delivery without its proof.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Fixture {
    #[serde(skip)]
    pub(crate) name: String,
    headers: Map<String, Value>,
    pub(crate) body: Value,
}

impl Fixture {
    pub(crate) fn headers(&self) -> HeaderMap {
        let header = |(name, value): (&String, &Value)| {
            let name: HeaderName = name.parse().unwrap();
            (
                name,
                HeaderValue::from_str(value.as_str().unwrap()).unwrap(),
            )
        };
        self.headers.iter().map(header).collect()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.body).unwrap()
    }
}

/// Reads the fixtures of a folder, by name.
pub(crate) fn fixtures(folder: &str) -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let fixture: Fixture = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            Fixture { name, ..fixture }
        })
        .collect()
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_795_600_000).unwrap()
}

pub(crate) fn hmac(secret: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Signs by the Standard Webhooks specification.
pub(crate) fn sign_standard(headers: &mut HeaderMap, body: &[u8], secret: &str, time: Timestamp) {
    let time = time.as_second().to_string();
    let id = headers
        .entry("webhook-id")
        .or_insert(HeaderValue::from_static("msg_0"))
        .as_bytes()
        .to_vec();
    let signature = hmac(secret, &[&id, b".", time.as_bytes(), b".", body]);
    let signature = format!("v1,{}", STANDARD.encode(signature));
    headers.insert("webhook-timestamp", time.parse().unwrap());
    headers.insert("webhook-signature", signature.parse().unwrap());
}

/// Adds the proof that a sender of this provider adds.
pub(crate) fn prove(provider: Provider, headers: &mut HeaderMap, body: &[u8], secret: &str) {
    let signature = hex(&hmac(secret, &[body]));
    let (name, value) = match provider {
        Provider::GitHub => ("x-hub-signature-256", format!("sha256={signature}")),
        Provider::GitLab => ("x-gitlab-token", secret.to_owned()),
        Provider::Gitea => ("x-gitea-signature", signature),
        Provider::Forgejo => ("x-forgejo-signature", signature),
        Provider::BitbucketCloud | Provider::BitbucketServer => {
            ("x-hub-signature", format!("sha256={signature}"))
        }
        Provider::AzureDevops => {
            let login = STANDARD.encode(format!("acrtask:{secret}"));
            ("authorization", format!("Basic {login}"))
        }
        Provider::Generic => return sign_standard(headers, body, secret, now()),
    };
    headers.insert(name, value.parse().unwrap());
}

/// Verifies and parses a body with its proof.
pub(crate) fn send(
    provider: Provider,
    mut headers: HeaderMap,
    body: &[u8],
) -> Result<Delivery, Rejection> {
    prove(provider, &mut headers, body, SECRET);
    verify_and_parse(provider, &headers, body, &[Secret::new(SECRET)], now())
}

/// Verifies and parses a registry's body with its proof.
pub(crate) fn send_push(
    source: RegistrySource,
    mut headers: HeaderMap,
    body: &[u8],
) -> Result<RegistryDelivery, Rejection> {
    let mut token = None;
    match source {
        RegistrySource::GitHub => prove(Provider::GitHub, &mut headers, body, SECRET),
        RegistrySource::DockerHub | RegistrySource::Quay => token = Some(SECRET),
        RegistrySource::Ecr => {
            headers.insert("x-acrtask-token", SECRET.parse().unwrap());
        }
        RegistrySource::Distribution => prove(Provider::AzureDevops, &mut headers, body, SECRET),
        RegistrySource::Harbor => {
            headers.insert("authorization", SECRET.parse().unwrap());
        }
        RegistrySource::Azure => {
            headers.insert("authorization", format!("Bearer {SECRET}").parse().unwrap());
        }
    }
    registry::verify_and_parse(source, &headers, token, body, &[Secret::new(SECRET)])
}

/// Returns all bodies that differ from `body` in one place: a removed value or another type.
pub(crate) fn mutations(body: &Value) -> Vec<Value> {
    let mut places = Vec::new();
    collect(body, String::new(), &mut places);
    let others = [
        Value::Null,
        Value::Bool(true),
        Value::from(-1),
        Value::from("../../--upload-pack=x\u{0}\u{1b}[2J"),
        Value::Array(vec![Value::Null]),
        Value::Object(Map::new()),
    ];
    let mut all = Vec::new();
    for place in places {
        for other in &others {
            let mut changed = body.clone();
            *changed.pointer_mut(&place).unwrap() = other.clone();
            all.push(changed);
        }
        if let Some((parent, key)) = place.rsplit_once('/') {
            let mut changed = body.clone();
            match changed.pointer_mut(parent).unwrap() {
                Value::Object(map) => {
                    map.remove(&key.replace("~1", "/").replace("~0", "~"));
                }
                Value::Array(list) => {
                    list.remove(key.parse().unwrap());
                }
                _ => unreachable!(),
            }
            all.push(changed);
        }
    }
    all
}

fn collect(value: &Value, place: String, places: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{place}/{key}"), places);
            }
        }
        // One element represents all elements of a list.
        Value::Array(list) => {
            if let Some(first) = list.first() {
                collect(first, format!("{place}/0"), places);
            }
        }
        _ => {}
    }
    places.push(place);
}
