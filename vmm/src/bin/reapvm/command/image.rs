//! `reapvm image`.

use std::process::ExitCode;

use reapvm_guest_images::{EXTRA_FUNCTIONS, FUNCTIONS};

use super::CommandResult;
use crate::cli::ImageCommand;

pub(super) fn run(command: ImageCommand) -> CommandResult {
    match command {
        ImageCommand::Export(arguments) => {
            let image = reapvm_guest_images::image();
            reapvm_snapshot::files::replace_file(&arguments.output, |file| {
                std::io::Write::write_all(file, image)
            })?;
            println!("{}: {} bytes", arguments.output.display(), image.len());
        }
        ImageCommand::List => {
            for function in FUNCTIONS.iter().chain(&EXTRA_FUNCTIONS) {
                println!(
                    "{:<17} {:>4} MiB  {}",
                    function.name, function.mem_mib, function.description
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
