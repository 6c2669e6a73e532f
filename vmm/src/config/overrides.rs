//! What must differ between two machines that are restored from one snapshot.

use std::path::PathBuf;

use reapvm_devices::virtio::net::MacAddress;

use super::{ConfigError, VmConfig};

/// Another file for a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveOverride {
    /// The drive's id in the snapshot.
    pub drive_id: String,
    /// A file of the same size and contents.
    pub path_on_host: PathBuf,
}

/// Another tap for a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOverride {
    /// The device's id in the snapshot.
    pub iface_id: String,
    /// Another tap device of the host.
    pub host_dev_name: Option<String>,
    /// Another MAC address. A running guest reads it only when its driver starts anew.
    pub guest_mac: Option<MacAddress>,
}

/// What a restored machine has other than the one that was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// A path for this instance's vsock socket; none: only
    /// [`Machine::connect`](crate::machine::Machine::connect). The saved machine's is never taken
    /// over: it is that machine's.
    pub vsock_uds_path: Option<PathBuf>,
    /// Other files.
    pub drives: Vec<DriveOverride>,
    /// Other taps.
    pub network_interfaces: Vec<NetworkOverride>,
}

impl Overrides {
    /// Changes the saved machine's `config`.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchDevice`] or [`ConfigError::NoVsock`].
    pub fn apply(&self, config: &mut VmConfig) -> Result<(), ConfigError> {
        match (&mut config.vsock, &self.vsock_uds_path) {
            (Some(vsock), path) => vsock.uds_path.clone_from(path),
            (None, Some(_)) => return Err(ConfigError::NoVsock),
            (None, None) => {}
        }
        for wanted in &self.drives {
            let known = config.drives.iter().map(|drive| drive.drive_id.as_str());
            let missing = no_such_device("drive", &wanted.drive_id, known);
            let drive = config
                .drives
                .iter_mut()
                .find(|drive| drive.drive_id == wanted.drive_id)
                .ok_or(missing)?;
            drive.path_on_host.clone_from(&wanted.path_on_host);
        }
        for wanted in &self.network_interfaces {
            let nets = &mut config.network_interfaces;
            let known = nets.iter().map(|net| net.iface_id.as_str());
            let missing = no_such_device("network interface", &wanted.iface_id, known);
            let net = nets
                .iter_mut()
                .find(|net| net.iface_id == wanted.iface_id)
                .ok_or(missing)?;
            if let Some(name) = &wanted.host_dev_name {
                net.host_dev_name.clone_from(name);
            }
            if wanted.guest_mac.is_some() {
                net.guest_mac = wanted.guest_mac;
            }
        }
        Ok(())
    }
}

/// The error for an id that no device of a machine has; `known` are those that there are.
pub(crate) fn no_such_device<'a>(
    what: &'static str,
    id: &str,
    known: impl Iterator<Item = &'a str>,
) -> ConfigError {
    let known: Vec<_> = known.collect();
    ConfigError::NoSuchDevice {
        what,
        id: id.to_owned(),
        known: if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DriveSettings, NetworkSettings, VsockSettings};

    fn saved() -> VmConfig {
        let mut config = VmConfig::for_kernel("vmlinux".into());
        config.drives = vec![DriveSettings::new("root".into(), "a".into())];
        config.network_interfaces = vec![NetworkSettings::new("eth0".into(), "tap0".into())];
        config.vsock = Some(VsockSettings {
            guest_cid: 7,
            uds_path: Some("saved.sock".into()),
        });
        config
    }

    #[test]
    fn what_is_named_is_changed_and_the_rest_stays() {
        let mut config = saved();
        Overrides {
            vsock_uds_path: Some("clone.sock".into()),
            drives: vec![DriveOverride {
                drive_id: "root".into(),
                path_on_host: "b".into(),
            }],
            network_interfaces: vec![NetworkOverride {
                iface_id: "eth0".into(),
                host_dev_name: Some("tap9".into()),
                guest_mac: None,
            }],
        }
        .apply(&mut config)
        .unwrap();
        let mut expected = saved();
        expected.drives[0].path_on_host = "b".into();
        expected.network_interfaces[0].host_dev_name = "tap9".into();
        expected.vsock.as_mut().unwrap().uds_path = Some("clone.sock".into());
        assert_eq!(config, expected);
    }

    #[test]
    fn the_saved_machines_socket_is_not_taken_over() {
        let mut config = saved();
        Overrides::default().apply(&mut config).unwrap();
        assert_eq!(config.vsock.unwrap().uds_path, None);
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_those_that_are() {
        let mut overrides = Overrides {
            drives: vec![DriveOverride {
                drive_id: "data".into(),
                path_on_host: "b".into(),
            }],
            ..Overrides::default()
        };
        let error = overrides.apply(&mut saved()).unwrap_err().to_string();
        assert!(error.contains("data") && error.contains("root"), "{error}");
        overrides.drives.clear();
        overrides.vsock_uds_path = Some("x".into());
        let mut config = saved();
        config.vsock = None;
        assert_eq!(overrides.apply(&mut config), Err(ConfigError::NoVsock));
    }
}
