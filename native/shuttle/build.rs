//! Sets `cfg(shuttle)` for the engine's sources, and nobody else's.

fn main() {
    println!("cargo::rustc-cfg=shuttle");
    println!("cargo::rerun-if-changed=build.rs");
}
