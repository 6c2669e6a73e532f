//! Taking files out of the page cache, and proving that they are out.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use thiserror::Error;

/// SYS_cachestat: the same number on every architecture (Linux 6.5 and later).
const SYS_CACHESTAT: libc::c_long = 451;

/// How long pages may stay that something holds for the moment: a read of a process that has just
/// ended, which is still under way.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before the next try.
const PAUSE: Duration = Duration::from_millis(2);

/// A file could not be made cold.
#[derive(Debug, Error)]
pub enum ColdError {
    /// It cannot be opened, written back or evicted.
    #[error("cannot take '{}' out of the page cache", path.display())]
    Evict {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Some of it is still cached.
    #[error(
        "'{}' is not cold: {resident_pages} of its pages stay in the page cache; \
         does another process map it, or does it lie on a memory file system?",
        path.display()
    )]
    StillCached {
        /// The file.
        path: PathBuf,
        /// Cached pages.
        resident_pages: u64,
    },
    /// The kernel does not say what is cached.
    #[error("cannot see whether '{}' is in the page cache", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// `struct cachestat_range` (include/uapi/linux/mman.h).
#[repr(C)]
struct CachestatRange {
    offset_bytes: u64,
    len_bytes: u64,
}

/// `struct cachestat`.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached_pages: u64,
    dirty_pages: u64,
    writeback_pages: u64,
    evicted_pages: u64,
    recently_evicted_pages: u64,
}

/// Pages of `file` in the page cache: by cachestat, or on an older kernel by mincore.
///
/// # Errors
/// Neither call works.
pub fn cached_pages(file: &File) -> io::Result<u64> {
    let range = CachestatRange {
        offset_bytes: 0,
        len_bytes: 0,
    };
    let mut stat = Cachestat::default();
    // SAFETY: both structures have the kernel's layout and live through the call; flags are 0.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0,
        )
    };
    if result == 0 {
        return Ok(stat.cached_pages);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    cached_pages_by_mincore(file)
}

fn cached_pages_by_mincore(file: &File) -> io::Result<u64> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(0);
    }
    // SAFETY: a new read-only mapping of `length` bytes, not touched but by mincore.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut vector = vec![0_u8; length.div_ceil(rustix::param::page_size())];
    // SAFETY: the range is the mapping made above; the vector has a byte for each of its pages.
    let result = unsafe { libc::mincore(address, length, vector.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: the mapping made above, which nothing refers to any more.
    unsafe { libc::munmap(address, length) };
    if result != 0 {
        return Err(error);
    }
    Ok(vector.iter().filter(|&&byte| byte & 1 == 1).count() as u64)
}

/// Takes the file at `path` out of the page cache and checks that it is out.
///
/// # Errors
/// [`ColdError`]; a file that is still partly cached is an error.
pub fn evict(path: &Path) -> Result<(), ColdError> {
    evict_within(path, PATIENCE)
}

fn evict_within(path: &Path, patience: Duration) -> Result<(), ColdError> {
    let failed = |source| ColdError::Evict {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Dirty pages cannot be dropped.
    file.sync_all().map_err(failed)?;
    let deadline = Instant::now() + patience;
    loop {
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| failed(e.into()))?;
        let resident_pages = cached_pages(&file).map_err(|source| ColdError::Unknown {
            path: path.to_owned(),
            source,
        })?;
        if resident_pages == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(ColdError::StillCached {
                path: path.to_owned(),
                resident_pages,
            });
        }
        thread::sleep(PAUSE);
    }
}

/// [`evict`] for every file in the snapshot directory `dir`.
///
/// # Errors
/// The first file that cannot be made cold, or the directory cannot be read.
pub fn evict_directory(dir: &Path) -> Result<(), ColdError> {
    let failed = |source| ColdError::Evict {
        path: dir.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            evict(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// On the file system of the build directory: the default one for temporary files may be tmpfs.
    fn file_of_pages(pages: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![1_u8; pages * 4096]).unwrap();
        file
    }

    #[test]
    fn a_written_file_is_cached_and_an_evicted_one_is_not() {
        let file = file_of_pages(64);
        assert_eq!(cached_pages(file.as_file()).unwrap(), 64);
        assert_eq!(cached_pages_by_mincore(file.as_file()).unwrap(), 64);
        evict(file.path()).unwrap();
        assert_eq!(cached_pages(file.as_file()).unwrap(), 0);
        assert_eq!(cached_pages_by_mincore(file.as_file()).unwrap(), 0);
    }

    /// A mapping that holds the first page of a file of 16.
    fn holder_of(file: &tempfile::NamedTempFile) -> vm_memory::MmapRegion<()> {
        let shared = vm_memory::FileOffset::new(file.reopen().unwrap(), 0);
        let map = vm_memory::MmapRegion::from_file(shared, 16 * 4096).unwrap();
        // SAFETY: the page is mapped and readable.
        unsafe { map.as_ptr().read_volatile() };
        map
    }

    #[test]
    fn a_file_that_another_mapping_holds_is_reported_as_not_cold() {
        let file = file_of_pages(16);
        let _holder = holder_of(&file);
        assert!(matches!(
            evict_within(file.path(), Duration::from_millis(20)),
            Err(ColdError::StillCached { .. })
        ));
    }

    #[test]
    fn a_page_that_is_held_for_a_moment_only_is_waited_for() {
        let file = file_of_pages(16);
        let holder = holder_of(&file);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                drop(holder);
            });
            evict_within(file.path(), Duration::from_secs(60)).unwrap();
        });
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = evict(Path::new("/nonexistent/file")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/file"));
    }
}
