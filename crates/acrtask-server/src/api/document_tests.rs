//! Tests of `document.rs`.

use axum::http::{Method, StatusCode};
use serde_json::Value;

use crate::api::testing::TestServer;

#[tokio::test]
async fn document_describes_every_route_with_its_responses() {
    let server = TestServer::start().await;
    let response = server
        .send(TestServer::request(
            Method::GET,
            "/openapi.json",
            None,
            None,
        ))
        .await;
    let document: Value = response.json(StatusCode::OK);
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let mut operations = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path} has no summary");
            assert!(
                operation["responses"]
                    .as_object()
                    .is_some_and(|all| !all.is_empty())
            );
            let name = operation["operationId"].as_str().unwrap();
            assert!(
                names.insert(name.to_owned()),
                "duplicate operation id {name}"
            );
            operations.push(format!("{name}: {} {path}", method.to_uppercase()));
        }
    }
    insta::assert_snapshot!(operations.join("\n"));
    // Every referenced schema exists.
    let text = response.text();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(
            document["components"]["schemas"].get(name).is_some(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn schemas_are_served_without_a_token() {
    let server = TestServer::start().await;
    let schema = async |path: &str| -> Value {
        let response = server
            .send(TestServer::request(Method::GET, path, None, None))
            .await;
        response.json(StatusCode::OK)
    };
    let task = schema("/schemas/task.json").await;
    assert_eq!(task["additionalProperties"], false);
    assert!(task["properties"]["context"].is_object());
    let file = schema("/schemas/acr-task.json").await;
    assert_eq!(file["title"], "acr-task.yaml");
}

#[tokio::test]
async fn unknown_routes_and_methods_return_a_problem() {
    let server = TestServer::start().await;
    let problem = server.get("/nothing").await.problem(StatusCode::NOT_FOUND);
    assert_eq!(problem.code, "not-found");
    let response = server
        .send_as(Method::DELETE, "/runs", &server.admin, None)
        .await;
    let problem = response.problem(StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(problem.code, "method-not-allowed");
}
