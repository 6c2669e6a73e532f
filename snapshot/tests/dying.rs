//! Writers that are killed, or run out of space.
//!
//! A writer that can be killed is another process: this test program again, which is told by its
//! environment to run [`child`] instead of testing.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{SIZE_BYTES, fill_of, memory, names, parts, state, write};
use reapvm_snapshot::{CreateError, Snapshot, SnapshotWriter, StateFile};

const DIR: &str = "REAPVM_TEST_DIR";
const TASK: &str = "REAPVM_TEST_TASK";

/// What the other process does.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let (Ok(dir), Ok(task)) = (std::env::var(DIR), std::env::var(TASK)) else {
        return;
    };
    let dir = Path::new(&dir);
    match task.as_str() {
        "steps" => write_in_steps(dir),
        "replace" => {
            for fill in (2..=u8::MAX).cycle() {
                write(dir, fill).unwrap();
                step("replaced");
            }
        }
        "too-long-state" => expect_no_space(
            SnapshotWriter::create(dir)
                .unwrap()
                .write_state(&big_state()),
        ),
        "too-long-memory" => {
            let mut writer = SnapshotWriter::create(dir).unwrap();
            expect_no_space(writer.memory_writer(64 << 20).map(drop));
        }
        other => panic!("no task {other}"),
    }
}

fn big_state() -> StateFile {
    let mut state = StateFile::new();
    state.push("x", 1, &vec![1_u8; 3 << 20]).unwrap();
    state
}

fn expect_no_space(result: Result<(), CreateError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, CreateError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
}

/// On standard error, which the test harness does not hold back when told not to.
fn step(name: &str) {
    eprintln!("step {name}");
}

fn write_in_steps(dir: &Path) {
    let pause = |name| {
        step(name);
        // Until the parent goes on, or kills.
        std::io::stdin().read_exact(&mut [0]).unwrap();
    };
    let mut writer = SnapshotWriter::create(dir).unwrap();
    pause("created");
    writer.write_state(&state(2)).unwrap();
    pause("state");
    let mut memory_writer = writer.memory_writer(SIZE_BYTES).unwrap();
    let (memory, half) = (memory(2), SIZE_BYTES / 2);
    memory_writer
        .write_pages(0, &memory[..half as usize])
        .unwrap();
    pause("half");
    memory_writer
        .write_pages(half, &memory[half as usize..])
        .unwrap();
    memory_writer.finish().unwrap();
    pause("memory");
    writer.finish(parts()).unwrap();
    pause("finished");
}

fn child_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn spawn(dir: &Path, task: &str) -> Child {
    child_command(std::env::current_exe().unwrap().to_str().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(TASK, task)
        .spawn()
        .unwrap()
}

fn await_step(lines: &mut impl BufRead, name: &str) {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if line.trim_end().ends_with(&format!("step {name}")) {
            return;
        }
        line.clear();
    }
    panic!("the child ended before the step {name}");
}

#[test]
fn a_writer_killed_at_any_step_leaves_the_older_snapshot() {
    let steps = ["created", "state", "half", "memory"];
    for (last, name) in steps.iter().enumerate() {
        for old in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("s");
            if old {
                write(&dir, 1).unwrap();
            }
            let mut child = spawn(&dir, "steps");
            let mut lines = BufReader::new(child.stderr.take().unwrap());
            for step in &steps[..last] {
                await_step(&mut lines, step);
                use std::io::Write;
                child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            }
            await_step(&mut lines, name);
            child.kill().unwrap();
            child.wait().unwrap();

            let left = names(parent.path());
            let partial = left
                .iter()
                .find(|name| name.starts_with(".s.partial-"))
                .unwrap();
            assert!(Snapshot::open(&parent.path().join(partial)).is_err());
            if old {
                assert_eq!(fill_of(&dir), 1);
            } else {
                assert!(!dir.exists());
            }
            write(&dir, 3).unwrap();
            assert_eq!(fill_of(&dir), 3);
            assert_eq!(names(parent.path()), ["s"]);
        }
    }
}

/// At any instant, those inside the replacement too.
#[test]
fn a_writer_killed_at_any_instant_leaves_a_whole_snapshot() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    write(&dir, 1).unwrap();
    for round in 0..25_u64 {
        let mut child = spawn(&dir, "replace");
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        await_step(&mut lines, "replaced");
        std::thread::sleep(Duration::from_micros(round * 397 % 5_000));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(fill_of(&dir) >= 1);
    }
    write(&dir, 1).unwrap();
    assert_eq!(fill_of(&dir), 1);
    assert_eq!(names(parent.path()), ["s"]);
}

/// With a limit on the size of files, for a filesystem to fill is not at hand everywhere.
#[test]
fn a_writer_without_space_says_so_and_leaves_nothing() {
    for task in ["too-long-state", "too-long-memory"] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("s");
        write(&dir, 1).unwrap();
        // Blocks of 512 or 1024 bytes, by the shell. Without the trap the signal would kill.
        let script =
            "trap '' XFSZ; ulimit -f 1024; exec \"$0\" --exact child --ignored --nocapture";
        let output = child_command("sh")
            .arg("-c")
            .arg(script)
            .arg(std::env::current_exe().unwrap())
            .env(DIR, &dir)
            .env(TASK, task)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(fill_of(&dir), 1);
        assert_eq!(names(parent.path()), ["s"]);
    }
}
