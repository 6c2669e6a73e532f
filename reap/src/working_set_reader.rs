//! Reading a working set for a prefetch: once, past the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reapvm_snapshot::SnapshotId;
use rustix::fs::{OFlags, fcntl_setfl};

use crate::PAGE_SIZE_BYTES;
use crate::page_buffer::PageBuffer;
use crate::page_cache;
use crate::regular_file;
use crate::working_set::{Defect, Header, WorkingSet, WorkingSetError, read_error};

/// A working set that is opened, to be [installed](crate::Pager::install).
///
/// [`WorkingSet::open`] makes one and is cheap: only the header has been read and checked.
#[derive(Debug)]
pub struct WorkingSetReader {
    file: File,
    path: PathBuf,
    header: Header,
    memory_bytes: u64,
}

impl WorkingSetReader {
    pub(crate) fn open(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<Self, WorkingSetError> {
        let (file, len_bytes) =
            regular_file::open(path).map_err(|source| read_error(path, source))?;
        // Only now, so that what is no file at all is not mistaken for a lack of O_DIRECT.
        fcntl_setfl(&file, OFlags::DIRECT).map_err(|errno| direct_io_error(path, errno.into()))?;
        let mut first_page = PageBuffer::new(PAGE_SIZE_BYTES)
            .map_err(|source| no_memory(path, PAGE_SIZE_BYTES, source))?;
        let read_bytes = read_from(&file, 0, first_page.as_mut_slice())
            .map_err(|source| direct_io_error(path, source))?;
        let first_bytes = &first_page.as_slice()[..read_bytes];
        let header = Header::decode(first_bytes, len_bytes, id, memory_bytes)
            .map_err(|defect| defect.at(path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            header,
            memory_bytes,
        })
    }

    /// How many pages it has.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.header.page_count
    }

    /// Length of its file, which is what a prefetch reads.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.header.len_bytes()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole file with O_DIRECT, as one request, and verifies everything before its
    /// pages. The pages, in the second buffer from [`data_offset`](Self::data_offset) on, are not
    /// verified.
    pub(crate) fn read_whole(&self) -> Result<(WorkingSet, PageBuffer), WorkingSetError> {
        // The header bounds the length by the size of guest memory.
        let file_bytes = self.read_first(self.header.len_bytes())?;
        let set = self.decode(file_bytes.as_slice())?;
        Ok((set, file_bytes))
    }

    /// Reads and verifies what the working set consists of, with O_DIRECT, and none of its pages.
    ///
    /// # Errors
    /// When the file cannot be read so, has become shorter, or is damaged.
    pub fn read_tables(&self) -> Result<WorkingSet, WorkingSetError> {
        self.decode(self.read_first(self.header.data_offset)?.as_slice())
    }

    /// The file, for reads of the caller's own: past the page cache, unless
    /// [`use_page_cache`](Self::use_page_cache) was called.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where the page number `page` is in the file.
    pub(crate) fn offset_of_page(&self, page: u64) -> u64 {
        self.header.data_offset + page * PAGE_SIZE_BYTES
    }

    /// The error for a failed read of the file.
    pub(crate) fn read_error(&self, source: io::Error) -> WorkingSetError {
        direct_io_error(&self.path, source)
    }

    /// Whether the whole file is in the page cache. What cannot be found out counts as no: the
    /// disk has it in any case.
    pub(crate) fn is_cached(&self) -> bool {
        let pages = self.header.len_bytes() / PAGE_SIZE_BYTES;
        page_cache::cached_pages(&self.file).is_ok_and(|cached_pages| cached_pages >= pages)
    }

    /// Reads through the page cache from now on.
    pub(crate) fn use_page_cache(&self) -> Result<(), WorkingSetError> {
        fcntl_setfl(&self.file, OFlags::empty())
            .map_err(|errno| read_error(&self.path, errno.into()))
    }

    /// Where the pages begin in the file.
    pub(crate) fn data_offset(&self) -> u64 {
        self.header.data_offset
    }

    fn read_first(&self, len_bytes: u64) -> Result<PageBuffer, WorkingSetError> {
        let mut buffer = self.buffer(len_bytes)?;
        let read_bytes = read_from(&self.file, 0, buffer.as_mut_slice())
            .map_err(|source| direct_io_error(&self.path, source))?;
        if read_bytes as u64 != len_bytes {
            return Err(Defect::Truncated.at(&self.path));
        }
        Ok(buffer)
    }

    /// A buffer to read into.
    pub(crate) fn buffer(&self, len_bytes: u64) -> Result<PageBuffer, WorkingSetError> {
        PageBuffer::new(len_bytes).map_err(|source| no_memory(&self.path, len_bytes, source))
    }

    /// Decodes what comes before the pages. The header again, too, because these bytes are another
    /// read than those of `open`.
    fn decode(&self, file_bytes: &[u8]) -> Result<WorkingSet, WorkingSetError> {
        let decode = || {
            let header = Header::decode(
                file_bytes,
                self.header.len_bytes(),
                &self.header.id,
                self.memory_bytes,
            )?;
            if header != self.header {
                return Err(Defect::Corrupt("it changed while it was read".to_owned()));
            }
            let tables = file_bytes
                .get(..header.data_offset as usize)
                .ok_or(Defect::Truncated)?;
            WorkingSet::decode_tables(tables, &header)
        };
        decode().map_err(|defect| defect.at(&self.path))
    }
}

/// Reads from `offset` on until `buffer` is full or the file ends; returns how much.
///
/// With O_DIRECT a short read within the file ends at a multiple of the block size, so the next
/// one is aligned again; one that does not is the end of the file.
fn read_from(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read_bytes) => {
                done += read_bytes;
                if done % PAGE_SIZE_BYTES as usize != 0 {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn no_memory(path: &Path, len_bytes: u64, source: io::Error) -> WorkingSetError {
    WorkingSetError::NoMemory {
        path: path.to_owned(),
        len_bytes,
        source,
    }
}

/// The error for a failed O_DIRECT open or read: EINVAL and EOPNOTSUPP are how file systems say
/// that they have none. Source: `open(2)`, O_DIRECT.
fn direct_io_error(path: &Path, source: io::Error) -> WorkingSetError {
    match source.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => WorkingSetError::NoDirectIo {
            path: path.to_owned(),
            filesystem: filesystem_name(path),
            source,
        },
        _ => read_error(path, source),
    }
}

/// Name of the file system that holds `path`, its magic number if the name is not known here.
/// Source: `statfs(2)`.
fn filesystem_name(path: &Path) -> String {
    let Ok(statfs) = rustix::fs::statfs(path) else {
        return "unknown".to_owned();
    };
    // The type differs between architectures; the numbers are 32 bits wide.
    let magic = statfs.f_type as u32;
    let name = match magic {
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0x9fa0 => "proc",
        0x6969 => "nfs",
        0xff53_4d42 => "cifs",
        0x2fc1_2fc1 => "zfs",
        0x9123_683e => "btrfs",
        0x5846_5342 => "xfs",
        0xef53 => "ext4",
        _ => return format!("magic number {magic:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_direct_io_is_named() {
        let id = SnapshotId::from_bytes([1; 16]);
        let error = WorkingSet::open(Path::new("/proc/version"), &id, 1 << 20).unwrap_err();
        assert!(
            matches!(error, WorkingSetError::NoDirectIo { .. }),
            "{error:?}"
        );
        let message = error.to_string();
        assert!(
            message.contains("proc") && message.contains("ondemand"),
            "{message}"
        );
    }
}
