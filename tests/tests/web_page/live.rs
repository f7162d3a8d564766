//! Sign-in, live runs, cancellation and many tabs.

use std::time::Duration;

use acrtask_tests::{TestEnvironment, browser::TestBrowser, service::TestServer};
use serde_json::json;

use super::fixture::{LIVE_TASK, create_task, finish_run, start_server, start_task};

/// Task that runs until it is canceled.
const ENDLESS: &str = "version: v1.1.0
steps:
  - {id: wait, cmd: BUSYBOX sh -c 'echo waiting-now; sleep 600'}
";

async fn start() -> Option<(TestEnvironment, TestServer, TestBrowser)> {
    let environment = TestEnvironment::find()?;
    let browser = TestBrowser::start().await?;
    let server = start_server(&environment);
    Some((environment, server, browser))
}

#[tokio::test(flavor = "multi_thread")]
async fn run_fills_in_while_it_executes() {
    let Some((environment, server, browser)) = start().await else {
        return;
    };
    create_task(&environment, &server, "live", LIVE_TASK).await;
    browser.sign_in(&server, &server.token, "/tasks/live").await;
    browser
        .click("form[action='/tasks/live/-/run'] button")
        .await;
    browser.wait_for_text("step count").await;
    let url = browser.driver.current_url().await.unwrap();
    let id = url.path().rsplit('/').next().unwrap().to_owned();
    let is_running = "document.querySelector('#run-head h1').innerText.includes('running')";
    browser.wait_for_script("the state", is_running).await;
    assert!(
        browser
            .driver
            .title()
            .await
            .unwrap()
            .starts_with("running run")
    );
    browser.wait_for_text("number-600").await;
    // The overview and the log show the same run. The log follows its end.
    browser
        .open(&server, &format!("/runs/{id}/log?tail=1"))
        .await;
    browser.wait_for_text("Following the end").await;
    browser.wait_for_text("counted-all").await;
    browser.wait_for_text("finished-well").await;
    browser.wait_for_text("the run is finished").await;
    let at_end = "document.documentElement.scrollHeight - document.documentElement.scrollTop \
                  - document.documentElement.clientHeight < 60";
    browser.wait_for_script("the end of the log", at_end).await;
    let rows = browser
        .evaluate("document.querySelector('#log').childElementCount")
        .await;
    assert!(rows.as_u64().unwrap() <= 400, "{rows}");
    browser.open(&server, &format!("/runs/{id}")).await;
    browser.wait_for_text("The run succeeded").await;
    let icon = browser
        .evaluate("document.querySelector('#icon').href")
        .await;
    assert!(icon.as_str().unwrap().contains("icon-good"), "{icon}");
    assert_eq!(browser.find_policy_violations().await, Vec::<String>::new());
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_run_page_reaches_the_end_without_a_reload() {
    let Some((environment, server, browser)) = start().await else {
        return;
    };
    create_task(&environment, &server, "live", LIVE_TASK).await;
    let id = start_task(&server, "live");
    browser
        .sign_in(&server, &server.token, &format!("/runs/{id}"))
        .await;
    browser.evaluate("window.isSamePage = true").await;
    browser.wait_for_text("The run succeeded").await;
    let steps = "document.querySelectorAll('#run-steps .state.good').length === 3";
    browser.wait_for_script("the steps", steps).await;
    let same = browser
        .evaluate("window.isSamePage === true && document.title")
        .await;
    assert!(
        same.as_str().unwrap().starts_with("succeeded run"),
        "{same}"
    );
    // Its stream has ended.
    browser
        .wait_for_script(
            "no waiting button",
            "!document.querySelector('[data-notify]')",
        )
        .await;
    assert_eq!(browser.find_policy_violations().await, Vec::<String>::new());
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_is_canceled_and_repeated_without_script() {
    let Some((environment, server, browser)) = start().await else {
        return;
    };
    create_task(&environment, &server, "endless", ENDLESS).await;
    let id = start_task(&server, "endless");
    server.wait_for_run(&id, |run| run["state"] == "running");
    browser
        .sign_in(&server, &server.token, &format!("/runs/{id}"))
        .await;
    browser.allow_scripts(false).await;
    browser.open(&server, &format!("/runs/{id}")).await;
    browser.click("details.confirm summary").await;
    let reason = browser.find("#reason").await;
    reason.send_keys("not needed <b>").await.unwrap();
    browser.click("form[action$='/cancel'] button").await;
    let run = finish_run(&server, &id);
    assert_eq!(run["state"], "canceled", "{run:#}");
    assert_eq!(run["reason"], "not needed <b>", "{run:#}");
    browser.open(&server, &format!("/runs/{id}")).await;
    let sentence = browser.find(".sentence").await.text().await.unwrap();
    assert!(sentence.contains("not needed <b>"), "{sentence}");
    browser.click("form[action$='/rerun'] button").await;
    let runs = server.run_json(&["runs", "list", "--task", "endless", "-o", "json"]);
    let again = runs["items"][0]["id"].as_str().unwrap().to_owned();
    assert_ne!(again, id, "{runs:#}");
    browser.open(&server, &format!("/runs/{again}")).await;
    browser.click("details.confirm summary").await;
    browser.click("form[action$='/cancel'] button").await;
    assert_eq!(finish_run(&server, &again)["state"], "canceled");
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_visible_tabs_of_a_live_run_leave_connections_for_pages() {
    let Some((environment, server, browser)) = start().await else {
        return;
    };
    create_task(&environment, &server, "endless", ENDLESS).await;
    let id = start_task(&server, "endless");
    server.wait_for_run(&id, |run| run["state"] == "running");
    let path = format!("/runs/{id}");
    browser.sign_in(&server, &server.token, &path).await;
    // A tab in a window of its own is visible.
    let mut tabs = vec![browser.driver.window().await.unwrap()];
    for _ in 1..10 {
        let tab = browser.driver.new_window().await.unwrap();
        browser.driver.switch_to_window(tab.clone()).await.unwrap();
        browser.open(&server, &path).await;
        browser.wait_for_text("waiting-now").await;
        tabs.push(tab);
    }
    let hidden = browser.evaluate("document.hidden").await;
    assert_eq!(hidden, json!(false));
    // A page still loads, and every tab follows the end of the run.
    browser.open(&server, "/runs").await;
    browser.wait_for_text(&id).await;
    server.run_ok(&["runs", "cancel", &id]);
    finish_run(&server, &id);
    for tab in &tabs[..9] {
        browser.driver.switch_to_window(tab.clone()).await.unwrap();
        browser.wait_for_text("The run was canceled").await;
    }
    browser.quit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_continue_after_a_restart_and_end_with_the_session() {
    let Some((environment, mut server, browser)) = start().await else {
        return;
    };
    create_task(&environment, &server, "endless", ENDLESS).await;
    let token = server.run_json(&["token", "create", "reader", "--scope", "read", "-o", "json"]);
    let secret = token["secret"].as_str().unwrap().to_owned();
    browser.sign_in(&server, &secret, "/").await;
    browser.wait_for_text("Nothing runs").await;
    server.kill();
    browser.wait_for_text("The server does not respond").await;
    server.restart();
    let waits = "document.querySelector('#live-status').hidden";
    browser.wait_for_script("a connection", waits).await;
    let id = start_task(&server, "endless");
    browser.wait_for_text(&id).await;
    // A reader has no forms.
    browser.open(&server, &format!("/runs/{id}")).await;
    browser.wait_for_text("The run executes").await;
    let forms = browser
        .evaluate("document.querySelectorAll('main form').length")
        .await;
    assert_eq!(forms, json!(0));
    let begun = std::time::Instant::now();
    server.run_ok(&["token", "revoke", token["id"].as_str().unwrap()]);
    browser.wait_for_text("The session has ended").await;
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    server.run_ok(&["runs", "cancel", &id]);
    browser.quit().await;
}
