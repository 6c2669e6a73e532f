//! Compiled functions: what the interpreter executes.

use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::Cell;

use super::ast::Definition;
use super::table::NameTable;

/// A value of the language.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Text(Rc<str>),
    List(Rc<[i64]>),
}

/// A one-byte operation, followed by its operands (16-bit ones little-endian).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    /// Pushes constant u16.
    Constant,
    /// Pushes local u8.
    Load,
    /// Pops into local u8.
    Store,
    /// Pops an operand, pushes its negative.
    Negate,
    /// Pops the right and the left operand, pushes the result of operator u8.
    Binary,
    /// Pops an index and a list, pushes the element.
    Index,
    /// Goes to u16.
    Jump,
    /// Pops a condition and goes to u16 if it is 0.
    JumpIfZero,
    /// Calls builtin u8 with the u8 topmost values.
    CallBuiltin,
    /// Calls the function called name u16 of this module with the u8 topmost values.
    CallOwn,
    /// Calls the function called name u16 of the module called name u16 with the u8 topmost values.
    CallImported,
    /// Returns the topmost value.
    Return,
}

impl Operation {
    pub(crate) const ALL: [Self; 12] = [
        Self::Constant,
        Self::Load,
        Self::Store,
        Self::Negate,
        Self::Binary,
        Self::Index,
        Self::Jump,
        Self::JumpIfZero,
        Self::CallBuiltin,
        Self::CallOwn,
        Self::CallImported,
        Self::Return,
    ];
}

/// A function of the language that is written in Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Builtin {
    /// `len(text)`: its length in bytes.
    Length,
    /// `code(text, index)`: a byte, 0 beyond the end.
    Code,
    /// `hash(text)`: its 64-bit FNV-1a hash.
    Hash,
    /// `concat(text, text)`.
    Concat,
    /// `decimal(integer)`: its digits.
    Decimal,
    /// `find(text, part)`: where the part begins, or -1.
    Find,
    /// `upper(text)`: ASCII letters in upper case.
    Upper,
    /// `slice(text, start, end)`: bytes `start..end`; empty if that is no part of the text.
    Slice,
    /// `min(integer, integer)`.
    Minimum,
    /// `max(integer, integer)`.
    Maximum,
    /// `mix(integer, integer)`: a well distributed combination of both.
    Mix,
}

impl Builtin {
    /// All of them with name and number of arguments.
    pub(crate) const ALL: [(Self, &'static str, u8); 11] = [
        (Self::Length, "len", 1),
        (Self::Code, "code", 2),
        (Self::Hash, "hash", 1),
        (Self::Concat, "concat", 2),
        (Self::Decimal, "decimal", 1),
        (Self::Find, "find", 2),
        (Self::Upper, "upper", 1),
        (Self::Slice, "slice", 3),
        (Self::Minimum, "min", 2),
        (Self::Maximum, "max", 2),
        (Self::Mix, "mix", 2),
    ];
}

/// A compiled function.
#[derive(Debug)]
pub(crate) struct CodeObject {
    pub(crate) instructions: Box<[u8]>,
    pub(crate) constants: Box<[Value]>,
    pub(crate) names: Box<[Rc<str>]>,
    /// Pairs of an instruction's offset and the source line that begins there, by offset.
    pub(crate) lines: Box<[(u16, u32)]>,
    /// How many locals there are; the parameters are the first of them.
    pub(crate) local_count: u8,
    /// How often it was called, which the profile of the runtime shows.
    pub(crate) calls: Cell<u64>,
    pub(crate) definition: Box<Definition>,
}

impl CodeObject {
    /// The source line of the instruction at `offset`.
    pub(crate) fn line_at(&self, offset: usize) -> u32 {
        self.lines
            .iter()
            .take_while(|&&(start, _)| usize::from(start) <= offset)
            .last()
            .map_or(0, |&(_, line)| line)
    }
}

/// A loaded module.
pub(crate) struct Module {
    pub(crate) name: Rc<str>,
    pub(crate) functions: NameTable<Box<CodeObject>>,
}
