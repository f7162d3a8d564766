//! Every page: accessibility in light and dark, the width of a phone, hostile texts, and pictures.

use std::path::PathBuf;

use acrtask_tests::{TestEnvironment, browser::TestBrowser};
use serde_json::json;

use super::fixture::{fill_server, start_server};

/// Folder for pictures of the pages, as `cargo xtask screenshots` sets it.
const PICTURES: &str = "ACRTASK_TEST_SCREENSHOTS";

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_accessible_inert_and_fits_a_phone() {
    let Some(environment) = TestEnvironment::find() else {
        return;
    };
    let Some(browser) = TestBrowser::start().await else {
        return;
    };
    let server = start_server(&environment);
    let content = fill_server(&environment, &server).await;
    let pictures = std::env::var_os(PICTURES).map(PathBuf::from);
    browser.open(&server, "/sign-in").await;
    let mut problems = browser.find_accessibility_violations().await;
    browser.sign_in(&server, &server.token, "/").await;
    for (name, path) in content.paths() {
        for scheme in ["light", "dark"] {
            browser.set_scheme(scheme).await;
            browser.resize(1280, 900).await;
            browser.open(&server, &path).await;
            browser.find("#content").await;
            if let Some(folder) = &pictures {
                browser
                    .save_picture(&folder.join(format!("{name}-{scheme}.png")))
                    .await;
            }
            let found = browser.find_accessibility_violations().await;
            problems.extend(
                found
                    .into_iter()
                    .map(|found| format!("{path} {scheme}: {found}")),
            );
        }
        browser.set_scheme("light").await;
        browser.resize(360, 800).await;
        browser.open(&server, &path).await;
        let width = browser
            .evaluate("document.documentElement.scrollWidth")
            .await;
        if width.as_u64() > Some(360) {
            problems.push(format!("{path} is {width} wide at 360"));
        }
        if let Some(folder) = &pictures {
            browser
                .save_picture(&folder.join(format!("{name}-phone.png")))
                .await;
        }
        let foreign = "performance.getEntriesByType('resource')
            .map((entry) => entry.name).filter((name) => !name.startsWith(location.origin))";
        let foreign = browser.evaluate(foreign).await;
        if foreign != json!([]) {
            problems.push(format!("{path} requests {foreign}"));
        }
        let refused = browser.find_policy_violations().await;
        problems.extend(
            refused
                .into_iter()
                .map(|refused| format!("{path}: {refused}")),
        );
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    // The failure is the opened line, and its hostile text is visible as text.
    browser.resize(1280, 900).await;
    browser
        .open(&server, &format!("/runs/{}", content.failed))
        .await;
    browser.wait_for_text("test 9 ... FAILED").await;
    browser.wait_for_text("<script>alert(1)</script>").await;
    browser.click("#run-actions a.button").await;
    browser
        .wait_for_script("the line", "document.querySelector(':target')")
        .await;
    let line = browser
        .evaluate("document.querySelector(':target').innerText")
        .await;
    assert!(line.as_str().unwrap().contains("failed"), "{line}");
    // The approval of the cascade rebuilds the stale images, on the open page.
    browser.open(&server, "/cascades/1").await;
    browser
        .click("form[action='/cascades/1/approve'] button")
        .await;
    browser.wait_for_text("2 of 2 tasks finished").await;
    browser.quit().await;
}
