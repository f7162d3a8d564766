//! Tests that untrusted values never become structure of a plan.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, outside of a #[test]"
)]

mod common;

use std::collections::BTreeSet;

use acrtask_model::Secret;
use acrtask_spec::{
    RunVariables, TaskSource, UntrustedVariables, plan_json, render_image, resolve,
};
use common::{TestLookup, corpus_folder, read_cases, run_variables};
use proptest::prelude::*;
use serde_json::Value;

/// Returns the variables of a run whose starter sets `.Values.x` and the branch.
fn hostile_variables(x: &str) -> RunVariables {
    RunVariables {
        set: vec![
            ("x".into(), x.into()),
            ("trusted".into(), "a; alpine ".into()),
        ],
        branch: x.into(),
        untrusted: UntrustedVariables {
            values: BTreeSet::from(["x".to_owned()]),
            git: true,
        },
        ..run_variables()
    }
}

/// Returns the plan, or the codes and messages of its errors.
fn resolve_plan(text: &str, variables: &RunVariables) -> Result<Value, String> {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: text.into(),
    };
    let resolution = resolve(&source, variables, &TestLookup);
    let problems: Vec<String> = resolution
        .for_run()
        .iter()
        .filter(|diagnostic| diagnostic.is_error())
        .map(|diagnostic| format!("{}: {}", diagnostic.code, diagnostic.message))
        .collect();
    match (resolution.plan, problems.as_slice()) {
        (Some(plan), []) => Ok(plan_json(&plan)),
        _ => Err(problems.join("\n")),
    }
}

fn assert_refused(text: &str, x: &str) {
    match resolve_plan(text, &hostile_variables(x)) {
        Ok(plan) => panic!("{text}\nwith {x:?} was planned: {plan:#}"),
        Err(problems) => assert!(
            problems.contains("untrusted-value") && problems.contains(".Values.x"),
            "{text}\nwith {x:?}: {problems}"
        ),
    }
    let trusted = RunVariables {
        untrusted: UntrustedVariables::default(),
        ..hostile_variables(x)
    };
    if let Err(problems) = resolve_plan(text, &trusted) {
        assert!(!problems.contains("untrusted-value"), "{problems}");
    }
}

fn assert_allowed(text: &str, x: &str) {
    let trusted = RunVariables {
        untrusted: UntrustedVariables::default(),
        ..hostile_variables(x)
    };
    let expected =
        resolve_plan(text, &trusted).unwrap_or_else(|problems| panic!("{text}: {problems}"));
    match resolve_plan(text, &hostile_variables(x)) {
        Ok(plan) => assert_eq!(plan, expected, "{text}"),
        Err(problems) => panic!("{text}\nwith {x:?} was refused: {problems}"),
    }
}

fn cmd(line: &str) -> String {
    format!("steps:\n  - cmd: {line}\n")
}

#[test]
fn ordinary_values_are_allowed() {
    for (text, x) in [
        (cmd("alpine sleep {{.Values.x}}"), "10"),
        (cmd("alpine echo hello {{.Values.x}}"), "feature/x-1.2_3"),
        (cmd("alpine sh -c 'echo {{.Values.x}} | wc'"), "v1.2.3+build"),
        (cmd("\"alpine:{{.Values.x}} echo\""), "3.19"),
        (cmd("{{.Values.x}} echo"), "reg.example.com/team/app:1"),
        (cmd("-e A={{.Values.x}} alpine env"), "a"),
        (cmd("'-e A=\"{{.Values.x}}\" alpine env'"), "any text; | && x"),
        (cmd("alpine echo {{.Values.x | quote}}"), "v1"),
        (cmd("alpine echo {{.Values.x | upper | trunc 3}}"), "abcdef"),
        (cmd("alpine echo {{.Values.x | b64enc}}"), "a; b | c"),
        (cmd("alpine echo {{ if eq .Values.x \"a; b\" }}yes && alpine no{{ end }}"), "a; b"),
        (cmd("alpine echo {{ ternary \"a b\" \"c\" (eq .Values.x \"a; b\") }}"), "a; b"),
        (cmd("alpine echo {{ len .Values.x }}"), "a; b"),
        (cmd("alpine echo {{ .Values.trusted }}ls {{.Values.x}}"), "b"),
        (cmd("alpine echo {{.RunJSON}}"), "main"),
        ("steps:\n  - cmd: alpine env\n    env: [\"A={{.Values.x}}\"]\n".into(), "two words; $HOME | x"),
        ("steps:\n  - cmd: alpine env\n    env: [\"A={{ .Values.x | quote | trimPrefix \"\\\"\" | trimSuffix \"\\\"\" }}\"]\n".into(), "a 'b'\n- c: d, [e] # f"),
        ("steps:\n  - build: -t {{.Run.Registry}}/app:{{.Run.Branch}} --build-arg A={{.Values.x}} .\n".into(), "main"),
        ("version: v1.1.0\nsteps:\n  - build: -t $Registry/app:$Branch .\n".into(), "main"),
        ("steps:\n  - build: -t app --build-arg 'A={{.Values.x}}' .\n".into(), "two words; $HOME"),
        ("steps:\n  - build: -t {{.Values.x}}/app:1 .\n".into(), "reg.example.com:5000"),
        ("steps:\n  - build: -t {{.Values.x}}app:1 .\n".into(), "team/"),
        ("steps:\n  - build: -t reg.io/{{.Values.x}}:1 .\n".into(), "team/app"),
        ("steps:\n  - build: -t app -f {{.Values.x}}/Dockerfile {{.Values.x}}\n".into(), "sub/folder"),
        ("steps:\n  - push: [\"reg.io/app@{{.Values.x}}\"]\n".into(), "sha256:0123456789012345678901234567890123456789012345678901234567890123"),
        ("steps:\n{{ range splitList \",\" .Values.x }}  - id: build-{{.}}\n    cmd: alpine echo {{.}}\n  - when: [build-{{.}}]\n    cmd: alpine true\n{{ end }}".into(), "a,b,c"),
        ("steps:\n  - cmd: alpine true\n    timeout: {{.Values.x}}\n    retries: {{ int .Values.x }}\n".into(), "60"),
        ("version: v1.1.0\nalias:\n  values:\n    tag: v-{{.Values.x}}\nsteps:\n  - build: -t app:$tag .\n".into(), "1.2"),
        ("volumes:\n  - name: v\n    secret:\n      a: {{.Values.x | b64enc}}\nsteps:\n  - cmd: alpine true\n    volumeMounts: [{name: v, mountPath: /v}]\n".into(), "any: {{text}}\n- x"),
        ("# {{.Values.x}}\nsteps:\n  - cmd: alpine true\n".into(), "a; b"),
        ("steps:\n  - cmd: alpine echo {{ with .Values.x }}yes{{ else }}no; alpine{{ end }}\n".into(), "a; b"),
    ] {
        assert_allowed(&text, x);
    }
}

#[test]
fn values_that_would_change_the_structure_are_refused() {
    let evil = "0\"\n  - id: evil\n    cmd: alpine env\n  - cmd: \"alpine x";
    for (text, x) in [
        // More steps and keys.
        (cmd("\"alpine sleep {{.Values.x}}\""), evil),
        (cmd("alpine sleep {{.Values.x}}"), "v1\n  - id: evil\n    cmd: alpine env"),
        (cmd("alpine sleep {{.Values.x}}"), "1\n    privileged: true"),
        (cmd("alpine sleep {{.Values.x}} # end"), "1 #"),
        (cmd("alpine sleep {{.Values.x}} end"), "1 # "),
        (cmd("'alpine {{.Values.x}}'"), "a'\n    entryPoint: 'sh"),
        (cmd("|\n      alpine echo {{.Values.x}}"), "a\n      alpine evil"),
        (cmd(">\n      alpine echo {{.Values.x}}"), "a\n\n\n      alpine evil"),
        ("steps:\n  - cmd: alpine true\n# {{.Values.x}}\n".into(), "a\n  - cmd: alpine evil"),
        ("steps:\n  - {cmd: \"alpine {{.Values.x}}\"}\n".into(), "a\", privileged: \"true"),
        ("steps:\n  - cmd: alpine true\n    env: [A={{.Values.x}}]\n".into(), "1, B=2"),
        ("steps:\n  - cmd: alpine true\n    {{.Values.x}}: true\n".into(), "privileged"),
        ("steps:\n  - cmd: alpine true\n    env: &a [B=1]\n  - cmd: alpine true\n    env: {{.Values.x}}\n".into(), "*a"),
        // More words and commands.
        (cmd("alpine sleep {{.Values.x}}"), "0; alpine evil"),
        (cmd("alpine sleep {{.Values.x}}"), "0 && alpine evil"),
        (cmd("alpine sleep {{.Values.x}}"), "0 | cat"),
        (cmd("alpine sleep {{.Values.x}}"), "0 > file"),
        (cmd("alpine sleep {{.Values.x}}>file"), "2"),
        (cmd("alpine sleep {{.Values.x}}"), "two words"),
        (cmd("alpine sleep {{.Values.x}} x"), ""),
        (cmd("alpine sleep {{.Values.x}}"), "--flag"),
        (cmd("alpine sleep '{{.Values.x}}'"), "-flag"),
        (cmd("{{.Values.x}} alpine true"), "--privileged"),
        (cmd("{{.Values.x}} alpine true"), "-e A=1"),
        (cmd("alpine sleep {{.Values.x}}"), "~/x"),
        (cmd("alpine sleep {{.Values.x}}"), "$HOME"),
        (cmd("alpine sleep {{.Values.x}}"), "$(date +%F)"),
        (cmd("alpine true && {{.Values.x}} run"), "docker"),
        (cmd("alpine true && {{.Values.x}} run"), "exit"),
        (cmd("--{{.Values.x}} alpine true"), "privileged"),
        (cmd("--privileged={{.Values.x}} alpine true"), "true"),
        (cmd("-i{{.Values.x}} alpine true"), "d"),
        (cmd("-e {{.Values.x}} alpine true"), "PATH=/evil"),
        (cmd("-v {{.Values.x}}:/w alpine true"), "/etc:/x"),
        (cmd("--mount type=volume,src={{.Values.x}},dst=/w alpine true"), "a"),
        (cmd("--network {{.Values.x}} alpine true"), "host"),
        (cmd("--entrypoint {{.Values.x}} alpine true"), "sh"),
        (cmd("--cap-add {{.Values.x}} alpine true"), "ALL"),
        (cmd("alpine true > {{.Values.x}}"), "a:b"),
        // Code for the program in the container.
        (cmd("alpine sh -c 'echo {{.Values.x}}'"), "x;echo${IFS}$S|rev"),
        (cmd("alpine sh -c 'echo {{.Values.x}}'"), "a`id`"),
        (cmd("alpine sh -c 'echo \"{{.Values.x}}\"'"), "a$S"),
        (cmd("alpine sh -c 'tool {{.Values.x}}'"), "--exec=evil"),
        (cmd("alpine sh -c '{{.Values.x}}'"), "env"),
        (cmd("alpine sh -c 'true; {{.Values.x}}'"), "env"),
        (cmd("alpine sh -c 'if {{.Values.x}}; then true; fi'"), "env"),
        (cmd("alpine sh -c 'true && exec {{.Values.x}}'"), "env"),
        (cmd("alpine sh -c 'echo ${{.Values.x}}'"), "S"),
        (cmd("alpine sh -c 'tool +{{.Values.x}} {{.Values.x}}'"), "-a"),
        (cmd("--entrypoint sh alpine -c {{.Values.x | quote}}"), "env"),
        (cmd("alpine python -c 'print(\"{{.Values.x}}\")'"), "\")"),
        (cmd("alpine python -c 'print(1{{.Values.x}})'"), "\\n"),
        (cmd("image '{{.Values.x}}'"), "any text"),
        (cmd("image {{.Values.x | quote}}"), "a$S"),
        (cmd("image {{.Values.x | squote}}"), "a' b"),
        // Parts of images.
        (cmd("alpine:{{.Values.x}} true"), "3@sha256:0123456789012345678901234567890123456789012345678901234567890123"),
        (cmd("team/{{.Values.x}} true"), "a:1"),
        (cmd("{{.Values.x}}:1 true"), "evil.io/x"),
        (cmd("app{{.Values.x}}:1 true"), ".evil.io/x"),
        (cmd("{{.Values.x}}.azurecr.io/app true"), "evil.io/x"),
        (cmd("reg{{.Values.x}}/app true"), ".evil.io/x"),
        ("steps:\n  - push: [\"reg.io/app:{{.Values.x}}\"]\n".into(), "1@sha256:0123456789012345678901234567890123456789012345678901234567890123"),
        ("steps:\n  - push: [\"{{.Values.x}}:1\"]\n".into(), "evil.io/app"),
        ("steps:\n  - push: [{{.Values.x}}]\n".into(), "reg.io/a, reg.io/b"),
        // Flags and the context of a build.
        ("steps:\n  - build: -t app {{.Values.x}}\n".into(), "--secret=id=a"),
        ("steps:\n  - build: -t app {{.Values.x}}\n".into(), "https://evil.io/x.git"),
        ("steps:\n  - build: -t app {{.Values.x}}\n".into(), "-"),
        ("steps:\n  - build: -t app https://{{.Values.x}}/app.git\n".into(), "evil.io"),
        ("steps:\n  - build: -t app --secret id={{.Values.x}} .\n".into(), "a,src=/etc/passwd"),
        ("steps:\n  - build: -t app --build-arg {{.Values.x}} .\n".into(), "A=1"),
        ("steps:\n  - build: -t app --build-arg {{.Values.x}}=1 .\n".into(), "A"),
        ("steps:\n  - build: -t app --build-arg http_proxy={{.Values.x}} .\n".into(), "http://evil:1"),
        ("steps:\n  - build: -t app --build-arg HTTPS_PROXY=http://{{.Values.x}}:1 .\n".into(), "evil"),
        ("steps:\n  - build: -t app --build-arg no_proxy .\n    env: ['no_proxy={{.Values.x}}']\n".into(), "a"),
        ("env: ['A=1,all_proxy={{.Values.x}}']\nsteps:\n  - build: -t app .\n".into(), "a"),
        ("steps:\n  - build: -t app --cache-from type=registry,ref=reg.io/{{.Values.x}} .\n".into(), "a,type=local"),
        ("steps:\n  - build: -t app --network {{.Values.x}} .\n".into(), "host"),
        ("steps:\n  - build: -t app --build-context a={{.Values.x}} .\n".into(), "docker-image://evil"),
        ("steps:\n  - cmd: docker build -t app {{.Values.x}}\n".into(), "https://evil.io/x.git"),
        ("steps:\n  - cmd: docker {{.Values.x}} app\n".into(), "push"),
        ("steps:\n  - cmd: docker tag app {{.Values.x}}:1\n".into(), "evil.io/app"),
        ("steps:\n  - cmd: acr purge --ago 1d --filter app:{{.Values.x}}\n".into(), "v1"),
        ("steps:\n  - cmd: acr purge --ago {{.Values.x}} --filter app:v1\n".into(), "0d"),
        // Declarations and the order of steps.
        ("secrets:\n  - id: a\n    env: {{.Values.x}}\nsteps:\n  - cmd: alpine true\n".into(), "HOME"),
        ("secrets:\n  - id: a\n    env: \"A{{.Values.x}}\"\nsteps:\n  - cmd: alpine true\n".into(), "\"\n  - id: b\n    env: \"B"),
        ("networks:\n  - name: {{.Values.x}}\nsteps:\n  - cmd: alpine true\n".into(), "a"),
        ("steps:\n  - id: a\n    cmd: alpine true\n  - cmd: alpine true\n    when: [\"{{.Values.x}}\"]\n".into(), "-"),
        ("steps:\n  - id: a\n    cmd: alpine true\n  - cmd: alpine true\n    when: [{{.Values.x}}]\n".into(), "a"),
        ("steps:\n  - cmd: alpine true\n    entryPoint: {{.Values.x}}\n".into(), "sh"),
        ("steps:\n  - cmd: alpine true\n    privileged: {{.Values.x}}\n".into(), "true"),
        ("steps:\n  - cmd: alpine true\n    network: {{.Values.x}}\n".into(), "host"),
        ("steps:\n  - cmd: alpine true\n    env: [\"{{.Values.x}}\"]\n".into(), "PATH=/evil"),
        ("env: [\"A={{.Values.x}}\"]\nsteps:\n  - cmd: alpine true\n".into(), "1,PATH=/evil"),
        ("env: [\"A='{{.Values.x}}'\"]\nsteps:\n  - cmd: alpine true\n".into(), "1',PATH='/evil"),
        ("env: [\"A={{.Values.x}},PATH={{.Values.x}}\"]\nsteps:\n  - cmd: alpine true\n".into(), "'"),
        ("steps:\n  - cmd: {{.Values.x}}\n    build: .\n".into(), "null"),
        // Through aliases, variables and functions of the template.
        ("version: v1.1.0\nalias:\n  values:\n    tag: '{{.Values.x}}'\nsteps:\n  - cmd: alpine echo $tag\n".into(), "{{.Secrets.a}}"),
        ("version: v1.1.0\nalias:\n  values:\n    tag: \"{{.Values.x}}\"\nsteps:\n  - cmd: alpine echo $tag\n".into(), "a\n    b: c"),
        ("version: v1.1.0\nalias:\n  values:\n    a: \"{{.Values.x}}\"\nsteps:\n  - cmd: app:$a true\n".into(), "1@sha256:0123456789012345678901234567890123456789012345678901234567890123"),
        ("version: v1.1.0\nalias:\n  values:\n    img: \"{{.Values.x}}\"\nsteps:\n  - cmd: img push app\n".into(), "docker"),
        ("version: v1.1.0\nalias:\n  directive: '{{.Values.x}}'\nsteps:\n  - cmd: alpine true\n".into(), "%"),
        (cmd("alpine echo {{ $a := .Values.x }}{{ $a }}"), "a; b"),
        (cmd("alpine echo {{ $d := dict }}{{ $_ := set $d \"k\" .Values.x }}{{ $d.k }}"), "a; b"),
        (cmd("alpine echo {{ $d := dict }}{{ $_ := merge $d (dict \"k\" .Values.x) }}{{ $d.k }}"), "a; b"),
        (cmd("alpine echo {{ $d := dict \"n\" (dict) }}{{ $n := $d.n }}{{ $_ := merge $d (dict \"n\" (dict \"k\" .Values.x)) }}{{ $n.k }}"), "a; b"),
        (cmd("alpine echo {{ range $k, $v := .Values }}{{ if eq $k \"x\" }}{{ $v }}{{ end }}{{ end }}"), "a; b"),
        (cmd("alpine echo {{ index .Values \"x\" }}"), "a; b"),
        (cmd("alpine echo {{ (pick .Values \"x\").x }}"), "a; b"),
        (cmd("alpine echo {{ with .Values.x }}{{ . }}{{ end }}"), "a; b"),
        (cmd("alpine echo {{ define \"t\" }}{{ . }}{{ end }}{{ template \"t\" .Values.x }}"), "a; b"),
        (cmd("alpine echo {{ printf \"%s-%s\" .Run.ID .Values.x }}"), "a; b"),
        (cmd("alpine echo {{ .Values.x | b64enc | b64dec }}"), "a; b"),
        (cmd("alpine echo {{ .Values.x | fromJson }}"), "\"a; b\""),
        (cmd("alpine echo {{ .Values | toJson }}"), "a"),
        (cmd("alpine echo {{ join \" \" (list \"a\" .Values.x) }}"), "b"),
        (cmd("alpine echo {{ .Values.x | replace \"_\" \" \" }}"), "a_b"),
        (cmd("alpine echo {{ .Values.missing | default .Values.x }}"), "a; b"),
        (cmd("alpine echo {{ coalesce .Values.missing .Values.x }}"), "a; b"),
        (cmd("alpine echo {{ or .Values.missing .Values.x }}"), "a; b"),
        (cmd("alpine echo {{ ternary .Values.x \"b\" true }}"), "a; b"),
        (cmd("alpine echo {{ .ValuesJSON }}"), "a'; b"),
    ] {
        assert_refused(&text, x);
    }
}

#[test]
fn hostile_branches_are_refused_and_named() {
    for text in [
        cmd("alpine sh -c 'echo {{.Run.Branch}}'"),
        format!("version: v1.1.0\n{}", cmd("alpine echo $Branch")),
        cmd("alpine echo {{.Run.Branch}}"),
        cmd("alpine echo {{.RunJSON}}"),
    ] {
        let variables = RunVariables {
            set: Vec::new(),
            ..hostile_variables("x;echo${IFS}$S|rev")
        };
        let problems = resolve_plan(&text, &variables).unwrap_err();
        assert!(
            problems.contains("untrusted-value") && problems.contains(".Run.Branch"),
            "{text}: {problems}"
        );
    }
}

#[test]
fn secrets_of_an_untrusted_starter_are_untrusted() {
    let variables = RunVariables {
        secrets: vec![("x".into(), Secret::new("a; alpine evil"))],
        set: Vec::new(),
        ..hostile_variables("main")
    };
    for text in [
        cmd("alpine echo {{.Secrets.x}}"),
        cmd("alpine echo {{.Values.x}}"),
    ] {
        let problems = resolve_plan(&text, &variables).unwrap_err();
        assert!(problems.contains("untrusted-value"), "{text}: {problems}");
        assert!(!problems.contains("alpine evil"), "{problems}");
    }
}

#[test]
fn diagnostic_names_value_step_place_and_remedy() {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: "steps:\n  - id: test\n    cmd: alpine echo {{.Values.x}}\n".into(),
    };
    let resolution = resolve(&source, &hostile_variables("a; alpine evil"), &TestLookup);
    let [diagnostic] = resolution.diagnostics.as_slice() else {
        panic!("{:?}", resolution.diagnostics)
    };
    assert_eq!(
        diagnostic.message,
        "the value of `.Values.x` cannot be used in the step `test`: it would change the words of the line"
    );
    assert_eq!(
        &source.text[diagnostic.labels[0].span.clone()],
        "{{.Values.x}}"
    );
    assert!(diagnostic.help.as_ref().unwrap().contains("`write`"));
}

#[test]
fn image_names_keep_untrusted_values_in_their_part() {
    for (text, x, good) in [
        ("app:$Branch", "main", true),
        ("app:{{.Values.x}}", "v1", true),
        ("{{.Values.x}}", "reg.io/app:1", true),
        ("app:$Branch", "1@sha256:00", false),
        ("{{.Values.x}}:1", "evil.io/app", false),
        ("app:{{.Values.x}}", "a b", false),
    ] {
        let rendered = render_image(text, &hostile_variables(x));
        assert_eq!(rendered.is_ok(), good, "{text} with {x}: {rendered:?}");
    }
}

#[test]
fn corpus_resolves_equally_with_untrusted_values() {
    // Each value selects the source of a secret, so the starter would choose whose secret the task
    // gets.
    const REFUSED: [&str; 3] = [
        "f-RapTapApp__ExtDepAcr-2-Target__acr-task",
        "f-phillipf__hello-world__acr-task",
        "h-phillipf__hello-world__acr-task__at_d74797e5",
    ];
    let Some(folder) = corpus_folder() else {
        return;
    };
    let mut found = Vec::new();
    for case in read_cases(&folder) {
        let trusted = RunVariables {
            set: case.set.clone(),
            ..run_variables()
        };
        let untrusted = RunVariables {
            untrusted: UntrustedVariables {
                values: case.set.iter().map(|(name, _)| name.clone()).collect(),
                git: true,
            },
            ..trusted.clone()
        };
        let source = TaskSource {
            name: case.name.clone(),
            text: case.text.clone(),
        };
        let expected = resolve(&source, &trusted, &TestLookup);
        let resolved = resolve(&source, &untrusted, &TestLookup);
        let plans =
            [&expected, &resolved].map(|resolution| resolution.plan.as_ref().map(plan_json));
        if REFUSED.contains(&case.name.as_str()) {
            assert!(plans[1].is_none(), "{}", case.name);
        } else if plans[0] != plans[1] || expected.diagnostics != resolved.diagnostics {
            found.push(format!("{}: {:?}", case.name, resolved.diagnostics));
        }
    }
    assert!(found.is_empty(), "{}:\n{}", found.len(), found.join("\n"));
}

/// Templates that use the value in many places of a task.
fn templates() -> impl Strategy<Value = String> {
    let value = prop::sample::select(vec![
        "{{.Values.x}}",
        "{{ .Values.x | quote }}",
        "{{ .Values.x | squote }}",
        "{{ .Values.x | lower }}",
        "{{ printf \"%s\" .Values.x }}",
        "{{ $v := .Values.x }}{{ $v }}",
        "{{ with .Values.x }}{{ . }}{{ end }}",
        "{{ range splitList \",\" .Values.x }}{{ . }}{{ end }}",
        "{{ index .Values \"x\" }}",
        "{{ .Run.Branch }}",
        "{{ .Values.x | toJson }}",
    ]);
    let place = prop::sample::select(vec![
        "cmd: alpine echo V end",
        "cmd: \"alpine echo V end\"",
        "cmd: 'alpine echo V end'",
        "cmd: |\n      alpine echo V end",
        "cmd: >\n      alpine echo V\n      end",
        "cmd: alpine echo 'V' end",
        "cmd: alpine echo \"V\" end",
        "cmd: -e A=V alpine echo",
        "cmd: V echo end",
        "cmd: alpine:V echo end",
        "cmd: alpine sh -c 'echo V end'",
        "cmd: alpine true && alpine V",
        "cmd: docker tag a b:V",
        "build: -t app:V .",
        "build: -t V/app .",
        "build: -t app --build-arg A=V .",
        "build: V",
        "push: [\"reg.io/app:V\"]",
        "push: [V]",
        "{cmd: alpine V}",
        "cmd: alpine true\n    env: [A=V]",
        "cmd: alpine true\n    env: [\"A=V\", B=1]",
        "cmd: alpine true\n    timeout: V",
        "cmd: alpine true\n    workingDirectory: V",
        "cmd: alpine true\n    ports: [\"V\"]",
        "id: V\n    cmd: alpine true",
        "cmd: alpine true # V",
    ]);
    (value, place).prop_map(|(value, place)| {
        let place = place.replace('V', value);
        format!("steps:\n  - {place}\n  - id: last\n    cmd: alpine true\n")
    })
}

/// Values that try to end the text around them.
fn values() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "B",
        "7",
        "-",
        "_",
        ".",
        "/",
        ":",
        "@",
        "+",
        ",",
        "=",
        " ",
        "\t",
        "\n",
        "\n  - cmd: alpine evil\n",
        "'",
        "\"",
        "`",
        "$",
        "$HOME",
        "$(",
        ")",
        "(",
        "{",
        "}",
        "[",
        "]",
        "{{",
        "}}",
        "{{.Secrets.s}}",
        "#",
        " # ",
        "&",
        "&&",
        "|",
        ";",
        ">",
        "<",
        "\\",
        "~",
        "*",
        "!",
        "%",
        "?",
        "$Registry",
        ": ",
        "- ",
        "--privileged",
        "-v",
        "evil.io/x",
        "null",
        "true",
        "\u{a0}",
        "\u{2028}",
        "\u{85}",
        "ä",
        "\r\n",
    ]);
    prop::collection::vec(piece, 1..6).prop_map(|pieces| pieces.concat())
}

/// Checks that two plans differ only in texts.
fn compare_except_texts(one: &Value, other: &Value, path: &str) -> Result<(), String> {
    let differs = || Err(format!("{path}: {one} is not {other}"));
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            if !one.keys().eq(other.keys()) {
                return differs();
            }
            for (key, value) in one {
                compare_except_texts(value, &other[key], &format!("{path}.{key}"))?;
            }
            Ok(())
        }
        (Value::Array(one), Value::Array(other)) => {
            if one.len() != other.len() {
                return differs();
            }
            for (value, other) in one.iter().zip(other) {
                compare_except_texts(value, other, path)?;
            }
            Ok(())
        }
        (Value::String(_), Value::String(_)) => Ok(()),
        _ if one == other || path.contains("imeout") => Ok(()),
        _ => differs(),
    }
}

/// Returns the words of all lines without their texts, and the kinds of their commands.
fn plan_shape(text: &str, variables: &RunVariables) -> Option<String> {
    let source = TaskSource {
        name: "task.yaml".into(),
        text: text.into(),
    };
    let resolution = resolve(&source, variables, &TestLookup);
    if !resolution.refusals.is_empty() {
        return None;
    }
    let plan = resolution.plan?;
    let shapes = plan.steps.iter().map(|step| {
        let kind = match &step.kind {
            acrtask_spec::plan::StepKind::Build(build) => format!("{:?}", build.line),
            acrtask_spec::plan::StepKind::Cmd(cmd) => format!("{:?}", cmd.line),
            acrtask_spec::plan::StepKind::Push(push) => format!("push of {}", push.images.len()),
        };
        // Everything except the texts.
        let mut outside = String::new();
        let (mut in_text, mut escaped) = (false, false);
        for c in kind.chars() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_text = !in_text,
                _ if !in_text => outside.push(c),
                _ => {}
            }
        }
        format!("{} {:?} {outside}", step.env.len(), step.after.len())
    });
    Some(shapes.collect::<Vec<_>>().join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_values_change_only_texts_or_are_refused(template in templates(), value in values()) {
        let Ok(hostile_plan) = resolve_plan(&template, &hostile_variables(&value)) else { return Ok(()) };
        let commas = value.matches(',').count();
        let harmless = vec!["v1"; commas + 1].join(",");
        let harmless = if template.contains("splitList") { harmless } else { "v1".to_owned() };
        let Ok(harmless_plan) = resolve_plan(&template, &hostile_variables(&harmless)) else {
            // A place that refuses ordinary values accepted this one, so it must be a plain value.
            prop_assert!(value.chars().all(|c| c.is_alphanumeric() || "._/:@+-,".contains(c)), "{template}\n{value:?}");
            return Ok(());
        };
        if let Err(difference) = compare_except_texts(&harmless_plan, &hostile_plan, "") {
            prop_assert!(false, "{template}\n{value:?}\n{difference}");
        }
        prop_assert_eq!(plan_shape(&template, &hostile_variables(&value)), plan_shape(&template, &hostile_variables(&harmless)), "{}\n{:?}", template, value);
    }
}
