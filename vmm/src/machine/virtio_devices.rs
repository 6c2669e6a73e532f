//! The virtio devices that a configuration asks for.

use reapvm_devices::virtio::VirtioDevice;
use reapvm_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonHandle, release_anonymous};
use reapvm_devices::virtio::block::{Block, BlockConfig};
use reapvm_devices::virtio::net::{Net, NetConfig};
use reapvm_devices::virtio::rng::Rng;
use reapvm_devices::virtio::vsock::{Vsock, VsockConfig, VsockHandle};

use super::device_set::DeviceError;
use crate::config::VmConfig;

/// Devices in the order of their windows, and the ways to reach them from other threads.
pub(super) struct VirtioDevices {
    pub(super) devices: Vec<Box<dyn VirtioDevice>>,
    pub(super) vsock: Option<VsockHandle>,
    pub(super) balloon: Option<BalloonHandle>,
}

/// Makes the devices of `config`. Their number is [`VmConfig::virtio_device_count`], and their
/// order is part of what a snapshot holds: a saved machine's devices are told apart by it.
pub(super) fn make(config: &VmConfig) -> Result<VirtioDevices, DeviceError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for drive in &config.drives {
        devices.push(Box::new(Block::new(&BlockConfig {
            path: drive.path_on_host.clone(),
            read_only: drive.is_read_only,
            rate_limiter: drive.rate_limiter.unwrap_or_default(),
            id: drive.drive_id.clone(),
        })?));
    }
    for interface in &config.network_interfaces {
        devices.push(Box::new(Net::new(NetConfig {
            id: interface.iface_id.clone(),
            tap: interface.host_dev_name.clone(),
            mac: interface.guest_mac,
            rx_rate_limiter: interface.rx_rate_limiter.unwrap_or_default(),
            tx_rate_limiter: interface.tx_rate_limiter.unwrap_or_default(),
        })?));
    }
    let mut vsock_handle = None;
    if let Some(settings) = &config.vsock {
        let vsock = Vsock::new(VsockConfig {
            guest_cid: settings.guest_cid,
            uds_path: settings.uds_path.clone(),
        })?;
        vsock_handle = Some(vsock.handle());
        devices.push(Box::new(vsock));
    }
    let mut balloon_handle = None;
    if let Some(settings) = &config.balloon {
        let config = BalloonConfig {
            amount_mib: settings.amount_mib,
            deflate_on_oom: settings.deflate_on_oom,
            stats_polling_interval_s: settings.stats_polling_interval_s,
        };
        // Also where guest memory is a private mapping of a snapshot's file: the pages go back to
        // the host, and a driver expects no contents of a page that it takes out of the balloon
        // (5.5.6).
        let balloon = Balloon::new(config, Box::new(release_anonymous))?;
        balloon_handle = Some(balloon.handle());
        devices.push(Box::new(balloon));
    }
    if config.entropy.is_some() {
        devices.push(Box::new(Rng::new()));
    }
    Ok(VirtioDevices {
        devices,
        vsock: vsock_handle,
        balloon: balloon_handle,
    })
}
