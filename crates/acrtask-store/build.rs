//! Rebuilds the crate if a migration changes.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
