//! Tells the linker to keep the program's relocations small: they are read at each start and stay in memory.

#![allow(clippy::print_stdout, reason = "it is how a build script speaks")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    // Linkers that do not know the word say so and go on.
    if target == "linux" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
