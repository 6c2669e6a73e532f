//! Changing the devices of a machine that is paused or runs.
//!
//! The machine's configuration follows what was changed, so that a snapshot describes the machine
//! as it is.

use reapvm_devices::rate_limiter::RateLimiterConfig;
use reapvm_devices::virtio::balloon::BalloonError;
use reapvm_devices::virtio::block::{BlockError, DiskFile};
use reapvm_devices::virtio::{DeviceUpdate, UpdateDeviceError};
use thiserror::Error;

use super::{Lifecycle, Machine, MachineError};
use crate::config::{
    BalloonStatsUpdate, BalloonUpdate, ConfigError, DriveUpdate, NetworkUpdate, no_such_device,
};

/// Why a device is not changed. Machine and device go on as they were.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// The guest has ended.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// There is no such device, or it cannot be so.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine has no balloon.
    #[error("the machine has no balloon")]
    NoBalloon,
    /// The file cannot be a disk.
    #[error("cannot change the file of drive '{id}'")]
    File {
        /// The drive.
        id: String,
        /// What is wrong with the file.
        #[source]
        source: BlockError,
    },
    /// The device refuses.
    #[error("cannot change the {what} '{id}'")]
    Device {
        /// The kind of device.
        what: &'static str,
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: UpdateDeviceError,
    },
    /// The balloon's statistics stay as they are.
    #[error("cannot change the statistics of the balloon")]
    Statistics(#[source] UpdateDeviceError),
    /// The guest cannot be told of the balloon's target.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
}

/// The limits of a device after a change; none if nothing is limited.
fn changed(now: Option<RateLimiterConfig>, by: &RateLimiterConfig) -> Option<RateLimiterConfig> {
    let limits = now.unwrap_or_default().changed_by(by);
    (limits != RateLimiterConfig::default()).then_some(limits)
}

impl Machine {
    fn require_alive(&self, action: &'static str) -> Result<(), MachineError> {
        match self.state() {
            Lifecycle::Paused | Lifecycle::Running => Ok(()),
            state @ Lifecycle::Ended => Err(MachineError::Transition { action, state }),
        }
    }

    /// Changes the file or the limits of a drive, both or nothing. Another file is opened, checked
    /// and locked before the one there is is let go; requests that were begun end with the old
    /// one. The guest is told that the disk's configuration has changed, and reads its capacity.
    ///
    /// # Errors
    /// The guest has ended, there is no such drive, the file cannot be opened as the drive is
    /// attached or cannot be a disk, or the limits are not usable.
    pub fn update_drive(&mut self, update: &DriveUpdate) -> Result<(), UpdateError> {
        self.require_alive("change a drive of")?;
        let id = &update.drive_id;
        let drives = &mut self.config.drives;
        let Some(index) = drives.iter().position(|drive| drive.drive_id == *id) else {
            let known = drives.iter().map(|drive| drive.drive_id.as_str());
            return Err(no_such_device("drive", id, known).into());
        };
        let drive = &mut drives[index];
        // Here and not under the device's lock: the host may take its time.
        let file = update
            .path_on_host
            .as_ref()
            .map(|path| DiskFile::open(path, drive.is_read_only))
            .transpose()
            .map_err(|source| UpdateError::File {
                id: id.clone(),
                source,
            })?;
        let rate_limiter = update.rate_limiter.unwrap_or_default();
        let change = DeviceUpdate::Block { file, rate_limiter };
        self.devices
            .update(index, change)
            .map_err(|source| UpdateError::Device {
                what: "drive",
                id: id.clone(),
                source,
            })?;
        if let Some(path) = &update.path_on_host {
            drive.path_on_host.clone_from(path);
        }
        drive.rate_limiter = changed(drive.rate_limiter, &rate_limiter);
        Ok(())
    }

    /// Changes the limits of a network device.
    ///
    /// # Errors
    /// The guest has ended, there is no such device, or the limits are not usable.
    pub fn update_network_interface(&mut self, update: &NetworkUpdate) -> Result<(), UpdateError> {
        self.require_alive("change a network interface of")?;
        let id = &update.iface_id;
        let drives = self.config.drives.len();
        let nets = &mut self.config.network_interfaces;
        let Some(index) = nets.iter().position(|net| net.iface_id == *id) else {
            let known = nets.iter().map(|net| net.iface_id.as_str());
            return Err(no_such_device("network interface", id, known).into());
        };
        let rx_rate_limiter = update.rx_rate_limiter.unwrap_or_default();
        let tx_rate_limiter = update.tx_rate_limiter.unwrap_or_default();
        let change = DeviceUpdate::Net {
            rx_rate_limiter,
            tx_rate_limiter,
        };
        self.devices
            .update(drives + index, change)
            .map_err(|source| UpdateError::Device {
                what: "network interface",
                id: id.clone(),
                source,
            })?;
        let net = &mut nets[index];
        net.rx_rate_limiter = changed(net.rx_rate_limiter, &rx_rate_limiter);
        net.tx_rate_limiter = changed(net.tx_rate_limiter, &tx_rate_limiter);
        Ok(())
    }

    /// Asks the guest to give up another amount of memory by its balloon.
    ///
    /// # Errors
    /// The guest has ended, there is no balloon, or it does not fit into guest memory.
    pub fn update_balloon(&mut self, update: BalloonUpdate) -> Result<(), UpdateError> {
        self.require_alive("change the balloon of")?;
        let (Some(handle), Some(balloon)) = (self.balloon(), &mut self.config.balloon) else {
            return Err(UpdateError::NoBalloon);
        };
        let BalloonUpdate { amount_mib } = update;
        let mem_size_mib = self.config.machine_config.mem_size_mib;
        if u64::from(amount_mib) > mem_size_mib {
            return Err(ConfigError::BalloonTooLarge {
                amount_mib,
                mem_size_mib,
            }
            .into());
        }
        handle.set_target_mib(amount_mib)?;
        balloon.amount_mib = amount_mib;
        Ok(())
    }

    /// Changes how often the guest reports statistics of its memory.
    ///
    /// # Errors
    /// The guest has ended, there is no balloon, or statistics would be turned on or off, which
    /// is settled when the guest boots.
    pub fn update_balloon_stats(&mut self, update: BalloonStatsUpdate) -> Result<(), UpdateError> {
        self.require_alive("change the balloon of")?;
        let index = self.config.balloon_index();
        let (Some(index), Some(balloon)) = (index, &mut self.config.balloon) else {
            return Err(UpdateError::NoBalloon);
        };
        let BalloonStatsUpdate {
            stats_polling_interval_s,
        } = update;
        let change = DeviceUpdate::Balloon {
            stats_polling_interval_s,
        };
        self.devices
            .update(index, change)
            .map_err(UpdateError::Statistics)?;
        balloon.stats_polling_interval_s = stats_polling_interval_s;
        Ok(())
    }
}
