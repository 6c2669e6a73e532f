//! The identity of a snapshot: what binds a working set and a trace to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Sixteen random bytes that name one snapshot; written as 32 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId([u8; 16]);

/// The system gave no random bytes for an id.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a snapshot id: the getrandom system call must be available")]
pub struct GenerateIdError(#[source] getrandom::Error);

/// A text that is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot id is 32 lowercase hexadecimal digits")]
pub struct ParseIdError;

impl SnapshotId {
    /// A new id, from the system's random numbers.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn generate() -> Result<Self, GenerateIdError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(GenerateIdError)?;
        Ok(Self(bytes))
    }

    /// The id of these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({self})")
    }
}

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != 32 {
            return Err(ParseIdError);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = pair
                .iter()
                .try_fold(0, |value, digit| Ok(value << 4 | nibble(*digit)?))?;
        }
        Ok(Self(bytes))
    }
}

/// Lowercase only, so that an id has one spelling.
fn nibble(digit: u8) -> Result<u8, ParseIdError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseIdError),
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generated_ids_differ() {
        assert_ne!(
            SnapshotId::generate().unwrap(),
            SnapshotId::generate().unwrap()
        );
    }

    #[test]
    fn refuses_other_spellings() {
        let id = SnapshotId::from_bytes([0xab; 16]).to_string();
        for text in [
            id.to_uppercase(),
            id[1..].to_owned(),
            format!("{id}0"),
            "é".repeat(16),
        ] {
            assert_eq!(text.parse::<SnapshotId>(), Err(ParseIdError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(bytes in any::<[u8; 16]>()) {
            let id = SnapshotId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse::<SnapshotId>().unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<SnapshotId>(&json).unwrap(), id);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            if let Ok(id) = text.parse::<SnapshotId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
