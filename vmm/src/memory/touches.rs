//! Which of the prefetched pages the guest has touched.

use reapvm_reap::{TouchProbe, TouchProbeError, TouchedPages, WorkingSet};

use super::{MemoryError, MemoryManager};

/// What is kept of a measurement between its beginning and its end.
pub(super) type Measurement = Result<TouchProbe, TouchProbeError>;

/// What is to be known of a prefetch, and costs something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Which of the prefetched pages the guest touches ([`MemoryManager::touched_pages`]). It makes
    /// the restore longer.
    pub touches: bool,
    /// Which pages the working set misses ([`MemoryManager::recording`]).
    pub misses: bool,
}

impl MemoryManager {
    /// Says what is to be observed: before KVM is told of the memory, if touches are, and else
    /// before memory is restored. What keeps touches from being measured is said at the end.
    pub(crate) fn observe(&mut self, observation: Observation) {
        self.observation = observation;
        self.measurement = observation.touches.then(TouchProbe::open);
    }

    /// Whether KVM is to log writes for the sake of the measurement alone. While it does, it
    /// enters writable pages in its page tables only when they are accessed, and not their
    /// neighbours with them, as it does otherwise where it shadows the guest's.
    pub(super) fn is_measuring_touches(&self) -> bool {
        matches!(self.measurement, Some(Ok(_)))
    }

    /// Begins the measurement: when the working set is installed and before the guest runs.
    pub(crate) fn begin_measurement(&mut self) {
        if let Some(Ok(probe)) = &self.measurement
            && let Err(error) = probe.settle()
        {
            self.measurement = Some(Err(error));
        }
    }

    /// The working set that was installed, in prefetch mode: what it consists of is read now.
    ///
    /// # Errors
    /// It cannot be read any more, or is not what it was.
    pub fn prefetched_set(&self) -> Result<Option<WorkingSet>, MemoryError> {
        let Some(reader) = &self.prefetched else {
            return Ok(None);
        };
        Ok(Some(reader.read_tables()?))
    }

    /// Which of the prefetched pages the guest has touched: see [`TouchProbe`]. None in the other
    /// modes, and if the machine was not restored to measure it.
    ///
    /// # Errors
    /// The working set cannot be read any more, or the kernel does not say.
    pub fn touched_pages(&self) -> Result<Option<TouchedPages>, MemoryError> {
        let Some(set) = self.prefetched_set()? else {
            return Ok(None);
        };
        match &self.measurement {
            None => Ok(None),
            Some(Err(error)) => Err(error.clone().into()),
            Some(Ok(probe)) => Ok(Some(probe.touched(&self.regions, &set)?)),
        }
    }
}
