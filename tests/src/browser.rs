//! Chromium of one test, driven through chromedriver. `cargo xtask test` provides both.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thirtyfour::{
    By, Capabilities, ChromiumLikeCapabilities as _, DesiredCapabilities, WebDriver, WebElement,
};

use crate::service::TestServer;

/// Longest wait for any change of a page.
const LIMIT: Duration = Duration::from_secs(60);

/// Flags that keep Chromium quiet and independent of the machine.
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// Rules of accessibility that every page fulfils.
const AXE_TAGS: [&str; 4] = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"];

/// A browser that ends with its handle.
#[derive(Debug)]
pub struct TestBrowser {
    /// Session of the browser.
    pub driver: WebDriver,
    process: Chromedriver,
    axe: PathBuf,
}

#[derive(Debug)]
struct Chromedriver {
    child: Child,
    port: u16,
}

impl Chromedriver {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let output = child.stdout.take().expect("the output is a pipe");
        let mut lines = BufReader::new(output).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                port.trim_end_matches('.').parse().ok()
            })
            .expect("chromedriver prints its port");
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }
}

impl Drop for Chromedriver {
    fn drop(&mut self) {
        // This request ends the browsers too.
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let request = "GET /shutdown HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a variable of the tests. `None` if `ACRTASK_TEST_SKIP_ENGINE` is set.
fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    assert!(
        value.is_some() || std::env::var_os("ACRTASK_TEST_SKIP_ENGINE").is_some(),
        "{name} is not set: run `cargo xtask test`"
    );
    value.map(PathBuf::from)
}

impl TestBrowser {
    /// Starts a browser. `None` if `ACRTASK_TEST_SKIP_ENGINE` is set.
    pub async fn start() -> Option<Self> {
        let program = variable("ACRTASK_TEST_CHROMEDRIVER")?;
        let axe = variable("ACRTASK_TEST_AXE")?;
        // Clients need a TLS provider. An error means that one is installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let process = Chromedriver::start(&program);
        let mut wanted = DesiredCapabilities::chrome();
        for flag in FLAGS {
            wanted.add_arg(flag).expect("a flag");
        }
        wanted.add_arg("--window-size=1280,900").expect("a flag");
        let mut wanted = Capabilities::from(wanted);
        wanted
            .set("goog:loggingPrefs", json!({"browser": "ALL"}))
            .expect("a capability");
        let url = format!("http://127.0.0.1:{}", process.port);
        let driver = WebDriver::builder(url, wanted)
            .request_timeout(LIMIT * 2)
            .await
            .expect("a browser starts");
        Some(Self {
            driver,
            process,
            axe,
        })
    }

    /// Ends the browser.
    pub async fn quit(self) {
        let Self {
            driver, process, ..
        } = self;
        driver.quit().await.expect("the browser ends");
        drop(process);
    }

    /// Opens `path` of a server.
    pub async fn open(&self, server: &TestServer, path: &str) {
        self.driver
            .goto(format!("{}{path}", server.url))
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Signs in with a token and opens `path`.
    pub async fn sign_in(&self, server: &TestServer, token: &str, path: &str) {
        self.open(server, path).await;
        let field = self.find("#token").await;
        field.send_keys(token).await.expect("a field");
        self.click(".sign-in button").await;
        self.wait_for_script("the page", "!document.querySelector('#token')")
            .await;
    }

    /// Returns the first element that matches a CSS selector, and waits for it.
    pub async fn find(&self, selector: &str) -> WebElement {
        let begun = Instant::now();
        loop {
            match self.driver.find(By::Css(selector)).await {
                Ok(element) => return element,
                Err(error) if begun.elapsed() > LIMIT => {
                    panic!("{selector}: {error}\n{}", self.text().await)
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Clicks the first element that matches a CSS selector. Finds it again if an update of the
    /// page replaced it meanwhile.
    pub async fn click(&self, selector: &str) {
        let begun = Instant::now();
        while let Err(error) = self.find(selector).await.click().await {
            assert!(begun.elapsed() < LIMIT, "{selector}: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Evaluates an expression on the page.
    pub async fn evaluate(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        let result = self.driver.execute(script, Vec::new()).await;
        result
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
            .json()
            .clone()
    }

    /// Waits until an expression is true on the page.
    pub async fn wait_for_script(&self, what: &str, expression: &str) {
        let begun = Instant::now();
        // A navigation interrupts scripts.
        let script = format!("return Boolean({expression});");
        loop {
            let result = self.driver.execute(script.as_str(), Vec::new()).await;
            if result.is_ok_and(|result| *result.json() == Value::Bool(true)) {
                return;
            }
            assert!(
                begun.elapsed() < LIMIT,
                "{what}: {expression}\n{}",
                self.text().await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the page shows a text.
    pub async fn wait_for_text(&self, text: &str) {
        let expression = format!("document.body.innerText.includes({})", json!(text));
        self.wait_for_script(text, &expression).await;
    }

    /// Returns the visible text of the page.
    pub async fn text(&self) -> String {
        let text = self
            .driver
            .execute("return document.body?.innerText;", Vec::new());
        let text = text.await.map(|text| text.json().clone());
        text.ok()
            .and_then(|text| text.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Sets the size of the view in CSS pixels.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.send("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Sets the preferred color scheme: `light` or `dark`.
    pub async fn set_scheme(&self, scheme: &str) {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.send("Emulation.setEmulatedMedia", media).await;
    }

    /// Allows or forbids the scripts of pages.
    pub async fn allow_scripts(&self, allowed: bool) {
        let value = json!({"value": !allowed});
        self.send("Emulation.setScriptExecutionDisabled", value)
            .await;
    }

    /// Sends a command of the Chrome DevTools protocol.
    pub async fn send(&self, method: &str, parameters: Value) -> Value {
        let result = self.driver.cdp().send_raw(method, parameters).await;
        result.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Returns violations of the rules of accessibility, one line each.
    pub async fn find_accessibility_violations(&self) -> Vec<String> {
        let axe = std::fs::read_to_string(self.axe.join("axe.min.js")).expect("the rules exist");
        self.driver
            .execute(axe, Vec::new())
            .await
            .expect("the rules are loaded");
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { runOnly: arguments[0], resultTypes: ['violations'] })
              .then((found) => done(found.violations.flatMap((rule) => rule.nodes.map((node) =>
                `${rule.id}: ${node.target.join(' ')}: ${node.failureSummary}`))))
              .catch((error) => done([String(error)]));";
        let found = self
            .driver
            .execute_async(script, vec![json!(AXE_TAGS)])
            .await;
        let found = found.expect("the rules are checked");
        found.convert().expect("a list of texts")
    }

    /// Returns what the browser has refused because of the policy of pages, since the last call.
    pub async fn find_policy_violations(&self) -> Vec<String> {
        let entries = self.driver.browser_log().await.expect("a log");
        let entries = entries.into_iter().map(|entry| format!("{entry:?}"));
        entries
            .filter(|entry| {
                ["Content Security Policy", "Trusted", "Refused"]
                    .iter()
                    .any(|word| entry.contains(word))
            })
            .collect()
    }

    /// Saves a picture of the view as PNG.
    pub async fn save_picture(&self, path: &Path) {
        let bytes = self.driver.screenshot_as_png().await.expect("a picture");
        std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
