//! Runs reapvm with stock Linux guests in nested hosts and reports job by job.

use std::collections::VecDeque;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use reapvm_nested::host::disk::{self, Extras, Programs};
use reapvm_nested::host::qemu::{NestedHost, Outcome, QemuError};
use reapvm_nested::host::{kernels, programs, selection};
use reapvm_nested::nested::jobs::{Job, Needs};

/// The kernel of the nested host.
const NESTED_HOST_KERNEL: &str = "6.12";

/// Run reapvm with stock Linux guests in nested hosts that QEMU emulates
#[derive(Parser)]
struct Arguments {
    /// The jobs to run, by name or the start of names, also separated by commas [default: all
    /// that do not have to be named]
    #[arg(value_delimiter = ',')]
    jobs: Vec<String>,
    /// Jobs to leave out, by name or the start of names; may be repeated
    #[arg(long, value_name = "JOBS", value_delimiter = ',')]
    skip: Vec<String>,
    /// Name the jobs and end
    #[arg(long)]
    list: bool,
    /// Jobs that run at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
    /// The static reapvm program, with reapvm-trace beside it
    #[arg(long, value_name = "FILE", default_value = "bin/reapvm")]
    reapvm: PathBuf,
    /// The folder that fetch-kernels has filled [default: ~/.cache/reapvm/linux]
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// The folder that build-images has filled [default: images in the folder of the kernels]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// What `cargo test --no-run --message-format=json` has said of the integration tests
    #[arg(long, value_name = "FILE")]
    integration: Option<PathBuf>,
    /// The fuzz targets' corpus, for the integration tests
    #[arg(long, value_name = "DIR", default_value = "tests/fuzz/corpus")]
    corpus: PathBuf,
    /// Where disks are made and logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/nested-hosts")]
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
    let jobs = selection::select(&arguments.jobs, &arguments.skip)?;
    if arguments.list {
        for job in jobs {
            let by_hand = if job.by_hand {
                " (only when named)"
            } else {
                ""
            };
            println!("{:<24}{}{by_hand}", job.name, job.about);
        }
        return Ok(true);
    }
    let (host, extras) = prepare(arguments)?;
    let (jobs, not_run): (Vec<_>, Vec<_>) = jobs
        .into_iter()
        .partition(|job| missing(job.needs, &extras).is_none());
    // What was asked for by its whole name and cannot be done is an error.
    if let Some(job) = not_run
        .iter()
        .find(|job| arguments.jobs.iter().any(|name| name == job.name))
        && let Some(what) = missing(job.needs, &extras)
    {
        return Err(format!("{} cannot run: there is no {what}", job.name).into());
    }
    let start = Instant::now();
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
        let what = missing(job.needs, &extras).unwrap_or_default();
        println!("{:<24}not run: there is no {what}", job.name);
    }
    if !failed.is_empty() {
        println!(
            "failed: {}; logs in {}",
            failed.join(" "),
            host.folder.display()
        );
    }
    println!("all jobs took {:.0} s", start.elapsed().as_secs_f64());
    println!(
        "{} passed, {} failed",
        reports.len() - failed.len(),
        failed.len()
    );
    Ok(failed.is_empty())
}

/// What a job needs and is not there, with the remedy.
fn missing(needs: Needs, extras: &Extras) -> Option<&'static str> {
    match needs {
        Needs::Rootfs if extras.images.is_none() => {
            Some("root file system of the Python functions: make linux-images")
        }
        Needs::SmallKernel if extras.small_kernel.is_none() => {
            Some("small kernel: make linux-images")
        }
        Needs::IntegrationPrograms if extras.integration.is_empty() => Some(
            "list of the integration tests' programs: say --integration, as make test-linux does",
        ),
        _ => None,
    }
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

fn prepare(arguments: &Arguments) -> Result<(NestedHost, Extras), Box<dyn Error>> {
    let kernel_folder = match &arguments.kernels {
        Some(folder) => folder.clone(),
        None => default_kernel_folder()?,
    };
    let kernels = kernels::read(&kernel_folder)?;
    let kernel = kernels
        .iter()
        .find(|kernel| kernel.series == NESTED_HOST_KERNEL)
        .ok_or_else(|| format!("there is no kernel {NESTED_HOST_KERNEL} for the nested host"))?;
    let images = arguments
        .images
        .clone()
        .unwrap_or_else(|| kernel_folder.join("images"));
    let integration = match &arguments.integration {
        Some(file) => programs::read(file)?,
        None => Vec::new(),
    };
    let extras = Extras {
        small_kernel: Some(images.join("kernel"))
            .filter(|folder| folder.join("vmlinux").exists() && folder.join("vmlinuz").exists()),
        images: Some(images).filter(|folder| folder.join("rootfs.ext4").exists()),
        corpus: (!integration.is_empty()).then(|| arguments.corpus.clone()),
        integration,
    };
    let programs = Programs {
        reapvm: arguments.reapvm.clone(),
        nested_host: sibling("nested-host")?,
        guest_init: sibling("reapvm-guest-init")?,
    };
    std::fs::create_dir_all(&arguments.folder)?;
    let folder = arguments.folder.canonicalize()?;
    let host = NestedHost {
        kernel: kernel.folder.join("vmlinuz"),
        initrd: disk::nested_host_initrd(kernel, &programs, &folder)?,
        job_disk: disk::job_disk(&kernels, &programs, &extras, &folder)?,
        rootfs: extras
            .images
            .as_ref()
            .map(|images| images.join("rootfs.ext4")),
        folder,
    };
    Ok((host, extras))
}

fn run_job(host: &NestedHost, job: &'static Job) -> Report {
    let start = Instant::now();
    let mut runs = 0;
    loop {
        runs += 1;
        let result = host.run(job, |message| {
            println!("[{}] {message}", job.name);
        });
        if runs == 1 && result.as_ref().is_ok_and(Outcome::may_be_repeated) {
            match host.keep_log(job.name) {
                Ok(log) => {
                    println!(
                        "[{}] the nested host did not come through, see {}; once more",
                        job.name,
                        log.display()
                    );
                    continue;
                }
                Err(error) => println!("[{}] {}", job.name, with_causes(&error)),
            }
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
        Ok(Outcome::Stalled) => "FAILED: the nested host stood still".to_owned(),
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
        println!("--- the console of {}", report.job.name);
        for line in String::from_utf8_lossy(&log).lines() {
            println!("    {line}");
        }
        println!("--- end of the console of {}", report.job.name);
    }
}
