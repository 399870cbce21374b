//! As `operations`, on queues.
#![no_main]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    common::model::queue::run(bytes);
});
