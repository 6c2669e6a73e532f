//! The `state` file: sections of vCPU, KVM and device state.
//!
//! Layout, all integers little-endian:
//!
//! ```text
//! header   magic 8 | version u32 | section count u32 | file length u64 | crc32c of the header u32
//! section  crc32c of the rest of the section u32 | payload length u32 | version u32 |
//!          kind length u32 | kind | payload (postcard)
//! ```
//!
//! Sections follow each other without padding, and nothing follows the last one. A section is
//! named by its kind and by its place among those of the same kind (vCPU 0, vCPU 1, ...).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checksum::{Crc32c, crc32c};
use crate::limits::{MAX_KIND_BYTES, MAX_SECTION_BYTES, MAX_SECTIONS, MAX_STATE_BYTES};

const MAGIC: [u8; 8] = *b"RVMSTATE";
const LAYOUT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
const SECTION_HEADER_BYTES: usize = 16;

/// Why a state cannot be written, read, or looked up.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The name of a kind is empty, too long, or has other characters.
    #[error(
        "`{kind}` is no name for a section of a state: use 1 to {MAX_KIND_BYTES} of a-z, 0-9, `-`, `_` and `.`"
    )]
    Kind {
        /// The name.
        kind: String,
    },
    /// A section is longer than [`MAX_SECTION_BYTES`].
    #[error("section `{kind}` has {len_bytes} bytes: the most is {MAX_SECTION_BYTES}")]
    SectionTooLong {
        /// The section's kind.
        kind: String,
        /// Its length.
        len_bytes: u64,
    },
    /// The file is, or would be, longer than [`MAX_STATE_BYTES`].
    #[error("the state has {len_bytes} bytes: the most is {MAX_STATE_BYTES}")]
    TooLong {
        /// The length.
        len_bytes: u64,
    },
    /// There are, or would be, more than [`MAX_SECTIONS`] sections.
    #[error("the state has {count} sections: the most is {MAX_SECTIONS}")]
    TooManySections {
        /// The number of sections.
        count: u64,
    },
    /// The bytes are not a state file.
    #[error("not a state file: it does not begin with its magic number")]
    Magic,
    /// The layout of the file is of another version.
    #[error(
        "the state file has layout version {found}, this program reads {LAYOUT_VERSION}: create the snapshot again"
    )]
    Layout {
        /// The version found.
        found: u32,
    },
    /// The file ends early, or goes on after its end.
    #[error("the state file has {actual_bytes} bytes where {expected_bytes} were expected")]
    Length {
        /// The length that the header or a section asks for.
        expected_bytes: u64,
        /// The length that is there.
        actual_bytes: u64,
    },
    /// A checksum does not match.
    #[error("{what} of the state file is damaged: crc32c {actual:08x} instead of {expected:08x}")]
    Checksum {
        /// The header, or the number of the section.
        what: String,
        /// The checksum in the file.
        expected: u32,
        /// The checksum of what is there.
        actual: u32,
    },
    /// There is no such section.
    #[error("the state has no section `{kind}` number {index}")]
    Missing {
        /// The kind asked for.
        kind: String,
        /// The place among those of its kind.
        index: usize,
    },
    /// The section was written by another version of the part that it belongs to.
    #[error(
        "section `{kind}` has version {found}, this program reads {expected}: create the snapshot again with this program, or restore it with the one that wrote it"
    )]
    Version {
        /// The section's kind.
        kind: String,
        /// The version in the file.
        found: u32,
        /// The version asked for.
        expected: u32,
    },
    /// A value cannot be written.
    #[error("cannot encode section `{kind}`")]
    Encode {
        /// The section's kind.
        kind: String,
        /// Why.
        #[source]
        source: postcard::Error,
    },
    /// The payload is not a value of the type asked for.
    #[error("cannot decode section `{kind}`")]
    Decode {
        /// The section's kind.
        kind: String,
        /// Why.
        #[source]
        source: postcard::Error,
    },
    /// The payload goes on after the value.
    #[error("section `{kind}` has {extra_bytes} bytes more than its value")]
    Trailing {
        /// The section's kind.
        kind: String,
        /// The bytes left over.
        extra_bytes: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    kind: String,
    version: u32,
    payload: Vec<u8>,
}

/// The state of a virtual machine without its memory: a list of sections, each with a kind, a
/// version and a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFile {
    sections: Vec<Section>,
}

impl StateFile {
    /// A state without sections.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section. Several of a kind are numbered from 0, in the order in which they are added.
    ///
    /// # Errors
    /// When the kind is no name, the value cannot be encoded, or a limit would be passed.
    pub fn push<T: Serialize + ?Sized>(
        &mut self,
        kind: &str,
        version: u32,
        value: &T,
    ) -> Result<(), StateError> {
        check_kind(kind.as_bytes())?;
        if self.sections.len() >= MAX_SECTIONS {
            return Err(StateError::TooManySections {
                count: self.sections.len() as u64 + 1,
            });
        }
        let payload = postcard::to_stdvec(value).map_err(|source| StateError::Encode {
            kind: kind.to_owned(),
            source,
        })?;
        check_section_length(kind, payload.len() as u64)?;
        self.sections.push(Section {
            kind: kind.to_owned(),
            version,
            payload,
        });
        Ok(())
    }

    /// The first section of a kind.
    ///
    /// # Errors
    /// As [`StateFile::get_instance`].
    pub fn get<T: DeserializeOwned>(&self, kind: &str, version: u32) -> Result<T, StateError> {
        self.get_instance(kind, 0, version)
    }

    /// Section number `index` of a kind, counted from 0.
    ///
    /// # Errors
    /// When it is not there, is of another version, or does not decode to exactly one `T`.
    pub fn get_instance<T: DeserializeOwned>(
        &self,
        kind: &str,
        index: usize,
        version: u32,
    ) -> Result<T, StateError> {
        let section = self
            .sections
            .iter()
            .filter(|section| section.kind == kind)
            .nth(index)
            .ok_or_else(|| StateError::Missing {
                kind: kind.to_owned(),
                index,
            })?;
        if section.version != version {
            return Err(StateError::Version {
                kind: kind.to_owned(),
                found: section.version,
                expected: version,
            });
        }
        let (value, rest) =
            postcard::take_from_bytes(&section.payload).map_err(|source| StateError::Decode {
                kind: kind.to_owned(),
                source,
            })?;
        if !rest.is_empty() {
            return Err(StateError::Trailing {
                kind: kind.to_owned(),
                extra_bytes: rest.len(),
            });
        }
        Ok(value)
    }

    /// How many sections of a kind there are.
    #[must_use]
    pub fn instances(&self, kind: &str) -> usize {
        self.sections
            .iter()
            .filter(|section| section.kind == kind)
            .count()
    }

    /// Every section in order: its kind, its version, the length of its payload in bytes.
    pub fn sections(&self) -> impl ExactSizeIterator<Item = (&str, u32, usize)> {
        self.sections.iter().map(|section| {
            (
                section.kind.as_str(),
                section.version,
                section.payload.len(),
            )
        })
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// When they would be more than [`MAX_STATE_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        let len_bytes = self
            .sections
            .iter()
            .fold(HEADER_BYTES as u64, |sum, section| {
                sum + (SECTION_HEADER_BYTES + section.kind.len() + section.payload.len()) as u64
            });
        if len_bytes > MAX_STATE_BYTES {
            return Err(StateError::TooLong { len_bytes });
        }
        let mut bytes = Vec::with_capacity(len_bytes as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&LAYOUT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&len_bytes.to_le_bytes());
        let header_crc = crc32c(&bytes);
        bytes.extend_from_slice(&header_crc.to_le_bytes());
        for section in &self.sections {
            let mut header = [0; SECTION_HEADER_BYTES - 4];
            header[..4].copy_from_slice(&(section.payload.len() as u32).to_le_bytes());
            header[4..8].copy_from_slice(&section.version.to_le_bytes());
            header[8..].copy_from_slice(&(section.kind.len() as u32).to_le_bytes());
            let mut crc = Crc32c::new();
            crc.update(&header);
            crc.update(section.kind.as_bytes());
            crc.update(&section.payload);
            bytes.extend_from_slice(&crc.finish().to_le_bytes());
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(section.kind.as_bytes());
            bytes.extend_from_slice(&section.payload);
        }
        Ok(bytes)
    }

    /// The state in the bytes of a file. Every checksum and every length is checked; the payloads
    /// are decoded when they are asked for. Takes no more memory than a small multiple of `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly what [`StateFile::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let total_bytes = bytes.len() as u64;
        if total_bytes > MAX_STATE_BYTES {
            return Err(StateError::TooLong {
                len_bytes: total_bytes,
            });
        }
        let mut cursor = Cursor { bytes, position: 0 };
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(StateError::Magic);
        }
        let found = cursor.take_u32()?;
        if found != LAYOUT_VERSION {
            return Err(StateError::Layout { found });
        }
        let count = cursor.take_u32()?;
        let expected_bytes = cursor.take_u64()?;
        let actual = crc32c(&bytes[..cursor.position]);
        let expected = cursor.take_u32()?;
        if actual != expected {
            return Err(StateError::Checksum {
                what: "the header".to_owned(),
                expected,
                actual,
            });
        }
        if expected_bytes != total_bytes {
            return Err(StateError::Length {
                expected_bytes,
                actual_bytes: total_bytes,
            });
        }
        if count as usize > MAX_SECTIONS {
            return Err(StateError::TooManySections {
                count: u64::from(count),
            });
        }
        // No capacity from `count`: the file has not yet shown that it has so many.
        let mut sections = Vec::new();
        for number in 0..count {
            sections.push(cursor.take_section(number)?);
        }
        if cursor.position != bytes.len() {
            return Err(StateError::Length {
                expected_bytes: cursor.position as u64,
                actual_bytes: total_bytes,
            });
        }
        Ok(Self { sections })
    }
}

fn check_kind(kind: &[u8]) -> Result<&str, StateError> {
    let valid = (1..=MAX_KIND_BYTES).contains(&kind.len())
        && kind
            .iter()
            .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
    match std::str::from_utf8(kind) {
        Ok(text) if valid => Ok(text),
        _ => Err(StateError::Kind {
            kind: String::from_utf8_lossy(&kind[..kind.len().min(MAX_KIND_BYTES)]).into_owned(),
        }),
    }
}

fn check_section_length(kind: &str, len_bytes: u64) -> Result<(), StateError> {
    if len_bytes > MAX_SECTION_BYTES as u64 {
        return Err(StateError::SectionTooLong {
            kind: kind.to_owned(),
            len_bytes,
        });
    }
    Ok(())
}

/// A place in bytes that may end anywhere.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let end = self.position.saturating_add(count);
        let taken = self
            .bytes
            .get(self.position..end)
            .ok_or(StateError::Length {
                expected_bytes: end as u64,
                actual_bytes: self.bytes.len() as u64,
            })?;
        self.position = end;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take_u32(&mut self) -> Result<u32, StateError> {
        self.take_array().map(u32::from_le_bytes)
    }

    fn take_u64(&mut self) -> Result<u64, StateError> {
        self.take_array().map(u64::from_le_bytes)
    }

    fn take_section(&mut self, number: u32) -> Result<Section, StateError> {
        let expected = self.take_u32()?;
        let start = self.position;
        let payload_bytes = self.take_u32()?;
        let version = self.take_u32()?;
        let kind_bytes = self.take_u32()?;
        let kind = self.take(kind_bytes as usize)?;
        let payload = self.take(payload_bytes as usize)?;
        // Before the contents are judged: "damaged" says more than "has a strange name".
        let actual = crc32c(&self.bytes[start..self.position]);
        if actual != expected {
            return Err(StateError::Checksum {
                what: format!("section {number}"),
                expected,
                actual,
            });
        }
        let kind = check_kind(kind)?;
        check_section_length(kind, u64::from(payload_bytes))?;
        Ok(Section {
            kind: kind.to_owned(),
            version,
            payload: payload.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    type Sections = Vec<(String, u32, Vec<u8>)>;

    fn sections() -> impl Strategy<Value = Sections> {
        let payload = proptest::collection::vec(any::<u8>(), 0..200);
        proptest::collection::vec(("[a-z0-9._-]{1,64}", any::<u32>(), payload), 0..8)
    }

    fn state_of(sections: &Sections) -> StateFile {
        let mut state = StateFile::new();
        for (kind, version, payload) in sections {
            state.push(kind, *version, payload).unwrap();
        }
        state
    }

    /// A section whose payload is these very bytes, whatever they are.
    fn raw(kind: &str, payload: Vec<u8>) -> Vec<u8> {
        let section = Section {
            kind: kind.to_owned(),
            version: 1,
            payload,
        };
        StateFile {
            sections: vec![section],
        }
        .encode()
        .unwrap()
    }

    proptest! {
        #[test]
        fn round_trip(sections in sections()) {
            let state = state_of(&sections);
            let read = StateFile::decode(&state.encode().unwrap()).unwrap();
            prop_assert_eq!(&read, &state);
            for (place, (kind, version, payload)) in sections.iter().enumerate() {
                let index = sections[..place].iter().filter(|(other, ..)| other == kind).count();
                let value: Vec<u8> = read.get_instance(kind, index, *version).unwrap();
                prop_assert_eq!(&value, payload);
            }
        }

        #[test]
        fn any_flipped_bit_is_refused(sections in sections(), at in any::<Index>(), bit in 0..8_u32) {
            let mut bytes = state_of(&sections).encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(StateFile::decode(&bytes).is_err());
        }

        #[test]
        fn any_other_length_is_refused(sections in sections(), more in 1..64_usize) {
            let mut bytes = state_of(&sections).encode().unwrap();
            for len in 0..bytes.len() {
                prop_assert!(StateFile::decode(&bytes[..len]).is_err());
            }
            bytes.resize(bytes.len() + more, 0);
            prop_assert!(StateFile::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(StateFile::decode(&bytes).is_err());
        }

        /// Past the header and the checksums, where arbitrary bytes hardly ever get.
        #[test]
        fn hostile_sections_never_panic(
            count in any::<u32>(),
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(LAYOUT_VERSION.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(((HEADER_BYTES + 4 + body.len()) as u64).to_le_bytes());
            bytes.extend(crc32c(&bytes).to_le_bytes());
            bytes.extend(crc32c(&body).to_le_bytes());
            bytes.extend(&body);
            if let Ok(state) = StateFile::decode(&bytes) {
                prop_assert_eq!(state.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn hostile_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let state = StateFile::decode(&raw("x", payload)).unwrap();
            if let Ok(value) = state.get::<(Vec<u64>, String, Option<bool>)>("x", 1) {
                let mut again = StateFile::new();
                again.push("x", 1, &value).unwrap();
                prop_assert_eq!(again.get::<(Vec<u64>, String, Option<bool>)>("x", 1).unwrap(), value);
            }
        }
    }

    #[test]
    fn a_payload_that_claims_too_much_is_refused() {
        // A sequence of 2^63 numbers, of which none is there.
        let claim = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01].to_vec();
        let state = StateFile::decode(&raw("x", claim)).unwrap();
        assert!(matches!(
            state.get::<Vec<u64>>("x", 1),
            Err(StateError::Decode { .. })
        ));
    }

    #[test]
    fn a_payload_that_goes_on_is_refused() {
        let state = StateFile::decode(&raw("x", vec![7, 8])).unwrap();
        assert!(matches!(
            state.get::<u8>("x", 1),
            Err(StateError::Trailing { extra_bytes: 1, .. })
        ));
    }

    #[test]
    fn says_what_is_missing_or_of_another_version() {
        let mut state = StateFile::new();
        state.push("vcpu", 3, &1_u64).unwrap();
        state.push("vcpu", 3, &2_u64).unwrap();
        assert_eq!(state.instances("vcpu"), 2);
        assert_eq!(state.get_instance::<u64>("vcpu", 1, 3).unwrap(), 2);
        let missing = state.get_instance::<u64>("vcpu", 2, 3);
        assert!(matches!(missing, Err(StateError::Missing { index: 2, .. })));
        assert!(matches!(
            state.get::<u64>("pit", 3),
            Err(StateError::Missing { index: 0, .. })
        ));
        let version = state.get::<u64>("vcpu", 4);
        assert!(matches!(
            version,
            Err(StateError::Version {
                found: 3,
                expected: 4,
                ..
            })
        ));
    }

    #[test]
    fn limits_hold_on_writing() {
        let mut state = StateFile::new();
        for kind in ["", "Vcpu", "a/b", &"k".repeat(MAX_KIND_BYTES + 1)] {
            assert!(
                matches!(state.push(kind, 1, &0_u8), Err(StateError::Kind { .. })),
                "{kind}"
            );
        }
        let too_long = vec![0_u8; MAX_SECTION_BYTES + 1];
        let error = state.push("x", 1, &too_long).unwrap_err();
        assert!(matches!(error, StateError::SectionTooLong { .. }));
        let long = vec![0_u8; MAX_SECTION_BYTES - 8];
        for _ in 0..17 {
            state.push("x", 1, &long).unwrap();
        }
        assert!(matches!(state.encode(), Err(StateError::TooLong { .. })));
    }

    #[test]
    fn limits_hold_on_reading() {
        let name = raw("Not-A-Name", vec![]);
        assert!(matches!(
            StateFile::decode(&name),
            Err(StateError::Kind { .. })
        ));
        let section = raw("x", vec![0; MAX_SECTION_BYTES + 1]);
        assert!(matches!(
            StateFile::decode(&section),
            Err(StateError::SectionTooLong { .. })
        ));
        let file = vec![0; MAX_STATE_BYTES as usize + 1];
        assert!(matches!(
            StateFile::decode(&file),
            Err(StateError::TooLong { .. })
        ));
    }
}
