//! A running guest.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reapvm_guest_init::protocol::{READY_LINE, Request};
use serde_json::Value;

use super::client::Client;
use super::console::Console;
use super::{JOB_FOLDER, PATIENCE, SCRATCH_FOLDER, reapvm, say, threads};

/// Kernel parameters of every guest. Each byte on its console is an exit: hence `quiet`. QEMU 7.2
/// does not intercept XSETBV, so that KVM goes on with the XCR0 of reset and reports a size of the
/// XSAVE area that is not the guest's: hence `noxsave`, which a kernel else does by itself, with a
/// warning.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=k noxsave";

/// What a kernel says when something is wrong with it or its devices.
const KERNEL_COMPLAINTS: [&str; 9] = [
    "BUG:",
    "WARNING: CPU",
    "Oops",
    "Call Trace",
    "soft lockup",
    "blocked for more than",
    "I/O error",
    "nobody cared",
    "rcu_sched self-detected stall",
];

/// A kernel file of the disk of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// The ELF kernel.
    Vmlinux,
    /// The bzImage as Debian ships it.
    Vmlinuz,
}

/// The folder of the project's own kernel, beside those of Debian's kernels.
pub const SMALL_KERNEL: &str = "small";

/// The path of a kernel's image.
pub fn kernel(series: &str, image: Image) -> PathBuf {
    let name = match image {
        Image::Vmlinux => "vmlinux",
        Image::Vmlinuz => "vmlinuz",
    };
    Path::new(JOB_FOLDER).join(series).join(name)
}

/// The path of the initial RAM disk for a kernel.
pub fn initrd(series: &str) -> PathBuf {
    Path::new(JOB_FOLDER).join(series).join("initrd")
}

/// A name in the scratch folder that no other caller gets.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Path::new(SCRATCH_FOLDER).join(format!("{number}-{name}"))
}

/// A guest in a reapvm process of its own, which ends with this value.
pub struct Vm {
    child: Child,
    console: Console,
    errors: Console,
    socket: PathBuf,
}

impl Vm {
    /// Starts `reapvm run` with a kernel, its initial RAM disk, `cmdline`, a vsock device and `more`
    /// arguments.
    pub fn start(series: &str, image: Image, cmdline: &str, more: &[&str]) -> Self {
        let mut command = reapvm::command();
        command
            .arg("run")
            .arg("--kernel")
            .arg(kernel(series, image))
            .arg("--initrd")
            .arg(initrd(series))
            .args(["--cmdline", cmdline])
            .args(more);
        Self::spawn(command)
    }

    /// Starts `reapvm restore` with `more` arguments.
    pub fn restore(snapshot: &Path, mode: &str, more: &[&str]) -> Self {
        let mut command = reapvm::command();
        command
            .arg("restore")
            .arg(snapshot)
            .args(["--memory", mode])
            .args(more);
        Self::spawn(command)
    }

    /// Starts `command`, a reapvm, with a vsock socket of its own.
    pub fn spawn(mut command: Command) -> Self {
        let socket = scratch("vsock");
        let mut child = command
            .arg("--vsock-uds")
            .arg(&socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (console, errors) = (Console::default(), Console::default());
        console.follow(child.stdout.take().unwrap());
        errors.follow(child.stderr.take().unwrap());
        Self {
            child,
            console,
            errors,
            socket,
        }
    }

    /// A guest with the usual command line, when it has said that it is ready.
    ///
    /// # Panics
    /// If it does not say so.
    pub fn boot(series: &str, image: Image, more: &[&str]) -> Self {
        Self::boot_with(series, image, CMDLINE, more)
    }

    /// As [`boot`](Self::boot), with another command line.
    ///
    /// # Panics
    /// If the guest does not say that it is ready.
    pub fn boot_with(series: &str, image: Image, cmdline: &str, more: &[&str]) -> Self {
        let vm = Self::start(series, image, cmdline, more);
        if !vm.console.wait_for_line(PATIENCE, READY_LINE) {
            vm.fail("the guest did not get ready");
        }
        vm
    }

    /// Waits until `found` says yes of the guest's console.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn wait_for_console(&self, what: &str, found: impl Fn(&str) -> bool) {
        if !self.console.wait(PATIENCE, found) {
            self.fail(&format!("the console does not say {what}"));
        }
    }

    /// A connection to the guest's program.
    ///
    /// # Panics
    /// If it takes none.
    pub fn connect(&self) -> Client {
        Client::connect(&self.socket).unwrap_or_else(|error| self.fail(&error))
    }

    /// What the guest answers to `request`, on a connection of its own.
    ///
    /// # Panics
    /// If it gives no answer.
    pub fn ask(&self, request: &Request) -> Value {
        self.connect()
            .ask(request)
            .unwrap_or_else(|error| self.fail(&error))
    }

    /// Why the guest refuses `request`.
    ///
    /// # Panics
    /// If it does not.
    pub fn refusal(&self, request: &Request) -> String {
        match self.connect().ask(request) {
            Ok(answer) => self.fail(&format!("the guest does not refuse {request:?}: {answer}")),
            Err(error) => error,
        }
    }

    /// Checks that the guest's kernel has nothing to complain about.
    ///
    /// # Panics
    /// If it has.
    pub fn check_kernel_log(&self) {
        let log = self.ask(&Request::Dmesg {});
        for line in log.as_str().unwrap().lines() {
            let complaint = KERNEL_COMPLAINTS.iter().find(|what| line.contains(*what));
            assert_eq!(complaint, None, "the guest's kernel says: {line}");
        }
    }

    /// Waits until reapvm has ended by itself and returns its exit code.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn wait_for_end(mut self) -> Option<i32> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if std::time::Instant::now() > deadline {
                self.fail("reapvm does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Says what the guest's console and reapvm said and where its threads are, and panics.
    fn fail(&self, reason: &str) -> ! {
        for line in threads::describe(self.child.id()) {
            say(&format!("thread | {line}"));
        }
        for (name, console) in [("console", &self.console), ("reapvm", &self.errors)] {
            for line in console.text().lines() {
                say(&format!("{name} | {line}"));
            }
        }
        panic!("{reason}");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
