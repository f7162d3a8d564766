//! The web page in Chromium, at a real server with a real runner.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod fixture;
mod live;
mod pages;
