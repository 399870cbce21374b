//! The partitions of any kind of buffer, and a run of the partitions.

use rustler::{Atom, Decoder, NifResult, Term};

use crate::buffer::{Buffer, CounterPartitions, MapPartitions, QueuePartitions};
use crate::registry;
use crate::run::{NotRunning, Shared};
use crate::vm::term::RawTerm;

mod kind {
    //! The names of the kinds.
    rustler::atoms! {
        map,
        queue,
        counter
    }
}

/// The partitions of a buffer of any kind.
#[derive(Clone, Copy)]
pub(crate) enum AnyPartitions {
    /// The partitions of a map.
    Map(&'static MapPartitions),
    /// The partitions of a counter.
    Counter(&'static CounterPartitions),
    /// The partitions of a queue.
    Queue(&'static QueuePartitions),
}

/// Evaluates the same expression for a value of any kind:
/// `each!(AnyPartitions, partitions, own => own.size())`.
macro_rules! each {
    ($any:ident, $value:expr, $own:ident => $body:expr) => {
        match $value {
            $any::Map($own) => $body,
            $any::Counter($own) => $body,
            $any::Queue($own) => $body,
        }
    };
}
pub(crate) use each;

impl AnyPartitions {
    /// The partitions of each kind that a buffer has.
    pub(crate) fn all(buffer: &'static Buffer) -> [Self; 3] {
        [Self::Map(&buffer.map), Self::Counter(&buffer.counter), Self::Queue(&buffer.queue)]
    }

    /// The partitions of the kind with this name.
    pub(crate) fn of_kind(buffer: &'static Buffer, name: Atom) -> Self {
        Self::all(buffer).into_iter().find(|partitions| partitions.kind() == name).expect("the kind was checked")
    }

    /// Whether a kind has this name.
    pub(crate) fn is_kind(name: Atom) -> bool {
        [kind::map(), kind::counter(), kind::queue()].contains(&name)
    }

    /// The partitions of the running kind.
    pub(crate) fn running(buffer: &'static Buffer) -> Result<Self, NotRunning> {
        Self::all(buffer).into_iter().find(|partitions| partitions.shared().count().is_ok()).ok_or(NotRunning)
    }

    /// The name of the kind.
    pub(crate) fn kind(self) -> Atom {
        match self {
            AnyPartitions::Map(_) => kind::map(),
            AnyPartitions::Counter(_) => kind::counter(),
            AnyPartitions::Queue(_) => kind::queue(),
        }
    }

    /// The state that the partitions share.
    #[inline]
    pub(crate) fn shared(self) -> &'static Shared {
        each!(AnyPartitions, self, own => &own.shared)
    }
}

/// A run of a buffer, as the processes that act for it name it: by the name of the buffer and the
/// number of the run. Unlike a resource it survives a reload of the module.
pub(crate) struct Run {
    /// The partitions; `None` if another run began since.
    partitions: Option<AnyPartitions>,
    /// The number of the run.
    pub(crate) number: u32,
}

impl Decoder<'_> for Run {
    fn decode(term: Term<'_>) -> NifResult<Self> {
        let (name, number): (Atom, u32) = term.decode()?;
        let partitions = registry::find(RawTerm::from(name.to_term(term.get_env())).word())
            .and_then(|buffer| AnyPartitions::all(buffer).into_iter().find(|own| own.shared().is_last(number)));
        Ok(Run { partitions, number })
    }
}

impl Run {
    /// Acts for the run, unless it is over.
    #[inline]
    pub(crate) fn enter<R>(&self, act: impl FnOnce(AnyPartitions) -> Result<R, NotRunning>) -> Result<R, NotRunning> {
        let partitions = self.partitions.ok_or(NotRunning)?;
        partitions.shared().enter(self.number, || act(partitions))
    }

    /// The partitions, unless another run began since.
    pub(crate) fn partitions(&self) -> Option<AnyPartitions> {
        self.partitions
    }
}
