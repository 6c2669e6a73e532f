//! The paper's method: one read of the whole file, and when it is done the pages are copied.

use std::time::Instant;

use super::pieces::pieces;
use super::place::{Placement, Placer};
use super::progress::Progress;
use super::staged::StagedPages;
use super::zeroes::Zeroes;
use super::{Install, InstallError, InstallReport, ReadPath, check_inside};

pub(super) fn install(
    placer: &Placer,
    install: &Install,
    read_path: ReadPath,
    progress: &Progress,
) -> Result<InstallReport, InstallError> {
    let reader = &install.working_set;
    if read_path == ReadPath::PageCache {
        reader.use_page_cache()?;
    }
    let started = Instant::now();
    let (set, mut file_bytes) = reader.read_whole()?;
    check_inside(placer, set.extents(), reader.path())?;
    placer.plan(set.extents());
    let mut report = InstallReport {
        read_path,
        extents: set.extents().len() as u64,
        bytes_read: reader.len_bytes(),
        read_ns: started.elapsed().as_nanos() as u64,
        threads: 1,
        ..InstallReport::default()
    };
    Zeroes::new(placer, install, &set, progress).place(&mut report)?;
    let pages = file_bytes
        .as_mut_slice()
        .get_mut(reader.data_offset() as usize..)
        .unwrap_or_default();
    let staged = StagedPages {
        placer,
        reader,
        set: &set,
        placement: Placement::Copy,
    };
    for piece in pieces(set.data_extents(), set.data_page_count()) {
        staged.place(&piece, pages, &mut report)?;
    }
    Ok(report)
}
