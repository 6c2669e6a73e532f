//! A virtio-net device on a tap.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use reapvm_guest_init::protocol::Request;
use reapvm_guest_init::{http, seeded};

use crate::nested::vm::{Image, Vm};
use crate::nested::{ping, say, snapshot, tap};

const TAP: &str = "tap0";
const MAC: &str = "06:00:ac:10:00:02";
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const PREFIX_BITS: u8 = 24;
const HOST_PORT: u16 = 8000;
const GUEST_PORT: u16 = 80;
const BODY_BYTES: u64 = 4 << 20;
const HOST_SEED: u64 = 11;
const GUEST_SEED: u64 = 12;

pub(super) fn run() {
    tap::create(TAP, HOST, PREFIX_BITS);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HOST_PORT)).unwrap();
    http::serve(listener, body(HOST_SEED));
    let option = format!("tap={TAP},id=eth0,mac={MAC}");
    let up = Request::NetUp {
        address: GUEST,
        prefix_bits: PREFIX_BITS,
    };

    let vm = Vm::boot("6.1", Image::Vmlinux, &["--net", &option]);
    vm.ask(&up);
    talk(&vm);
    drop(vm);
    say("6.1: ping and HTTP both ways");

    let snapshot = snapshot::create("6.12", &["--net", &option, "--vcpus", "2"], &up);
    for mode in ["ondemand", "copy"] {
        let vm = Vm::restore(&snapshot, mode, &[]);
        talk(&vm);
        say(&format!(
            "6.12: ping and HTTP both ways after a restore by {mode}"
        ));
    }
}

fn body(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BODY_BYTES as usize];
    seeded::fill(seed, 0, &mut bytes);
    bytes
}

/// Ping and an HTTP transfer in each direction.
fn talk(vm: &Vm) {
    // The guest answers before it is pinged: its interface is up by then.
    let info = vm.ask(&Request::NetInfo {});
    assert_eq!(info["mac"], MAC, "{info}");
    ping::ping(GUEST, 10);

    let fetched = vm.ask(&Request::HttpGet {
        server: SocketAddrV4::new(HOST, HOST_PORT),
        path: "/".to_owned(),
    });
    assert_eq!(fetched["bytes"], BODY_BYTES, "{fetched}");
    assert_eq!(fetched["sha256"], seeded::sha256_hex(&body(HOST_SEED)));

    vm.ask(&Request::HttpServe {
        port: GUEST_PORT,
        bytes: BODY_BYTES,
        seed: GUEST_SEED,
    });
    let response = http::get(SocketAddrV4::new(GUEST, GUEST_PORT), "/").unwrap();
    assert_eq!(response.status, "HTTP/1.0 200 OK");
    assert!(
        response.body == body(GUEST_SEED),
        "the guest's file is not whole"
    );

    let info = vm.ask(&Request::NetInfo {});
    for errors in ["rx_errors", "tx_errors"] {
        assert_eq!(info[errors], 0, "{info}");
    }
    vm.check_kernel_log();
}
