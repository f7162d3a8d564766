//! Secrets of task files from vaults, with the identity of the user and with that of a runner.
//!
//! The fake vaults respond as documented by Microsoft Entra ID, Azure Key Vault and HashiCorp
//! Vault.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
};

use acrtask_tests::{
    Outcome, TestEnvironment,
    project::{create_folder, tarball},
    service::{TestRunner, TestServer},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use serde_json::json;
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{header, method, path, path_regex},
};

const KEY_VAULT_VALUE: &str = "q7Zt-9dLw";
const VAULT_VALUE: &str = "xK4m_2Rv8p";

/// Fake token issuer, key vault and HashiCorp Vault at one address.
struct Vaults {
    server: MockServer,
    host: String,
    variables: Vec<(String, String)>,
}

impl Vaults {
    async fn start() -> Self {
        let server = MockServer::start().await;
        let reply = |body: serde_json::Value| ResponseTemplate::new(200).set_body_json(body);
        Mock::given(method("POST"))
            .and(path("/contoso/oauth2/v2.0/token"))
            .respond_with(reply(
                json!({"access_token": "azure-token", "expires_in": 3600}),
            ))
            .mount(&server)
            .await;
        Mock::given(method("GET"))
            .and(path_regex("^/secrets/(team-pass|other-pass)$"))
            .and(header("authorization", "Bearer azure-token"))
            .respond_with(reply(json!({"value": KEY_VAULT_VALUE})))
            .mount(&server)
            .await;
        Mock::given(method("GET"))
            .and(path("/secrets/busy"))
            .respond_with(ResponseTemplate::new(503))
            .mount(&server)
            .await;
        let mount = json!({"data": {"path": "kv/", "type": "kv", "options": {"version": "2"}}});
        Mock::given(method("GET"))
            .and(path_regex("^/v1/sys/internal/ui/mounts/kv/"))
            .and(header("x-vault-token", "vault-token"))
            .respond_with(reply(mount))
            .mount(&server)
            .await;
        Mock::given(method("GET"))
            .and(path("/v1/kv/data/team/app"))
            .and(header("x-vault-token", "vault-token"))
            .respond_with(reply(json!({"data": {"data": {"password": VAULT_VALUE}}})))
            .mount(&server)
            .await;
        let host = server.address().to_string();
        let variables = [
            ("AZURE_AUTHORITY_HOST", server.uri()),
            ("AZURE_TENANT_ID", "contoso".into()),
            ("AZURE_CLIENT_ID", "client".into()),
            ("AZURE_CLIENT_SECRET", "client-secret".into()),
            ("VAULT_ADDR", server.uri()),
            ("VAULT_TOKEN", "vault-token".into()),
        ];
        Self {
            server,
            host,
            variables: variables
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
        }
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        let pairs = self.variables.iter();
        pairs
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    fn task_file(&self, key_vault_secret: &str) -> String {
        let url = format!("http://{}/secrets/{key_vault_secret}", self.host);
        let line = "$Registry/base/busybox:1.36 sh -c 'echo got {{.Secrets.azure}} and {{.Secrets.vault}}; \
                    printf %s {{.Secrets.azure}} | wc -c'";
        format!(
            "version: v1.1.0\nsecrets:\n  - id: azure\n    keyvault: {url}\n  - id: vault\n    vault: \
             kv/team/app#password\nsteps:\n  - id: show\n    cmd: {}\n",
            json!(line)
        )
    }

    /// Runs the task file of `folder`, or the context `context` there, with the identity of the
    /// user.
    fn run(&self, environment: &TestEnvironment, folder: &Path, context: &str) -> Outcome {
        let args = ["run", "-o", "json", "--key-vault-host", &self.host, context];
        let run = environment.start_with(folder, &args, &self.variables(), "");
        run.wait()
    }

    /// Returns the number of requests to the key vault.
    async fn count_requests(&self) -> usize {
        let all = self.server.received_requests().await.unwrap();
        let to_key_vault = all.iter().filter(|r| r.url.path().starts_with("/secrets/"));
        to_key_vault.count()
    }
}

fn assert_masked(outcome: &Outcome) {
    let all = outcome.transcript();
    for value in [
        KEY_VAULT_VALUE,
        VAULT_VALUE,
        "client-secret",
        "azure-token",
        "vault-token",
    ] {
        assert!(!all.contains(value), "{all}");
    }
}

/// Returns the lines that the steps printed.
fn output_lines(outcome: &Outcome) -> Vec<String> {
    let events = outcome.events_named("output");
    let texts = events.iter().map(|event| event["text"].as_str().unwrap());
    texts
        .flat_map(str::lines)
        .map(|line| line.trim().to_owned())
        .collect()
}

fn assert_used(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let expected = [
        "got *** and ***".to_owned(),
        KEY_VAULT_VALUE.len().to_string(),
    ];
    assert_eq!(output_lines(outcome), expected, "{}", outcome.transcript());
    assert_masked(outcome);
}

#[tokio::test]
async fn run_reads_vaults_with_the_identity_of_the_user() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let vaults = Vaults::start().await;
    let files = create_folder(&[("acr-task.yaml", &vaults.task_file("team-pass"))]);
    assert_used(&vaults.run(&environment, files.path(), "."));

    // A plan sends no request and shows no placeholder.
    let before = vaults.count_requests().await;
    let plan = environment.start_plain(files.path(), &["plan", "-r", "reg.example.com"], &[]);
    let plan = plan.wait();
    assert_eq!(plan.code, Some(0), "{}", plan.transcript());
    assert!(
        plan.stdout.contains("got *** and ***"),
        "{}",
        plan.transcript()
    );

    // The files of an archive come from others, so the run must not read secrets that this user may
    // read.
    std::fs::write(files.path().join("files.tar"), tarball(files.path())).unwrap();
    let fetched = vaults.run(&environment, files.path(), "files.tar");
    assert_eq!(fetched.code, Some(2), "{}", fetched.transcript());
    assert!(
        fetched
            .transcript()
            .contains("a fetched task file cannot read vaults"),
        "{}",
        fetched.transcript()
    );

    // No token is sent to an unlisted host.
    let unlisted = environment
        .start_with(files.path(), &["run"], &vaults.variables(), "")
        .wait();
    assert_eq!(unlisted.code, Some(2), "{}", unlisted.transcript());
    assert!(
        unlisted.transcript().contains("--key-vault-host"),
        "{}",
        unlisted.transcript()
    );
    assert_eq!(vaults.count_requests().await, before);

    // The error names the missing variables. A value given by the user takes precedence.
    let bare = ["run", "--key-vault-host", &vaults.host];
    let missing = environment.start(files.path(), &bare).wait();
    assert_eq!(missing.code, Some(2), "{}", missing.transcript());
    let all = missing.transcript();
    assert!(
        all.contains("AZURE_TENANT_ID") && all.contains("VAULT_ADDR"),
        "{all}"
    );
    let given = [
        "run",
        "-o",
        "json",
        "--set-secret",
        "azure=q7Zt-9dLw",
        "--set-secret",
        "vault=own-value",
    ];
    assert_used(&environment.start(files.path(), &given).wait());
}

#[tokio::test]
async fn failing_vault_is_reported_as_unreachable() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let vaults = Vaults::start().await;
    let files = create_folder(&[("acr-task.yaml", &vaults.task_file("busy"))]);
    let outcome = vaults.run(&environment, files.path(), ".");
    assert_eq!(outcome.code, Some(3), "{}", outcome.transcript());
    assert!(
        outcome.transcript().contains("responds with 503"),
        "{}",
        outcome.transcript()
    );
    assert_masked(&outcome);
}

#[tokio::test]
async fn runner_reads_vaults_only_for_listed_tasks() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let vaults = Vaults::start().await;
    let server = TestServer::start(&environment, &["--no-runner"]);
    let rules = [
        format!("team/*=http://{}/secrets/team-*", vaults.host),
        "team/*=kv/team/".to_owned(),
    ];
    let flags = [
        "--key-vault-host",
        &vaults.host,
        "--allow-vault",
        &rules[0],
        "--allow-vault",
        &rules[1],
    ];
    let _runner = TestRunner::start_at(&server, &server.url, "one", &flags, &vaults.variables());
    let store = |name: &str, text: &str| {
        let task = json!({"name": name, "registry": environment.registry, "text": text});
        let files = create_folder(&[("task.yaml", &task.to_string())]);
        let applied = server
            .start_client(files.path(), &["task", "apply", "-f", "task.yaml"])
            .wait();
        assert_eq!(applied.code, Some(0), "{}", applied.transcript());
    };
    let run = |args: &[&str]| {
        let files = create_folder(&[("acr-task.yaml", &vaults.task_file("team-pass"))]);
        let args = [&["task", "run"], args, &["-o", "json"]].concat();
        server.start_client(files.path(), &args).wait()
    };
    let assert_refused = |outcome: &Outcome, why: &str| {
        assert_ne!(outcome.code, Some(0), "{}", outcome.transcript());
        assert!(
            outcome.transcript().contains(why),
            "{}",
            outcome.transcript()
        );
        assert_masked(outcome);
    };
    for (name, secret) in [
        ("team/app", "team-pass"),
        ("team/greedy", "other-pass"),
        ("team2/app", "team-pass"),
    ] {
        store(name, &vaults.task_file(secret));
    }
    assert_used(&run(&["team/app"]));

    // Only listed secrets are requested: no other secret of the same vault, and none for another
    // task.
    let before = vaults.count_requests().await;
    assert_refused(&run(&["team/greedy"]), "may not read");
    assert_refused(&run(&["team2/app"]), "--allow-vault");
    // A run without a task gets none, whatever its `--task-name`.
    let files = create_folder(&[("acr-task.yaml", &vaults.task_file("team-pass"))]);
    let named = ["run", "-o", "json", "--task-name", "team/app"];
    assert_refused(
        &server.run(files.path(), &named).wait(),
        "only a stored task reads vaults",
    );
    // Neither do files from a token without `write`.
    let token = [
        "token", "create", "starter", "--scope", "run,read", "--tasks", "team/*", "-o", "json",
    ];
    let token = server.run_json(&token)["secret"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut variables = server.variables();
    variables.push(("ACRTASK_TOKEN".into(), token));
    let variables: Vec<_> = variables
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    store(
        "team/files",
        "version: v1.1.0\nsteps:\n  - cmd: $Registry/base/busybox:1.36 true\n",
    );
    let brought = [
        "task",
        "run",
        "team/files",
        "--context",
        ".",
        "-f",
        "acr-task.yaml",
        "-o",
        "json",
    ];
    let outcome = environment
        .start_plain(files.path(), &brought, &variables)
        .wait();
    assert_refused(&outcome, "only a stored task reads vaults");
    assert_eq!(vaults.count_requests().await, before);
}

/// Starts a proxy that leads each `CONNECT` to a fake of the requested Azure host. Returns its URL
/// and the certificate of the authority.
fn start_azure_proxy() -> (String, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = [
        "login.microsoftonline.com",
        "*.vault.azure.net",
        "*.vault.azure.cn",
    ];
    let server = CertificateParams::new(names.map(String::from).to_vec()).unwrap();
    let server = server.signed_by(&key, &authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let config = Arc::clone(&config);
            thread::spawn(move || serve_tunnel(stream.unwrap(), config));
        }
    });
    (url, authority.pem())
}

/// Reads the head of a request and returns its lines.
fn read_head(stream: &mut impl BufRead) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

fn serve_tunnel(stream: TcpStream, config: Arc<ServerConfig>) -> Option<()> {
    // The client sends nothing before it has the response, so the buffer loses nothing.
    let connect = read_head(&mut BufReader::new(stream.try_clone().ok()?))?;
    let target = connect[0].split(' ').nth(1)?.to_owned();
    let mut plain = stream;
    plain.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let connection = ServerConnection::new(config).ok()?;
    let mut stream = BufReader::new(StreamOwned::new(connection, plain));
    while let Some(lines) = read_head(&mut stream) {
        let header = |name: &str| {
            let mut found = lines.iter().filter_map(|line| line.split_once(": "));
            found
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
        };
        let length = header("content-length").and_then(|text| text.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).ok()?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let path = lines[0].split(' ').nth(1)?.to_owned();
        let audience = |domain: &str| format!("scope=https%3A%2F%2F{domain}%2F.default");
        let token = header("authorization").unwrap_or_default();
        let reply = match target.as_str() {
            "login.microsoftonline.com:443" if path.starts_with("/contoso/") => {
                let domain = ["vault.azure.net", "vault.azure.cn"]
                    .into_iter()
                    .find(|domain| body.contains(&audience(domain)))?;
                json!({"access_token": format!("token-for-{domain}"), "expires_in": 3600})
            }
            host => {
                let (vault, domain) = host.strip_suffix(":443")?.split_once('.')?;
                if token != format!("Bearer token-for-{domain}") {
                    return None;
                }
                let name = path
                    .strip_prefix("/secrets/")?
                    .strip_suffix("?api-version=7.4")?;
                json!({"value": format!("{vault}/{name}/hush")})
            }
        };
        let reply = reply.to_string();
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{reply}",
            reply.len()
        );
        stream.get_mut().write_all(text.as_bytes()).ok()?;
        stream.get_mut().flush().ok()?;
    }
    None
}

/// The addresses have the forms that public task files of ACR use.
#[test]
fn key_vaults_of_azure_are_read_over_tls() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let (proxy, authority) = start_azure_proxy();
    let sums = [
        "team/registry-127-user/hush",
        "team/registry-127-password/0123abcd/hush",
        "china/demo-name/hush",
    ]
    .map(|value| value.len().to_string());
    let line = "$Registry/base/busybox:1.36 sh -c 'for v in {{index .Secrets \"registry-user\"}} \
                {{.Secrets.password}} {{.Secrets.china}}; do echo value $v; printf %s $v | wc -c; done'";
    let task = format!(
        "version: v1.1.0
secrets:
  - id: registry-user
    keyvault: https://{{{{.Values.KEYVAULT}}}}.vault.azure.net/secrets/registry-127-user
  - id: password
    keyvault: {{{{.Values.PASSWORD_URL}}}}
  - id: china
    keyvault: https://china.vault.azure.cn/secrets/demo-name
    clientID: 11111111-2222-3333-4444-555555555555
steps:
  - id: show
    cmd: {line}
"
    );
    let files = create_folder(&[
        ("acr-task.yaml", &task),
        ("identity", "federated"),
        ("ca.pem", &authority),
    ]);
    let variables = [
        ("HTTPS_PROXY", proxy.as_str()),
        ("SSL_CERT_FILE", "ca.pem"),
        ("AZURE_TENANT_ID", "contoso"),
        ("AZURE_CLIENT_ID", "11111111-2222-3333-4444-555555555555"),
        ("AZURE_FEDERATED_TOKEN_FILE", "identity"),
    ];
    let password =
        "PASSWORD_URL=https://team.vault.azure.net/secrets/registry-127-password/0123abcd";
    let args = [
        "run",
        "-o",
        "json",
        "--set",
        "KEYVAULT=team",
        "--set",
        password,
    ];
    let outcome = environment
        .start_with(files.path(), &args, &variables, "")
        .wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    let expected: Vec<String> = sums
        .into_iter()
        .flat_map(|sum| ["value ***".to_owned(), sum])
        .collect();
    assert_eq!(output_lines(&outcome), expected, "{}", outcome.transcript());
}
