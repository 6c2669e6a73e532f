//! What a part of a virtual machine does to be saved and restored.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A part of a virtual machine that can be saved in a [`StateFile`](crate::StateFile) and rebuilt
/// from there.
///
/// There is no default for anything: a part that cannot be saved returns an error that says so,
/// and never a state that would restore to something else.
///
/// `State` is plain data. It is read from a file that anyone may have written, so
/// [`restore`](Persist::restore) validates it (best by `TryFrom` into the types that it needs) and
/// returns an error for what the part could not have saved. Keep zero-sized elements out of its
/// sequences: their length is not bounded by the length of the file.
pub trait Persist: Sized {
    /// The name of the kind of section: at most 64 of `a-z`, `0-9`, `-`, `_` and `.`.
    const KIND: &'static str;
    /// The version of `State`: raised with every change of it, for no field in it has a name on disk.
    const VERSION: u32;

    /// What is written.
    type State: Serialize + DeserializeOwned;
    /// What is not in the state and is needed to restore it: guest memory, an eventfd, a vCPU's fd.
    type Args<'a>;
    /// Why it cannot be saved or restored.
    type Error;

    /// The state as it is now. The virtual machine is paused.
    ///
    /// # Errors
    /// When it cannot be read, or cannot be restored later.
    fn save(&self) -> Result<Self::State, Self::Error>;

    /// The part as it was when `state` was saved.
    ///
    /// # Errors
    /// When the state is not one that the part could have saved, or the host cannot restore it.
    fn restore(args: Self::Args<'_>, state: &Self::State) -> Result<Self, Self::Error>;
}
