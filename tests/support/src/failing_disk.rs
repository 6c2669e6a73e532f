//! A file system on a disk that fails.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK_BYTES: u64 = 4096;
const SIZE_BYTES: u64 = 64 << 20;

/// An ext4 file system on a loop device whose image can be cut short: what lies behind the cut is
/// read with EIO from then on, as from a disk with bad sectors.
#[derive(Debug)]
pub struct FailingDisk {
    image: PathBuf,
    mount: PathBuf,
}

impl FailingDisk {
    /// Makes one in the directory `dir`, or says on standard error why there can be none here:
    /// then none.
    ///
    /// # Panics
    /// When it should be possible and is not.
    pub fn new(dir: &Path) -> Option<Self> {
        // Whoever may open it may mount, too: it is root's, and not there in a container that may
        // not.
        if let Err(error) = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
        {
            eprintln!("skipped: no loop device for a disk that fails: /dev/loop-control: {error}");
            return None;
        }
        let disk = Self {
            image: dir.join("image"),
            mount: dir.join("mount"),
        };
        File::create(&disk.image)
            .and_then(|image| image.set_len(SIZE_BYTES))
            .unwrap();
        std::fs::create_dir(&disk.mount).unwrap();
        // Without a journal: nothing but the files themselves is behind the first of them.
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "4096"])
            .args(["-O", "^has_journal", "-m", "0"])
            .arg(&disk.image));
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(&disk.image)
            .arg(&disk.mount));
        Some(disk)
    }

    /// Where its files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.mount
    }

    /// Cuts the disk short within its file `path`, so that the first `whole_bytes` of it, a multiple
    /// of 4096, can be read and the rest cannot. What is cached of it is not forgotten.
    ///
    /// # Panics
    /// When the file is not in the order of its blocks on the disk, or the system does not do what it should.
    pub fn fail_after(&self, path: &Path, whole_bytes: u64) {
        File::open(path).and_then(|file| file.sync_all()).unwrap();
        let extents = run(Command::new("filefrag").args(["-e", "-b4096"]).arg(path));
        // "   0:        0..    1599:       2560..      4159:   1600: ...": the number of an extent,
        // its first and last block in the file, the same on the disk.
        let extents: Vec<[u64; 4]> = extents
            .lines()
            .filter_map(|line| {
                let (number, rest) = line.trim().split_once(':')?;
                number.parse::<u32>().ok()?;
                let fields: Vec<u64> = rest
                    .split([':', '.'])
                    .filter_map(|field| field.trim().parse().ok())
                    .take(4)
                    .collect();
                fields.try_into().ok()
            })
            .collect();
        let block = whole_bytes / BLOCK_BYTES;
        let behind = |[first, last, on_disk, _]: &[u64; 4]| {
            (*last >= block).then(|| on_disk + block.saturating_sub(*first))
        };
        let cut = extents.iter().find_map(behind).unwrap();
        for [first, last, on_disk, _] in &extents {
            for block_of_file in *first..=*last {
                let at = on_disk + block_of_file - first;
                assert_eq!(at >= cut, block_of_file >= block, "{extents:?}");
            }
        }
        let image = File::options().write(true).open(&self.image).unwrap();
        image.set_len(cut * BLOCK_BYTES).unwrap();
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        // Also if files of it are open still. The loop device goes with it.
        let ended = Command::new("umount")
            .arg("--lazy")
            .arg(&self.mount)
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.mount.display());
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
