//! Runs reapvm with stock Linux guests in nested hosts and reports job by job.

use std::collections::VecDeque;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use reapvm_nested::host::disk::{self, Programs};
use reapvm_nested::host::kernels;
use reapvm_nested::host::qemu::{NestedHost, Outcome, QemuError};
use reapvm_nested::nested::jobs::{JOBS, Job};

/// The kernel of the nested host.
const NESTED_HOST_KERNEL: &str = "6.12";
/// How much of a failed job's console is shown.
const LINES_SHOWN: usize = 80;

/// Run reapvm with stock Linux guests in nested hosts that QEMU emulates
#[derive(Parser)]
struct Arguments {
    /// The jobs to run, by name or the start of names [default: all]
    jobs: Vec<String>,
    /// Name the jobs and end
    #[arg(long)]
    list: bool,
    /// Jobs that run at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
    /// The static reapvm program
    #[arg(long, value_name = "FILE", default_value = "bin/reapvm")]
    reapvm: PathBuf,
    /// The folder that fetch-kernels has filled [default: ~/.cache/reapvm/linux]
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// The folder that build-images has filled [default: images in the folder of the kernels]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Where disks are made and logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/nested")]
    folder: PathBuf,
}

/// How a job ended, after at most two runs.
struct Report {
    job: &'static Job,
    result: Result<Outcome, QemuError>,
    runs: u32,
    took: Duration,
}

impl Report {
    fn passed(&self) -> bool {
        matches!(self.result, Ok(Outcome::Passed))
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let jobs = selected(&arguments.jobs)?;
    if arguments.list {
        for job in jobs {
            println!("{:<24}{}", job.name, job.about);
        }
        return Ok(true);
    }
    let host = prepare(arguments)?;
    let (jobs, not_run): (Vec<_>, Vec<_>) = jobs
        .into_iter()
        .partition(|job| host.rootfs.is_some() || !job.needs_rootfs);
    if !not_run.is_empty() && !arguments.jobs.is_empty() {
        return Err("there is no root file system for these jobs: make linux-images".into());
    }
    let queue: Mutex<VecDeque<&'static Job>> = Mutex::new(jobs.into());
    let reports = Mutex::new(Vec::new());
    let parallel = usize::from(arguments.parallel);
    thread::scope(|scope| {
        for _ in 0..parallel {
            scope.spawn(|| {
                loop {
                    let job = queue
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop_front();
                    let Some(job) = job else { return };
                    let report = run_job(&host, job);
                    say_end(&host, &report);
                    reports
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed: Vec<&str> = reports
        .iter()
        .filter(|report| !report.passed())
        .map(|report| report.job.name)
        .collect();
    for job in not_run {
        println!(
            "{:<24}not run: there is no root file system (make linux-images)",
            job.name
        );
    }
    println!(
        "\n{} of {} jobs passed",
        reports.len() - failed.len(),
        reports.len()
    );
    if !failed.is_empty() {
        println!(
            "failed: {}; logs in {}",
            failed.join(" "),
            host.folder.display()
        );
    }
    Ok(failed.is_empty())
}

fn selected(names: &[String]) -> Result<Vec<&'static Job>, Box<dyn Error>> {
    for name in names {
        if !JOBS.iter().any(|job| job.name.starts_with(name.as_str())) {
            return Err(format!("there is no job '{name}'; --list names them").into());
        }
    }
    Ok(JOBS
        .iter()
        .filter(|job| {
            names.is_empty() || names.iter().any(|name| job.name.starts_with(name.as_str()))
        })
        .collect())
}

/// A program that was built together with this one.
fn sibling(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.is_file() {
        return Err(format!("there is no {}: make test-linux builds it", path.display()).into());
    }
    Ok(path)
}

fn default_kernel_folder() -> Result<PathBuf, Box<dyn Error>> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => return Err("there is no HOME; say with --kernels where the kernels are".into()),
    };
    Ok(cache.join("reapvm/linux"))
}

fn prepare(arguments: &Arguments) -> Result<NestedHost, Box<dyn Error>> {
    let kernel_folder = match &arguments.kernels {
        Some(folder) => folder.clone(),
        None => default_kernel_folder()?,
    };
    let kernels = kernels::read(&kernel_folder)?;
    let kernel = kernels
        .iter()
        .find(|kernel| kernel.series == NESTED_HOST_KERNEL)
        .ok_or_else(|| format!("there is no kernel {NESTED_HOST_KERNEL} for the nested host"))?;
    let images = match &arguments.images {
        Some(folder) => Some(folder.clone()),
        None => {
            Some(kernel_folder.join("images")).filter(|folder| folder.join("rootfs.ext4").exists())
        }
    };
    let programs = Programs {
        reapvm: arguments.reapvm.clone(),
        nested_host: sibling("nested-host")?,
        guest_init: sibling("reapvm-guest-init")?,
    };
    std::fs::create_dir_all(&arguments.folder)?;
    let folder = arguments.folder.canonicalize()?;
    Ok(NestedHost {
        kernel: kernel.folder.join("vmlinuz"),
        initrd: disk::nested_host_initrd(kernel, &programs, &folder)?,
        job_disk: disk::job_disk(&kernels, &programs, images.as_deref(), &folder)?,
        rootfs: images.map(|folder| folder.join("rootfs.ext4")),
        folder,
    })
}

fn run_job(host: &NestedHost, job: &'static Job) -> Report {
    let start = Instant::now();
    let mut runs = 0;
    loop {
        runs += 1;
        let result = host.run(job.name, |message| println!("[{}] {message}", job.name));
        if runs == 1 && result.as_ref().is_ok_and(Outcome::may_be_repeated) {
            println!(
                "[{}] the nested host did not come through; once more",
                job.name
            );
            continue;
        }
        return Report {
            job,
            result,
            runs,
            took: start.elapsed(),
        };
    }
}

fn say_end(host: &NestedHost, report: &Report) {
    let what = match &report.result {
        Ok(Outcome::Passed) => "ok".to_owned(),
        Ok(Outcome::Failed) => "FAILED".to_owned(),
        Ok(Outcome::OuterPanic) => "FAILED: the nested host's kernel panicked".to_owned(),
        Ok(Outcome::TimedOut) => "FAILED: no verdict in time".to_owned(),
        Ok(Outcome::NoVerdict) => "FAILED: the nested host ended without a verdict".to_owned(),
        Err(error) => format!("FAILED: {}", with_causes(error)),
    };
    let runs = if report.runs > 1 {
        " in the second run"
    } else {
        ""
    };
    println!(
        "{:<24}{what}{runs} ({:.0} s)",
        report.job.name,
        report.took.as_secs_f64()
    );
    if !report.passed()
        && let Ok(log) = std::fs::read(host.log_path(report.job.name))
    {
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
            println!("    {line}");
        }
    }
}
