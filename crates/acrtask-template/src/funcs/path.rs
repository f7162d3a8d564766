//! Slash-separated paths. The `os` functions are the same on the systems that run tasks.

use super::{Function, functions, text_at};
use crate::value::Value;

pub(crate) static TABLE: &[Function] = functions! {
    "base" (Text) |env, args| env.new_text(base(text_at(args, 0)));
    "osBase" (Text) |env, args| env.new_text(base(text_at(args, 0)));
    "dir" (Text) |env, args| env.new_text(dir(text_at(args, 0)));
    "osDir" (Text) |env, args| env.new_text(dir(text_at(args, 0)));
    "ext" (Text) |env, args| env.new_text(ext(text_at(args, 0)));
    "osExt" (Text) |env, args| env.new_text(ext(text_at(args, 0)));
    "clean" (Text) |env, args| env.new_text(clean(text_at(args, 0)));
    "osClean" (Text) |env, args| env.new_text(clean(text_at(args, 0)));
    "isAbs" (Text) |_, args| Ok(Value::Bool(text_at(args, 0).starts_with('/')));
    "osIsAbs" (Text) |_, args| Ok(Value::Bool(text_at(args, 0).starts_with('/')));
};

fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let path = path.trim_end_matches('/');
    match path.rsplit('/').next() {
        None | Some("") => "/",
        Some(name) => name,
    }
}

fn dir(path: &str) -> String {
    clean(&path[..path.rfind('/').map_or(0, |slash| slash + 1)])
}

fn ext(path: &str) -> &str {
    let name = &path[path.rfind('/').map_or(0, |slash| slash + 1)..];
    name.rfind('.').map_or("", |dot| &name[dot..])
}

/// Returns the shortest equivalent path, without looking it up.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}
