//! AES-128 as FIPS 197 describes it, byte by byte, in counter mode.

use std::string::String;
use std::vec;

use super::Case;
use crate::functions::pyaes::{draw_key, draw_record, tenant_of_record};
use crate::random::Random;

/// Multiplies by x in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
fn double(value: u8) -> u8 {
    (value << 1) ^ if value & 0x80 == 0 { 0 } else { 0x1b }
}

fn multiply(mut left: u8, mut right: u8) -> u8 {
    let mut product = 0;
    while right != 0 {
        if right & 1 == 1 {
            product ^= left;
        }
        left = double(left);
        right >>= 1;
    }
    product
}

/// The S-box: the inverse in GF(2^8), then an affine map (FIPS 197, 5.1.1).
fn substitution_box() -> [u8; 256] {
    let mut table = [0u8; 256];
    for (value, entry) in table.iter_mut().enumerate() {
        let value = value as u8;
        let inverse = (0..=255)
            .find(|&other| multiply(value, other) == 1)
            .unwrap_or(0);
        *entry = 0x63;
        for shift in 0..5 {
            *entry ^= inverse.rotate_left(shift);
        }
    }
    table
}

struct Aes {
    table: [u8; 256],
}

impl Aes {
    /// The eleven round keys of `key` (FIPS 197, 5.2).
    fn expand(&self, key: [u8; 16]) -> [[u8; 16]; 11] {
        let mut keys = [[0u8; 16]; 11];
        keys[0] = key;
        let mut constant = 1u8;
        for round in 1..11 {
            let previous = keys[round - 1];
            for index in 0..16 {
                let mixed = if index < 4 {
                    // The last word, rotated by a byte and substituted.
                    let rotated = self.table[usize::from(previous[12 + (index + 1) % 4])];
                    rotated ^ if index == 0 { constant } else { 0 }
                } else {
                    keys[round][index - 4]
                };
                keys[round][index] = previous[index] ^ mixed;
            }
            constant = double(constant);
        }
        keys
    }

    fn encrypt(&self, keys: &[[u8; 16]; 11], block: [u8; 16]) -> [u8; 16] {
        let mut state = add(block, keys[0]);
        for (round, key) in keys.iter().enumerate().skip(1) {
            // SubBytes and ShiftRows: row r of column c comes from column c + r.
            let mut next = [0u8; 16];
            for (index, byte) in next.iter_mut().enumerate() {
                *byte = self.table[usize::from(state[(index + 4 * (index % 4)) % 16])];
            }
            if round < 10 {
                for column in next.chunks_exact_mut(4) {
                    let old = [column[0], column[1], column[2], column[3]];
                    for row in 0..4 {
                        column[row] = double(old[row])
                            ^ multiply(3, old[(row + 1) % 4])
                            ^ old[(row + 2) % 4]
                            ^ old[(row + 3) % 4];
                    }
                }
            }
            state = add(next, *key);
        }
        state
    }
}

fn add(left: [u8; 16], right: [u8; 16]) -> [u8; 16] {
    core::array::from_fn(|index| left[index] ^ right[index])
}

/// Checks a result of `pyaes`.
pub(super) fn pyaes(case: &Case<'_>) -> Result<(), String> {
    let (records, record_bytes) = (case.sizes[0], case.sizes[1]);
    let aes = Aes {
        table: substitution_box(),
    };
    let mut random = Random::labelled("message", case.seed);
    let mut message = vec![0u8; records * record_bytes];
    for (number, record) in message.chunks_mut(record_bytes).enumerate() {
        draw_record(&mut random, record);
        let (key, nonce, _) = draw_key(tenant_of_record(number));
        let keys = aes.expand(key);
        for (block, bytes) in record.chunks_mut(16).enumerate() {
            let counter = u128::from(u64::from_be_bytes(nonce)) << 64
                | (number as u128) << 32
                | block as u128;
            let stream = aes.encrypt(&keys, counter.to_be_bytes());
            for (byte, mask) in bytes.iter_mut().zip(stream) {
                *byte ^= mask;
            }
        }
    }
    case.expect_integer("message_bytes", message.len())?;
    case.expect_text("ciphertext_sha256", &crate::digest::sha256_hex(&message))?;
    let end = &message[message.len().saturating_sub(16)..];
    case.expect_text("ciphertext_end", &crate::digest::hex(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_matches_fips_197() {
        // FIPS 197, appendix C.1.
        let aes = Aes {
            table: substitution_box(),
        };
        let key = core::array::from_fn(|index| index as u8);
        let block = core::array::from_fn(|index| (index * 0x11) as u8);
        let encrypted = aes.encrypt(&aes.expand(key), block);
        assert_eq!(
            crate::digest::hex(&encrypted),
            "69c4e0d86a7b0430d8cdb78070b4c55a"
        );
    }
}
