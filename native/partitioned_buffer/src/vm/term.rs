//! Terms as words, made with the functions of `erl_nif`.
//!
//! A [`RawTerm`] is a word without a lifetime. Some are made from an argument of the current NIF
//! call and used only during that call: the modules above store none. The others are copies in an
//! environment, and are used only while that environment exists and is not cleared: the engine
//! takes care of this, and its tests have a heap that checks it.

use std::cmp::Ordering;

use partitioned_buffer_engine::Term as EngineTerm;
use rustler::sys::ERL_NIF_TERM as ErlNifTerm;
use rustler::sys::*;
use rustler::{Env, Term};

/// A term as the word that represents it in the VM. See the module's documentation for when it may
/// be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawTerm(pub(super) ErlNifTerm);

impl RawTerm {
    /// The word 0, to be compared only.
    pub(super) const ZERO: Self = RawTerm(0);

    /// The word itself. The word of an atom is the same everywhere and for ever.
    #[inline]
    pub(crate) fn word(self) -> usize {
        self.0
    }

    /// Whether it is an integer or atom that needs no memory, as most immediates are. For others the
    /// answer is `false`.
    #[inline]
    pub(crate) fn is_immediate(self, env: Env<'_>) -> bool {
        let env = env.as_c_arg();
        let mut integer = 0;
        // SAFETY: `env` belongs to the current call, which may write it, and the pointer is to an
        // `i64`.
        unsafe {
            if enif_get_int64(env, self.0, &mut integer) == 0 {
                enif_is_atom(env, self.0) != 0
            } else {
                // An integer that needs memory would get some here, and so be another word.
                enif_make_int64(env, integer) == self.0
            }
        }
    }

    /// Whether it is an integer of 64 bits, an atom, or the empty list. These take three words at
    /// most. `env` is only read.
    #[inline]
    pub(super) fn is_tiny(self, env: *mut ErlNifEnv) -> bool {
        let mut integer = 0;
        // SAFETY: `env` is read only, and the pointer is to an `i64`.
        unsafe {
            enif_get_int64(env, self.0, &mut integer) != 0
                || enif_is_atom(env, self.0) != 0
                || enif_is_empty_list(env, self.0) != 0
        }
    }

    /// How far apart two words are. The VM makes the terms of an environment one behind the other, so
    /// the words of two terms tell about how many bytes lie between them. Callers must be safe with
    /// any answer.
    #[inline]
    pub(super) fn distance(self, other: Self) -> usize {
        self.0.abs_diff(other.0)
    }

    /// Starts loading the memory of the term into the cache, if its word is an address. Else the load
    /// has no effect.
    #[inline]
    pub(crate) fn prefetch(self) {
        prefetch_address(self.word() as *const u8);
    }

    /// The VM's own hash for its tables, salted.
    #[inline]
    pub(crate) fn internal_hash(self, salt: u32) -> u64 {
        // SAFETY: `self` is a valid term, by the module's documentation. The same holds for all
        // calls below.
        unsafe { enif_hash(ErlNifHash::ERL_NIF_INTERNAL_HASH, self.0, u64::from(salt)) }
    }

    /// `:erlang.phash2/1`.
    #[inline]
    pub(crate) fn phash2(self) -> u32 {
        // SAFETY: as in `internal_hash`. The result has 27 bits.
        unsafe { enif_hash(ErlNifHash::ERL_NIF_PHASH2, self.0, 0) as u32 }
    }
}

impl From<Term<'_>> for RawTerm {
    #[inline]
    fn from(term: Term<'_>) -> Self {
        RawTerm(term.as_c_arg())
    }
}

impl EngineTerm for RawTerm {
    #[inline]
    fn is_identical(self, other: Self) -> bool {
        // SAFETY: both are valid terms.
        self.0 == other.0 || unsafe { enif_is_identical(self.0, other.0) != 0 }
    }

    fn compare_integers(self, other: Self) -> Ordering {
        // SAFETY: both are valid terms.
        unsafe { enif_compare(self.0, other.0) }.cmp(&0)
    }
}

/// Lets the CPU load the memory at an address into its cache, on architectures where we know how.
#[inline]
pub(super) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: it is a hint without effect on an unmapped address, and SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
