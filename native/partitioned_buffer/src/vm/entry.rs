//! The functions that the VM calls: they turn a panic into an exception.

use std::panic::catch_unwind;

use rustler::codegen_runtime::{c_char, c_int};
use rustler::sys::{enif_make_badarg, enif_raise_exception, ErlNifEnv, ERL_NIF_TERM as ErlNifTerm};
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
/// the arguments in a vector on the heap: that costs as much as a whole `put`.
pub(crate) const fn entry<const N: usize, F: Function<N>>(scheduler: SchedulerFlags) -> Nif {
    assert!(matches!(F::NAME.as_bytes(), [.., 0]));
    Nif { name: F::NAME.as_ptr().cast::<c_char>(), arity: N as u32, flags: scheduler as u32, raw_func: call::<N, F> }
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
