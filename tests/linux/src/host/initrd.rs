//! Initial RAM disks: an archive in the kernel's `newc` format of cpio
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use super::modules::Module;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An initial RAM disk with the program `init` and, in `/modules`, `modules` in their order.
pub fn build(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["dev", "modules"] {
        archive.add(folder, FOLDER, (0, 0), &[]);
    }
    // What the kernel opens for the first program's output, before /dev is mounted.
    archive.add("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    archive.add("init", PROGRAM, (0, 0), init);
    for (index, module) in modules.iter().enumerate() {
        let name = format!("modules/{index:03}-{}.ko", module.name);
        archive.add(&name, FILE, (0, 0), &module.bytes);
    }
    archive.add("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            contents.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Names and contents of an archive, read by the format's own lengths.
    fn read(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(bytes[110..109 + name_size].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            files.push((name.clone(), bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return files;
            }
        }
    }

    #[test]
    fn files_are_found_again_and_modules_keep_their_order() {
        let module = |name: &str, bytes: &[u8]| Module {
            name: name.into(),
            bytes: bytes.into(),
        };
        let modules = [module("z", b"first"), module("a", b"second!!")];
        let files = read(&build(b"program", &modules));
        let find = |name: &str| &files.iter().find(|file| file.0 == name).unwrap().1;
        assert_eq!(find("init"), b"program");
        assert_eq!(find("modules/000-z.ko"), b"first");
        assert_eq!(find("modules/001-a.ko"), b"second!!");
    }
}
