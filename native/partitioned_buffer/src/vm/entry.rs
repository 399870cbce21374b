//! The functions that the VM calls: they turn a panic into an exception.

use std::ffi::CStr;
use std::panic::catch_unwind;

use rustler::codegen_runtime::{c_char, c_int, inventory};
use rustler::sys::{enif_is_exception, enif_make_badarg, enif_raise_exception, ErlNifEnv, ERL_NIF_TERM as ErlNifTerm};
use rustler::types::atom;
use rustler::{Env, Nif, NifResult, SchedulerFlags, Term};

/// A NIF with `N` arguments, as a type, for [`entry`].
pub(crate) trait Function<const N: usize> {
    /// Its name, with a NUL at the end.
    const NAME: &'static str;

    /// The counts of its calls.
    #[cfg(feature = "timing")]
    fn timing() -> &'static crate::vm::timing::Timing;

    /// The NIF; an error is `badarg`.
    fn call<'a>(env: Env<'a>, arguments: [Term<'a>; N]) -> NifResult<Term<'a>>;
}

/// The description of a NIF for the VM. It replaces the attribute `rustler::nif`, which collects
/// the arguments in a vector on the heap: that costs the time of a whole `put`.
pub(crate) const fn entry<const N: usize, F: Function<N>>(scheduler: SchedulerFlags) -> Nif {
    assert!(matches!(F::NAME.as_bytes(), [.., 0]));
    Nif { name: F::NAME.as_ptr().cast::<c_char>(), arity: N as u32, flags: scheduler as u32, raw_func: call::<N, F> }
}

/// Calls a NIF by its name, as the VM does; `None` without a NIF of this name and arity. The NIF is
/// compiled once, so the calls of the VM stay as fast as they are. The result may be an exception.
pub(crate) fn call_by_name<'a>(env: Env<'a>, name: &str, arguments: &[Term<'a>]) -> Option<Called<'a>> {
    let has_name = |nif: &&Nif| {
        // SAFETY: `entry` gave it a name with a NUL at the end, which lives as long as the library.
        let own = unsafe { CStr::from_ptr(nif.name) };
        own.to_bytes() == name.as_bytes() && nif.arity as usize == arguments.len()
    };
    let nif = inventory::iter::<Nif>().find(has_name)?;
    let words: Vec<ErlNifTerm> = arguments.iter().map(|argument| argument.as_c_arg()).collect();
    // SAFETY: the arguments belong to `env`, the environment of the current call, and their number is
    // that of the NIF, which trusts none of them.
    unsafe {
        let result = (nif.raw_func)(env.as_c_arg(), words.len() as c_int, words.as_ptr());
        let is_exception = enif_is_exception(env.as_c_arg(), result) != 0;
        Some(Called { result: Term::new(env, result), is_exception })
    }
}

/// The result of a NIF.
pub(crate) struct Called<'a> {
    /// The term for the VM.
    pub(crate) result: Term<'a>,
    /// Whether it stands for an exception.
    pub(crate) is_exception: bool,
}

/// The function that the VM calls. A panic becomes the exception `nif_panicked`.
unsafe extern "C" fn call<const N: usize, F: Function<N>>(
    env: *mut ErlNifEnv,
    argc: c_int,
    argv: *const ErlNifTerm,
) -> ErlNifTerm {
    debug_assert_eq!(argc as usize, N);
    #[cfg(feature = "timing")]
    let _timer = F::timing().start();
    let lifetime = ();
    // SAFETY: the VM passes the environment of the current call and `N` arguments that belong to
    // it, the number registered by `entry`. `lifetime` ends with this call, so nothing made from
    // the environment can outlive it.
    unsafe {
        let caller = Env::new(&lifetime, env);
        let arguments = std::array::from_fn(|at| Term::new(caller, *argv.add(at)));
        // Only a word leaves the closure: copies of larger results, with their padding, cost some
        // nanoseconds.
        let result = catch_unwind(|| match F::call(caller, arguments) {
            Ok(term) => term.as_c_arg(),
            Err(_) => enif_make_badarg(env),
        });
        match result {
            Ok(result) => result,
            Err(_) => enif_raise_exception(env, atom::nif_panicked().as_c_arg()),
        }
    }
}
