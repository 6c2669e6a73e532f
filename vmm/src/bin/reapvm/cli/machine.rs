//! The options that describe a machine, and what they make of a [`VmConfig`].

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use reapvm::config::{
    BalloonSettings, ConfigError, DriveOverride, DriveSettings, EntropySettings, NetworkOverride,
    NetworkSettings, Overrides, VmConfig, VsockSettings,
};
use reapvm_devices::rate_limiter::{RateLimiterConfig, TokenBucketConfig};
use reapvm_devices::virtio::net::MacAddress;

/// Which guest a machine runs.
#[derive(Args)]
#[group(id = "guest", required = true, multiple = false)]
pub(crate) struct Guest {
    /// A Linux kernel: bzImage (vmlinuz) or uncompressed x86-64 ELF (vmlinux)
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// A function of the built-in guest: `reapvm image list` names them
    #[arg(long, value_name = "NAME")]
    pub(crate) function: Option<String>,
    /// A whole machine from a JSON file; further options add to it
    ///
    /// It has the vocabulary of Firecracker's configuration file: boot-source, machine-config,
    /// drives, network-interfaces, vsock, balloon, entropy; `function` names a built-in one.
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct MachineOptions {
    #[command(flatten)]
    pub(crate) guest: Guest,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", conflicts_with = "function")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line; devices are announced behind it [default: console=ttyS0]
    #[arg(long, value_name = "TEXT", conflicts_with = "function")]
    pub(crate) cmdline: Option<String>,
    /// Guest memory, such as 256M or 1G [default: 256M, or what the function needs]
    #[arg(long, value_name = "SIZE", value_parser = reapvm::config::parse_memory_mib)]
    pub(crate) mem: Option<u64>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) vcpus: Option<u8>,
    /// Keep which pages the guest writes, so that differential snapshots can be saved
    #[arg(long)]
    pub(crate) track_dirty_pages: bool,
    /// A block device; may be repeated, the guest finds them in this order
    ///
    /// path=FILE[,id=ID][,readonly=on|off][,root=on|off][,bandwidth=BYTES][,iops=N]
    /// FILE is a raw image or a block device. root=on adds root= to the command line.
    /// bandwidth and iops limit the rate, each a second.
    #[arg(long, value_name = "OPTIONS", value_parser = DriveOption::from_str, verbatim_doc_comment)]
    pub(crate) drive: Vec<DriveOption>,
    /// A network device; may be repeated
    ///
    /// tap=NAME[,id=ID][,mac=MAC][,rx_bandwidth=BYTES][,tx_bandwidth=BYTES]
    #[arg(long, value_name = "OPTIONS", value_parser = NetOption::from_str, verbatim_doc_comment)]
    pub(crate) net: Vec<NetOption>,
    /// Unix socket for connections into the guest: send `CONNECT <port>`, read `OK <port>`
    #[arg(long, value_name = "PATH")]
    pub(crate) vsock_uds: Option<PathBuf>,
    /// The guest's vsock context id [default: 3]
    #[arg(long, value_name = "CID")]
    pub(crate) vsock_cid: Option<u32>,
    /// A balloon that asks the guest to give back this much memory, such as 0M or 64M
    #[arg(long, value_name = "SIZE", value_parser = reapvm::config::parse_memory_mib)]
    pub(crate) balloon: Option<u64>,
    /// Give the guest a virtio-rng device
    #[arg(long)]
    pub(crate) rng: bool,
}

impl MachineOptions {
    /// The machine that the options describe.
    pub(crate) fn config(&self) -> Result<VmConfig, ConfigError> {
        let guest = &self.guest;
        let mut config = match (&guest.function, &guest.kernel, &guest.config) {
            (Some(name), _, _) => VmConfig::for_function(name)?,
            (None, Some(path), _) => VmConfig::for_kernel(path.clone()),
            (None, None, Some(path)) => VmConfig::from_file(path)?,
            // The group is required.
            (None, None, None) => VmConfig::default(),
        };
        if self.initrd.is_some() {
            config.boot_source.initrd.clone_from(&self.initrd);
        }
        if let Some(cmdline) = &self.cmdline {
            config.boot_source.cmdline.clone_from(cmdline);
        }
        if let Some(vcpus) = self.vcpus {
            config.machine_config.vcpu_count = vcpus;
        }
        if let Some(mem_size_mib) = self.mem {
            config.machine_config.mem_size_mib = mem_size_mib;
        }
        if self.track_dirty_pages {
            config.machine_config.track_dirty_pages = true;
        }
        for option in &self.drive {
            let id = option.id.clone();
            let id = id.unwrap_or_else(|| format!("drive{}", config.drives.len()));
            config.drives.push(DriveSettings {
                is_root_device: option.root,
                is_read_only: option.readonly,
                rate_limiter: rate_limiter(option.bandwidth, option.iops),
                ..DriveSettings::new(id, option.path.clone())
            });
        }
        for option in &self.net {
            let tap = option.tap.clone().ok_or_else(|| ConfigError::BadId {
                what: "tap",
                id: String::new(),
            })?;
            let id = option.id.clone();
            let id = id.unwrap_or_else(|| format!("eth{}", config.network_interfaces.len()));
            config.network_interfaces.push(NetworkSettings {
                guest_mac: option.mac,
                rx_rate_limiter: rate_limiter(option.rx_bandwidth, None),
                tx_rate_limiter: rate_limiter(option.tx_bandwidth, None),
                ..NetworkSettings::new(id, tap)
            });
        }
        if self.vsock_uds.is_some() || self.vsock_cid.is_some() {
            let vsock = config.vsock.get_or_insert_with(VsockSettings::default);
            if self.vsock_uds.is_some() {
                vsock.uds_path.clone_from(&self.vsock_uds);
            }
            if let Some(guest_cid) = self.vsock_cid {
                vsock.guest_cid = guest_cid;
            }
        }
        if let Some(amount_mib) = self.balloon {
            let balloon = config.balloon.get_or_insert_with(BalloonSettings::default);
            balloon.amount_mib = u32::try_from(amount_mib).unwrap_or(u32::MAX);
        }
        if self.rng {
            config.entropy = Some(EntropySettings::default());
        }
        Ok(config)
    }
}

/// What must differ between clones of one snapshot.
#[derive(Args)]
pub(crate) struct OverrideOptions {
    /// A Unix socket of this machine's own for connections into the guest
    #[arg(long, value_name = "PATH")]
    pub(crate) vsock_uds: Option<PathBuf>,
    /// Another file for a drive of the snapshot: id=ID,path=FILE; may be repeated
    #[arg(long, value_name = "OPTIONS", value_parser = DriveOption::from_str)]
    pub(crate) drive: Vec<DriveOption>,
    /// Another tap for a network device of the snapshot: id=ID,tap=NAME[,mac=MAC]; may be repeated
    #[arg(long, value_name = "OPTIONS", value_parser = NetOption::from_str)]
    pub(crate) net: Vec<NetOption>,
}

impl OverrideOptions {
    pub(crate) fn overrides(&self) -> Result<Overrides, String> {
        let id = |id: &Option<String>, option| {
            id.clone()
                .ok_or_else(|| format!("{option} needs id=ID: which of the snapshot's is meant?"))
        };
        Ok(Overrides {
            vsock_uds_path: self.vsock_uds.clone(),
            drives: self
                .drive
                .iter()
                .map(|option| {
                    Ok(DriveOverride {
                        drive_id: id(&option.id, "--drive")?,
                        path_on_host: option.path.clone(),
                    })
                })
                .collect::<Result<_, String>>()?,
            network_interfaces: self
                .net
                .iter()
                .map(|option| {
                    Ok(NetworkOverride {
                        iface_id: id(&option.id, "--net")?,
                        host_dev_name: option.tap.clone(),
                        guest_mac: option.mac,
                    })
                })
                .collect::<Result<_, String>>()?,
        })
    }

    /// The same options for another process.
    pub(crate) fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        if let Some(path) = &self.vsock_uds {
            arguments.extend(["--vsock-uds".into(), path.into()]);
        }
        for option in &self.drive {
            arguments.extend(["--drive".into(), option.text.clone().into()]);
        }
        for option in &self.net {
            arguments.extend(["--net".into(), option.text.clone().into()]);
        }
        arguments
    }
}

/// A limit of `bandwidth` bytes and `ops` operations a second.
fn rate_limiter(bandwidth: Option<u64>, ops: Option<u64>) -> Option<RateLimiterConfig> {
    let bucket = |size| TokenBucketConfig {
        size,
        one_time_burst: None,
        refill_time_ms: 1000,
    };
    (bandwidth.is_some() || ops.is_some()).then(|| RateLimiterConfig {
        bandwidth: bandwidth.map(bucket),
        ops: ops.map(bucket),
    })
}

/// Splits `key=value,key=value` and hands each pair to `take`, which says whether it knows it.
fn each_pair(
    text: &str,
    known: &str,
    mut take: impl FnMut(&str, &str) -> Result<bool, String>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    for pair in text.split(',') {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.is_empty())
            .ok_or_else(|| format!("'{pair}' is not of the form key=value"))?;
        if seen.contains(&key) {
            return Err(format!("'{key}' is given twice"));
        }
        seen.push(key);
        if !take(key, value)? {
            return Err(format!("unknown option '{key}'; there are: {known}"));
        }
    }
    Ok(())
}

fn on_off(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key} is 'on' or 'off', not '{value}'")),
    }
}

fn rate(key: &str, value: &str) -> Result<Option<u64>, String> {
    match value.parse() {
        Ok(rate) if rate > 0 => Ok(Some(rate)),
        _ => Err(format!("{key} is a whole number a second, not '{value}'")),
    }
}

/// The value of `--drive`.
#[derive(Clone, Debug, Default)]
pub(crate) struct DriveOption {
    text: String,
    path: PathBuf,
    id: Option<String>,
    readonly: bool,
    root: bool,
    bandwidth: Option<u64>,
    iops: Option<u64>,
}

impl FromStr for DriveOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut option = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let known = "path, id, readonly, root, bandwidth, iops";
        each_pair(text, known, |key, value| {
            match key {
                "path" => option.path = value.into(),
                "id" => option.id = Some(value.to_owned()),
                "readonly" => option.readonly = on_off(key, value)?,
                "root" => option.root = on_off(key, value)?,
                "bandwidth" => option.bandwidth = rate(key, value)?,
                "iops" => option.iops = rate(key, value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if option.path.as_os_str().is_empty() {
            return Err("a drive needs path=FILE".to_owned());
        }
        Ok(option)
    }
}

/// The value of `--net`.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetOption {
    text: String,
    tap: Option<String>,
    id: Option<String>,
    mac: Option<MacAddress>,
    rx_bandwidth: Option<u64>,
    tx_bandwidth: Option<u64>,
}

impl FromStr for NetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut option = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let known = "tap, id, mac, rx_bandwidth, tx_bandwidth";
        each_pair(text, known, |key, value| {
            match key {
                "tap" => option.tap = Some(value.to_owned()),
                "id" => option.id = Some(value.to_owned()),
                "mac" => option.mac = Some(value.parse().map_err(|e| format!("{e}"))?),
                "rx_bandwidth" => option.rx_bandwidth = rate(key, value)?,
                "tx_bandwidth" => option.tx_bandwidth = rate(key, value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if option.tap.is_none() && option.id.is_none() {
            return Err("a network device needs tap=NAME".to_owned());
        }
        Ok(option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_are_documented() {
        let drive: DriveOption = "path=a.raw,id=x,readonly=on,root=on,bandwidth=1000,iops=5"
            .parse()
            .unwrap();
        assert_eq!(drive.path, PathBuf::from("a.raw"));
        assert!(drive.readonly && drive.root);
        assert_eq!((drive.bandwidth, drive.iops), (Some(1000), Some(5)));
        let net: NetOption = "tap=tap0,mac=06:00:ac:10:00:02".parse().unwrap();
        assert_eq!(net.tap.as_deref(), Some("tap0"));
        assert!(net.mac.is_some() && net.id.is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, named) in [
            ("", "key=value"),
            ("disk.raw", "disk.raw"),
            ("path=", "path="),
            ("id=a", "path=FILE"),
            ("path=a,path=b", "twice"),
            ("path=a,size=5", "'size'"),
            ("path=a,readonly=yes", "'yes'"),
            ("path=a,iops=0", "'0'"),
            ("path=a,bandwidth=1M", "'1M'"),
        ] {
            let error = text.parse::<DriveOption>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
        for (text, named) in [("mac=06:00:ac:10:00:02", "tap=NAME"), ("tap=t,mac=x", "x")] {
            let error = text.parse::<NetOption>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
