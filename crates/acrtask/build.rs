//! Enables compact relocations, which are loaded at each start and stay in memory.

#![allow(
    clippy::print_stdout,
    reason = "Cargo reads the output of a build script"
)]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    // Linkers that do not know the option print a warning and ignore it.
    if target == "linux" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
