//! Pages that KVM enters in the guest's page tables before the guest runs (KVM_PRE_FAULT_MEMORY).

use std::path::Path;

use reapvm_guest_init::seeded;
use serde_json::{Value, json};

use super::tracepoints;
use crate::nested::denial::deny_ioctl;
use crate::nested::vm::scratch;
use crate::nested::{PATIENCE, reapvm, say, snapshot};

/// `linux/kvm.h`: `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`, of 64 bytes.
const KVM_PRE_FAULT_MEMORY: u32 = 3 << 30 | 64 << 16 | 0xae << 8 | 0xd5;
/// What is said of its failure.
const CALL: &str = "KVM_PRE_FAULT_MEMORY failed";
/// How prefetch installs: all of it before the guest runs, so that all of it can be entered.
const ALL_FIRST: [&str; 2] = ["--install", "streamed"];
/// As it does by default with several processors: the guest runs when enough is there.
const OVERLAPPED: [&str; 3] = ["--install", "overlapped", "--pre-fault"];

pub(super) fn run(series: &str) {
    tracepoints::mount();
    let request = tracepoints::request();
    let snapshot = snapshot::create(series, &["--vcpus", "2"], &request);
    snapshot::invoke(&snapshot, "record", &request);

    let plain = prefetch(&snapshot, &ALL_FIRST);
    assert_eq!(plain["pre_fault_ms"], Value::Null, "{plain}");
    let entered = prefetch(&snapshot, &[&ALL_FIRST[..], &["--pre-fault"]].concat());
    check_entered(&entered, number(&entered["faults"]["prefetched_pages"]));
    let overlapped = prefetch(&snapshot, &OVERLAPPED);
    check_entered(&overlapped, number(&overlapped["install_ms"]["lead_pages"]));

    fewer_faults(&snapshot);
    failures_lose_nothing(&snapshot);
    served(&snapshot);
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

/// What the guest has to answer.
fn check_response(response: &Value) {
    let reapvm_guest_init::protocol::Request::MemoryDigest { pages, seed } = tracepoints::request()
    else {
        panic!("another request");
    };
    let mut bytes = vec![0; pages as usize * 4096];
    seeded::fill(seed, 0, &mut bytes);
    assert_eq!(
        response["result"]["sha256"],
        seeded::sha256_hex(&bytes),
        "{response}"
    );
    assert_eq!(response["result"]["was_kept"], true, "{response}");
}

fn prefetch(snapshot: &Path, more: &[&str]) -> Value {
    let mut command = snapshot::invocation(snapshot, "prefetch", &tracepoints::request());
    let report = reapvm::finish(command.args(more)).json();
    assert_eq!(report["mode"], "prefetch", "{report}");
    check_response(&report["response"]);
    report
}

fn check_entered(report: &Value, least: u64) {
    let pages = number(&report["pre_fault_ms"]["pages"]);
    say(&format!("{pages} pages entered, {}", report["faults"]));
    assert!(pages > 0 && pages >= least, "{report}");
}

/// The guest leaves for a page that is in place, unless KVM has entered it.
fn fewer_faults(snapshot: &Path) {
    let faults = |more: &[&str]| {
        let more = [&ALL_FIRST[..], more].concat();
        let records = tracepoints::record(snapshot, "prefetch", "tracepoints", &more);
        (records.len(), tracepoints::pages(&records).len())
    };
    let (plain, entered) = (faults(&[]), faults(&["--pre-fault"]));
    say(&format!(
        "nested page faults and pages: {plain:?} without, {entered:?} with pages entered ahead"
    ));
    assert!(
        entered.0 * 4 <= plain.0,
        "three quarters of the faults were not spared: {entered:?} of {plain:?}"
    );
}

/// A failure of the call ends the start with its reason, and everything else is as it was.
fn failures_lose_nothing(snapshot: &Path) {
    let set = std::fs::read(snapshot.join("working-set")).unwrap();
    for errno in [libc::ENOMEM, libc::EOPNOTSUPP] {
        for install in ["streamed", "overlapped"] {
            let mut command = snapshot::invocation(snapshot, "prefetch", &tracepoints::request());
            command.args(["--install", install, "--pre-fault"]);
            deny_ioctl(&mut command, KVM_PRE_FAULT_MEMORY, errno);
            let ended = reapvm::finish(&mut command);
            assert_eq!(ended.code, Some(1), "{ended:#?}");
            let reason = std::io::Error::from_raw_os_error(errno).to_string();
            let reason = reason.split(" (").next().unwrap();
            assert!(
                ended.stderr.contains(CALL) && ended.stderr.contains(reason),
                "{ended:#?}"
            );
            assert_eq!(ended.stdout, "", "{ended:#?}");
        }
    }
    assert_eq!(std::fs::read(snapshot.join("working-set")).unwrap(), set);
    reapvm::run(["snapshot".as_ref(), "verify".as_ref(), snapshot.as_os_str()]).success();
    prefetch(snapshot, &ALL_FIRST);
    say("a call that fails ends its start, and no other");
}

/// A server with the option, first with a call that works and then with one that fails.
fn served(snapshot: &Path) {
    for denied in [None, Some(libc::ENOMEM)] {
        let socket = scratch("serve");
        let mut command = reapvm::command();
        command
            .args(["serve", "--pre-fault", "--socket"])
            .arg(&socket);
        command
            .args(ALL_FIRST)
            .arg(format!("f={}", snapshot.display()));
        if let Some(errno) = denied {
            deny_ioctl(&mut command, KVM_PRE_FAULT_MEMORY, errno);
        }
        let mut server = command.spawn().unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(std::time::Instant::now() < deadline, "it does not listen");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let ask = |more: &[&str]| {
            let mut client = reapvm::command();
            client.args(["request", "--socket"]).arg(&socket).args(more);
            reapvm::finish(&mut client)
        };
        let input = json!(tracepoints::request()).to_string();
        let timeout = PATIENCE.as_secs().to_string();
        let invoke = [
            "invoke",
            "f",
            "--json",
            "--input",
            &input,
            "--timeout",
            &timeout,
        ];
        let ended = ask(&invoke);
        match denied {
            None => {
                let answer = ended.json();
                check_response(&answer["report"]["response"]);
                let report = &answer["report"];
                check_entered(report, number(&report["faults"]["prefetched_pages"]));
            }
            Some(_) => {
                assert_eq!(ended.code, Some(1), "{ended:#?}");
                assert!(ended.stderr.contains(CALL), "{ended:#?}");
                // A mode that installs nothing has nothing to enter.
                let answer = ask(&[&invoke[..], &["--memory", "ondemand"]].concat()).json();
                check_response(&answer["report"]["response"]);
            }
        }
        ask(&["shutdown"]).success();
        assert!(server.wait().unwrap().success());
    }
    say("a server enters pages ahead, and outlives a call that fails");
}
