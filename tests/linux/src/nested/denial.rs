//! A system call that fails although the kernel could do it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Offsets in `struct seccomp_data` (linux/seccomp.h): the call's number, and the lower half of its
/// second argument, for ioctl the request.
const NUMBER: u32 = 0;
const REQUEST: u32 = 24;

/// Has the ioctl `request` fail with `errno` in the process that `command` starts, and in those that
/// come of it. All other calls are as they were.
pub fn deny_ioctl(command: &mut Command, request: u32, errno: i32) {
    let filter = filter(request, errno);
    // SAFETY: between fork and exec only prctl is called, which is a plain system call, and what it
    // reads was made before.
    unsafe {
        command.pre_exec(move || install(&filter));
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

fn filter(request: u32, errno: i32) -> [libc::sock_filter; 6] {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    [
        statement(load, NUMBER),
        jump(if_equal, libc::SYS_ioctl as u32, 0, 3),
        statement(load, REQUEST),
        jump(if_equal, request, 0, 1),
        statement(end, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(end, libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        // The kernel only reads it.
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: both calls take numbers, and the second a program that lives until it returns.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ),
        ]
    };
    match results {
        [0, 0] => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_the_request_that_is_named_fails() {
        // `test -t` asks by TCGETS whether a descriptor is a terminal's.
        let has_terminal = |denied: u32| {
            let mut command = Command::new("test");
            command.args(["-t", "0"]);
            let terminal = File::options().read(true).write(true).open("/dev/ptmx");
            command.stdin(terminal.unwrap());
            deny_ioctl(&mut command, denied, libc::EIO);
            command.status().unwrap().success()
        };
        assert!(has_terminal(1));
        assert!(!has_terminal(libc::TCGETS as u32));
    }
}
