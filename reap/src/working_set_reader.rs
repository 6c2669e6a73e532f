//! Reading a working set for a prefetch: once, whole, past the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use reapvm_snapshot::SnapshotId;
use rustix::fs::{OFlags, fcntl_setfl};

use crate::PAGE_SIZE_BYTES;
use crate::page_buffer::PageBuffer;
use crate::regular_file;
use crate::working_set::{Defect, Header, WorkingSet, WorkingSetError, read_error};

/// A working set that is opened, and perhaps read, for [`Pager::install`](crate::Pager::install).
///
/// [`WorkingSet::open`] makes one and is cheap. [`read`](Self::read) does the one large read and
/// may be called on another thread, so that it overlaps with the set-up of the virtual machine.
#[derive(Debug)]
pub struct WorkingSetReader {
    file: File,
    path: PathBuf,
    header: Header,
    memory_bytes: u64,
    contents: Option<Contents>,
}

/// A working set in memory; its tables are verified, its pages are not.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) set: WorkingSet,
    /// The whole file.
    file_bytes: PageBuffer,
    data_offset: usize,
    pub(crate) read_ns: u64,
}

impl Contents {
    /// The packed pages.
    pub(crate) fn pages(&self) -> &[u8] {
        self.file_bytes
            .as_slice()
            .get(self.data_offset..)
            .unwrap_or_default()
    }
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
        let read_bytes = read_whole(&file, first_page.as_mut_slice())
            .map_err(|source| direct_io_error(path, source))?;
        let first_bytes = &first_page.as_slice()[..read_bytes];
        let header = Header::decode(first_bytes, len_bytes, id, memory_bytes)
            .map_err(|defect| defect.at(path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            header,
            memory_bytes,
            contents: None,
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
    /// pages. The pages are verified when they are installed. Does nothing if it was done already.
    ///
    /// # Errors
    /// When the file cannot be read so, has become shorter, or its tables are damaged.
    pub fn read(&mut self) -> Result<(), WorkingSetError> {
        if self.contents.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        // The header bounds the length by the size of guest memory.
        let len_bytes = self.header.len_bytes();
        let mut file_bytes = PageBuffer::new(len_bytes)
            .map_err(|source| no_memory(&self.path, len_bytes, source))?;
        let read_bytes = read_whole(&self.file, file_bytes.as_mut_slice())
            .map_err(|source| direct_io_error(&self.path, source))?;
        if read_bytes as u64 != len_bytes {
            return Err(Defect::Truncated.at(&self.path));
        }
        let set = self
            .decode(file_bytes.as_slice())
            .map_err(|defect| defect.at(&self.path))?;
        self.contents = Some(Contents {
            set,
            file_bytes,
            data_offset: self.header.data_offset as usize,
            read_ns: started.elapsed().as_nanos() as u64,
        });
        Ok(())
    }

    /// Decodes the header again, because these bytes are another read than those of `open`.
    fn decode(&self, file_bytes: &[u8]) -> Result<WorkingSet, Defect> {
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
    }

    /// What [`read`](Self::read) read. The buffer is unmapped when it is dropped.
    pub(crate) fn take_contents(&mut self) -> Option<Contents> {
        self.contents.take()
    }
}

/// Reads from the beginning of `file` until `buffer` is full or the file ends; returns how much.
///
/// With O_DIRECT a short read within the file ends at a multiple of the block size, so the next
/// one is aligned again; one that does not is the end of the file.
fn read_whole(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], done as u64) {
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
