//! Guest memory as a map of equal parts.

use reapvm_reap::trace::TraceRegion;
use serde::Serialize;

use crate::PAGE_BYTES;

/// Parts that a map has at most.
const MAX_BINS: u64 = 512;

/// A part of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AddressBin {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Its pages.
    pub pages: u64,
    /// How many of them were touched.
    pub touched: u64,
}

/// The regions of guest memory, one behind the other, in equal parts: how much of each was touched.
#[derive(Clone, Debug)]
pub struct AddressMap {
    /// Regions by address, each with the number of pages in those before it.
    regions: Vec<(TraceRegion, u64)>,
    pages: u64,
    pages_a_bin: u64,
    touched: Vec<u64>,
    outside: u64,
}

impl AddressMap {
    /// A map of `regions`, of which nothing was touched yet.
    #[must_use]
    pub fn new(regions: &[TraceRegion]) -> Self {
        let mut sorted = regions.to_vec();
        sorted.sort_by_key(|region| region.gpa);
        let mut pages = 0_u64;
        let regions = sorted
            .into_iter()
            .map(|region| {
                let before = pages;
                // Whatever a file claims: no overflow.
                pages = pages.saturating_add(region.size_bytes / PAGE_BYTES);
                (region, before)
            })
            .collect();
        let pages_a_bin = pages.div_ceil(MAX_BINS).max(1);
        Self {
            regions,
            pages,
            pages_a_bin,
            touched: vec![0; pages.div_ceil(pages_a_bin) as usize],
            outside: 0,
        }
    }

    /// Notes that the page at `gpa` was touched.
    pub fn touch(&mut self, gpa: u64) {
        let bin = self.page_of(gpa);
        let bin = bin.and_then(|page| self.touched.get_mut((page / self.pages_a_bin) as usize));
        match bin {
            Some(bin) => *bin += 1,
            None => self.outside += 1,
        }
    }

    /// Which page of all regions, one behind the other, is at `gpa`; `None` outside of them. A
    /// snapshot's memory file has the pages in this order.
    #[must_use]
    pub fn page_of(&self, gpa: u64) -> Option<u64> {
        let after = self
            .regions
            .partition_point(|(region, _)| region.gpa <= gpa);
        let (region, before) = self.regions[after.checked_sub(1)?];
        let offset = gpa - region.gpa;
        (offset < region.size_bytes).then(|| before.saturating_add(offset / PAGE_BYTES))
    }

    /// Touches outside of all regions.
    #[must_use]
    pub fn outside(&self) -> u64 {
        self.outside
    }

    /// Pages of guest memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The parts, in the order of addresses.
    #[must_use]
    pub fn bins(&self) -> Vec<AddressBin> {
        (0..)
            .zip(&self.touched)
            .map(|(bin, touched)| {
                let page = bin * self.pages_a_bin;
                AddressBin {
                    gpa: self.gpa_of(page),
                    pages: self.pages_a_bin.min(self.pages - page),
                    touched: *touched,
                }
            })
            .collect()
    }

    fn gpa_of(&self, page: u64) -> u64 {
        let after = self.regions.partition_point(|(_, before)| *before <= page);
        after.checked_sub(1).map_or(0, |at| {
            let (region, before) = self.regions[at];
            region
                .gpa
                .saturating_add((page - before).saturating_mul(PAGE_BYTES))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(gpa: u64, size_bytes: u64) -> TraceRegion {
        TraceRegion {
            gpa,
            hva: 0,
            size_bytes,
        }
    }

    #[test]
    fn regions_with_a_hole_are_laid_side_by_side() {
        let high = 1 << 32;
        let mut map = AddressMap::new(&[region(high, 4 << 20), region(0, 4 << 20)]);
        for gpa in [
            0,
            0x1000,
            (4 << 20) - 0x1000,
            high,
            4 << 20,
            high + (4 << 20),
        ] {
            map.touch(gpa);
        }
        assert_eq!(map.outside(), 2);
        let bins = map.bins();
        assert_eq!(bins.len(), 512);
        assert_eq!((bins[0].gpa, bins[0].pages, bins[0].touched), (0, 4, 2));
        assert_eq!(bins[255].touched, 1);
        assert_eq!((bins[256].gpa, bins[256].touched), (high, 1));
        assert_eq!(bins.iter().map(|bin| bin.pages).sum::<u64>(), map.pages());
    }

    #[test]
    fn no_memory_and_endless_memory_are_maps_too() {
        let mut none = AddressMap::new(&[]);
        none.touch(0x1000);
        assert_eq!((none.bins().len(), none.outside()), (0, 1));
        let huge = region(0, !0xfff_u64);
        let mut endless = AddressMap::new(&[huge, huge, huge]);
        endless.touch(0x1000);
        endless.touch(!0xfff_u64);
        assert!(endless.bins().len() <= 512);
    }
}
