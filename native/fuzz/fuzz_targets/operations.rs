//! Any bytes as a sequence of operations on maps, beside the model that the engine's tests have.
#![no_main]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    common::model::map::run(bytes);
});
