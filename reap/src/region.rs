//! Guest memory as the pager sees it: regions, checked once and then only looked up.

use crate::PAGE_SIZE_BYTES;

/// A contiguous range of guest memory and where it is on the host.
///
/// Every field is a multiple of [`reapvm_snapshot::PAGE_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Host-virtual address of the first byte: a private anonymous mapping.
    pub hva: u64,
    /// Length.
    pub size_bytes: u64,
    /// Where the region begins in the snapshot's memory file.
    pub file_offset: u64,
}

/// Why a list of [`MemoryRegion`]s is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// There is no region.
    #[error("guest memory has no region: at least one is needed")]
    Empty,
    /// A region with no bytes.
    #[error("the memory region at guest address {gpa:#x} is empty: leave it out")]
    EmptyRegion {
        /// The region's guest-physical address.
        gpa: u64,
    },
    /// An address or length that is no multiple of the page size.
    #[error(
        "the memory region at guest address {gpa:#x} is not aligned to pages: its addresses, size \
         and file offset must be multiples of 4096 bytes"
    )]
    Unaligned {
        /// The region's guest-physical address.
        gpa: u64,
    },
    /// A region that goes past the end of the address space.
    #[error("the memory region at guest address {gpa:#x} goes past the end of the address space")]
    TooLarge {
        /// The region's guest-physical address.
        gpa: u64,
    },
    /// Two regions share a guest-physical or a host-virtual address.
    #[error("the memory regions at guest addresses {first_gpa:#x} and {second_gpa:#x} overlap")]
    Overlap {
        /// One region's guest-physical address.
        first_gpa: u64,
        /// The other region's guest-physical address.
        second_gpa: u64,
    },
}

/// Where a page is: the same page in each of the address spaces that the pager deals with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageLocation {
    pub(crate) gpa: u64,
    pub(crate) hva: u64,
    /// Number of the page over all regions in the order of their guest addresses: an index for
    /// bitmaps.
    pub(crate) index: u64,
    /// Pages from this one to the end of its region, itself included.
    pub(crate) pages_to_region_end: u64,
}

/// Checked regions, by guest-physical address.
#[derive(Clone, Debug)]
pub(crate) struct RegionMap {
    /// Sorted by `gpa`; beside each, the number of pages in the regions before it.
    regions: Vec<(MemoryRegion, u64)>,
    page_count: u64,
}

impl RegionMap {
    /// Checks `regions`: not empty, aligned, inside the address space, no two of them overlapping.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub(crate) fn new(mut regions: Vec<MemoryRegion>) -> Result<Self, RegionError> {
        if regions.is_empty() {
            return Err(RegionError::Empty);
        }
        for region in &regions {
            let gpa = region.gpa;
            if region.size_bytes == 0 {
                return Err(RegionError::EmptyRegion { gpa });
            }
            let fields = [
                region.gpa,
                region.hva,
                region.size_bytes,
                region.file_offset,
            ];
            if fields.iter().any(|field| field % PAGE_SIZE_BYTES != 0) {
                return Err(RegionError::Unaligned { gpa });
            }
            let starts = [region.gpa, region.hva, region.file_offset];
            if starts
                .iter()
                .any(|start| start.checked_add(region.size_bytes).is_none())
            {
                return Err(RegionError::TooLarge { gpa });
            }
        }
        regions.sort_by_key(|region| region.hva);
        check_no_overlap(&regions, |region| region.hva)?;
        regions.sort_by_key(|region| region.gpa);
        check_no_overlap(&regions, |region| region.gpa)?;

        // No overflow: the regions do not overlap, so together they fit in the address space.
        let mut page_count = 0;
        let regions = regions
            .into_iter()
            .map(|region| {
                let first_index = page_count;
                page_count += region.size_bytes / PAGE_SIZE_BYTES;
                (region, first_index)
            })
            .collect();
        Ok(Self {
            regions,
            page_count,
        })
    }

    /// The regions, by guest-physical address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &MemoryRegion> {
        self.regions.iter().map(|(region, _)| region)
    }

    /// Pages in all regions.
    pub(crate) fn page_count(&self) -> u64 {
        self.page_count
    }

    /// The page that holds the guest-physical address `gpa`.
    pub(crate) fn locate_gpa(&self, gpa: u64) -> Option<PageLocation> {
        let next = self
            .regions
            .partition_point(|(region, _)| region.gpa <= gpa);
        let (region, first_index) = self.regions.get(next.checked_sub(1)?)?;
        Self::locate_in(region, *first_index, gpa - region.gpa)
    }

    /// The page that holds the host-virtual address `hva`.
    pub(crate) fn locate_hva(&self, hva: u64) -> Option<PageLocation> {
        // Regions are few (RAM below and above the MMIO hole), so a scan is the fastest search.
        self.regions.iter().find_map(|(region, first_index)| {
            Self::locate_in(region, *first_index, hva.checked_sub(region.hva)?)
        })
    }

    fn locate_in(region: &MemoryRegion, first_index: u64, offset: u64) -> Option<PageLocation> {
        if offset >= region.size_bytes {
            return None;
        }
        let page = offset / PAGE_SIZE_BYTES;
        Some(PageLocation {
            gpa: region.gpa + page * PAGE_SIZE_BYTES,
            hva: region.hva + page * PAGE_SIZE_BYTES,
            index: first_index + page,
            pages_to_region_end: region.size_bytes / PAGE_SIZE_BYTES - page,
        })
    }
}

fn check_no_overlap(
    sorted: &[MemoryRegion],
    start: impl Fn(&MemoryRegion) -> u64,
) -> Result<(), RegionError> {
    match sorted
        .windows(2)
        .find(|pair| start(&pair[0]) + pair[0].size_bytes > start(&pair[1]))
    {
        Some(pair) => Err(RegionError::Overlap {
            first_gpa: pair[0].gpa,
            second_gpa: pair[1].gpa,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(gpa: u64, hva: u64, size_bytes: u64) -> MemoryRegion {
        MemoryRegion {
            gpa,
            hva,
            size_bytes,
            file_offset: 0,
        }
    }

    #[test]
    fn both_addresses_lead_to_the_same_page() {
        let map = RegionMap::new(vec![
            region(0x1_0000_0000, 0x7000_0000, 0x4000),
            region(0, 0x9000_0000, 0x2000),
        ])
        .unwrap();
        assert_eq!(map.page_count(), 6);
        let page = map.locate_gpa(0x1_0000_1fff).unwrap();
        assert_eq!(page.gpa, 0x1_0000_1000);
        assert_eq!(page.hva, 0x7000_1000);
        assert_eq!(page.index, 3);
        assert_eq!(page.pages_to_region_end, 3);
        assert_eq!(map.locate_hva(0x7000_1abc), Some(page));
        assert_eq!(map.locate_gpa(0x1000).unwrap().index, 1);
    }

    #[test]
    fn addresses_outside_are_in_no_region() {
        let map = RegionMap::new(vec![region(0x1000, 0x7000_0000, 0x1000)]).unwrap();
        for gpa in [0, 0xfff, 0x2000, u64::MAX] {
            assert_eq!(map.locate_gpa(gpa), None);
        }
        for hva in [0, 0x6fff_ffff, 0x7000_1000, u64::MAX] {
            assert_eq!(map.locate_hva(hva), None);
        }
    }

    #[test]
    fn regions_that_break_a_rule_are_refused() {
        assert_eq!(RegionMap::new(vec![]).unwrap_err(), RegionError::Empty);
        let cases = [
            (
                vec![region(0, 0x1000, 0)],
                RegionError::EmptyRegion { gpa: 0 },
            ),
            (
                vec![region(0x10, 0x1000, 0x1000)],
                RegionError::Unaligned { gpa: 0x10 },
            ),
            (
                vec![region(0, 0x1000, 0x1001)],
                RegionError::Unaligned { gpa: 0 },
            ),
            (
                vec![region(0x1000, 0x1000, u64::MAX - 0xfff)],
                RegionError::TooLarge { gpa: 0x1000 },
            ),
            (
                vec![
                    region(0, 0x10_0000, 0x2000),
                    region(0x1000, 0x20_0000, 0x1000),
                ],
                RegionError::Overlap {
                    first_gpa: 0,
                    second_gpa: 0x1000,
                },
            ),
            (
                vec![
                    region(0, 0x10_0000, 0x2000),
                    region(0x2000, 0x10_1000, 0x1000),
                ],
                RegionError::Overlap {
                    first_gpa: 0,
                    second_gpa: 0x2000,
                },
            ),
        ];
        for (regions, error) in cases {
            assert_eq!(RegionMap::new(regions).unwrap_err(), error);
        }
    }
}
