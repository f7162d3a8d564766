//! From the text of a task file to a [`plan::Plan`], or to diagnostics.

pub mod build_line;
pub mod cmd_line;
pub mod plan;
