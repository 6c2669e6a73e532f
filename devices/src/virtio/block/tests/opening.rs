//! Files that can be disks, and those that cannot.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use reapvm_test_support::{Refused, without};

use super::*;
use crate::virtio::block::BlockError;

fn open(path: &Path, read_only: bool) -> Result<Block, BlockError> {
    Block::new(&BlockConfig {
        path: path.to_owned(),
        read_only,
        rate_limiter: RateLimiterConfig::default(),
        id: String::new(),
    })
}

#[test]
fn what_is_no_disk_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let missing = open(&dir.path().join("none"), false).unwrap_err();
    assert!(missing.to_string().contains("there is no such file"));
    assert!(matches!(
        open(dir.path(), true),
        Err(BlockError::NotADisk(_))
    ));
    let err = open(dir.path(), false).unwrap_err();
    assert!(err.to_string().contains("it is a directory"), "{err}");
    assert!(matches!(
        open(Path::new("/dev/null"), false),
        Err(BlockError::NotADisk(_))
    ));
    // Nobody is at the other end of it: opening must not wait.
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for read_only in [true, false] {
        assert!(matches!(
            open(&fifo, read_only),
            Err(BlockError::NotADisk(_))
        ));
    }
    for size_bytes in [0, 511, 513] {
        let odd = dir.path().join("odd");
        std::fs::write(&odd, vec![0; size_bytes]).unwrap();
        let Err(BlockError::Size {
            size_bytes: told, ..
        }) = open(&odd, true)
        else {
            panic!("a disk of {size_bytes} bytes");
        };
        assert_eq!(told, size_bytes as u64);
    }
}

#[test]
fn a_read_only_file_is_not_opened_for_writing() {
    let image = image();
    std::fs::set_permissions(image.path(), PermissionsExt::from_mode(0o444)).unwrap();
    match open(image.path(), false) {
        Err(err) => assert!(err.to_string().contains("attach it read-only"), "{err}"),
        // Permissions do not hold root back.
        Ok(_) => assert!(rustix::process::geteuid().is_root()),
    }
    assert!(open(image.path(), true).is_ok());
}

#[test]
fn a_disk_is_written_by_one_or_read_by_many() {
    let image = image();
    let writer = open(image.path(), false).unwrap();
    for read_only in [true, false] {
        let err = open(image.path(), read_only).unwrap_err();
        assert!(matches!(err, BlockError::InUse { .. }), "{err}");
    }
    drop(writer);
    let reader = open(image.path(), true).unwrap();
    let other = open(image.path(), true).unwrap();
    assert!(matches!(
        open(image.path(), false),
        Err(BlockError::InUse { .. })
    ));
    drop((reader, other));
    assert_eq!(open(image.path(), false).unwrap().nsectors(), NSECTORS);
}

#[test]
fn an_id_that_the_guest_cannot_be_told_is_refused() {
    let image = image();
    for (id, good) in [
        ("", true),
        ("exactly twenty chars", true),
        ("one more than twenty.", false),
        ("line\nbreak", false),
        ("plätte", false),
    ] {
        let config = BlockConfig {
            id: id.to_owned(),
            read_only: true,
            ..config(&image)
        };
        assert_eq!(Block::new(&config).is_ok(), good, "{id}");
    }
}

#[test]
fn a_host_without_io_uring_is_an_error_that_says_so() {
    let image = image();
    let before = disk(&image);
    let no_io_uring = Refused {
        number: libc::SYS_io_uring_setup,
        second_argument: None,
        errno: libc::EPERM,
    };
    without(&no_io_uring, || {
        let err = open(image.path(), true).unwrap_err();
        assert!(matches!(err, BlockError::NoIoUring(_)), "{err}");
        // One that loses it later does not work, and the driver is told.
        assert!(Guest::boot(before).needs_reset());
    });
    assert!(open(image.path(), true).is_ok());
}
