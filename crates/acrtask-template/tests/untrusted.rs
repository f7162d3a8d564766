//! Tests of tracking which output was computed from untrusted input.

use acrtask_template::{Limits, Sources, Template, Untrusted};
use serde_json::json;

/// Renders with `.Values.x` (source 0), `.Values.y` (source 1) and `.Run.branch` (source 2) as
/// untrusted. Marks the output that was computed from them: `<0:text>`.
fn render_marked(text: &str) -> String {
    let data = json!({
        "Values": {"x": "ab", "y": "", "z": "zz", "list": ["p", "q"], "map": {"k": "v"}},
        "Run": {"branch": "main", "id": "r1"},
    });
    let path = |map: &str, key: &str| vec![map.to_owned(), key.to_owned()];
    let untrusted = Untrusted {
        data: vec![
            (path("Values", "x"), Sources::of(0)),
            (path("Values", "y"), Sources::of(1)),
            (path("Run", "branch"), Sources::of(2)),
        ],
        template: Vec::new(),
    };
    let template = Template::parse("main", text).expect("it is a template");
    let rendered = template
        .render_untrusted(&data, &untrusted, &Limits::default())
        .expect("it renders");
    let plain = template.render(&data, &Limits::default());
    assert_eq!(plain.as_ref(), Ok(&rendered.text), "{text}");
    let mut out = String::new();
    let mut copied = 0;
    for (range, sources) in rendered.untrusted {
        out.push_str(&rendered.text[copied..range.start]);
        let numbers: Vec<String> = (0..3)
            .filter(|number| sources.contains(*number))
            .map(|number| number.to_string())
            .collect();
        out.push_str(&format!(
            "<{}:{}>",
            numbers.join(""),
            &rendered.text[range.clone()]
        ));
        copied = range.end;
    }
    out + &rendered.text[copied..]
}

#[test]
fn output_carries_the_sources_that_it_was_computed_from() {
    for (text, expected) in [
        ("a {{.Values.x}} b", "a <0:ab> b"),
        ("{{.Values.z}}{{.Values.y}}!", "zz<1:>!"),
        (
            "{{.Values.z}} {{.Run.id}} {{index .Values.list 1}} {{.Values.map.k}}",
            "zz r1 q v",
        ),
        (
            "{{index .Values \"x\"}} {{index .Values \"z\"}}",
            "<0:ab> zz",
        ),
        ("{{get .Values \"x\"}} {{get .Values \"z\"}}", "<0:ab> zz"),
        ("{{printf \"%s-%s\" .Values.x .Run.branch}}", "<02:ab-main>"),
        ("{{.Values.x | upper | quote}}", "<0:\"AB\">"),
        ("{{len .Values.x}}", "<0:2>"),
        ("{{.Values.missing | default .Values.x}}", "<0:ab>"),
        ("{{or .Values.y .Values.z}}", "<1:zz>"),
        ("{{ternary \"yes\" \"no\" (eq .Values.x \"ab\")}}", "yes"),
        ("{{.Values.x | eq \"ab\"}}", "true"),
        ("{{if .Values.x}}yes{{end}}", "yes"),
        ("{{if eq .Values.x \"ab\"}}{{.Values.z}}{{end}}", "zz"),
        ("{{with .Values.x}}{{.}}{{$.Values.z}}{{end}}", "<0:ab>zz"),
        (
            "{{$v := .Values.x}}{{$v}}{{$v = .Values.z}}{{$v}}",
            "<0:ab>zz",
        ),
        (
            "{{$v := \"\"}}{{if true}}{{$v = .Values.x}}{{end}}{{$v}}",
            "<0:ab>",
        ),
        (
            "{{range splitList \"b\" .Values.x}}[{{.}}]{{end}}",
            "[<0:a>][<0:>]",
        ),
        (
            "{{range $i, $v := list \"a\" .Values.x}}{{$i}}{{$v}};{{end}}",
            "<0:0><0:a>;<0:1><0:ab>;",
        ),
        ("{{range $k, $v := .Values.map}}{{$k}}={{$v}}{{end}}", "k=v"),
        (
            "{{range $k, $v := pick .Run \"id\" \"branch\"}}{{$v}};{{end}}",
            "<2:main>;<2:r1>;",
        ),
        ("{{range $k, $v := .Run}}{{$v}};{{end}}", "<2:main>;r1;"),
        (
            "{{define \"t\"}}{{.}}{{end}}{{template \"t\" .Values.x}}{{template \"t\" .Values.z}}",
            "<0:ab>zz",
        ),
        (
            "{{define \"t\"}}{{.a}}{{$.b}}{{end}}{{template \"t\" (dict \"a\" .Values.x \"b\" 1)}}",
            "<0:ab><0:1>",
        ),
        (
            "{{$d := dict \"a\" 1}}{{$_ := set $d \"b\" .Values.x}}{{$d.a}}{{$d.b}}",
            "1<0:ab>",
        ),
        (
            "{{$d := dict}}{{$_ := .Values.x | set $d \"b\"}}{{$d.b}}",
            "<0:ab>",
        ),
        (
            "{{$d := dict}}{{$_ := set $d .Values.x 1}}{{range $k, $v := $d}}{{$k}}{{$v}}{{end}}",
            "<0:ab><0:1>",
        ),
        (
            "{{$d := dict \"n\" (dict)}}{{$n := $d.n}}{{$_ := merge $d (dict \"n\" (dict \"k\" .Values.x))}}{{$n.k}}",
            "<0:ab>",
        ),
        (
            "{{$d := dict \"l\" (list .Values.x)}}{{index $d.l 0}}",
            "<0:ab>",
        ),
        (
            "{{$d := dict}}{{$_ := set $d \"l\" (list .Values.x)}}{{index $d \"l\" 0}}",
            "<0:ab>",
        ),
        ("{{$c := deepCopy .Values}}{{$c.z}}", "<01:zz>"),
        ("{{.Run}}", "<2:map[branch:main id:r1]>"),
        (
            "{{.Run | toJson | fromJson | toJson}}",
            "<2:{\"branch\":\"main\",\"id\":\"r1\"}>",
        ),
        (
            "{{(toDate \"2006\" (printf \"20%02d\" (len .Values.x))).Format \"2006\"}}",
            "<0:2002>",
        ),
        (
            "{{\"2006\" | (toDate \"2006\" (printf \"20%02d\" (len .Values.z))).Format}}",
            "2002",
        ),
    ] {
        assert_eq!(render_marked(text), expected, "{text}");
    }
}

#[test]
fn template_text_can_be_untrusted_itself() {
    let text = "a $x {{ if eq \"$x\" \"1\" }}b{{ end }}{{ \"$x\" }}";
    let positions: Vec<usize> = text.match_indices("$x").map(|(at, _)| at).collect();
    let untrusted = Untrusted {
        data: Vec::new(),
        template: positions
            .iter()
            .map(|at| (*at..at + 2, Sources::of(5)))
            .collect(),
    };
    let template = Template::parse("main", text).expect("it is a template");
    let rendered = template
        .render_untrusted(&json!({}), &untrusted, &Limits::default())
        .expect("it renders");
    assert_eq!(rendered.text, "a $x $x");
    let ranges: Vec<_> = rendered
        .untrusted
        .iter()
        .map(|(range, _)| range.clone())
        .collect();
    assert_eq!(ranges, [2..4, 5..7]);
}
