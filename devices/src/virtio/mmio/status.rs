//! The device status field (2.1): which steps of the driver's initialisation (3.1.1) may follow
//! which.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

const ALL: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FAILED | FEATURES_OK | NEEDS_RESET;

/// The status after the driver wrote `written`, which is not 0: bits only ever get set, each only
/// after the ones before it. A driver may set several with one write.
pub(super) fn after_write(status: u32, written: u32, features_accepted: bool) -> u32 {
    let mut status = status;
    // A driver that clears a bit without a reset broke the protocol: nothing of its write counts.
    if status & !NEEDS_RESET & !written != 0 {
        return status;
    }
    let steps = [
        (ACKNOWLEDGE, 0, true),
        (DRIVER, ACKNOWLEDGE, true),
        // Left clear, this is how the device refuses the features: the driver reads it back.
        (FEATURES_OK, DRIVER, features_accepted),
        (DRIVER_OK, FEATURES_OK, true),
        (FAILED, 0, true),
    ];
    for (bit, needs, allowed) in steps {
        if written & bit != 0 && status & needs == needs && allowed {
            status |= bit;
        }
    }
    status
}

/// Whether the driver is up and the device is not broken.
pub(super) fn is_working(status: u32) -> bool {
    status & DRIVER_OK != 0 && status & (NEEDS_RESET | FAILED) == 0
}

/// Whether features with these acknowledged bits can be accepted, as far as the transport goes.
pub(super) fn has_version_1(acked_features: u64) -> bool {
    acked_features & (1 << VIRTIO_F_VERSION_1) != 0
}

/// Whether a device can come to this status with these features.
pub(super) fn is_consistent(status: u32, acked_features: u64, acked_beyond: bool) -> bool {
    let follows = |bit: u32, needs: u32| status & bit == 0 || status & needs != 0;
    status & !ALL == 0
        && follows(DRIVER, ACKNOWLEDGE)
        && follows(FEATURES_OK, DRIVER)
        && follows(DRIVER_OK, FEATURES_OK)
        && follows(NEEDS_RESET, DRIVER_OK)
        && (status & FEATURES_OK == 0 || (has_version_1(acked_features) && !acked_beyond))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_driver_may_go_step_by_step_or_several_at_once() {
        let mut status = 0;
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            status = after_write(status, status | bit, true);
            assert_ne!(status & bit, 0);
        }
        assert!(is_working(status));
        assert_eq!(after_write(0, 0xf, true), 0xf);
    }

    #[test]
    fn refused_features_stop_the_initialisation() {
        let status = after_write(0, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, false);
        assert_eq!(status, ACKNOWLEDGE | DRIVER);
    }

    #[test]
    fn steps_cannot_be_skipped_or_taken_back() {
        assert_eq!(after_write(0, DRIVER_OK, true), 0);
        assert_eq!(after_write(ACKNOWLEDGE, DRIVER_OK, true), ACKNOWLEDGE);
        assert_eq!(after_write(0xf, ACKNOWLEDGE, true), 0xf);
        assert_eq!(after_write(0xf | NEEDS_RESET, 0xf, true), 0xf | NEEDS_RESET);
    }

    proptest! {
        #[test]
        fn every_reachable_status_is_consistent(writes in prop::collection::vec(1u32.., 0..8)) {
            let mut status = 0;
            for written in writes {
                status = after_write(status, written, true);
                prop_assert!(is_consistent(status, 1 << VIRTIO_F_VERSION_1, false));
            }
        }
    }
}
