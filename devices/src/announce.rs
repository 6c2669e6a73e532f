//! How a Linux guest learns where its virtio-mmio devices are: the kernel command line.

/// One parameter that announces a virtio-mmio device, as Linux's `virtio_mmio` driver parses it:
/// `virtio_mmio.device=<size>@<base>:<irq>`.
///
/// `base_gpa` is the guest-physical address of the device's registers, `size_bytes` the length of
/// its window, `gsi` its interrupt line.
pub fn virtio_mmio_parameter(base_gpa: u64, size_bytes: u64, gsi: u32) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    let size = if size_bytes != 0 && size_bytes.is_multiple_of(MIB) {
        format!("{}M", size_bytes / MIB)
    } else if size_bytes != 0 && size_bytes.is_multiple_of(KIB) {
        format!("{}K", size_bytes / KIB)
    } else {
        format!("{size_bytes}")
    };
    format!("virtio_mmio.device={size}@{base_gpa:#x}:{gsi}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_linux_parses() {
        assert_eq!(
            virtio_mmio_parameter(0xd000_0000, 0x1000, 5),
            "virtio_mmio.device=4K@0xd0000000:5"
        );
        assert_eq!(
            virtio_mmio_parameter(0xd000_1000, 0x20_0000, 6),
            "virtio_mmio.device=2M@0xd0001000:6"
        );
        assert_eq!(
            virtio_mmio_parameter(0x1000, 513, 7),
            "virtio_mmio.device=513@0x1000:7"
        );
    }
}
