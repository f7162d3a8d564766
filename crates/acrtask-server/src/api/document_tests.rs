//! Tests of `document.rs`.

use axum::http::{Method, StatusCode};
use serde_json::Value;

use crate::api::testing::Server;

#[tokio::test]
async fn the_document_describes_every_route_with_its_answers() {
    let server = Server::start().await;
    let answer = server
        .send(Server::request(Method::GET, "/openapi.json", None, None))
        .await;
    let document: Value = answer.json(StatusCode::OK);
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let mut operations = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(
                !summary.is_empty(),
                "{method} {path} says nothing of itself"
            );
            assert!(
                operation["responses"]
                    .as_object()
                    .is_some_and(|all| !all.is_empty())
            );
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "two are called {name}");
            operations.push(format!("{name}: {} {path}", method.to_uppercase()));
        }
    }
    insta::assert_snapshot!(operations.join("\n"));
    // Every name that is referred to is there.
    let text = answer.text();
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
    let server = Server::start().await;
    let schema = async |path: &str| -> Value {
        let answer = server
            .send(Server::request(Method::GET, path, None, None))
            .await;
        answer.json(StatusCode::OK)
    };
    let task = schema("/schemas/task.json").await;
    assert_eq!(task["additionalProperties"], false);
    assert!(task["properties"]["context"].is_object());
    let file = schema("/schemas/acr-task.json").await;
    assert_eq!(file["title"], "acr-task.yaml");
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let server = Server::start().await;
    let problem = server.get("/nothing").await.problem(StatusCode::NOT_FOUND);
    assert_eq!(problem.code, "not-found");
    let answer = server
        .ask(Method::DELETE, "/runs", &server.admin, None)
        .await;
    let problem = answer.problem(StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(problem.code, "method-not-allowed");
}
