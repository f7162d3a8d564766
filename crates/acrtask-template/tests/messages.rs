//! Errors as an author sees them: message, cause, and what to write instead.

use acrtask_template::{Limits, Template, TemplateError};

fn refusal(template: &str) -> TemplateError {
    let data = serde_json::json!({"Run": {"ID": "ca1"}, "Values": {"port": "80", "my-key": "v"}, "Secrets": {}});
    Template::parse("acr-task.yaml", template)
        .and_then(|template| template.render(&data, &Limits::default()))
        .expect_err("it is refused")
}

#[test]
fn refusals_name_cause_span_and_remedy() {
    let templates = [
        "tag: {{CI_IMAGE_TAG}}",
        "{{target_port}}",
        "{{if Values.environment}}x{{end}}",
        "{{.Run.ID | uper}}",
        "{{env \"HOME\"}}",
        "{{randAlphaNum 5}}",
        "{{genPrivateKey \"rsa\"}}",
        "{{.Values.my-key}}",
        "{{.Secrets.deploy-secret | b64enc}}",
        "{{$x.my-key-2}}",
        "{{if eq .Values.port \"80\"}}x",
        "x {{end}}",
        "{{if .Values.port}}x{{else}}y{{else}}z{{end}}",
        "{{.Run.ID",
        "{{\u{201c}a\u{201d}}}",
        "{{if .Values.port == \"80\"}}x{{end}}",
        "{{if .Values.port && .Run.ID}}x{{end}}",
        "{{if !.Values.port}}x{{end}}",
        "{{default \\\"x\\\" .Values.a}}",
        "{{$tag}}",
        "{{default 'latest' .Values.tag}}",
        "{{.Run.ID}",
        "{{/* comment }}",
        "{{.Values.image.name}}",
        "{{.Run.ID.Short}}",
        "{{.Values.tag | upper}}",
        "{{trunc 7 .Values.tag}}",
        "{{until (add 1 2)}}",
        "{{if eq .Values.port 80}}x{{end}}",
        "{{if gt .Values.replicas 1}}x{{end}}",
        "{{trunc 7}}",
        "{{now}}",
        "{{fail \"set a tag\"}}",
        "{{range 10000000}}{{end}}",
        "{{define \"a\"}}{{template \"a\"}}{{end}}{{template \"a\"}}",
    ];
    let shown: Vec<String> = templates
        .iter()
        .map(|template| {
            let error = refusal(template);
            format!(
                "{template}\n  {:?} at {:?}: {}\n  help: {}\n",
                error.kind,
                &template[error.span.clone()],
                error.message,
                error.help.as_deref().unwrap_or("none"),
            )
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn output_maps_back_to_the_template() {
    let text = "a: {{.Run.ID}}\n{{- if true}}\nb: {{\"xyz\" | upper}}\n{{end}}c\n";
    let template = Template::parse("t", text).expect("it parses");
    let rendered = template
        .render_mapped(
            &serde_json::json!({"Run": {"ID": "ca1"}}),
            &Limits::default(),
        )
        .expect("it renders");
    assert_eq!(rendered.text, "a: ca1\nb: XYZ\nc\n");
    let source = |output: &str| {
        let byte = rendered.text.find(output).expect("it is in the output");
        &text[rendered.map.source_of(byte)..]
    };
    assert!(source("a:").starts_with("a: {{"));
    assert!(source("ca1").starts_with("{{.Run.ID"));
    // A byte in the middle of an action's output maps to the action's start.
    assert!(source("a1").starts_with("{{.Run.ID"));
    assert!(source("b:").starts_with("b: {{"));
    assert!(source("YZ").starts_with("{{\"xyz\""));
    assert!(source("c\n").starts_with("c\n"));
}

#[test]
fn output_of_loops_and_templates_maps_to_its_action() {
    let text = "{{define \"x\"}}<{{.}}>{{end}}{{range list 1 2}}{{template \"x\" .}},{{end}}";
    let template = Template::parse("t", text).expect("it parses");
    let rendered = template
        .render_mapped(&serde_json::Value::Null, &Limits::default())
        .expect("it renders");
    assert_eq!(rendered.text, "<1>,<2>,");
    let sources: Vec<&str> = (0..8)
        .map(|byte| &text[rendered.map.source_of(byte)..][..2])
        .collect();
    assert_eq!(sources, ["<{", "{{", ">{", ",{", "<{", "{{", ">{", ",{"]);
}

#[test]
fn left_out_functions_give_a_reason() {
    let present: Vec<&str> = acrtask_template::function_names().collect();
    for (name, reason) in acrtask_template::LEFT_OUT {
        assert!(!present.contains(name), "{name} is present");
        let error = refusal(&format!("{{{{{name} 1}}}}"));
        assert_eq!(error.help, Some(format!("`{name}` is left out: {reason}")));
    }
}

/// Nesting just within the limits, on the stack of a test thread. No known file nests that deep.
#[test]
fn deep_nesting_within_the_limits_renders() {
    let blocks = format!("{}x{}", "{{if true}}".repeat(90), "{{end}}".repeat(90));
    let parens = format!("{{{{{}1{}}}}}", "(print ".repeat(90), ")".repeat(90));
    let recursion = "{{define \"a\"}}{{if gt . 0}}.{{template \"a\" (int (sub . 1))}}{{end}}{{end}}{{template \"a\" 60}}";
    let expected = ["x".to_owned(), "1".to_owned(), ".".repeat(60)];
    for (template, expected) in [blocks.as_str(), &parens, recursion]
        .into_iter()
        .zip(expected)
    {
        let rendered = Template::parse("t", template)
            .and_then(|parsed| parsed.render(&serde_json::Value::Null, &Limits::default()));
        assert_eq!(rendered, Ok(expected), "{template}");
    }
}
