//! Every restore mode gives the answer of the machine that was never interrupted.

use reapvm_guest_init::protocol::Request;
use reapvm_guest_init::seeded;

use crate::nested::{say, snapshot};

const PAGES: u64 = 1024;
const SEED: u64 = 7;

pub(super) fn run(series: &str, vcpus: u8) {
    let request = Request::MemoryDigest {
        pages: PAGES,
        seed: SEED,
    };
    let more = ["--vcpus", &vcpus.to_string(), "--rng"];
    let snapshot = snapshot::create(series, &more, &request);
    let mut bytes = vec![0; (PAGES * 4096) as usize];
    seeded::fill(SEED, 0, &mut bytes);
    let expected = seeded::sha256_hex(&bytes);

    let mut uffd_faults = std::collections::BTreeMap::new();
    for mode in snapshot::MODES {
        let report = snapshot::invoke(&snapshot, mode, &request);
        let result = &report["response"]["result"];
        assert_eq!(result["sha256"], expected, "{mode}: {report}");
        // Else it was made anew, and nothing of it came out of the snapshot.
        assert_eq!(result["was_kept"], true, "{mode}: {report}");
        let faults = report["faults"]["uffd"].as_u64().unwrap();
        uffd_faults.insert(mode, faults);
        say(&format!(
            "{mode}: {faults} uffd faults, {}",
            report["faults"]
        ));
    }
    assert!(uffd_faults["ondemand"] > PAGES, "{uffd_faults:?}");
    assert!(
        uffd_faults["prefetch"] * 20 <= uffd_faults["ondemand"],
        "less than 95 % of the faults were spared: {uffd_faults:?}"
    );
}
