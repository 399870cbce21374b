//! As `operations`, on counters.
#![no_main]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    common::model::counter::run(bytes);
});
