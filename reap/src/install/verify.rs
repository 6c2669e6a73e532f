//! Checking pages before the guest can see them.

use reapvm_snapshot::PAGE_SIZE;
use reapvm_snapshot::checksum::crc32c;

use crate::extents::Extent;
use crate::working_set::WorkingSetError;
use crate::working_set_reader::WorkingSetReader;

/// Checks the pages `run` at guest-physical address `gpa` against their checksums.
pub(super) fn verify_run(
    reader: &WorkingSetReader,
    gpa: u64,
    run: &[u8],
    expected: &[u32],
) -> Result<(), WorkingSetError> {
    let pages = expected.len() as u64;
    let gpas = Extent { gpa, pages }.page_gpas();
    for ((gpa, page), expected) in gpas.zip(run.chunks_exact(PAGE_SIZE)).zip(expected) {
        if crc32c(page) != *expected {
            return Err(WorkingSetError::CorruptPage {
                path: reader.path().to_owned(),
                gpa,
            });
        }
    }
    Ok(())
}
