//! A virtio-net device on a tap.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reapvm_guest_init::protocol::{NET_UP_LOG, Request};
use reapvm_guest_init::{http, seeded};

use crate::nested::kernel_log::{self, TxTimeout};
use crate::nested::vm::{Image, Vm};
use crate::nested::{PATIENCE, ping, say, snapshot, tap};

const TAP: &str = "tap0";
const MAC: &str = "06:00:ac:10:00:02";
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const PREFIX_BITS: u8 = 24;
const BROADCAST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 255);
const BROADCAST_PORT: u16 = 9;
/// So few that they are not more than one frame's worth: beyond that, the guest's fq_codel drops what
/// has waited for long.
const DATAGRAMS: u32 = 30;
/// In bytes a second: the datagrams take some seconds, whatever the machine.
const SLOW_BANDWIDTH: u32 = 200;
/// How often the guest's network watchdog looks, and how long a queue has to stand still for it.
const WATCHDOG_PERIOD: Duration = Duration::from_secs(5);
const HOST_PORT: u16 = 8000;
const GUEST_PORT: u16 = 80;
const BODY_BYTES: u64 = 4 << 20;
const HOST_SEED: u64 = 11;
const GUEST_SEED: u64 = 12;

fn body(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BODY_BYTES as usize];
    seeded::fill(seed, 0, &mut bytes);
    bytes
}

/// Options of a network device on the tap.
fn net(more: &str) -> String {
    format!("tap={TAP},id=eth0,mac={MAC}{more}")
}

fn up() -> Request {
    Request::NetUp {
        address: GUEST,
        prefix_bits: PREFIX_BITS,
    }
}

pub(super) fn run() {
    tap::create(TAP, HOST, PREFIX_BITS);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HOST_PORT)).unwrap();
    http::serve(listener, body(HOST_SEED));

    let vm = Vm::boot("6.1", Image::Vmlinux, &["--net", &net("")]);
    vm.ask(&up());
    talk(&vm);
    check_counters(&vm, None);
    drop(vm);
    say("6.1: ping and HTTP both ways");

    let saved = Saved::create("6.12", &net(""));
    for mode in ["ondemand", "copy"] {
        let (vm, _, jump) = saved.restore(mode);
        talk(&vm);
        check_counters(&vm, Some(jump));
        say(&format!(
            "6.12: ping and HTTP both ways after a restore by {mode}"
        ));
    }
}

/// As the device sends slowly, the guest is saved with most of its frames on their way.
pub(super) fn saved_while_it_sends(series: &str) {
    tap::create(TAP, HOST, PREFIX_BITS);
    let saved = Saved::create(series, &net(&format!(",tx_bandwidth={SLOW_BANDWIDTH}")));
    std::thread::sleep(WATCHDOG_PERIOD);
    for mode in ["ondemand", "copy"] {
        let (vm, behind, jump) = saved.restore(mode);
        assert!(behind > 0, "none was on its way");
        check_counters(&vm, Some(jump));
    }
}

/// A snapshot of a guest that was sending datagrams to everybody on its network.
struct Saved {
    snapshot: PathBuf,
    at: Instant,
    socket: UdpSocket,
    /// The datagrams that were sent before the restore: by the guest up to the snapshot, and by its
    /// device until the machine that was saved was given up.
    before: BTreeSet<u32>,
}

impl Saved {
    fn create(series: &str, net: &str) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, BROADCAST_PORT)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let send = Request::NetBroadcast {
            to: SocketAddrV4::new(BROADCAST, BROADCAST_PORT),
            datagrams: DATAGRAMS,
        };
        let warm_up = Request::Sequence {
            requests: vec![up(), send],
        };
        let snapshot = snapshot::create(series, &["--net", net, "--vcpus", "2"], &warm_up);
        Self {
            snapshot,
            at: Instant::now(),
            before: received(&socket),
            socket,
        }
    }

    /// Restores it and waits until the rest is sent, each once. Returns the machine, how many it
    /// sent, and how far its clock has jumped at least.
    fn restore(&self, mode: &str) -> (Vm, usize, Duration) {
        let jump = self.at.elapsed();
        let vm = Vm::restore(&self.snapshot, mode, &[]);
        let deadline = Instant::now() + PATIENCE;
        let mut behind = BTreeSet::new();
        while self.before.union(&behind).count() < DATAGRAMS as usize && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            for number in received(&self.socket) {
                assert!(behind.insert(number), "datagram {number} has come twice");
            }
        }
        wait_for_sent_frames(&vm);
        assert_eq!(received(&self.socket), BTreeSet::new(), "{behind:?}");
        say(&format!(
            "{mode}: {} of {DATAGRAMS} frames were sent before the restore, {} behind it",
            self.before.len(),
            behind.len()
        ));
        // None is lost, and behind the first that the restored guest sends it sends all.
        let first = behind.first().copied().unwrap_or(DATAGRAMS);
        assert_eq!(behind, (first..DATAGRAMS).collect());
        assert!((0..first).all(|number| self.before.contains(&number)));
        (vm, behind.len(), jump)
    }
}

/// The numbers of the datagrams that have come.
fn received(socket: &UdpSocket) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    let mut number = [0; 4];
    while let Ok((length, from)) = socket.recv_from(&mut number) {
        assert_eq!((length, from.ip()), (number.len(), GUEST.into()));
        let number = u32::from_be_bytes(number);
        assert!(numbers.insert(number), "datagram {number} has come twice");
    }
    numbers
}

/// The driver hears of what was sent, without any other traffic that would have it look at its queue.
fn wait_for_sent_frames(vm: &Vm) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let info = vm.ask(&Request::NetInfo {});
        if info["tx_in_flight_bytes"] == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the guest does not get its frames back: {info}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
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
}

/// The guest counts no errors, apart from one that is known for what it is. A restored guest's
/// clock jumps ahead, by at least `jump`, and the kernel's watchdog takes a frame that was on its
/// way at the snapshot for one that nobody has sent for all that time. It says so in the log, once,
/// and virtio_net counts it as an error.
fn check_counters(vm: &Vm, jump: Option<Duration>) {
    let info = vm.ask(&Request::NetInfo {});
    let log = vm.ask(&Request::Dmesg {});
    let log = log.as_str().unwrap();
    assert_eq!(info["rx_errors"], 0, "{info}\n{log}");
    let timeouts = kernel_log::tx_timeouts(log);
    assert_eq!(info["tx_errors"], timeouts.len(), "{info}\n{log}");
    if let Some(jump) = jump {
        let up = kernel_log::time_of(log, NET_UP_LOG).unwrap();
        // The snapshot was made after that, and restored no earlier than this:
        let resumed = up + jump;
        let spans_the_jump =
            |timeout: &TxTimeout| timeout.handed_over < resumed && timeout.said > resumed;
        assert!(
            timeouts.len() <= 1 && timeouts.iter().all(spans_the_jump),
            "up at {up:?}, restored after {resumed:?}: {timeouts:#?}\n{log}"
        );
        for timeout in &timeouts {
            say(&format!(
                "the guest's watchdog met the jump of the clock by {jump:?}: {timeout:?}"
            ));
        }
    } else {
        assert!(timeouts.is_empty(), "{timeouts:#?}\n{log}");
    }
    vm.check_kernel_log();
}
