//! The kernel command line: which function to serve, and where the virtio-mmio devices are.

/// A `virtio_mmio.device=` announcement, as Linux defines it in
/// `Documentation/admin-guide/kernel-parameters.txt`: `<size>@<base>:<irq>[:<id>]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest-physical address of the register block.
    pub base: u64,
    /// Length of the register block in bytes.
    pub size_bytes: u64,
    /// The interrupt line (a GSI; on the 8259 pair it is the line's number).
    pub irq: u32,
}

/// The devices announced on `cmdline`, in order. A token that does not parse, or that lies outside
/// the 32-bit hole where such devices are (3 GiB to 4 GiB), is passed over: a command line may
/// carry announcements for others.
pub fn mmio_devices(cmdline: &str) -> impl Iterator<Item = MmioDevice> {
    values(cmdline, "virtio_mmio.device=").filter_map(parse_device)
}

/// The name given by the last `function=` token.
pub fn function(cmdline: &str) -> Option<&str> {
    values(cmdline, "function=").last()
}

fn values<'a>(cmdline: &'a str, key: &'static str) -> impl Iterator<Item = &'a str> {
    cmdline
        .split_ascii_whitespace()
        .filter_map(move |token| token.strip_prefix(key))
}

fn parse_device(value: &str) -> Option<MmioDevice> {
    let (size, rest) = value.split_once('@')?;
    let mut fields = rest.split(':');
    let base = number(fields.next()?)?;
    let irq = u32::try_from(number(fields.next()?)?).ok()?;
    let size_bytes = size_with_suffix(size)?;
    let end = base.checked_add(size_bytes)?;
    let in_hole = base >= 3 << 30 && end <= 4 << 30;
    (in_hole && size_bytes >= 0x200 && base.is_multiple_of(4)).then_some(MmioDevice {
        base,
        size_bytes,
        irq,
    })
}

fn size_with_suffix(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn several_devices_are_found_in_order() {
        let line = "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 quiet \
                    virtio_mmio.device=0x1000@0xd0001000:6:1 function=helloworld";
        let found: Vec<MmioDevice> = mmio_devices(line).collect();
        assert_eq!(
            found,
            [
                MmioDevice {
                    base: 0xd000_0000,
                    size_bytes: 4096,
                    irq: 5
                },
                MmioDevice {
                    base: 0xd000_1000,
                    size_bytes: 4096,
                    irq: 6
                },
            ]
        );
        assert_eq!(function(line), Some("helloworld"));
    }

    #[test]
    fn announcements_that_cannot_be_are_passed_over() {
        for bad in [
            "4K@0xd0000000",
            "4K@:5",
            "@0xd0000000:5",
            "4X@0xd0000000:5",
            "4K@0x1000000:5",
            "4K@0xfffff000000:5",
            "99999999999999999999G@0xd0000000:5",
            "2G@0xd0000000:5",
            "16@0xd0000000:5",
            "4K@0xd0000001:5",
            "4K@0xd0000000:-1",
        ] {
            let line = format!("virtio_mmio.device={bad}");
            assert_eq!(mmio_devices(&line).count(), 0, "{bad}");
        }
    }

    #[test]
    fn the_last_function_counts_and_none_is_none() {
        assert_eq!(function("function=a function=b"), Some("b"));
        assert_eq!(function("console=ttyS0 myfunction=a"), None);
    }

    proptest! {
        #[test]
        fn no_command_line_panics(line in ".{0,200}") {
            let _ = mmio_devices(&line).count();
            let _ = mmio_devices(&format!("virtio_mmio.device={line}")).count();
            let _ = function(&line);
        }
    }
}
