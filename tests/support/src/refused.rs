//! Hosts that refuse a system call.

use std::thread;

/// A system call that [`without`] refuses.
pub struct Refused {
    /// Its number.
    pub number: libc::c_long,
    /// The second argument with which it is refused, such as the number of an ioctl; none: any.
    pub second_argument: Option<u32>,
    /// What it fails with.
    pub errno: i32,
}

/// Runs `test` on a thread that the system refuses a call, and so it does for the threads that
/// are started there: as a kernel without it would, or one that is told not to allow it.
///
/// # Panics
/// When the system does not let the thread be restricted, or `test` panics.
pub fn without(refused: &Refused, test: impl FnOnce() + Send) {
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const SECOND_ARGUMENT: u32 = 24;
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let errno = libc::SECCOMP_RET_ERRNO | refused.errno as u32;
    let mut filter = vec![
        step(load, 0, 0, NUMBER),
        step(equal, 1, 0, refused.number as u32),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    if let Some(argument) = refused.second_argument {
        filter.extend([
            step(load, 0, 0, SECOND_ARGUMENT),
            step(equal, 1, 0, argument),
            step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]);
    }
    filter.push(step(end, 0, 0, errno));
    thread::scope(|scope| {
        scope.spawn(|| {
            let program = libc::sock_fprog {
                len: filter.len() as u16,
                filter: filter.as_mut_ptr(),
            };
            // SAFETY: the program is a valid filter for the time of the call, which copies it. It
            // holds for this thread and those that it starts.
            let installed = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(
                        libc::PR_SET_SECCOMP,
                        libc::SECCOMP_MODE_FILTER,
                        &raw const program,
                    ) == 0
            };
            assert!(installed);
            test();
        });
    });
}
