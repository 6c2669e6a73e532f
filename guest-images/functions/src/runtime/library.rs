//! The library that the runtime imports: its modules, described and written out as source.
//!
//! A Python function imports hundreds of modules, most of them generated or nearly alike (message
//! classes, validators, codecs), and uses a part of each. The library is made in that way: an
//! interface description ([`ModuleSpec`]) is drawn from a fixed seed and written out as an
//! interface compiler would, as documented source. Description and source say the same, so that a
//! host can check what the interpreter computes from the description alone.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use crate::random::Random;

/// How many modules the library has: with what a function holds beside them, a booted guest then
/// has about the 148 to 256 MB that the REAP paper (section 3) found in booted functions.
pub(crate) const MODULE_COUNT: usize = 4600;
/// How many functions a module has beside its hook.
pub(crate) const FUNCTIONS_PER_MODULE: usize = 14;
/// The name of the function with which a module takes part in the handling of a request.
pub(crate) const HOOK: &str = "on_request";
/// One module in this many is part of the request path; the others are imported and idle.
const HOOKED_ONE_IN: u64 = 23;
/// How many functions of its own and of others a hook calls.
const CALLS_PER_HOOK: usize = 3;

const PACKAGES: [&str; 16] = [
    "http", "json", "auth", "metrics", "logging", "quota", "routing", "codec", "session",
    "storage", "schema", "locale", "trace", "config", "policy", "cache",
];
const VERBS: [&str; 16] = [
    "limit", "fold", "weigh", "label", "locate", "scale", "flag", "rename", "check", "encode",
    "trim", "rank", "merge", "sample", "route", "grade",
];
/// The words that names, texts and documentation are made of.
pub(crate) const WORDS: [&str; 64] = [
    "account", "address", "amount", "archive", "balance", "batch", "branch", "budget", "bundle",
    "capacity", "category", "channel", "client", "column", "comment", "country", "currency",
    "customer", "delivery", "deposit", "device", "document", "domain", "element", "endpoint",
    "entry", "event", "feature", "field", "filter", "folder", "greeting", "header", "invoice",
    "item", "journal", "language", "ledger", "length", "member", "message", "number", "offset",
    "order", "origin", "package", "payload", "payment", "period", "product", "profile", "project",
    "record", "region", "request", "resource", "review", "schedule", "segment", "sequence",
    "supplier", "ticket", "title", "vendor",
];

/// What a library function does with the state of the request and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Adds a penalty for each byte over a limit, or folds a constant in.
    Limit {
        limit: i64,
        penalty: i64,
        otherwise: i64,
    },
    /// A polynomial checksum of the first bytes.
    Fold { bytes: i64, start: i64 },
    /// A weight by the bucket that the state falls into.
    Weigh { buckets: i64, weights: [i64; 8] },
    /// The hash of a label with the state's low bits.
    Label { prefix: &'static str, mask: i64 },
    /// Where a word stands in the text.
    Locate {
        word: &'static str,
        missing: i64,
        factor: i64,
    },
    /// A scaled and clamped part of the state.
    Scale {
        factor: i64,
        divisor: i64,
        low: i64,
        high: i64,
    },
    /// A bit for each threshold that the text's length reaches.
    Flag { thresholds: [i64; 4] },
    /// The hash of a name made of a word and the beginning of the text, in upper case.
    Rename { word: &'static str, bytes: i64 },
}

/// A library function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FunctionSpec {
    pub(crate) name: String,
    pub(crate) rule: Rule,
}

/// A call that a hook makes: the module's index and the function's index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HookCall {
    pub(crate) module: usize,
    pub(crate) function: usize,
}

/// A module's hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HookSpec {
    pub(crate) calls: [HookCall; CALLS_PER_HOOK],
    pub(crate) constant: i64,
    /// Whether the module takes part in the handling of requests.
    pub(crate) enabled: bool,
}

/// A module of the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModuleSpec {
    pub(crate) name: String,
    pub(crate) functions: Vec<FunctionSpec>,
    pub(crate) hook: HookSpec,
}

/// The name of module `module`.
pub(crate) fn module_name(module: usize) -> String {
    let mut random = Random::labelled("module name", module as u64);
    let package = PACKAGES[random.index(PACKAGES.len())];
    format!("{package}_{}_{module:04}", word(&mut random))
}

/// Function `function` of module `module`.
pub(crate) fn function_spec(module: usize, function: usize) -> FunctionSpec {
    let seed = (module * FUNCTIONS_PER_MODULE + function) as u64;
    let mut random = Random::labelled("library function", seed);
    let rule = rule(&mut random);
    let verb = VERBS[random.index(VERBS.len())];
    FunctionSpec {
        name: format!("{verb}_{}_{function:02}", word(&mut random)),
        rule,
    }
}

/// The description of module `module`.
pub(crate) fn module_spec(module: usize) -> ModuleSpec {
    let functions: Vec<_> = (0..FUNCTIONS_PER_MODULE)
        .map(|function| function_spec(module, function))
        .collect();
    let mut random = Random::labelled("hook", module as u64);
    let mut calls = [(); CALLS_PER_HOOK].map(|()| HookCall {
        module,
        function: random.index(functions.len()),
    });
    // The last call goes to another module, as most request paths cross package borders.
    calls[CALLS_PER_HOOK - 1].module = random.index(MODULE_COUNT);
    let hook = HookSpec {
        calls,
        constant: positive(&mut random, 1 << 40),
        enabled: random.below(HOOKED_ONE_IN) == 0,
    };
    ModuleSpec {
        name: module_name(module),
        functions,
        hook,
    }
}

fn word(random: &mut Random) -> &'static str {
    WORDS[random.index(WORDS.len())]
}

fn positive(random: &mut Random, bound: u64) -> i64 {
    1 + random.below(bound - 1) as i64
}

fn rule(random: &mut Random) -> Rule {
    match random.below(8) {
        0 => Rule::Limit {
            limit: positive(random, 64),
            penalty: positive(random, 1000),
            otherwise: positive(random, 1 << 32),
        },
        1 => Rule::Fold {
            bytes: 4 + positive(random, 12),
            start: positive(random, 1 << 32),
        },
        2 => Rule::Weigh {
            buckets: 8 + positive(random, 90),
            weights: [(); 8].map(|()| positive(random, 1 << 20)),
        },
        3 => Rule::Label {
            prefix: word(random),
            mask: (1 << (4 + random.below(12))) - 1,
        },
        4 => Rule::Locate {
            word: word(random),
            missing: positive(random, 1 << 20),
            factor: positive(random, 1 << 20),
        },
        5 => Rule::Scale {
            factor: positive(random, 10_000),
            divisor: positive(random, 100),
            low: positive(random, 1000),
            high: 1000 + positive(random, 100_000),
        },
        6 => Rule::Flag {
            thresholds: [(); 4].map(|()| positive(random, 120)),
        },
        _ => Rule::Rename {
            word: word(random),
            bytes: positive(random, 16),
        },
    }
}

/// The source of `spec`.
pub(crate) fn render(spec: &ModuleSpec, module: usize) -> String {
    let mut source = String::new();
    let mut random = Random::labelled("documentation", module as u64);
    let other = spec.hook.calls[CALLS_PER_HOOK - 1];
    // Writing to a String cannot fail, so the results of `write!` say nothing here.
    let _ = writeln!(source, "import {};", module_name(other.module));
    for function in &spec.functions {
        let _ = write!(source, "fn {}(state, text) {{\n  \"", function.name);
        document(&mut source, &mut random);
        source.push_str("\";\n");
        render_rule(&mut source, &function.rule);
        source.push_str("}\n");
    }
    let _ = write!(source, "fn {HOOK}(state, text) {{\n  \"");
    document(&mut source, &mut random);
    source.push_str("\";\n");
    for call in &spec.hook.calls {
        let name = function_spec(call.module, call.function).name;
        let prefix = if *call == other {
            format!("{}.", module_name(call.module))
        } else {
            String::new()
        };
        let _ = writeln!(source, "  state = {prefix}{name}(state, text);");
    }
    let _ = writeln!(source, "  return mix(state, {});\n}}", spec.hook.constant);
    source
}

/// Writes the documentation of a function: a few sentences.
fn document(source: &mut String, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let _ = write!(
            source,
            "Takes the {} of each {} and the {} that its {} names. ",
            word(random),
            word(random),
            word(random),
            word(random)
        );
    }
    let _ = write!(source, "Returns the new state of the {}.", word(random));
}

fn render_rule(source: &mut String, rule: &Rule) {
    // Writing to a String cannot fail.
    let _ = match rule {
        Rule::Limit {
            limit,
            penalty,
            otherwise,
        } => write!(
            source,
            "  let over = len(text) - {limit};\n  if over > 0 {{\n    state = state + over * \
             {penalty};\n  }} else {{\n    state = state ^ {otherwise};\n  }}\n  return state;\n"
        ),
        Rule::Fold { bytes, start } => write!(
            source,
            "  let end = min(len(text), {bytes});\n  let sum = {start};\n  let index = 0;\n  while \
             index < end {{\n    sum = (sum * 31 + code(text, index)) & 4294967295;\n    index = \
             index + 1;\n  }}\n  return state ^ sum;\n"
        ),
        Rule::Weigh { buckets, weights } => write!(
            source,
            "  let bucket = state % {buckets};\n  if bucket < 0 {{\n    bucket = bucket + \
             {buckets};\n  }}\n  let weights = {weights:?};\n  return state + weights[bucket % \
             8];\n"
        ),
        Rule::Label { prefix, mask } => write!(
            source,
            "  let label = concat(\"{prefix}-\", decimal(state & {mask}));\n  return mix(state, \
             hash(label));\n"
        ),
        Rule::Locate {
            word,
            missing,
            factor,
        } => write!(
            source,
            "  let position = find(text, \"{word}\");\n  if position < 0 {{\n    return state + \
             {missing};\n  }}\n  return mix(state, position * {factor});\n"
        ),
        Rule::Scale {
            factor,
            divisor,
            low,
            high,
        } => write!(
            source,
            "  let scaled = (state & 65535) * {factor} / {divisor};\n  let clamped = \
             max({low}, min(scaled, {high}));\n  return state + clamped;\n"
        ),
        Rule::Flag { thresholds } => {
            let mut result = writeln!(source, "  let length = len(text);\n  let flags = 0;");
            for (bit, threshold) in thresholds.iter().enumerate() {
                result = result.and(write!(
                    source,
                    "  if length >= {threshold} {{\n    flags = flags | 1 << {bit};\n  }}\n"
                ));
            }
            result.and(writeln!(source, "  return mix(state, flags);"))
        }
        Rule::Rename { word, bytes } => write!(
            source,
            "  let name = concat(\"{word}.\", slice(text, 0, min(len(text), {bytes})));\n  return \
             mix(hash(upper(name)), state);\n"
        ),
    };
}
