//! Terms in the external term format, for the journal.
//!
//! Frequent types are encoded here, with the functions that look into a term: the VM's own encoder
//! allocates a binary for each call, and looks at each term twice. All other types go to that one. The
//! VM decodes all.
//!
//! The code is sound for these reasons:
//!
//! * A [`Terms`] has a private environment, which it passes wherever a function may write one. The
//!   encoded terms live elsewhere and are only read.
//! * The engine keeps the terms in memory until they are encoded, and they are immutable.

use std::mem::MaybeUninit;

use partitioned_buffer_engine::journal::Codec;
use partitioned_buffer_engine::Heap;
use rustler::sys::{ERL_NIF_TERM as ErlNifTerm, *};

use super::environment::Environment;
use super::term::RawTerm;

/// The first byte of the format.
const VERSION: u8 = 131;

/// Terms in terms of this depth go to the VM, which needs no stack for them.
const MOST_DEPTH: usize = 64;

/// Atoms whose encoding is kept. A power of two.
const ATOMS: usize = 256;

/// After this many decoded terms the environment is cleared.
const DECODED: usize = 256;

/// After this many encoded terms the environment is cleared: the VM keeps copies of unaligned binaries
/// there.
const ENCODED: usize = 4096;

/// Encodes and decodes terms, on one thread at a time.
pub(crate) struct Terms {
    /// The environment of decoded terms.
    environment: Environment,
    /// The encoding of atoms by their words; empty without one.
    atoms: Vec<(ErlNifTerm, Vec<u8>)>,
    /// The format of the next term to decode.
    bytes: Vec<u8>,
    /// The number of terms in the environment.
    decoded: usize,
    /// The number of terms that were encoded with the environment.
    encoded: usize,
}

impl Terms {
    /// An encoder without atoms.
    pub(crate) fn new() -> Self {
        let atoms = (0..ATOMS).map(|_| (0, Vec::new())).collect();
        Terms { environment: Environment::new(), atoms, bytes: Vec::new(), decoded: 0, encoded: 0 }
    }

    /// Decodes `N` terms from their encodings by [`Codec::encode`]. They live until a later call.
    pub(crate) fn decode<const N: usize>(&mut self, encoded: [&[u8]; N]) -> Option<[RawTerm; N]> {
        if self.decoded == DECODED {
            self.environment = Environment::new();
            self.decoded = 0;
        }
        self.decoded += 1;
        self.bytes.clear();
        // One call decodes all: a tuple.
        self.bytes.extend_from_slice(&[VERSION, 104, N as u8]);
        encoded.iter().for_each(|bytes| self.bytes.extend_from_slice(bytes));
        let (env, mut term) = (self.environment.env, 0);
        // SAFETY: the environment is ours, the pointer and the length are of a vector, and the function checks
        // them. The elements of a tuple live as long as the environment.
        unsafe {
            let read = enif_binary_to_term(env, self.bytes.as_ptr(), self.bytes.len(), &mut term, 0);
            let (mut arity, mut elements) = (0, std::ptr::null());
            if read != self.bytes.len()
                || enif_get_tuple(env, term, &mut arity, &mut elements) == 0
                || arity as usize != N
            {
                return None;
            }
            Some(std::array::from_fn(|at| RawTerm(*elements.add(at))))
        }
    }

    /// Appends a term.
    fn append(&mut self, term: ErlNifTerm, depth: usize, out: &mut Vec<u8>) {
        // The word of an atom is never that of another term.
        let (atom, encoded) = &self.atoms[slot(term)];
        if *atom == term {
            return out.extend_from_slice(encoded);
        }
        let env = self.environment.env;
        let (mut integer, mut float) = (0_i64, 0.0_f64);
        let (mut arity, mut elements, mut length) = (0, std::ptr::null(), 0_u32);
        let (mut size, mut binary) = (0, MaybeUninit::<ErlNifBinary>::uninit());
        // SAFETY: by the module's documentation; all pointers are to variables of their type, or to
        // memory of the term. The binary is used only if the function filled it.
        unsafe {
            if enif_get_int64(env, term, &mut integer) != 0 {
                append_integer(integer, out);
            } else if enif_inspect_binary(env, term, binary.as_mut_ptr()) != 0 {
                let binary = binary.assume_init_ref();
                out.push(109);
                out.extend_from_slice(&(binary.size as u32).to_be_bytes());
                if binary.size > 0 {
                    out.extend_from_slice(std::slice::from_raw_parts(binary.data, binary.size));
                }
            } else if enif_is_atom(env, term) != 0 {
                self.append_atom(term, out);
            } else if enif_is_empty_list(env, term) != 0 {
                out.push(106);
            } else if depth == MOST_DEPTH {
                self.append_other(term, out);
            } else if enif_get_map_size(env, term, &mut size) != 0 {
                self.append_map(term, size, depth, out);
            } else if enif_get_tuple(env, term, &mut arity, &mut elements) != 0 {
                match u8::try_from(arity) {
                    Ok(arity) => out.extend_from_slice(&[104, arity]),
                    Err(_) => {
                        out.push(105);
                        out.extend_from_slice(&arity.to_be_bytes());
                    }
                }
                for at in 0..arity as usize {
                    self.append(*elements.add(at), depth + 1, out);
                }
            } else if enif_get_list_length(env, term, &mut length) != 0 {
                out.push(108);
                out.extend_from_slice(&length.to_be_bytes());
                let (mut head, mut tail) = (term, term);
                while enif_get_list_cell(env, tail, &mut head, &mut tail) != 0 {
                    self.append(head, depth + 1, out);
                }
                out.push(106);
            } else if enif_get_double(env, term, &mut float) != 0 {
                out.push(70);
                out.extend_from_slice(&float.to_be_bytes());
            } else {
                self.append_other(term, out);
            }
        }
    }

    /// Appends a map with `size` pairs.
    fn append_map(&mut self, map: ErlNifTerm, size: usize, depth: usize, out: &mut Vec<u8>) {
        let env = self.environment.env;
        let mut iterator = MaybeUninit::<ErlNifMapIterator>::uninit();
        let first = ErlNifMapIteratorEntry::ERL_NIF_MAP_ITERATOR_HEAD;
        let (mut key, mut value) = (map, map);
        // SAFETY: as in `append`. The iterator is used only after it was made, and then destroyed.
        unsafe {
            if enif_map_iterator_create(env, map, iterator.as_mut_ptr(), first) == 0 {
                return self.append_other(map, out);
            }
            out.push(116);
            out.extend_from_slice(&(size as u32).to_be_bytes());
            while enif_map_iterator_get_pair(env, iterator.as_mut_ptr(), &mut key, &mut value) != 0 {
                self.append(key, depth + 1, out);
                self.append(value, depth + 1, out);
                enif_map_iterator_next(env, iterator.as_mut_ptr());
            }
            enif_map_iterator_destroy(env, iterator.as_mut_ptr());
        }
    }

    /// Appends an atom that is not kept, and keeps it.
    fn append_atom(&mut self, atom: ErlNifTerm, out: &mut Vec<u8>) {
        let mut encoded = Vec::new();
        self.append_other(atom, &mut encoded);
        out.extend_from_slice(&encoded);
        self.atoms[slot(atom)] = (atom, encoded);
    }

    /// Appends a term as the VM encodes it.
    fn append_other(&mut self, term: ErlNifTerm, out: &mut Vec<u8>) {
        let mut binary = MaybeUninit::<ErlNifBinary>::uninit();
        // SAFETY: as in `append`. The binary is used only if the function made it, and then released.
        unsafe {
            let is_encoded = enif_term_to_binary(self.environment.env, term, binary.as_mut_ptr()) != 0;
            assert!(is_encoded, "the VM encodes any term if it has the memory");
            let encoded = std::slice::from_raw_parts(binary.assume_init_ref().data, binary.assume_init_ref().size);
            out.extend_from_slice(encoded.strip_prefix(&[VERSION]).unwrap_or(encoded));
            enif_release_binary(binary.as_mut_ptr());
        }
    }
}

impl Codec<Environment> for Terms {
    fn encode(&mut self, term: RawTerm, out: &mut Vec<u8>) {
        self.encoded += 1;
        if self.encoded == ENCODED {
            self.environment = Environment::new();
            self.encoded = 0;
        }
        self.append(term.0, 0, out);
    }
}

/// Where the encoding of an atom is kept.
fn slot(atom: ErlNifTerm) -> usize {
    ((atom as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}

/// Appends an integer of 64 bits.
fn append_integer(integer: i64, out: &mut Vec<u8>) {
    if let Ok(small) = u8::try_from(integer) {
        out.extend_from_slice(&[97, small]);
    } else if let Ok(middle) = i32::try_from(integer) {
        out.push(98);
        out.extend_from_slice(&middle.to_be_bytes());
    } else {
        let magnitude = integer.unsigned_abs().to_le_bytes();
        let length = magnitude.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        out.extend_from_slice(&[110, length as u8, (integer < 0).into()]);
        out.extend_from_slice(&magnitude[..length]);
    }
}
