"""`pyaes`: encrypts the records of a message with AES-128 in counter mode, in pure Python."""

import hashlib
import random

import pyaes

from .parameters import Size, parse

SIZES = (Size("records", 400, 1, 4000), Size("record_bytes", 256, 1, 1024))

_KEY_BYTES = 16


def setup() -> None:
    """Encrypts a block, so that the cipher's tables are in memory."""
    encrypt(bytes(_KEY_BYTES), 0, bytes(16))


def encrypt(key: bytes, nonce: int, record: bytes) -> bytes:
    """AES-CTR with a 128-bit counter whose upper half is `nonce`."""
    counter = pyaes.Counter(initial_value=nonce << 64)
    return pyaes.AESModeOfOperationCTR(key, counter=counter).encrypt(record)


def handle(fields: dict) -> dict:
    """Encrypts `records` records of `record_bytes` bytes; key and records follow from the seed."""
    seed, record_count, record_bytes = parse(fields, SIZES)
    generator = random.Random(seed)
    key = generator.randbytes(_KEY_BYTES)
    digest = hashlib.sha256()
    for nonce in range(record_count):
        digest.update(encrypt(key, nonce, generator.randbytes(record_bytes)))
    return {"encrypted_bytes": record_count * record_bytes, "sha256": digest.hexdigest()}
