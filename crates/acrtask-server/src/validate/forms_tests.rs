//! Comparison of the forms in the OpenAPI document with the checks of the server.

use acrtask_api::forms;
use acrtask_model::{Digest, RunId};
use regex::Regex;
use utoipa::PartialSchema;

use super::*;

/// Texts at the boundaries of the forms.
const TEXTS: [&str; 36] = [
    "",
    " ",
    "a",
    "A-b_c.d",
    "a b",
    "a/b",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "../a",
    "...a",
    "a/.b",
    "é",
    "a\n",
    "a\0b",
    "a=b",
    "=",
    "-a",
    "a-",
    "*",
    "team/*",
    "te*am",
    "host:5000",
    "[::1]:5000",
    "https://host",
    "linux/amd64",
    "linux/arm/v7",
    "Linux/amd64",
    "linux",
    "linux//v7",
    "acr",
    "docker",
    "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];

/// Returns `true` if `text` has the form `S`.
fn has_form<S: PartialSchema>(text: &str) -> bool {
    let schema = serde_json::to_value(S::schema()).unwrap();
    let length = text.chars().count() as u64;
    let pattern = schema["pattern"].as_str().unwrap_or_default();
    schema["minLength"]
        .as_u64()
        .is_none_or(|least| length >= least)
        && schema["maxLength"]
            .as_u64()
            .is_none_or(|most| length <= most)
        && Regex::new(pattern).unwrap().is_match(text)
}

/// Compares the form `S` with a check of the server, for [`TEXTS`] and for long texts.
fn compare<S: PartialSchema>(name: &str, check: impl Fn(&str) -> bool) {
    let long = [99, 100, 101, 200, 201, 255, 256].map(|length| "a".repeat(length));
    for text in TEXTS.into_iter().chain(long.iter().map(String::as_str)) {
        assert_eq!(has_form::<S>(text), check(text), "{name}: {text:?}");
    }
}

/// Returns `true` if a check finds no violated form.
fn passes(check: impl FnOnce(&mut Problems)) -> bool {
    let mut problems = Problems::default();
    check(&mut problems);
    !problems.has_wrong_form()
}

fn variables(name: &str, value: &str) -> BTreeMap<String, String> {
    [(name.to_owned(), value.to_owned())].into()
}

#[test]
fn documented_forms_match_the_checks_of_the_server() {
    compare::<forms::TaskName>("task", |text| check_task_name(text).is_ok());
    compare::<forms::SecretName>("secret", |text| check_secret_name(text).is_ok());
    compare::<forms::ShortName>("word", |text| check_word(text).is_ok());
    compare::<forms::Host>("host", |text| check_host_name(text).is_ok());
    compare::<forms::NewRunId>("run", |text| RunId::new(text).is_ok());
    compare::<forms::ContentDigest>("digest", |text| text.parse::<Digest>().is_ok());
    compare::<forms::Platform>("platform", |text| {
        passes(|problems| check_platform("platform", text, problems))
    });
    compare::<forms::ContextPath>("path", |text| {
        passes(|problems| check_path("file", text, problems))
    });
    compare::<forms::ContextUrl>("url", |text| {
        passes(|problems| check_url("context", text, problems))
    });
    compare::<forms::NotBlank>("cmd", |text| passes(|problems| check_cmd(text, problems)));
    compare::<forms::NotBlank>("text", |text| {
        passes(|problems| check_text("text", text, problems))
    });
    compare::<forms::VariableName>("variable", |text| {
        passes(|problems| check_env("env", &variables(text, ""), problems))
    });
    compare::<forms::VariableValue>("value", |text| {
        passes(|problems| check_env("env", &variables("A", text), problems))
    });
    compare::<forms::AliasName>("alias", |text| {
        passes(|problems| check_aliases([text.to_owned()].iter(), problems))
    });
    compare::<forms::LabelValue>("label", |text| {
        passes(|problems| check_labels("labels", &variables("a", text), problems))
    });
    compare::<forms::GroupName>("group", |text| {
        let queue = serde_json::from_value(serde_json::json!({"concurrency": {"group": text}}));
        passes(|problems| check_queue(&queue.unwrap(), problems))
    });
    compare::<forms::QuotaSubjectText>("quota", |text| {
        text.parse::<acrtask_api::quota::QuotaSubject>().is_ok()
    });
}

#[test]
fn broken_rules_between_values_are_not_violated_forms() {
    let task = |json: serde_json::Value| serde_json::from_value::<TaskDefinition>(json).unwrap();
    let rule = check_task(&task(serde_json::json!({"name": "x"})));
    assert!(!rule.is_empty() && !rule.has_wrong_form(), "{rule}");
    let violated = check_task(&task(serde_json::json!({"name": ""})));
    assert!(violated.has_wrong_form(), "{violated}");
    assert_eq!(
        crate::api::ApiError::from(rule).status(),
        axum::http::StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(
        crate::api::ApiError::from(violated).status(),
        axum::http::StatusCode::BAD_REQUEST
    );
}
