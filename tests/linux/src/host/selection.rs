//! Which jobs run.

use thiserror::Error;

use crate::nested::jobs::{JOBS, Job};

/// A name that no job has, or begins with.
#[derive(Debug, Error)]
#[error("there is no job '{0}'; --list names them")]
pub struct NoSuchJob(pub String);

/// The jobs that `name` means: the one that is called so, or else those whose names begin so.
fn meant<'a>(jobs: &'a [Job], name: &str) -> Result<Vec<&'a Job>, NoSuchJob> {
    if let Some(job) = jobs.iter().find(|job| job.name == name) {
        return Ok(vec![job]);
    }
    let found: Vec<&Job> = jobs
        .iter()
        .filter(|job| job.name.starts_with(name))
        .collect();
    if name.is_empty() || found.is_empty() {
        return Err(NoSuchJob(name.to_owned()));
    }
    Ok(found)
}

/// The jobs of `names`, or all that need not be named, without those of `skipped`.
///
/// # Errors
/// [`NoSuchJob`].
pub fn select(names: &[String], skipped: &[String]) -> Result<Vec<&'static Job>, NoSuchJob> {
    select_from(JOBS, names, skipped)
}

fn select_from<'a>(
    jobs: &'a [Job],
    names: &[String],
    skipped: &[String],
) -> Result<Vec<&'a Job>, NoSuchJob> {
    let all = |names: &[String]| -> Result<Vec<&str>, NoSuchJob> {
        let mut found = Vec::new();
        for name in names {
            found.extend(meant(jobs, name)?.into_iter().map(|job| job.name));
        }
        Ok(found)
    };
    let (wanted, unwanted) = (all(names)?, all(skipped)?);
    Ok(jobs
        .iter()
        .filter(|job| {
            if names.is_empty() {
                !job.by_hand
            } else {
                wanted.contains(&job.name)
            }
        })
        .filter(|job| !unwanted.contains(&job.name))
        .collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(wanted: &[&str], skipped: &[&str]) -> Vec<&'static str> {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let jobs = select(&owned(wanted), &owned(skipped)).unwrap();
        jobs.into_iter().map(|job| job.name).collect()
    }

    #[test]
    fn a_whole_name_means_one_job_and_a_beginning_all_that_begin_so() {
        assert_eq!(names(&["boot-6.1"], &[]), ["boot-6.1"]);
        assert_eq!(names(&["boot-"], &[]), ["boot-6.1", "boot-6.12"]);
        assert_eq!(names(&["boot-", "boot-6.12"], &["boot-6.1"]), ["boot-6.12"]);
        assert!(
            !names(&[], &["disk"])
                .iter()
                .any(|name| name.starts_with("disk"))
        );
        for wrong in ["", "nonesuch"] {
            assert!(select(&[wrong.to_owned()], &[]).is_err(), "{wrong:?}");
            assert!(select(&[], &[wrong.to_owned()]).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_run_by_hand_has_to_be_named() {
        for job in JOBS {
            assert_eq!(names(&[], &[]).contains(&job.name), !job.by_hand);
            assert_eq!(names(&[job.name], &[]), [job.name]);
        }
    }
}
