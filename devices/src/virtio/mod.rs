//! Virtio devices and their transport (Virtual I/O Device version 1.2; chapter numbers in this
//! module are that document's).

pub mod balloon;
pub mod block;
pub mod device;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod vsock;

pub use balloon::{
    Balloon, BalloonConfig, BalloonError, BalloonHandle, BalloonStats, GuestMemoryStats,
    PageRelease, release_anonymous,
};
pub use block::{Block, BlockConfig, BlockError, DiskFile};
pub use device::{
    ActivateError, DeviceError, DeviceIo, DeviceUpdate, Progress, RestoreDeviceError,
    SaveDeviceError, UpdateDeviceError, VirtioDevice, VirtioDeviceState,
};
pub use mmio::{
    MMIO_DEVICE_SIZE_BYTES, MmioTransport, MmioTransportState, NOTIFY_OFFSET, TransportError,
};
pub use net::{MacAddress, MacAddressError, Net, NetConfig, NetError};
pub use queue::{QueueError, Virtqueue};
pub use rng::Rng;
pub use vsock::{Vsock, VsockConfig, VsockConnectError, VsockError, VsockHandle};
