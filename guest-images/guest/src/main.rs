//! The built-in guest on a machine: boots, initialises one function, and serves it over vsock.
//!
//! The binary is freestanding and is built by the crate `reapvm-guest-images`.

#![no_std]
#![no_main]

extern crate alloc;

mod interrupts;
mod intrinsics;
mod memory;
mod paging;
mod serial;
mod supervisor;
mod vsock;

use crate::serial::println;
use crate::vsock::Vsock;
use alloc::string::String;
use reapvm_functions::{EXTRA_FUNCTIONS, FUNCTIONS, Function, protocol};
use reapvm_guest::boot::{self, PhysicalMemory};
use reapvm_guest::cmdline;
use reapvm_guest::server::Server;

unsafe extern "C" {
    /// The image's first byte and the first one behind it; the linker's symbols.
    static __executable_start: u8;
    static _end: u8;
}

/// Memory above this belongs to devices, or would need more page tables than there are.
const MEMORY_LIMIT: u64 = 3 << 30;

/// The memory that the boot loader writes to; mapped until the final page tables are loaded.
struct LowMemory;

impl PhysicalMemory for LowMemory {
    fn byte(&self, address: u64) -> Option<u8> {
        // The first GiB is mapped. Address 0 is no address of anything.
        if address == 0 || address >= 1 << 30 {
            return None;
        }
        // SAFETY: mapped, and written by no one while it is read. Past the end of memory a read
        // gives all ones; nothing there has side effects.
        Some(unsafe { (address as *const u8).read_volatile() })
    }
}

/// Where ring 3 begins. `boot_structure` is the zero page or the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(boot_structure: u64) -> ! {
    // SAFETY: called once, and interrupts are still off.
    unsafe { interrupts::install_gates() };
    let image = (&raw const __executable_start) as u64;
    let info = match boot::read(&LowMemory, boot_structure, image) {
        Ok(info) => info,
        Err(error) => stop(format_args!("{error}")),
    };
    let mut buffer = [0; boot::MAX_CMDLINE_BYTES];
    let cmdline = boot::read_cmdline(&LowMemory, info.cmdline_address, &mut buffer);

    let memory = info.memory.start.max(paging::STACK_BOTTOM)..info.memory.end.min(MEMORY_LIMIT);
    if memory.start > paging::STACK_BOTTOM {
        stop(format_args!(
            "there is no memory below the image for its stack"
        ));
    }
    // SAFETY: called once; the stack, the image and the heap are inside, and nothing else is used.
    unsafe { paging::install(memory.clone(), cmdline::mmio_devices(cmdline)) };
    let heap_end = memory.end & !((2 << 20) - 1);
    // SAFETY: behind the image and mapped; the boot loader's structures lie below the image or
    // were cut off, and the memory of a new machine is zero.
    unsafe { memory::init((&raw const _end) as u64, heap_end) };
    run(cmdline)
}

fn run(cmdline: &str) -> ! {
    let Some(name) = cmdline::function(cmdline) else {
        stop(format_args!(
            "the kernel command line names no function: add function=NAME, one of {}",
            function_names()
        ));
    };
    let mut function = match reapvm_functions::initialise(name) {
        Ok(function) => function,
        Err(error) => stop(format_args!("{error}; known are {}", function_names())),
    };
    // SAFETY: the announced devices were mapped in `ring3_main`, and only this driver uses them.
    let mut vsock = match unsafe { Vsock::find(cmdline::mmio_devices(cmdline)) } {
        Ok(vsock) => vsock,
        Err(error) => stop(format_args!("{error}")),
    };
    if vsock.irq() > 15 {
        stop(format_args!(
            "the virtio socket has interrupt {}, of 0 to 15: announce it before other devices",
            vsock.irq()
        ));
    }
    interrupts::enable_line(vsock.irq());
    let mut server = Server::new(protocol::PORT, protocol::MAX_REQUEST_BYTES);
    println!("ready");
    loop {
        vsock = serve(vsock, &mut server, function.as_mut());
        server.reset();
    }
}

/// Serves until the device has to be set up anew.
fn serve(mut vsock: Vsock, server: &mut Server, function: &mut dyn Function) -> Vsock {
    loop {
        let mut busy = vsock.take_reset_event();
        if busy {
            server.reset();
        }
        while server.can_receive() && vsock.receive(|packet| server.receive(packet)) {
            busy = true;
        }
        if let Some((connection, line)) = server.next_request() {
            let reply = protocol::handle_request(function, &line);
            server.reply(connection, reply);
            busy = true;
        }
        while vsock.send(|buffer| server.next_packet(buffer)) {
            busy = true;
        }
        vsock.notify();
        if busy || vsock.collect_sent() || vsock.wait() {
            continue;
        }
        if vsock.needs_restart() {
            match vsock.restart() {
                Ok(vsock) => return vsock,
                Err(error) => stop(format_args!("{error}")),
            }
        }
    }
}

fn function_names() -> String {
    let all = FUNCTIONS.iter().chain(&EXTRA_FUNCTIONS);
    let names: alloc::vec::Vec<&str> = all.map(|function| function.name).collect();
    names.join(", ")
}

/// Says why the guest cannot go on, and ends the machine.
fn stop(why: core::fmt::Arguments<'_>) -> ! {
    println!("reapvm-guest: {why}");
    supervisor::reset()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("reapvm-guest: {info}; resetting");
    supervisor::reset()
}
