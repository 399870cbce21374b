//! Any bytes as a file of a journal, as records, and as changes to the files of one.
#![no_main]

#[path = "../../engine/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    common::journal::replay_bytes(bytes);
});
