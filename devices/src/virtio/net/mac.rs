//! MAC addresses of network devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The bit of the first byte that marks an address of a group.
const GROUP: u8 = 1;
/// The bit of the first byte that marks an address that no vendor was given.
const LOCALLY_ADMINISTERED: u8 = 2;

/// Why this is no MAC address of an interface.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum MacAddressError {
    /// Not six bytes.
    #[error("'{0}' is not a mac address: write six bytes in hexadecimal, as in 06:00:ac:10:00:02")]
    Syntax(String),
    /// A multicast address.
    #[error("{0:02x?} is a group's mac address: the lowest bit of the first byte has to be 0")]
    Group([u8; 6]),
    /// All zeroes.
    #[error("a mac address of zeroes is that of no interface")]
    Zero,
}

/// The MAC address of one interface: neither a group's nor zero. As text, and in formats, it is
/// six bytes in hexadecimal with colons between.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of these bytes.
    ///
    /// # Errors
    /// When no interface can have it.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacAddressError> {
        if bytes == [0; 6] {
            return Err(MacAddressError::Zero);
        }
        if bytes[0] & GROUP != 0 {
            return Err(MacAddressError::Group(bytes));
        }
        Ok(Self(bytes))
    }

    /// A random, locally administered address.
    pub(super) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 6];
        getrandom::fill(&mut bytes)?;
        bytes[0] = (bytes[0] & !GROUP) | LOCALLY_ADMINISTERED;
        Ok(Self(bytes))
    }

    /// The six bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || MacAddressError::Syntax(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(syntax)?;
            // `from_str_radix` takes a sign too.
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        Self::new(bytes)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written() {
        let mac: MacAddress = "06:00:AC:10:00:02".parse().unwrap();
        assert_eq!(mac.bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(mac.to_string(), "06:00:ac:10:00:02");
        assert_eq!(String::from(mac).parse(), Ok(mac));
        for bad in [
            "",
            "06:00:ac:10:00",
            "06:00:ac:10:00:02:03",
            "06:00:ac:10:00:2",
            "06:00:ac:10:00:+2",
            "06-00-ac-10-00-02",
        ] {
            assert_eq!(
                bad.parse::<MacAddress>(),
                Err(MacAddressError::Syntax(bad.to_owned()))
            );
        }
    }

    #[test]
    fn addresses_of_no_interface_are_refused() {
        assert_eq!(MacAddress::new([0; 6]), Err(MacAddressError::Zero));
        let group = [1, 0, 0x5e, 0, 0, 1];
        assert_eq!(MacAddress::new(group), Err(MacAddressError::Group(group)));
    }

    #[test]
    fn a_random_address_is_locally_administered_and_of_one_interface() {
        let (one, other) = (MacAddress::random().unwrap(), MacAddress::random().unwrap());
        assert_ne!(one, other);
        for mac in [one, other] {
            assert_eq!(mac.bytes()[0] & 3, 2);
            assert_eq!(MacAddress::new(mac.bytes()), Ok(mac));
        }
    }
}
