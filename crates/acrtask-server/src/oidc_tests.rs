//! Tests of `oidc.rs`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, ResponseTemplate, matchers};

use super::*;

const NOW: i64 = 1_790_000_000_000;

/// A key pair of an issuer.
struct Pair {
    kid: String,
    key: EncodingKey,
    jwk: Value,
}

impl Pair {
    fn new(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        // Uncompressed: 4, x, y.
        let point = pair.public_key_raw();
        Self {
            kid: kid.into(),
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            jwk: json!({
                "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid,
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
                "y": URL_SAFE_NO_PAD.encode(&point[33..65]),
            }),
        }
    }
}

/// An issuer on loopback.
pub(crate) struct Issuer {
    pub(crate) url: String,
    server: MockServer,
    pair: Pair,
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        let server = MockServer::start().await;
        let issuer = Self {
            url: server.uri(),
            server,
            pair: Pair::new("one"),
        };
        let discovery = json!({
            "issuer": issuer.url,
            "jwks_uri": format!("{}/keys", issuer.url),
        });
        Mock::given(matchers::path("/.well-known/openid-configuration"))
            .respond_with(ResponseTemplate::new(200).set_body_json(discovery))
            .mount(&issuer.server)
            .await;
        // A key of an unknown type does not hide the other keys.
        issuer
            .publish(&[json!({"kty": "PQC", "kid": "odd"}), issuer.pair.jwk.clone()])
            .await;
        issuer
    }

    async fn publish(&self, keys: &[Value]) {
        Mock::given(matchers::path("/keys"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!({ "keys": keys })))
            .up_to_n_times(1000)
            .with_priority(1)
            .mount(&self.server)
            .await;
    }

    async fn count_key_requests(&self) -> usize {
        let requests = self.server.received_requests().await.unwrap();
        requests
            .iter()
            .filter(|request| request.url.path() == "/keys")
            .count()
    }

    pub(crate) fn claims(&self, now: i64) -> Value {
        json!({
            "iss": self.url,
            "aud": ["other", "acrtask"],
            "sub": "repo:org/app:ref:refs/heads/main",
            "exp": now / 1000 + 300,
            "nbf": now / 1000,
            "jti": "x",
        })
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        sign(&self.pair, claims)
    }
}

fn sign(pair: &Pair, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(pair.kid.clone());
    jsonwebtoken::encode(&header, claims, &pair.key).unwrap()
}

fn federation(issuer: &str) -> Federation {
    serde_json::from_value(json!({
        "name": "ci",
        "issuer": issuer,
        "audience": "acrtask",
        "subject": "repo:org/app:*",
        "scopes": ["run"],
    }))
    .unwrap()
}

#[tokio::test]
async fn only_tokens_with_all_matching_claims_are_accepted() {
    let issuer = Issuer::start().await;
    let federations = [
        federation("https://other.example.com"),
        federation(&issuer.url),
    ];
    let issuers = Issuers::default();
    let good = issuer.claims(NOW);
    let token = issuer.token(&good);
    let granted = issuers.verify(&token, &federations, NOW).await.unwrap();
    assert_eq!(granted.federation.issuer, issuer.url);
    assert_eq!(granted.subject, "repo:org/app:ref:refs/heads/main");
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        issuer.token(&claims)
    };
    for (what, token) in [
        ("another audience", with("aud", json!("other"))),
        ("another subject", with("sub", json!("repo:org/app-evil:x"))),
        (
            "another issuer",
            with("iss", json!("https://evil.example.com")),
        ),
        ("expired", with("exp", json!(NOW / 1000 - 31))),
        ("not yet", with("nbf", json!(NOW / 1000 + 31))),
        ("no end", with("exp", Value::Null)),
        ("cut", token[..token.len() - 8].to_owned()),
    ] {
        let refused = issuers.verify(&token, &federations, NOW).await;
        assert!(refused.is_err(), "{what}");
    }
    // Small clock differences are tolerated.
    let late = with("exp", json!(NOW / 1000 - 20));
    issuers.verify(&late, &federations, NOW).await.unwrap();
    assert_eq!(issuer.count_key_requests().await, 1, "keys are cached");
}

#[tokio::test]
async fn forged_signatures_are_refused() {
    let issuer = Issuer::start().await;
    let federations = [federation(&issuer.url)];
    let issuers = Issuers::default();
    let claims = issuer.claims(NOW);
    // A token that was signed with another key of the same name.
    let forged = sign(&Pair::new("one"), &claims);
    let error = issuers
        .verify(&forged, &federations, NOW)
        .await
        .unwrap_err();
    assert!(matches!(error, ExchangeError::Invalid(_)), "{error}");
    // A token that uses the public key as an HMAC secret.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("one".into());
    let secret = EncodingKey::from_secret(issuer.pair.jwk.to_string().as_bytes());
    let hmac = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    let error = issuers.verify(&hmac, &federations, NOW).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Unreadable(_)), "{error}");
    // A token without a signature.
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"one"}"#);
    let body = URL_SAFE_NO_PAD.encode(claims.to_string());
    let none = format!("{header}.{body}.");
    let error = issuers.verify(&none, &federations, NOW).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Unreadable(_)), "{error}");
    assert_eq!(
        issuer.count_key_requests().await,
        1,
        "the last two are refused without a request"
    );
}

#[tokio::test]
async fn keys_are_fetched_once_for_a_new_key() {
    let issuer = Issuer::start().await;
    let federations = [federation(&issuer.url)];
    let issuers = Issuers::default();
    let claims = issuer.claims(NOW);
    issuers
        .verify(&issuer.token(&claims), &federations, NOW)
        .await
        .unwrap();
    let second = Pair::new("two");
    let token = sign(&second, &claims);
    // Shortly after a fetch, unknown key names cause no further requests.
    let error = issuers.verify(&token, &federations, NOW).await.unwrap_err();
    insta::assert_snapshot!(error.to_string());
    assert_eq!(issuer.count_key_requests().await, 1);
    issuer.server.reset().await;
    let renewed = Issuer {
        url: issuer.url.clone(),
        server: issuer.server,
        pair: second,
    };
    let discovery = json!({"issuer": renewed.url, "jwks_uri": format!("{}/keys", renewed.url)});
    Mock::given(matchers::path("/.well-known/openid-configuration"))
        .respond_with(ResponseTemplate::new(200).set_body_json(discovery))
        .mount(&renewed.server)
        .await;
    renewed
        .publish(std::slice::from_ref(&renewed.pair.jwk))
        .await;
    let later = NOW + REFETCH_MS;
    issuers.verify(&token, &federations, later).await.unwrap();
    issuers.verify(&token, &federations, later).await.unwrap();
    assert_eq!(renewed.count_key_requests().await, 1);
}

#[tokio::test]
async fn errors_name_the_invalid_response_of_an_issuer() {
    let server = MockServer::start().await;
    let url = server.uri();
    let pair = Pair::new("one");
    let federations = [federation(&url)];
    let claims =
        json!({"iss": url, "aud": "acrtask", "sub": "repo:org/app:x", "exp": NOW / 1000 + 60});
    let token = sign(&pair, &claims);
    let mut messages = Vec::new();
    for discovery in [
        ResponseTemplate::new(500),
        ResponseTemplate::new(200).set_body_string("<html>"),
        ResponseTemplate::new(200)
            .set_body_json(json!({"issuer": "https://evil.example.com", "jwks_uri": "https://x"})),
        ResponseTemplate::new(200)
            .set_body_json(json!({"issuer": url, "jwks_uri": "http://keys.example.com"})),
        ResponseTemplate::new(200).set_body_bytes(vec![b'x'; MAX_RESPONSE + 1]),
        ResponseTemplate::new(302).insert_header("location", "http://169.254.169.254/"),
    ] {
        server.reset().await;
        Mock::given(matchers::path("/.well-known/openid-configuration"))
            .respond_with(discovery)
            .mount(&server)
            .await;
        let error = Issuers::default()
            .verify(&token, &federations, NOW)
            .await
            .unwrap_err();
        assert!(matches!(error, ExchangeError::Issuer { .. }), "{error}");
        messages.push(error.to_string().replace(&url, "ISSUER"));
    }
    insta::assert_snapshot!(messages.join("\n"));
}

/// An issuer must not make the server send requests to hosts of its private network.
#[tokio::test]
async fn keys_on_other_private_hosts_are_not_fetched() {
    let server = MockServer::start().await;
    let url = server.uri();
    let port = server.address().port();
    let federations = [federation(&url)];
    let claims =
        json!({"iss": url, "aud": "acrtask", "sub": "repo:org/app:x", "exp": NOW / 1000 + 60});
    let token = sign(&Pair::new("one"), &claims);
    for keys in [
        format!("http://localhost:{port}/keys"),
        format!("http://[::1]:{port}/keys"),
        format!("http://127.0.0.2:{port}/keys"),
        "https://10.1.2.3/keys".to_owned(),
        "https://169.254.169.254/keys".to_owned(),
    ] {
        server.reset().await;
        Mock::given(matchers::path("/.well-known/openid-configuration"))
            .respond_with(
                ResponseTemplate::new(200).set_body_json(json!({"issuer": url, "jwks_uri": keys})),
            )
            .mount(&server)
            .await;
        let error = Issuers::default()
            .verify(&token, &federations, NOW)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("not a public address"),
            "{keys}: {error}"
        );
        assert_eq!(server.received_requests().await.unwrap().len(), 1, "{keys}");
    }
}

#[tokio::test]
async fn requests_to_a_failing_issuer_are_limited() {
    let server = MockServer::start().await;
    Mock::given(matchers::any())
        .respond_with(ResponseTemplate::new(503))
        .mount(&server)
        .await;
    let url = server.uri();
    let federations = [federation(&url)];
    let claims =
        json!({"iss": url, "aud": "acrtask", "sub": "repo:org/app:x", "exp": NOW / 1000 + 60});
    let token = sign(&Pair::new("one"), &claims);
    let issuers = Issuers::default();
    let count_requests = async || server.received_requests().await.unwrap().len();
    let all = (0..10).map(|_| issuers.verify(&token, &federations, NOW));
    for result in futures::future::join_all(all).await {
        assert!(matches!(result, Err(ExchangeError::Issuer { .. })));
    }
    assert_eq!(count_requests().await, 1);
    let later = NOW + RETRY_MS;
    issuers
        .verify(&token, &federations, later)
        .await
        .unwrap_err();
    assert_eq!(count_requests().await, 2);
}

#[test]
fn issuers_need_https_except_on_loopback() {
    for good in [
        "https://issuer.example.com",
        "https://x/y",
        "http://127.0.0.1:1",
        "http://localhost:1/a",
    ] {
        check_issuer(good).unwrap();
    }
    for bad in [
        "",
        "x",
        "http://issuer.example.com",
        "ftp://x",
        "https://x?a=b",
        "https://x#y",
    ] {
        check_issuer(bad).unwrap_err();
    }
}

#[test]
fn patterns_match_with_wildcards() {
    for (pattern, text, fits) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("", "", true),
        ("a*", "a", true),
        ("a*", "abc", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a*a", "a", false),
        ("a*ab", "aab", true),
        (
            "repo:org/app:ref:refs/heads/*",
            "repo:org/app:ref:refs/tags/x",
            false,
        ),
        ("repo:org/app:*", "repo:org/app-evil:x", false),
        ("ü*", "üx", true),
    ] {
        assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
    }
}

/// Matches a pattern by trying all possibilities, as a reference.
fn matches_slowly(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|at| matches_slowly(rest, &text[at..])),
        Some((first, rest)) => text.first() == Some(first) && matches_slowly(rest, &text[1..]),
    }
}

proptest! {
    #[test]
    fn patterns_match_like_the_reference(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
        let chars = |text: &str| text.chars().collect::<Vec<char>>();
        prop_assert_eq!(matches(&pattern, &text), matches_slowly(&chars(&pattern), &chars(&text)));
    }

    #[test]
    fn arbitrary_tokens_are_refused_without_a_panic(token in "\\PC{0,60}") {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused = runtime.block_on(Issuers::default().verify(&token, &[], NOW));
        prop_assert!(refused.is_err());
    }
}
