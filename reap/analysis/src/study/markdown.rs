//! The paper's claims as Markdown, for `docs/study.md`.

use std::fmt::Write;

use reapvm_reap::study::Study;

use super::claims::Claim;
use super::findings::Function;

/// The table of `claims`, what the figures say about the reasons, and where they come from.
pub(super) fn claims(study: &Study, functions: &[Function<'_>], claims: &[Claim]) -> String {
    let (plan, host) = (&study.plan, &study.host);
    let mut text = format!(
        "| claim | paper | here, {} guest | Linux guests | |\n|---|---|---|---|---|\n",
        super::page::image_name(plan)
    );
    for claim in claims {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | **{}** |",
            claim.claim,
            claim.paper,
            claim.ours,
            claim.linux,
            claim.verdict.as_str()
        );
    }
    text.push('\n');
    for claim in claims {
        let _ = writeln!(
            text,
            "* **{}.** {} The same if: {}.",
            claim.claim, claim.why, claim.rule
        );
    }
    let missing = match study.missing().len() {
        0 => "",
        _ => "; **not whole**, so that some of it is missing",
    };
    let _ = writeln!(
        text,
        "\nMade by `reapvm {}`: {} of {} functions, inputs: {}, starts of each kind with each: {}{missing}. \
         {}, {} processors, Linux {}, KVM with {} paging.",
        crate::command::quoted(&plan.command),
        functions.len(),
        plan.functions.len(),
        plan.inputs.len(),
        plan.repetitions,
        host.cpu_model,
        host.cpus,
        host.kernel,
        match host.has_nested_paging {
            true => "nested",
            false => "shadow",
        }
    );
    text
}
