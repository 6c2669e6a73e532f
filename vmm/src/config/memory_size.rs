//! Memory sizes as people write them.

use super::ConfigError;

/// Parses a memory size such as `256M`, `1G` or `262144K` into MiB.
///
/// # Errors
/// [`ConfigError::MemorySyntax`] if it is none, or not a whole number of MiB.
pub fn parse_memory_mib(text: &str) -> Result<u64, ConfigError> {
    let error = || ConfigError::MemorySyntax(text.to_owned());
    let trimmed = text.trim();
    let upper = trimmed.to_ascii_uppercase();
    let upper = upper
        .strip_suffix("IB")
        .or_else(|| upper.strip_suffix('B'))
        .unwrap_or(&upper);
    let (digits, unit_kib) = match upper.chars().last() {
        Some('K') => (&upper[..upper.len() - 1], 1),
        Some('M') => (&upper[..upper.len() - 1], 1 << 10),
        Some('G') => (&upper[..upper.len() - 1], 1 << 20),
        _ => (upper, 1 << 10),
    };
    let number: u64 = digits.trim().parse().map_err(|_| error())?;
    let kib: u64 = number.checked_mul(unit_kib).ok_or_else(error)?;
    if !kib.is_multiple_of(1024) {
        return Err(error());
    }
    Ok(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_are_read_as_people_write_them() {
        for (text, mib) in [
            ("256M", 256),
            ("256", 256),
            ("1G", 1024),
            ("2GiB", 2048),
            ("131072k", 128),
        ] {
            assert_eq!(parse_memory_mib(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn odd_and_senseless_sizes_are_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "1000K",
            "12Q",
            "1.5G",
            "99999999999999999999G",
        ] {
            assert!(parse_memory_mib(text).is_err(), "{text}");
        }
    }
}
