//! Forged, truncated and mutated deliveries: refused with a 4xx or parsed, without a panic.

use acrtask_model::Secret;
use acrtask_trigger::{Event, Provider, RegistrySource, registry, verify_and_parse};
use http::HeaderMap;
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{Fixture, SECRET, fixtures, mutations, now, prove, send, send_push};

/// Checks that an event is harmless as an argument and on a screen.
fn harmless(event: &Event) {
    let name = |name: &str| {
        assert!(
            !name.starts_with('-') && !name.contains("..") && !name.contains(char::is_control),
            "{name:?}"
        );
    };
    match event {
        Event::Push(push) => name(&push.branch),
        Event::Tag(tag) => name(&tag.tag),
        Event::PullRequest(request) => {
            name(&request.base_branch);
            name(&request.head_branch);
        }
        Event::Ping => {}
        Event::Declined { reason } => assert!(!reason.contains(char::is_control), "{reason:?}"),
    }
}

#[test]
fn missing_or_mistyped_field_is_rejected() {
    let mut refused = 0;
    let mut read = 0;
    for provider in Provider::ALL {
        for fixture in fixtures(provider.name()) {
            for body in mutations(&fixture.body) {
                match send(
                    provider,
                    fixture.headers(),
                    &serde_json::to_vec(&body).unwrap(),
                ) {
                    Ok(delivery) => {
                        read += 1;
                        assert!(!delivery.events.is_empty());
                        delivery.events.iter().for_each(harmless);
                    }
                    Err(rejection) => {
                        refused += 1;
                        assert_eq!(
                            rejection.status(),
                            422,
                            "{provider} {}: {body}",
                            fixture.name
                        );
                        assert!(!rejection.to_string().contains(char::is_control));
                    }
                }
            }
        }
    }
    for source in RegistrySource::ALL {
        for fixture in fixtures(&format!("registries/{source}")) {
            for body in mutations(&fixture.body) {
                match send_push(
                    source,
                    fixture.headers(),
                    &serde_json::to_vec(&body).unwrap(),
                ) {
                    Ok(_) => read += 1,
                    Err(rejection) => {
                        refused += 1;
                        assert_eq!(rejection.status(), 422, "{source} {}: {body}", fixture.name);
                    }
                }
            }
        }
    }
    assert!(
        refused > 1000 && read > 1000,
        "{refused} refused, {read} read"
    );
}

/// A truncated body is refused, even with a proof that covers the truncated part.
#[test]
fn truncated_bodies_are_rejected() {
    for provider in Provider::ALL {
        let fixture = &fixtures(provider.name())[0];
        let body = fixture.bytes();
        for length in 0..body.len() {
            let rejection = send(provider, fixture.headers(), &body[..length]).unwrap_err();
            assert!((400..500).contains(&rejection.status()));
        }
    }
}

/// Signing providers, each with a proved delivery.
fn signed() -> impl Strategy<Value = (Provider, HeaderMap, Vec<u8>)> {
    let providers = Provider::ALL
        .into_iter()
        .filter(|provider| !matches!(provider, Provider::GitLab | Provider::AzureDevops));
    let all: Vec<(Provider, Fixture)> = providers
        .flat_map(|provider| {
            fixtures(provider.name())
                .into_iter()
                .map(move |fixture| (provider, fixture))
        })
        .collect();
    proptest::sample::select(all).prop_map(|(provider, fixture)| {
        let body = fixture.bytes();
        let mut headers = fixture.headers();
        prove(provider, &mut headers, &body, SECRET);
        (provider, headers, body)
    })
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(Value::from("refs/heads/main")),
        Just(Value::from("a".repeat(40))),
    ];
    let key = prop_oneof![
        "[a-z_]{1,8}".boxed(),
        proptest::sample::select(vec![
            "ref",
            "before",
            "after",
            "commits",
            "repository",
            "object_kind",
            "object_attributes",
            "eventType",
            "resource",
            "push",
            "changes",
            "pullRequest",
            "pull_request",
            "event",
            "events",
            "type",
            "data",
            "detail",
        ])
        .prop_map(str::to_owned)
        .boxed(),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn never_panics(body: &[u8]) {
    for provider in Provider::ALL {
        for fixture in fixtures(provider.name()) {
            if let Ok(delivery) = send(provider, fixture.headers(), body) {
                delivery.events.iter().for_each(harmless);
            }
        }
    }
    for source in RegistrySource::ALL {
        for fixture in fixtures(&format!("registries/{source}")) {
            let _ = send_push(source, fixture.headers(), body);
        }
    }
}

proptest! {
    #[test]
    fn flipped_bit_of_body_is_rejected((provider, headers, mut body) in signed(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let secrets = [Secret::new(SECRET)];
        prop_assert!(verify_and_parse(provider, &headers, &body, &secrets, now()).is_ok());
        let at = at.index(body.len());
        body[at] ^= 1 << bit;
        let rejection = verify_and_parse(provider, &headers, &body, &secrets, now()).unwrap_err();
        prop_assert_eq!(rejection.status(), 403);
    }

    #[test]
    fn proof_by_another_secret_is_rejected((provider, headers, body) in signed(), secret in "\\PC{0,30}") {
        prop_assume!(secret != SECRET);
        let rejection = verify_and_parse(provider, &headers, &body, &[Secret::new(secret)], now()).unwrap_err();
        prop_assert_eq!(rejection.status(), 403);
    }

    #[test]
    fn changed_character_of_proof_is_rejected(
        (provider, mut headers, body) in signed(), at in any::<prop::sample::Index>(), other in "[0-9a-f]",
    ) {
        let names = [
            "x-hub-signature-256", "x-hub-signature", "x-gitea-signature", "x-forgejo-signature", "webhook-signature",
        ];
        let name = names.into_iter().find(|name| headers.contains_key(*name)).unwrap();
        let mut value = headers[name].to_str().unwrap().to_owned();
        let at = at.index(value.len());
        prop_assume!(value[at..=at] != other);
        value.replace_range(at..=at, &other);
        headers.insert(name, value.parse().unwrap());
        prop_assert!(verify_and_parse(provider, &headers, &body, &[Secret::new(SECRET)], now()).is_err());
    }

    #[test]
    fn similar_token_is_rejected(token in "\\PC{0,40}", at in 0..29_usize) {
        prop_assume!(token != SECRET);
        let body = fixtures("registries/quay")[0].bytes();
        for token in [token.as_str(), &SECRET[..at], &format!("{SECRET}x")] {
            let checked = registry::verify_and_parse(
                RegistrySource::Quay, &HeaderMap::new(), Some(token), &body, &[Secret::new(SECRET)],
            );
            prop_assert!(matches!(checked.unwrap_err().status(), 401 | 403));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        never_panics(&body);
    }

    #[test]
    fn arbitrary_json_never_panics(body in json()) {
        never_panics(&serde_json::to_vec(&body).unwrap());
    }
}
