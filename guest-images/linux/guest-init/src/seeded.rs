//! Bytes that follow from a seed, and digests: a host can say beforehand what a guest must find.

use sha2::{Digest, Sha256};

/// The bytes that `seed` gives for the 8-byte words `first_word..` of an endless row
/// (SplitMix64, Steele, Lea and Flood 2014: any word can be computed without those before it).
pub fn fill(seed: u64, first_word: u64, bytes: &mut [u8]) {
    const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    for (word, chunk) in (first_word..).zip(bytes.chunks_mut(8)) {
        let mut z = seed.wrapping_add(word.wrapping_add(1).wrapping_mul(GOLDEN_GAMMA));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let value = (z ^ z >> 31).to_le_bytes();
        chunk.copy_from_slice(&value[..chunk.len()]);
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_row_is_the_same_as_in_the_whole() {
        let mut whole = [0; 64];
        fill(7, 0, &mut whole);
        let mut part = [0; 20];
        fill(7, 3, &mut part);
        assert_eq!(part, whole[24..44]);
        // The first word of seed 0 is published with the algorithm's reference code.
        let mut first = [0; 8];
        fill(0, 0, &mut first);
        assert_eq!(u64::from_le_bytes(first), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn the_digest_is_sha256() {
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
