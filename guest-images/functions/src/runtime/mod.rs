//! The runtime that serves a function: a small interpreter and the library that it has imported.
//!
//! Every request passes a chain of hooks before its function runs: checks, quotas, labels for the
//! log, each a function of a library module. They compute the request's audit digest, which is
//! part of the reply.

mod ast;
mod code;
mod compiler;
mod interpreter;
mod lexer;
pub(crate) mod library;
mod parser;
mod table;

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;

use self::code::{Module, Value};
use self::interpreter::Interpreter;
use self::table::Interner;
pub(crate) use self::table::NameTable;
use crate::FunctionError;

/// The state that the chain of hooks starts with.
pub(crate) const INITIAL_STATE: i64 = 0x5eed;

/// An interpreter with its library.
pub(crate) struct Runtime {
    modules: NameTable<Module>,
    /// The modules whose hooks see a request, in order.
    request_path: Vec<Rc<str>>,
    /// Kept: names that are interned later must be the same allocations.
    _interner: Interner,
}

impl Runtime {
    /// Imports the library: its source is written, parsed and compiled module by module.
    pub(crate) fn start() -> Result<Self, FunctionError> {
        let mut interner = Interner::new();
        let mut modules = NameTable::with_capacity(library::MODULE_COUNT);
        let mut request_path = Vec::new();
        for index in 0..library::MODULE_COUNT {
            let spec = library::module_spec(index);
            let source = library::render(&spec, index);
            let name = interner.intern(&spec.name);
            let module = import(Rc::clone(&name), &source, &mut interner)?;
            if spec.hook.enabled {
                request_path.push(Rc::clone(&name));
            }
            modules.insert(name, module);
        }
        Ok(Self {
            modules,
            request_path,
            _interner: interner,
        })
    }

    /// Passes a request's text along the chain of hooks and returns the audit digest.
    pub(crate) fn handle(&self, text: &str) -> Result<u64, FunctionError> {
        let text = Value::Text(Rc::from(text));
        let mut interpreter = Interpreter::new(&self.modules);
        let mut state = Value::Integer(INITIAL_STATE);
        for module in &self.request_path {
            state = interpreter
                .call(module, library::HOOK, &[state, text.clone()])
                .map_err(|traceback| FunctionError::Execution { traceback })?;
        }
        match state {
            Value::Integer(state) => Ok(state as u64),
            other => Err(FunctionError::Execution {
                traceback: format!("the last hook returned {other:?}, which is no integer"),
            }),
        }
    }
}

fn import(name: Rc<str>, source: &str, interner: &mut Interner) -> Result<Module, FunctionError> {
    parser::parse(source, interner)
        .and_then(|unit| compiler::compile(Rc::clone(&name), unit))
        .map_err(|reason| FunctionError::Source {
            message: format!("module {name}: {reason}"),
        })
}

/// Imports `source` as the only module of a runtime and calls its function `main`.
#[cfg(test)]
fn run(source: &str, arguments: &[Value]) -> Result<Value, alloc::string::String> {
    let mut interner = Interner::new();
    let module = import(Rc::from("main"), source, &mut interner).map_err(|e| format!("{e}"))?;
    let mut modules = NameTable::with_capacity(1);
    modules.insert(Rc::from("main"), module);
    Interpreter::new(&modules).call("main", "main", arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integer(source: &str, argument: i64) -> i64 {
        match run(source, &[Value::Integer(argument)]).unwrap() {
            Value::Integer(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn loops_branches_and_calls_compute() {
        let source = "
            fn square(a) { \"d\"; return a * a; }
            fn main(n) {
                \"sum of the squares of the odd numbers up to n\";
                let sum = 0;
                let i = 0;
                while i < n {
                    i = i + 1;
                    if i % 2 == 1 { sum = sum + square(i); } else { sum = sum + 0; }
                }
                return sum;
            }";
        assert_eq!(integer(source, 9), 1 + 9 + 25 + 49 + 81);
        assert_eq!(integer(source, 0), 0);
    }

    #[test]
    fn builtins_compute() {
        let main = |expression: &str, argument| {
            integer(
                &format!("fn main(n) {{ \"d\"; return {expression}; }}"),
                argument,
            )
        };
        assert_eq!(main("len(concat(\"ab\", decimal(n)))", -12), 5);
        assert_eq!(main("code(\"abc\", n)", 1), 98);
        assert_eq!(main("code(\"abc\", n)", 3), 0);
        assert_eq!(main("find(\"abcabc\", slice(\"xbcx\", n, 3))", 1), 1);
        assert_eq!(main("find(upper(\"abc\"), \"b\")", 0), -1);
        assert_eq!(main("max(min(n, 7), 3)", 9), 7);
        assert_eq!(main("[4, -5, 6][n]", 1), -5);
        assert_eq!(main("slice(\"abc\", n, 2) == \"\"", -1), 1);
        assert_eq!(main("-n >> 1 | 1 << 3", 4), -2);
    }

    #[test]
    fn an_error_has_a_traceback_that_quotes_the_statement() {
        let source = "
            fn inner(a) { \"d\";
                if a == 0 {
                    return 7 / a;
                }
                return 1;
            }
            fn main(n) { \"d\";
                return inner(n);
            }";
        let error = run(source, &[Value::Integer(0)]).unwrap_err();
        assert!(
            error.starts_with("division by 0; at main.inner line 4: return (7 / a);"),
            "{error}"
        );
        assert!(
            error.contains("; at main.main line 9: return inner(n);"),
            "{error}"
        );
    }

    #[test]
    fn wrong_programs_fail_and_do_not_hang() {
        let cases = [
            ("fn main(n) { \"d\"; return m; }", "not defined"),
            ("fn main(n) { \"d\"; return m.f(n); }", "not imported"),
            (
                "import m; fn main(n) { \"d\"; return m.f(n); }",
                "no module",
            ),
            ("fn main(n) { \"d\"; return f(n); }", "no function"),
            (
                "fn main(n) { \"d\"; return main(n, n); }",
                "takes 1 arguments",
            ),
            ("fn main(n) { \"d\"; return len(n); }", "no text"),
            ("fn main(n) { \"d\"; return len(); }", "takes 1 arguments"),
            ("fn main(n) { \"d\"; return n + \"a\"; }", "different kinds"),
            ("fn main(n) { \"d\"; return [1][n + 1]; }", "outside"),
            ("fn main(n) { \"d\"; return main(n); }", "nest deeper"),
            (
                "fn main(n) { \"d\"; while 1 { n = n + 1; } return n; }",
                "operations",
            ),
            (
                "fn main(n) { \"d\"; let t = \"ab\"; while 1 { t = concat(t, t); } return n; }",
                "longer than",
            ),
        ];
        for (source, expected) in cases {
            let error = run(source, &[Value::Integer(0)]).unwrap_err();
            assert!(error.contains(expected), "{source}: {error}");
        }
    }

    #[test]
    fn the_digest_depends_on_the_text_alone() {
        let runtime = Runtime::start().unwrap();
        let first = runtime.handle("{\"seed\":1}").unwrap();
        assert_ne!(first, runtime.handle("{\"seed\":2}").unwrap());
        assert_eq!(first, runtime.handle("{\"seed\":1}").unwrap());
    }
}
