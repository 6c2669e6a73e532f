//! The symbols that compiled code expects of a C library and of an unwinder.
//!
//! They are assembly where a compiler would turn a loop back into a call to the very function.

use core::arch::asm;

/// Copies forwards.
///
/// # Safety
/// As C's `memcpy`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise covers all bytes; each branch stays inside both ranges.
    unsafe {
        match bytes {
            0..16 => copy_short(to, from, bytes),
            16..=512 => asm!(
                "2:",
                "movups {data}, [{from}]",
                "movups [{to}], {data}",
                "add {from}, 16",
                "add {to}, 16",
                "cmp {from}, {last}",
                "jb 2b",
                // The last 16 bytes, which may overlap the ones before.
                "movups {data}, [{last}]",
                "movups [{last_to}], {data}",
                data = out(xmm_reg) _,
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                last = in(reg) from.wrapping_add(bytes - 16),
                last_to = in(reg) to.wrapping_add(bytes - 16),
                options(nostack),
            ),
            _ => asm!(
                "rep movsb",
                inout("rcx") bytes => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags),
            ),
        }
    }
    to
}

/// Copies fewer than 16 bytes, all read before any is written.
///
/// # Safety
/// Both ranges are valid for `bytes`, which is below 16. They may overlap.
unsafe fn copy_short(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: two accesses of a size not above `bytes`, at the start and at the end of the range.
    unsafe {
        if bytes >= 8 {
            copy_ends::<u64>(to, from, bytes);
        } else if bytes >= 4 {
            copy_ends::<u32>(to, from, bytes);
        } else if bytes >= 2 {
            copy_ends::<u16>(to, from, bytes);
        } else if bytes == 1 {
            to.write(from.read());
        }
    }
}

/// # Safety
/// Both ranges are valid for `bytes`, which is at least the size of `T`.
unsafe fn copy_ends<T>(to: *mut u8, from: *const u8, bytes: usize) {
    let last = bytes - size_of::<T>();
    // SAFETY: both accesses lie inside the ranges that the caller vouches for.
    unsafe {
        let head = from.cast::<T>().read_unaligned();
        let tail = from.add(last).cast::<T>().read_unaligned();
        to.cast::<T>().write_unaligned(head);
        to.add(last).cast::<T>().write_unaligned(tail);
    }
}

/// Copies between ranges that may overlap.
///
/// # Safety
/// As C's `memmove`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's promise covers all bytes.
    unsafe {
        if bytes < 16 {
            copy_short(to, from, bytes);
        } else if (to as usize).wrapping_sub(from as usize) >= bytes {
            // `to` is not inside `from`'s range: forwards reads each byte before it is replaced,
            // when done byte by byte. A distance of 16 makes `memcpy`'s wide steps safe too.
            if (from as usize).wrapping_sub(to as usize) >= bytes {
                memcpy(to, from, bytes);
            } else {
                asm!(
                    "rep movsb",
                    inout("rcx") bytes => _,
                    inout("rsi") from => _,
                    inout("rdi") to => _,
                    options(nostack, preserves_flags),
                );
            }
        } else {
            copy_backwards(to, from, bytes);
        }
    }
    to
}

/// Copies from the end: for a target that begins inside the source.
///
/// # Safety
/// As C's `memmove`; at least 16 bytes.
unsafe fn copy_backwards(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: 16 bytes at a time while so many are left, read whole before they are written; what
    // is left at the front is shorter than 16 and read whole too.
    unsafe {
        let mut left = bytes;
        while left >= 16 {
            left -= 16;
            asm!(
                "movups {data}, [{from}]",
                "movups [{to}], {data}",
                data = out(xmm_reg) _,
                from = in(reg) from.add(left),
                to = in(reg) to.add(left),
                options(nostack, preserves_flags),
            );
        }
        copy_short(to, from, left);
    }
}

/// Fills.
///
/// # Safety
/// As C's `memset`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    let byte = value as u8;
    let pattern = u64::from(byte) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's promise covers all bytes; each branch stays inside the range.
    unsafe {
        match bytes {
            0 => {}
            1..4 => {
                to.write(byte);
                to.add(bytes / 2).write(byte);
                to.add(bytes - 1).write(byte);
            }
            4..8 => {
                to.cast::<u32>().write_unaligned(pattern as u32);
                to.add(bytes - 4)
                    .cast::<u32>()
                    .write_unaligned(pattern as u32);
            }
            8..=256 => asm!(
                "2:",
                "mov [{to}], {pattern}",
                "add {to}, 8",
                "cmp {to}, {last}",
                "jb 2b",
                "mov [{last}], {pattern}",
                to = inout(reg) to => _,
                last = in(reg) to.wrapping_add(bytes - 8),
                pattern = in(reg) pattern,
                options(nostack),
            ),
            _ => asm!(
                "rep stosb",
                inout("rcx") bytes => _,
                inout("rdi") to => _,
                in("al") byte,
                options(nostack, preserves_flags),
            ),
        }
    }
    to
}

/// Compares as unsigned bytes.
///
/// # Safety
/// As C's `memcmp`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's promise covers all bytes.
    unsafe {
        let mut at = 0;
        while bytes - at >= 8 {
            let a = left.add(at).cast::<u64>().read_unaligned();
            let b = right.add(at).cast::<u64>().read_unaligned();
            if a != b {
                // The first byte in memory is the lowest: it decides.
                return if a.swap_bytes() < b.swap_bytes() {
                    -1
                } else {
                    1
                };
            }
            at += 8;
        }
        while at < bytes {
            let difference = i32::from(left.add(at).read()) - i32::from(right.add(at).read());
            if difference != 0 {
                return difference;
            }
            at += 1;
        }
    }
    0
}

/// Compares for equality.
///
/// # Safety
/// As `memcmp`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, bytes) }
}

/// Counts the bytes before the first zero.
///
/// # Safety
/// As C's `strlen`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller promises a zero at the end. A volatile read keeps the loop a loop.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// Named by the prebuilt `core`'s unwind tables; nothing unwinds here (`panic = "abort"`).
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named by the prebuilt `alloc`; never reached, for the same reason.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::supervisor::reset()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every length to 40 and some around the limits between the ways of doing it.
    fn lengths() -> impl Iterator<Item = usize> {
        (0..40).chain([63, 64, 65, 255, 256, 257, 511, 512, 513, 700])
    }

    fn noise(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|at| (at * 7 + at / 256) as u8).collect()
    }

    #[test]
    fn copies_are_exact_and_touch_nothing_else() {
        for length in lengths() {
            for (from, to) in [(0, 0), (1, 3), (5, 2)] {
                let source = noise(length + 16);
                let mut target = vec![0xaa; length + 16];
                let mut expected = target.clone();
                expected[to..to + length].copy_from_slice(&source[from..from + length]);
                // SAFETY: both ranges lie inside their vectors, which are distinct.
                unsafe {
                    memcpy(
                        target.as_mut_ptr().add(to),
                        source.as_ptr().add(from),
                        length,
                    )
                };
                assert_eq!(target, expected, "{length} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn moves_in_either_direction_are_exact() {
        for length in lengths() {
            for (from, to) in (0..34).flat_map(|at| [(at, 17), (17, at)]) {
                let mut bytes = noise(length + 50);
                let mut expected = bytes.clone();
                expected.copy_within(from..from + length, to);
                let base = bytes.as_mut_ptr();
                // SAFETY: both ranges lie inside the vector.
                unsafe { memmove(base.add(to), base.add(from), length) };
                assert_eq!(bytes, expected, "{length} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn fills_are_exact() {
        for length in lengths() {
            let mut bytes = noise(length + 16);
            let mut expected = bytes.clone();
            expected[3..3 + length].fill(0xc5);
            // SAFETY: the range lies inside the vector.
            unsafe { memset(bytes.as_mut_ptr().add(3), 0x1c5, length) };
            assert_eq!(bytes, expected, "{length} bytes");
        }
    }

    #[test]
    fn comparisons_go_by_the_first_different_byte() {
        for length in lengths() {
            let left = noise(length);
            for at in 0..=length {
                let mut right = left.clone();
                if let Some(byte) = right.get_mut(at) {
                    *byte ^= 0x80;
                }
                if let Some(byte) = right.get_mut(at + 1) {
                    *byte = byte.wrapping_add(1);
                }
                // SAFETY: both vectors are `length` long.
                let order = unsafe { memcmp(left.as_ptr(), right.as_ptr(), length) };
                assert_eq!(order.cmp(&0), left.cmp(&right), "{length} bytes, {at}");
                // SAFETY: as above.
                let differ = unsafe { bcmp(left.as_ptr(), right.as_ptr(), length) };
                assert_eq!(differ != 0, left != right);
            }
        }
        // SAFETY: the text ends with a zero.
        assert_eq!(unsafe { strlen(c"guest".as_ptr().cast()) }, 5);
    }
}
