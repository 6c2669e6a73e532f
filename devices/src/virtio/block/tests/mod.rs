//! The disk as its driver sees it.

mod in_flight;
mod opening;
mod requests;
mod restore;
mod update;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

use super::disk::Disk;
use super::{Block, BlockConfig, SECTOR_BYTES};
use crate::rate_limiter::RateLimiterConfig;
use crate::test_driver::{CHAINS, Driver, EVENT_IDX, Piece, buffer_gpa, dirty_pages};

/// Sectors of the disks of the tests.
const NSECTORS: u64 = 64;
/// All that a writable disk offers.
const FEATURES: u64 = 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// What a status byte is before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// Where the parts of a request are in its chain's 16 KiB.
const DATA_OFFSET: u64 = 0x400;
const STATUS_OFFSET: u64 = 0x3fff;

fn pattern(sectors: u64) -> Vec<u8> {
    (0..sectors * SECTOR_BYTES)
        .map(|at| (at / SECTOR_BYTES) as u8 ^ (at as u8).wrapping_mul(31))
        .collect()
}

/// An image with a pattern in it.
fn image() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pattern(NSECTORS)).unwrap();
    file
}

fn config(image: &NamedTempFile) -> BlockConfig {
    BlockConfig {
        path: image.path().to_owned(),
        read_only: false,
        rate_limiter: RateLimiterConfig::default(),
        id: "disk-0".to_owned(),
    }
}

fn disk(image: &NamedTempFile) -> Block {
    Block::new(&config(image)).unwrap()
}

/// A disk whose reads come back when something is written to the other end.
fn pipe_disk() -> (Block, File) {
    let (read, write) = std::io::pipe().unwrap();
    let disk = Disk {
        file: OwnedFd::from(read).into(),
        path: "a pipe".into(),
        nsectors: NSECTORS,
        // A pipe cannot be flushed.
        read_only: true,
    };
    let block = Block::over(disk, "", RateLimiterConfig::default()).unwrap();
    (block, OwnedFd::from(write).into())
}

/// A guest with a disk.
struct Guest {
    driver: Driver,
}

impl Guest {
    fn boot(block: Block) -> Self {
        let features = {
            use crate::virtio::VirtioDevice;
            block.device_features()
        };
        Self {
            driver: Driver::booted(Box::new(block), features | EVENT_IDX),
        }
    }

    /// GPA of the data of the chain that is offered next.
    fn data_gpa(&self) -> u64 {
        self.chain_gpa() + DATA_OFFSET
    }

    fn chain_gpa(&self) -> u64 {
        buffer_gpa(0, self.driver.rings[0].avail_idx % CHAINS)
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.driver
            .mem
            .write_slice(bytes, GuestAddress(gpa))
            .unwrap();
    }

    /// Makes a request available: a header, these pieces, a status byte. Returns its chain.
    fn offer(&mut self, kind: u32, sector: u64, pieces: &[Piece]) -> u16 {
        let gpa = self.chain_gpa();
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(gpa, &header);
        self.put(gpa + STATUS_OFFSET, &[UNTOUCHED]);
        let mut chain = vec![Piece {
            gpa,
            len: 16,
            writable: false,
        }];
        chain.extend(pieces);
        chain.push(Piece {
            gpa: gpa + STATUS_OFFSET,
            len: 1,
            writable: true,
        });
        self.driver.offer(0, &chain)
    }

    fn status(&self, chain: u16) -> u8 {
        self.driver.bytes(buffer_gpa(0, chain) + STATUS_OFFSET, 1)[0]
    }

    fn kick(&mut self) {
        self.driver.kick(0);
        self.driver.run();
    }

    /// Lets the device work until it gives a buffer back.
    fn wait(&mut self) -> (u16, u32) {
        for _ in 0..20_000 {
            if let Some(used) = self.driver.take_used(0) {
                return used;
            }
            std::thread::sleep(Duration::from_millis(1));
            self.driver.run();
        }
        panic!("the device does not give a request back");
    }

    /// One request, to its end: its status, and the length in the used ring.
    fn request(&mut self, kind: u32, sector: u64, pieces: &[Piece]) -> (u8, u32) {
        let chain = self.offer(kind, sector, pieces);
        self.kick();
        let (used, len) = self.wait();
        assert_eq!(used, chain);
        (self.status(chain), len)
    }

    fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        let gpa = self.data_gpa();
        let (status, _) = self.request(VIRTIO_BLK_T_IN, sector, &[piece(gpa, len, true)]);
        (status, self.driver.bytes(gpa, len as usize))
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        let gpa = self.data_gpa();
        self.put(gpa, bytes);
        let pieces = [piece(gpa, bytes.len() as u32, false)];
        self.request(VIRTIO_BLK_T_OUT, sector, &pieces).0
    }

    /// A discard or a writing of zeroes.
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let gpa = self.data_gpa();
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        self.put(gpa, &range);
        self.request(kind, 0, &[piece(gpa, 16, false)]).0
    }

    fn needs_reset(&mut self) -> bool {
        self.driver
            .read(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS)
            & virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET
            != 0
    }
}

fn piece(gpa: u64, len: u32, writable: bool) -> Piece {
    Piece { gpa, len, writable }
}
