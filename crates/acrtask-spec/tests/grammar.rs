//! Grammar of cmd lines, and flags of build lines.

use std::fmt::Write as _;

use acrtask_spec::{
    build_line,
    cmd_line::{self, CmdLine, Command, CommandKind, Joiner, Redirect, RunFlags, Word, WordPart},
};

fn format_word(word: &Word) -> String {
    let parts = word.parts.iter().map(|part| match part {
        WordPart::Text(text) => text.clone(),
        WordPart::Home => "<HOME>".into(),
        WordPart::Date(format) => format!("<date {format}>"),
    });
    format!("[{}]", parts.collect::<String>())
}

fn format_words(list: &[Word]) -> String {
    list.iter().map(format_word).collect::<Vec<_>>().join(" ")
}

fn format_command(command: &Command) -> String {
    let mut out = match &command.kind {
        CommandKind::Docker(list) => format!("docker {}", format_words(list)),
        CommandKind::Acr(list) => format!("acr {}", format_words(list)),
        CommandKind::Builtin(list) => format!("builtin {}", format_words(list)),
        CommandKind::Container(container) => {
            let flags = if container.flags == RunFlags::default() {
                String::new()
            } else {
                let all = format!("{:?}", Flags(&container.flags));
                format!("{all} ")
            };
            format!(
                "run {flags}{} {}",
                format_word(&container.image),
                format_words(&container.args)
            )
        }
    };
    for redirect in &command.redirects {
        match redirect {
            Redirect::Output { fd, to, append } => {
                write!(
                    out,
                    " {fd}{}{}",
                    if *append { ">>" } else { ">" },
                    format_word(to)
                )
            }
            Redirect::Duplicate { fd, onto } => write!(out, " {fd}>&{onto}"),
            Redirect::Input { from } => write!(out, " <{}", format_word(from)),
        }
        .expect("a String takes everything");
    }
    out.trim_end().to_owned()
}

/// Debug output of the flags that are set.
struct Flags<'a>(&'a RunFlags);

impl std::fmt::Debug for Flags<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let flags = self.0;
        let lists = [
            ("env", &flags.env),
            ("volume", &flags.volumes),
            ("port", &flags.ports),
            ("expose", &flags.expose),
            ("alias", &flags.network_aliases),
            ("label", &flags.labels),
        ];
        let mut parts: Vec<String> = lists
            .iter()
            .flat_map(|(name, list)| {
                list.iter()
                    .map(move |value| format!("{name}={}", format_word(value)))
            })
            .collect();
        for (name, value) in [
            ("workdir", &flags.workdir),
            ("entrypoint", &flags.entrypoint),
            ("name", &flags.name),
            ("user", &flags.user),
            ("network", &flags.network),
        ] {
            parts.extend(
                value
                    .iter()
                    .map(|value| format!("{name}={}", format_word(value))),
            );
        }
        parts.extend(
            flags
                .other
                .iter()
                .map(|(name, value)| format!("{name}={}", format_word(value))),
        );
        parts.extend(flags.detach.then(|| "detach".into()));
        parts.extend(flags.privileged.then(|| "privileged".into()));
        write!(f, "({})", parts.join(" "))
    }
}

fn format_line(line: &CmdLine) -> String {
    let pipeline = |pipeline: &cmd_line::Pipeline| {
        pipeline
            .commands
            .iter()
            .map(format_command)
            .collect::<Vec<_>>()
            .join(" | ")
    };
    let mut out = pipeline(&line.first);
    for (joiner, next) in &line.rest {
        let joiner = match joiner {
            Joiner::And => "&&",
            Joiner::Or => "||",
            Joiner::Then => ";",
        };
        out += &format!("\n      {joiner} {}", pipeline(next));
    }
    out
}

#[test]
fn cmd_lines_parse_as_in_the_snapshot() {
    let alias = |name: &str| (name == "az").then(|| "azure:1".to_owned());
    let mut out = String::new();
    for text in [
        "alpine",
        "  alpine echo 'a b' \"c d\" e\\ f ''\n",
        "-v data:/data -e A=1 -eB=2 --env=C --rm -it --name=x --entrypoint sh -p 80:80 -d -w /w -u 1:2 alpine -c ls",
        "--network back --network-alias a --net-alias b -l k=v --expose 9 --memory 1g --cpus=2 -h name alpine",
        "--privileged=false --detach=true alpine",
        "--rm alpine --rm",
        "alpine echo hi > out.txt 2>&1",
        "alpine echo hi >> out.txt 2> /dev/null < in.txt",
        "alpine cat 2>err | other wc -l | cat",
        "alpine a && echo ok || exit 1; ls",
        "alpine a;",
        "alpine a &&\n  b c\nd e",
        "alpine a\naz login",
        "alpine a && docker push x && az b",
        "alpine echo $HOME \"${HOME}/x\" ~/y ~user '$HOME' \\$HOME",
        "alpine --out r_$(date +%F).json \"$(date -u \"+%Y %m\")\"",
        "docker build -t x . && docker push x",
        "acr purge --filter 'a/.*:.*' --ago 30d && acr annotate x",
        "mcr.microsoft.com/acr/acr-cli:0.5 tag list --repository a > out.txt",
        "docker",
        "docker:cli ps",
        "alpine echo # a comment",
        "alpine echo a#b * [x] {0} ? ~",
        "alpine echo \\\n  joined",
        "reg.example.com:5000/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef x",
        // Refused.
        "",
        "   # only a comment",
        "&& alpine",
        "alpine a &&",
        "alpine a | | b",
        "alpine a &",
        "(alpine a)",
        "alpine a; (b)",
        "alpine $FOO",
        "alpine sh -c \"echo $FOO \\\"x\\\" 'y'\"",
        "alpine echo \"$FOO\"",
        "alpine $(cat x)",
        "alpine `cat x`",
        "alpine $((1 + 2))",
        "alpine ${X:-y}",
        "alpine $1 $?",
        "alpine << EOF",
        "alpine <<< x",
        "alpine 3> x",
        "alpine > ",
        "alpine 2>&3",
        "alpine 'open",
        "alpine \"open",
        "alpine a && if b; then c; fi",
        "alpine a && cd x",
        "alpine a && grep b",
        "alpine a | tee x",
        "alpine a && FOO=1 b",
        "FOO=1 alpine",
        "alpine a\n-b c",
        "--volum x alpine",
        "-v",
        "-z alpine",
        "--rm",
        "Alpine echo",
        "'alpine echo hi'",
        "docker rmi $(docker images -q)",
        "a//b c",
    ] {
        writeln!(out, "{}", text.escape_debug()).unwrap();
        match cmd_line::parse(text, &alias) {
            Ok(parsed) => writeln!(out, "      {}", format_line(&parsed)).unwrap(),
            Err(refused) => {
                let at = text[refused.span.clone()].escape_debug();
                writeln!(out, "  no: {}\n      at   {at}", refused.message).unwrap();
                writeln!(
                    out,
                    "      help {}",
                    refused.help.expect("each refusal has help")
                )
                .unwrap();
            }
        }
    }
    insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(out) });
}

#[test]
fn build_flags_parse_as_in_the_snapshot() {
    let full = build_line::parse(
        "-t a:1 --tag=b -f docker/Dockerfile --target prod --build-arg A=1 --build-arg 'B=two words' --build-arg C \
         --label x=y --platform linux/amd64,linux/arm64 --platform linux/s390x --no-cache --pull=false -q \
         --no-cache-filter a,b --push --secret id=npm,src=.npmrc --secret type=env,id=TOKEN --secret id=X,env=Y --ssh default \
         --cache-from r.io/c,r.io/d --cache-from type=local,src=x --cache-to type=registry,ref=r.io/c,mode=max \
         --network none --add-host a:1.2.3.4 --shm-size 1.5g --ulimit nofile=10 \
         --build-context base=docker-image://alpine --attest type=sbom --attest type=provenance,mode=max \
         --output type=local,dest=out --iidfile id --metadata-file m.json --progress plain --load --squash -m1g \
         --cpu-shares=3 https://example.com/org/repo.git#main:sub",
    );
    insta::with_settings!({ omit_expression => true }, { insta::assert_debug_snapshot!(full) });
}

#[test]
fn sbom_names_one_scanner() {
    for hidden in [
        "--sbom generator=docker/scanner,generator=other",
        "--sbom '\"generator=other\"' ",
        "--attest type=sbom,generator=docker/scanner,generator=other",
    ] {
        let refused = build_line::parse(&format!("{hidden} .")).unwrap_err();
        assert!(
            refused.message.contains("one scanner"),
            "{hidden}: {}",
            refused.message
        );
    }
    assert!(build_line::parse("--sbom generator=docker/scanner .").is_ok());
}

#[test]
fn supported_docker_commands_are_recognized() {
    for (line, supported) in [
        ("pull x", true),
        ("manifest create a b", true),
        ("manifest rm a", false),
        ("buildx build .", true),
        ("buildx imagetools create -t a b", true),
        ("buildx imagetools inspect a", false),
        ("image inspect a", true),
        ("image prune", false),
        ("rmi a", false),
        ("exec a b", false),
        ("version", true),
        ("network ls", false),
    ] {
        let words: Vec<Word> = line.split(' ').map(Word::text).collect();
        assert_eq!(cmd_line::docker_word_supported(&words), supported, "{line}");
    }
    let run: Vec<Word> = "-d --name x alpine sleep 5"
        .split(' ')
        .map(Word::text)
        .collect();
    let run = cmd_line::container_from_words(&run).unwrap();
    assert_eq!(run.image.literal().as_deref(), Some("alpine"));
    assert!(run.flags.detach);
    let build: Vec<Word> = "-t x .".split(' ').map(Word::text).collect();
    assert_eq!(build_line::from_words(&build).unwrap().tags, ["x"]);
}
