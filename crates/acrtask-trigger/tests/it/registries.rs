//! Snapshots of the events of all registry fixtures.

use acrtask_model::Secret;
use acrtask_trigger::{MAX_BODY, RegistryEvent, RegistrySource, registry};
use http::HeaderMap;

use crate::support::{SECRET, fixtures, send_push};

#[test]
fn pushes() {
    let mut text = String::new();
    for source in RegistrySource::ALL {
        for fixture in fixtures(&format!("registries/{source}")) {
            let outcome = match send_push(source, fixture.headers(), &fixture.bytes()) {
                Err(rejection) => format!("{} {rejection}", rejection.status()),
                Ok(delivery) => match delivery.event {
                    RegistryEvent::Pushed { images } => {
                        let images: Vec<_> = images.iter().map(ToString::to_string).collect();
                        format!("{}\n    id {}", images.join("\n    "), delivery.id)
                    }
                    RegistryEvent::Handshake { answer } => format!("answer {answer}"),
                    RegistryEvent::Ping => "ping".into(),
                    RegistryEvent::Declined { reason } => format!("declined: {reason}"),
                },
            };
            text.push_str(&format!("{source} {}:\n    {outcome}\n", fixture.name));
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn token_is_accepted_from_each_place() {
    let body = fixtures("registries/docker-hub")[0].bytes();
    let check = |name: Option<(&'static str, &str)>, token: Option<&str>| {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = name {
            headers.insert(name, value.parse().unwrap());
        }
        let secrets = [Secret::new("other"), Secret::new(SECRET)];
        registry::verify_and_parse(RegistrySource::DockerHub, &headers, token, &body, &secrets)
            .map(drop)
            .map_err(|rejection| rejection.status())
    };
    assert_eq!(check(None, Some(SECRET)), Ok(()));
    assert_eq!(check(Some(("authorization", SECRET)), None), Ok(()));
    assert_eq!(
        check(Some(("authorization", &format!("bearer {SECRET}"))), None),
        Ok(())
    );
    assert_eq!(check(Some(("x-acrtask-token", SECRET)), None), Ok(()));
    assert_eq!(check(None, None), Err(401));
    assert_eq!(check(None, Some("")), Err(401));
    assert_eq!(check(None, Some("wrong")), Err(403));
    assert_eq!(check(Some(("authorization", "Basic !")), None), Err(403));
    let none = registry::verify_and_parse(
        RegistrySource::DockerHub,
        &HeaderMap::new(),
        Some(""),
        &body,
        &[],
    );
    assert_eq!(none.unwrap_err().status(), 403);
    let long = registry::verify_and_parse(
        RegistrySource::Quay,
        &HeaderMap::new(),
        None,
        &vec![b' '; MAX_BODY + 1],
        &[],
    );
    assert_eq!(long.unwrap_err().status(), 413);
}
