//! Hash tables keyed by names, chained through boxes.
//!
//! The runtime's dictionaries are built once and only read afterwards. Every entry is a box of its
//! own, allocated when its owner is loaded, so that it lies beside that owner in the heap, as the
//! objects of an interpreter do.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;

use crate::random::fnv1a;

/// A dictionary from names to values.
pub(crate) struct NameTable<T> {
    buckets: Vec<Option<Box<Entry<T>>>>,
}

struct Entry<T> {
    name: Rc<str>,
    value: T,
    next: Option<Box<Entry<T>>>,
}

impl<T> NameTable<T> {
    /// An empty table for about `capacity` entries; more make its chains longer.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut buckets = Vec::new();
        buckets.resize_with(capacity.max(1).next_power_of_two(), || None);
        Self { buckets }
    }

    fn bucket(&self, name: &str) -> usize {
        let hash = fnv1a(name.as_bytes());
        // FNV's low bits are its weakest.
        ((hash ^ (hash >> 32)) as usize) & (self.buckets.len() - 1)
    }

    /// Adds `value`; an earlier one of the same name is hidden by it.
    pub(crate) fn insert(&mut self, name: Rc<str>, value: T) {
        let bucket = self.bucket(&name);
        let next = self.buckets[bucket].take();
        self.buckets[bucket] = Some(Box::new(Entry { name, value, next }));
    }

    /// The value called `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.get_entry(name).map(|(_, value)| value)
    }

    /// The name as it is stored, and the value called `name`.
    pub(crate) fn get_entry(&self, name: &str) -> Option<(&Rc<str>, &T)> {
        let mut entry = self.buckets[self.bucket(name)].as_deref();
        while let Some(current) = entry {
            if &*current.name == name {
                return Some((&current.name, &current.value));
            }
            entry = current.next.as_deref();
        }
        None
    }
}

/// One allocation for each distinct name.
pub(crate) struct Interner {
    names: NameTable<()>,
}

impl Interner {
    pub(crate) fn new() -> Self {
        Self {
            names: NameTable::with_capacity(32_768),
        }
    }

    /// The one shared copy of `name`.
    pub(crate) fn intern(&mut self, name: &str) -> Rc<str> {
        if let Some((stored, ())) = self.names.get_entry(name) {
            return Rc::clone(stored);
        }
        let stored: Rc<str> = Rc::from(name);
        self.names.insert(Rc::clone(&stored), ());
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn a_full_table_finds_all_and_nothing_else() {
        let mut table = NameTable::with_capacity(4);
        for number in 0..500 {
            table.insert(Rc::from(format!("name-{number}")), number);
        }
        for number in 0..500 {
            assert_eq!(table.get(&format!("name-{number}")), Some(&number));
        }
        assert_eq!(table.get("name-500"), None);
        assert_eq!(table.get(""), None);
    }

    #[test]
    fn interned_names_are_shared() {
        let mut interner = Interner::new();
        let first = interner.intern("state");
        assert!(Rc::ptr_eq(&first, &interner.intern("state")));
        assert!(!Rc::ptr_eq(&first, &interner.intern("text")));
    }
}
