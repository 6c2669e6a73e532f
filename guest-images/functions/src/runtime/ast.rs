//! The syntax tree. A function keeps its tree, from which a traceback quotes the statement that
//! failed.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;

/// An operator between two integers (or, for `==` and `!=`, two texts).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BinaryOperator {
    Or,
    Xor,
    And,
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    ShiftLeft,
    ShiftRight,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl BinaryOperator {
    /// All of them with symbol and precedence; a higher precedence binds tighter.
    pub(crate) const ALL: [(Self, &'static str, u8); 16] = [
        (Self::Or, "|", 1),
        (Self::Xor, "^", 2),
        (Self::And, "&", 3),
        (Self::Equal, "==", 4),
        (Self::Unequal, "!=", 4),
        (Self::Less, "<", 5),
        (Self::LessOrEqual, "<=", 5),
        (Self::Greater, ">", 5),
        (Self::GreaterOrEqual, ">=", 5),
        (Self::ShiftLeft, "<<", 6),
        (Self::ShiftRight, ">>", 6),
        (Self::Add, "+", 7),
        (Self::Subtract, "-", 7),
        (Self::Multiply, "*", 8),
        (Self::Divide, "/", 8),
        (Self::Remainder, "%", 8),
    ];

    fn symbol(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expression {
    Integer(i64),
    Text(Rc<str>),
    /// A constant list of integers.
    List(Rc<[i64]>),
    Name(Rc<str>),
    Negate(Box<Expression>),
    Binary {
        operator: BinaryOperator,
        left: Box<Expression>,
        right: Box<Expression>,
    },
    Index {
        list: Box<Expression>,
        index: Box<Expression>,
    },
    Call {
        module: Option<Rc<str>>,
        function: Rc<str>,
        arguments: Vec<Expression>,
    },
}

/// A statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Statement {
    Let {
        name: Rc<str>,
        value: Box<Expression>,
    },
    Assign {
        name: Rc<str>,
        value: Box<Expression>,
    },
    If {
        condition: Box<Expression>,
        then: Vec<Line>,
        otherwise: Vec<Line>,
    },
    While {
        condition: Box<Expression>,
        body: Vec<Line>,
    },
    Return(Box<Expression>),
}

/// A statement and the line that it begins on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) number: u32,
    pub(crate) statement: Statement,
}

/// A function as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Definition {
    pub(crate) name: Rc<str>,
    pub(crate) parameters: Vec<Rc<str>>,
    pub(crate) documentation: Box<str>,
    pub(crate) body: Vec<Line>,
}

/// A module as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unit {
    pub(crate) imports: Vec<Rc<str>>,
    pub(crate) functions: Vec<Definition>,
}

/// The line called `number` of `body` or of a block in it.
pub(crate) fn find_line(body: &[Line], number: u32) -> Option<&Line> {
    body.iter().find_map(|line| {
        if line.number == number {
            return Some(line);
        }
        match &line.statement {
            Statement::If {
                then, otherwise, ..
            } => find_line(then, number).or_else(|| find_line(otherwise, number)),
            Statement::While { body, .. } => find_line(body, number),
            _ => None,
        }
    })
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::List(items) => write!(f, "{items:?}"),
            Self::Name(name) => f.write_str(name),
            Self::Negate(operand) => write!(f, "-{operand}"),
            Self::Binary {
                operator,
                left,
                right,
            } => {
                write!(f, "({left} {} {right})", operator.symbol())
            }
            Self::Index { list, index } => write!(f, "{list}[{index}]"),
            Self::Call {
                module,
                function,
                arguments,
            } => {
                if let Some(module) = module {
                    write!(f, "{module}.")?;
                }
                write!(f, "{function}(")?;
                for (index, argument) in arguments.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{argument}")?;
                }
                f.write_str(")")
            }
        }
    }
}

impl fmt::Display for Statement {
    /// The statement's first line: a block's head without its body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Let { name, value } => write!(f, "let {name} = {value};"),
            Self::Assign { name, value } => write!(f, "{name} = {value};"),
            Self::If { condition, .. } => write!(f, "if {condition}"),
            Self::While { condition, .. } => write!(f, "while {condition}"),
            Self::Return(value) => write!(f, "return {value};"),
        }
    }
}
