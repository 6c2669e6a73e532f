//! Where the fields of a tracepoint's record are.
//!
//! Source: `Documentation/trace/events.rst` of the Linux kernel, "Event formats".

/// The fields of `kvm:kvm_page_fault` that are of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageFaultFormat {
    rip: usize,
    address: usize,
    error_code: usize,
}

/// One `kvm:kvm_page_fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageFault {
    /// The guest's instruction.
    pub(crate) rip: u64,
    /// Guest-physical, with nested paging.
    pub(crate) address: u64,
    /// The processor's: bit 1 is a write.
    pub(crate) error_code: u64,
}

impl PageFaultFormat {
    /// Reads the text of the event's `format` file; `None` if a field is not there or not of eight
    /// bytes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(Self {
            rip: long_field(text, "guest_rip")?,
            address: long_field(text, "fault_address")?,
            error_code: long_field(text, "error_code")?,
        })
    }

    /// The fields in the `raw` bytes of a record.
    pub(crate) fn read(&self, raw: &[u8]) -> Option<PageFault> {
        let long = |at: usize| {
            Some(u64::from_ne_bytes(
                raw.get(at..)?.get(..8)?.try_into().ok()?,
            ))
        };
        Some(PageFault {
            rip: long(self.rip)?,
            address: long(self.address)?,
            error_code: long(self.error_code)?,
        })
    }
}

/// Offset of the field `name`, such as `field:u64 name;\toffset:24;\tsize:8;\tsigned:0;`.
fn long_field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find(|line| {
        let declaration = line
            .trim_start()
            .strip_prefix("field:")
            .and_then(|rest| rest.split(';').next());
        declaration.and_then(|text| text.split_whitespace().last()) == Some(name)
    })?;
    let value = |key: &str| {
        let part = line
            .split(';')
            .map(str::trim)
            .find_map(|part| part.strip_prefix(key));
        part?.parse::<usize>().ok()
    };
    (value("size:")? == 8).then(|| value("offset:"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: kvm_page_fault\nID: 1234\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:unsigned int vcpu_id;\toffset:8;\tsize:4;\tsigned:0;\n\
        \tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:u64 fault_address;\toffset:24;\tsize:8;\tsigned:0;\n\
        \tfield:u64 error_code;\toffset:32;\tsize:8;\tsigned:0;\n\n\
        print fmt: \"vcpu %u rip 0x%lx\", REC->vcpu_id, REC->guest_rip\n";

    #[test]
    fn the_kernels_format_is_read_and_followed() {
        let format = PageFaultFormat::parse(FORMAT).unwrap();
        let mut raw = [0_u8; 40];
        raw[16..24].copy_from_slice(&0xffff_ffff_8100_1234_u64.to_ne_bytes());
        raw[24..32].copy_from_slice(&0x1234_5678_u64.to_ne_bytes());
        raw[32] = 2;
        let fault = PageFault {
            rip: 0xffff_ffff_8100_1234,
            address: 0x1234_5678,
            error_code: 2,
        };
        assert_eq!(format.read(&raw), Some(fault));
        assert_eq!(format.read(&raw[..39]), None);
    }

    #[test]
    fn another_format_is_refused() {
        for (from, to) in [
            ("guest_rip;", "rip;"),
            ("offset:24;\tsize:8", "offset:24;\tsize:4"),
            ("offset:32", "offset:x"),
        ] {
            assert_eq!(PageFaultFormat::parse(&FORMAT.replace(from, to)), None);
        }
        assert_eq!(PageFaultFormat::parse(""), None);
        let far = FORMAT.replace("offset:24;", "offset:18446744073709551615;");
        let format = PageFaultFormat::parse(&far).unwrap();
        assert_eq!(format.read(&[0; 40]), None);
    }
}
