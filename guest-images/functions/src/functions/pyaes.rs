//! `pyaes`: encrypts the records of a message with AES-128 in counter mode, each for another
//! tenant of a key ring.

use aes::Aes128;
use aes::cipher::{InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use ctr::CtrCore;
use ctr::flavors::Ctr128BE;

use super::{Workload, fields};
use crate::FunctionError;
use crate::digest::{hex, sha256_hex};
use crate::parameters::{Parameters, SizeParameter};
use crate::random::Random;
use crate::runtime::NameTable;
use crate::runtime::library::WORDS;
use crate::serde_json::{Map, Value};

pub(crate) const SIZES: [SizeParameter; 2] = [
    SizeParameter {
        name: "records",
        description: "how many records the message has",
        default: 400,
        minimum: 1,
        maximum: 4000,
    },
    SizeParameter {
        name: "record_bytes",
        description: "the length of a record in bytes",
        default: 256,
        minimum: 1,
        maximum: 1024,
    },
];

/// How many tenants have a key.
const TENANTS: usize = 12_000;
/// Record n is for tenant n times this, so that the records' tenants are spread over the ring.
const TENANT_STRIDE: usize = 29;

struct Tenant {
    /// The key, expanded.
    cipher: Aes128,
    nonce: [u8; 8],
    #[expect(
        dead_code,
        reason = "belongs to the ring; shown by tools that administer it"
    )]
    policy: Box<str>,
}

struct PyAes {
    ring: NameTable<Box<Tenant>>,
}

/// The name of the tenant whose key encrypts record `record`.
pub(crate) fn tenant_of_record(record: usize) -> usize {
    record * TENANT_STRIDE % TENANTS
}

/// The key and the nonce of tenant `tenant`, and what the rest of its entry is drawn from.
pub(crate) fn draw_key(tenant: usize) -> ([u8; 16], [u8; 8], Random) {
    let mut random = Random::labelled("tenant", tenant as u64);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&random.bits().to_le_bytes());
    key[8..].copy_from_slice(&random.bits().to_le_bytes());
    let nonce = random.bits().to_le_bytes();
    (key, nonce, random)
}

/// Fills `record` with the next bytes of the message.
pub(crate) fn draw_record(random: &mut Random, record: &mut [u8]) {
    for chunk in record.chunks_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes()[..chunk.len()]);
    }
}

/// Loads the key ring and expands every key.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let mut ring = NameTable::with_capacity(TENANTS);
    for tenant in 0..TENANTS {
        let (key, nonce, mut random) = draw_key(tenant);
        let mut policy = String::new();
        for _ in 0..30 + random.below(60) {
            policy.push_str(WORDS[random.index(WORDS.len())]);
            policy.push(' ');
        }
        let cipher = Aes128::new(&key.into());
        let entry = Tenant {
            cipher,
            nonce,
            policy: policy.into_boxed_str(),
        };
        ring.insert(Rc::from(format!("tenant-{tenant:05}")), Box::new(entry));
    }
    Ok(Box::new(PyAes { ring }))
}

impl Workload for PyAes {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let (records, record_bytes) = (parameters.size(0), parameters.size(1));
        let mut random = Random::labelled("message", parameters.seed);
        let mut message = vec![0u8; records * record_bytes];
        for (number, record) in message.chunks_exact_mut(record_bytes).enumerate() {
            draw_record(&mut random, record);
            let name = format!("tenant-{:05}", tenant_of_record(number));
            let tenant = self.ring.get(&name).ok_or_else(|| FunctionError::Data {
                operation: "looking a key up",
                message: format!("the ring has no {name}"),
            })?;
            // The counter block: the tenant's nonce, the record's number, the block's number.
            let mut block = [0u8; 16];
            block[..8].copy_from_slice(&tenant.nonce);
            block[8..12].copy_from_slice(&(number as u32).to_be_bytes());
            let core: CtrCore<Aes128, Ctr128BE> =
                CtrCore::inner_iv_init(tenant.cipher.clone(), &block.into());
            StreamCipherCoreWrapper::from_core(core).apply_keystream(record);
        }
        let last: Vec<u8> = message.iter().rev().take(16).rev().copied().collect();
        Ok(fields([
            ("message_bytes", Value::from(message.len())),
            ("ciphertext_sha256", Value::from(sha256_hex(&message))),
            ("ciphertext_end", Value::from(hex(&last))),
        ]))
    }
}
