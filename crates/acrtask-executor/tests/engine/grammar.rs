//! The closed grammar of a line, and the `docker` commands.

use crate::harness::engine;

#[tokio::test]
async fn lines_support_pipes_redirections_and_joiners() {
    let engine = engine!();
    let ran = engine
        .task(
            r#"
steps:
  - id: pipe
    cmd: $BASH bash -c 'echo b; echo a' | $BUSYBOX sort | cat
  - id: files
    cmd: $BASH bash -c 'echo out; echo err >&2' > both.txt 2>&1 && cat both.txt
  - id: append
    cmd: $BASH echo one > list.txt; $BASH echo two >> list.txt; cat list.txt
  - id: input
    cmd: -i $BUSYBOX tr a-z A-Z < input.txt
  - id: silent
    cmd: $BASH bash -c 'echo gone; echo seen >&2' > /dev/null
  - id: or
    cmd: $BASH false || echo rescued && pwd
  - id: early
    cmd: $BASH yes | $BUSYBOX head -n 1
  - id: exit
    ignoreErrors: true
    cmd: $BASH true && exit 4; echo never
  - id: list
    cmd: $BASH mkdir d && ls && ls d
  - id: date
    cmd: $BASH echo at-$(date +%Y) $HOME
"#,
        )
        .file("input.txt", "shout\n")
        .run()
        .await
        .ok();
    assert_eq!(ran.output("pipe"), "a\nb\n");
    let mut both: Vec<String> = ran.output("files").lines().map(str::to_owned).collect();
    both.sort();
    assert_eq!(both, ["err", "out"]);
    assert_eq!(ran.output("append"), "one\ntwo\n");
    assert_eq!(ran.output("input"), "SHOUT\n");
    assert_eq!(ran.output("silent"), "seen\n");
    assert_eq!(ran.output("or"), "rescued\n/workspace\n");
    assert_eq!(ran.output("early"), "y\n");
    assert_eq!(ran.reason("exit"), "exit code 4");
    assert_eq!(ran.output("exit"), "");
    assert_eq!(ran.output("list"), "both.txt\nd\ninput.txt\nlist.txt\n");
    assert!(
        ran.output("date").starts_with("at-20") && ran.output("date").ends_with(" /acb/home\n")
    );
}

#[tokio::test]
async fn redirection_cannot_leave_the_workspace() {
    let engine = engine!();
    let ran = engine
        .task("steps:\n  - id: up\n    ignoreErrors: true\n    cmd: $BASH echo x > ../../etc/evil\n  - id: link\n    ignoreErrors: true\n    cmd: $BASH cat < link\n")
        .link("link", "/etc/passwd")
        .run()
        .await
        .ok();
    assert!(ran.reason("up").contains("outside"), "{}", ran.story());
    assert!(ran.reason("link").contains("outside"), "{}", ran.story());
}

#[tokio::test]
async fn docker_commands_work_on_images() {
    let engine = engine!();
    let ran = engine
        .task(
            r#"
steps:
  - id: build
    cmd: docker build -t $R/$ID/words:1 --build-arg GREETING=hi .
  - id: tag
    cmd: docker tag $R/$ID/words:1 $R/$ID/words:2
  - id: run
    cmd: docker run --rm $R/$ID/words:2
  - id: inspect
    cmd: docker inspect --format '{{"{{"}}index .RepoTags 0}}' $R/$ID/words:1
  - id: push
    cmd: docker push $R/$ID/words:2 && docker push $R/$ID/words:1
  - id: list
    cmd: docker manifest create $R/$ID/words:all $R/$ID/words:1 && docker manifest push $R/$ID/words:all
  - id: tools
    cmd: docker buildx imagetools create -t $R/$ID/words:tools $R/$ID/words:1
  - id: images
    cmd: docker images
  - id: version
    cmd: docker version
"#,
        )
        .file("Dockerfile", "FROM $BASH\nARG GREETING\nENV G=$GREETING\nCMD [\"bash\", \"-c\", \"echo $G there\"]\n")
        .run()
        .await
        .ok();
    assert_eq!(ran.output("run"), "hi there\n");
    assert!(
        ran.output("inspect").contains("/words:"),
        "{}",
        ran.output("inspect")
    );
    let pushed: Vec<&str> = ran
        .report
        .pushed
        .iter()
        .map(|p| p.name.rsplit(':').next().unwrap())
        .collect();
    assert_eq!(pushed, ["2", "1", "all", "tools"]);
    assert_eq!(ran.report.pushed[0].digest, ran.report.pushed[1].digest);
    assert!(ran.output("images").contains("/words:2"));
    assert!(ran.output("version").contains("Server: Docker Engine"));
}

#[tokio::test]
async fn docker_commands_work_on_containers() {
    let engine = engine!();
    let ran = engine
        .run(
            r#"
steps:
  - id: start
    cmd: docker run -d --name server $BASH bash -c 'echo started; busybox sleep 300'
  - id: reach
    cmd: $BUSYBOX nslookup server
  - id: ps
    cmd: docker ps
  - id: logs
    retries: 10
    retryDelay: 1
    cmd: $BASH true && docker logs server | $BUSYBOX grep started
  - id: stop
    cmd: docker stop -t 0 server && docker wait server && docker rm server
  - id: gone
    cmd: docker ps -aq
  - id: foreign
    ignoreErrors: true
    cmd: docker stop foreign
"#,
        )
        .await
        .ok();
    assert!(ran.output("ps").contains("server"), "{}", ran.story());
    assert_eq!(ran.output("logs"), "started\n");
    assert_eq!(ran.output("stop"), "server\n137\nserver\n");
    assert_eq!(ran.output("gone"), "");
    assert!(ran.reason("foreign").contains("no container foreign"));
}

#[tokio::test]
async fn login_is_valid_for_the_rest_of_the_run() {
    let engine = engine!();
    let Ok(registry) = std::env::var("ACRTASK_TEST_AUTH_REGISTRY") else {
        panic!(
            "ACRTASK_TEST_AUTH_REGISTRY names no registry with authentication: run `eval \"$(cargo xtask env)\"`"
        )
    };
    let user = std::env::var("ACRTASK_TEST_AUTH_USER").unwrap();
    let password = std::env::var("ACRTASK_TEST_AUTH_PASSWORD").unwrap();
    let text = format!(
        r#"
steps:
  - id: build
    build: -t {registry}/$ID/private:1 .
  - id: before
    ignoreErrors: true
    push: ["{registry}/$ID/private:1"]
  - id: login
    cmd: $BASH echo {{{{.Secrets.password}}}} | docker login {registry} -u {user} --password-stdin
  - id: after
    push: ["{registry}/$ID/private:1"]
"#
    );
    let mut task = engine.task(&text).file("Dockerfile", "FROM $BASH\n");
    task.facts.secrets = vec![("password".into(), acrtask_model::Secret::new(&*password))];
    let ran = task.run().await.ok();
    assert!(!ran.reason("before").is_empty());
    assert_eq!(ran.report.pushed.len(), 1);
    assert!(!ran.story().contains(&password));
}
