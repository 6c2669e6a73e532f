//! The options of an installation of a working set.

use std::ffi::OsString;

use std::path::Path;

use clap::Args;
use reapvm::tuning::{self, TuningError};
use reapvm_reap::{InstallMethod, InstallOptions, ReadPath};
use reapvm_snapshot::PAGE_SIZE;

/// How prefetch installs the working set.
#[derive(Args)]
pub(crate) struct InstallArguments {
    /// How prefetch installs the working set
    ///
    /// auto: overlapped with more than one processor, else streamed.
    /// overlapped: as streamed, but the guest starts when enough is there; the rest comes in the
    /// order of first touch.
    /// streamed: two threads read it in pieces and copy what has come.
    /// move: as streamed, but the pages themselves become the guest's (Linux 6.8).
    /// direct: the disk writes into guest memory itself.
    /// one-read: one read of the whole file, then the copies, as the REAP paper has it.
    /// buffered: as one-read, through the page cache.
    /// memory-file: no working-set file, its pages from the memory file by many threads.
    #[arg(long = "install", value_name = "METHOD", default_value = "auto", value_parser = install_method, verbatim_doc_comment)]
    pub(crate) method: InstallMethod,
    /// How the pieces are read [default: io-uring, or page-cache for a file that is all in it]
    #[arg(long = "install-read", value_name = "io-uring|pread|page-cache", value_parser = read_path)]
    pub(crate) read_path: Option<ReadPath>,
    /// Bytes of one read, such as 256K
    #[arg(long = "install-chunk", value_name = "SIZE", default_value_t = InstallOptions::DEFAULT_PIECE_BYTES, value_parser = chunk_bytes)]
    pub(crate) chunk_bytes: u64,
    /// Reads that each of two threads keeps under way
    #[arg(long = "install-depth", value_name = "N", default_value_t = InstallOptions::DEFAULT_DEPTH as u64, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) depth: u64,
    /// Chunk and depth that `reapvm tune` has found for the disk of the snapshot
    #[arg(long = "install-tuned", conflicts_with_all = ["chunk_bytes", "depth"])]
    pub(crate) tuned: bool,
    /// Have KVM enter the installed pages in the guest's page tables before its first instruction
    /// (KVM_PRE_FAULT_MEMORY: Linux 6.11 and two-dimensional paging)
    #[arg(long)]
    pub(crate) pre_fault: bool,
    /// Serve on demand what a working set that is missing or damaged does not give, and say so
    #[arg(long = "install-fallback")]
    pub(crate) fall_back: bool,
}

impl InstallArguments {
    /// As the library takes them, for a snapshot in or under the directory `dir`.
    pub(crate) fn options(&self, dir: &Path) -> Result<InstallOptions, TuningError> {
        let options = InstallOptions {
            read_path: self.read_path,
            piece_bytes: self.chunk_bytes,
            depth: self.depth as usize,
            may_fall_back: self.fall_back,
            pre_fault: self.pre_fault,
            ..InstallOptions::new(self.method)
        };
        if self.tuned {
            Ok(tuning::find(&tuning::cache_path()?, dir)?.apply(options))
        } else {
            Ok(options)
        }
    }
}

/// `options` as arguments of another launcher.
pub(crate) fn to_arguments(options: &InstallOptions) -> Vec<OsString> {
    let mut arguments = vec![
        format!("--install={}", options.method),
        format!("--install-chunk={}", options.piece_bytes),
        format!("--install-depth={}", options.depth),
    ];
    if let Some(read_path) = options.read_path {
        arguments.push(format!("--install-read={}", name_of(read_path)));
    }
    if options.pre_fault {
        arguments.push("--pre-fault".to_owned());
    }
    if options.may_fall_back {
        arguments.push("--install-fallback".to_owned());
    }
    arguments.into_iter().map(OsString::from).collect()
}

pub(super) fn install_method(text: &str) -> Result<InstallMethod, String> {
    text.parse::<InstallMethod>()
        .map_err(|error| error.to_string())
}

const READ_PATHS: [(ReadPath, &str); 3] = [
    (ReadPath::IoUring, "io-uring"),
    (ReadPath::Pread, "pread"),
    (ReadPath::PageCache, "page-cache"),
];

fn name_of(read_path: ReadPath) -> &'static str {
    READ_PATHS
        .iter()
        .find(|(path, _)| *path == read_path)
        .map_or("", |(_, name)| name)
}

fn read_path(text: &str) -> Result<ReadPath, String> {
    READ_PATHS
        .iter()
        .find(|(_, name)| *name == text)
        .map(|(path, _)| *path)
        .ok_or_else(|| "use one of io-uring, pread, page-cache".to_owned())
}

/// A multiple of the page size up to 64 MiB: a number of bytes, or one with K or M behind it.
fn chunk_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .filter(|bytes| {
            (PAGE_SIZE as u64..=64 << 20).contains(bytes) && bytes % PAGE_SIZE as u64 == 0
        })
        .ok_or_else(|| "use a multiple of 4096 bytes from 4K to 64M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_chunks_are_whole_pages() {
        assert_eq!(chunk_bytes("4096"), Ok(4096));
        assert_eq!(chunk_bytes("256K"), Ok(256 << 10));
        assert_eq!(chunk_bytes("64M"), Ok(64 << 20));
        for refused in [
            "",
            "K",
            "0",
            "4097",
            "1k5",
            "65M",
            "99999999999999999999M",
            "-4K",
        ] {
            assert!(chunk_bytes(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn read_paths_have_the_names_of_the_results() {
        for (path, name) in READ_PATHS {
            assert_eq!(serde_json::to_value(path).unwrap(), name);
            assert_eq!(read_path(name), Ok(path));
        }
        assert!(read_path("mmap").is_err());
    }
}
