//! The serial console, for output only.

use crate::supervisor;
use core::fmt::{self, Write};

const DATA_PORT: u16 = 0x3f8;
const BUFFER_BYTES: usize = 256;

/// Collects text so that a line costs one visit to ring 0; sends what it holds when dropped.
///
/// The line's status is not read before each byte: the UART of a VMM takes all it is given, and a
/// read is an exit.
pub(crate) struct Console {
    buffer: [u8; BUFFER_BYTES],
    length: usize,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self {
            buffer: [0; BUFFER_BYTES],
            length: 0,
        }
    }

    fn flush(&mut self) {
        supervisor::write_port_bytes(DATA_PORT, &self.buffer[..self.length]);
        self.length = 0;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length == BUFFER_BYTES {
                self.flush();
            }
            self.buffer[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Prints a line.
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // Writing to the console cannot fail.
        let _ = writeln!($crate::serial::Console::new(), $($argument)*);
    }};
}
pub(crate) use println;
