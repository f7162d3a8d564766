//! Tests of the metadata and the sign-in.

use super::*;

async fn sign_in(arm: &ArmServer, form: &str) -> TestResponse {
    let request = Request::builder()
        .method(Method::POST)
        .uri("/adfs/oauth2/token")
        .header(header::HOST, "arm.test:8443")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from(form.to_owned()))
        .unwrap();
    arm.send(request).await
}

#[tokio::test]
async fn metadata_names_the_host_of_the_request() {
    let arm = ArmServer::start().await;
    for path in [
        "/metadata/endpoints?api-version=2022-09-01",
        "//metadata/endpoints?api-version=2022-09-01",
    ] {
        let found: Value = arm
            .call_as(None, Method::GET, path, &Value::Null)
            .await
            .json(StatusCode::OK);
        assert_eq!(
            found["authentication"]["loginEndpoint"],
            "https://arm.test:8443/adfs"
        );
    }
    let tenant = acrtask_arm::TENANT;
    for path in [
        "/adfs/.well-known/openid-configuration".to_owned(),
        format!("/adfs/{tenant}/v2.0/.well-known/openid-configuration"),
    ] {
        let found: Value = arm
            .call_as(None, Method::GET, &path, &Value::Null)
            .await
            .json(StatusCode::OK);
        assert_eq!(
            found["token_endpoint"],
            "https://arm.test:8443/adfs/oauth2/token"
        );
    }
}

#[tokio::test]
async fn public_url_overrides_the_host_of_the_request() {
    let arm = ArmServer::with(Config {
        public_url: Some("https://ci.test".parse().unwrap()),
        ..Config::default()
    })
    .await;
    let found: Value = arm
        .call_as(None, Method::GET, "/metadata/endpoints", &Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(found["resourceManager"], "https://ci.test");
}

#[tokio::test]
async fn hostile_host_names_are_refused() {
    let arm = ArmServer::start().await;
    for host in ["a/b", "user@host", "a\"b"] {
        let request = Request::builder()
            .uri("/metadata/endpoints")
            .header(header::HOST, host)
            .body(Body::empty())
            .unwrap();
        message(&arm.send(request).await, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn token_is_its_own_access_token() {
    let arm = ArmServer::start().await;
    let token = &arm.server.admin;
    let form = format!("grant_type=client_credentials&client_id=x&scope=y&client_secret={token}");
    let granted: Value = sign_in(&arm, &form).await.json(StatusCode::OK);
    assert_eq!(
        granted,
        json!({"token_type": "Bearer", "expires_in": 3600, "access_token": token})
    );
    let listed: Value = arm
        .call(Method::GET, "/subscriptions", Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(listed["value"][0]["state"], "Enabled");
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_counted() {
    let arm = ArmServer::start().await;
    let unknown = crate::auth::new_token().text.0;
    for (form, status, code) in [
        ("", 400, "unsupported_grant_type"),
        ("grant_type=password", 400, "unsupported_grant_type"),
        ("grant_type=client_credentials", 401, "invalid_client"),
        (
            "grant_type=client_credentials&client_assertion=x",
            401,
            "invalid_client",
        ),
    ] {
        let refused = sign_in(&arm, form).await;
        let body: Value = refused.json(StatusCode::from_u16(status).unwrap());
        assert_eq!(body["error"], code, "{form}");
    }
    let form = format!("grant_type=client_credentials&client_secret={unknown}");
    let mut statuses = Vec::new();
    for _ in 0..21 {
        statuses.push(sign_in(&arm, &form).await.status.as_u16());
    }
    assert_eq!((statuses[0], statuses[20]), (401, 429));
}

#[tokio::test]
async fn registries_are_listed_as_resources() {
    let arm = ArmServer::start().await;
    let base = format!("/subscriptions/{}", acrtask_arm::SUBSCRIPTION);
    let filter = "$filter=resourceType%20eq%20'Microsoft.ContainerRegistry/registries'";
    for path in [
        format!("{base}/resources?{filter}"),
        format!("{base}/providers/Microsoft.ContainerRegistry/registries"),
        format!("{base}/resourcegroups/ACRTASK/providers/microsoft.containerregistry/registries"),
    ] {
        let found: Value = arm
            .call(Method::GET, &path, Value::Null)
            .await
            .json(StatusCode::OK);
        let names: Vec<&str> = found["value"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["myreg", "other"], "{path}");
    }
    let other = format!("{base}/resources?$filter=resourceType%20eq%20'Microsoft.Web/sites'");
    let found: Value = arm
        .call(Method::GET, &other, Value::Null)
        .await
        .json(StatusCode::OK);
    assert_eq!(found, json!({"value": []}));
    let group = in_registry("").replace("/acrtask/", "/nosuch/");
    let text = message(
        &arm.call(Method::GET, &group, Value::Null).await,
        StatusCode::NOT_FOUND,
    );
    assert!(text.contains("could not be found"), "{text}");
}
