//! Executes bytecode on a value stack.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::ast::{BinaryOperator, find_line};
use super::code::{Builtin, CodeObject, Module, Operation, Value};
use super::table::NameTable;
use crate::random::{fnv1a, scramble};

/// How deep calls nest at most: bounds the use of the machine's stack.
const DEPTH_MAX: u32 = 48;
/// How many operations one request may execute: a handler that loops for ever fails instead.
const OPERATIONS_MAX: u64 = 50_000_000;
/// The longest text that a handler may build, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// The execution of one request.
pub(crate) struct Interpreter<'r> {
    modules: &'r NameTable<Module>,
    stack: Vec<Value>,
    operations_left: u64,
    depth: u32,
}

impl<'r> Interpreter<'r> {
    pub(crate) fn new(modules: &'r NameTable<Module>) -> Self {
        // Room for the deepest handler chain, so that the stack does not move while it grows.
        Self {
            modules,
            stack: Vec::with_capacity(256),
            operations_left: OPERATIONS_MAX,
            depth: 0,
        }
    }

    /// Calls a function by the names of its module and its own. The error is a traceback.
    pub(crate) fn call(
        &mut self,
        module: &str,
        function: &str,
        arguments: &[Value],
    ) -> Result<Value, String> {
        self.stack.extend_from_slice(arguments);
        self.call_imported(module, function, arguments.len())
    }

    fn call_imported(
        &mut self,
        module: &str,
        function: &str,
        arguments: usize,
    ) -> Result<Value, String> {
        let module = self
            .modules
            .get(module)
            .ok_or_else(|| format!("no module is named {module:?}"))?;
        self.call_in(module, function, arguments)
    }

    /// Calls a function with the topmost `arguments` values of the stack, which it takes.
    fn call_in(
        &mut self,
        module: &'r Module,
        function: &str,
        arguments: usize,
    ) -> Result<Value, String> {
        let code = module
            .functions
            .get(function)
            .ok_or_else(|| format!("module {} has no function {function:?}", module.name))?;
        let expected = code.definition.parameters.len();
        if arguments != expected {
            return Err(format!(
                "{function} takes {expected} arguments, not {arguments}"
            ));
        }
        if self.depth == DEPTH_MAX {
            return Err(format!("calls nest deeper than {DEPTH_MAX}"));
        }
        code.calls.set(code.calls.get() + 1);
        self.depth += 1;
        let base = self.stack.len() - arguments;
        self.stack
            .resize(base + usize::from(code.local_count), Value::Integer(0));
        let mut offset = 0;
        let result = self
            .execute(module, code, base, &mut offset)
            .map_err(|reason| {
                let number = code.line_at(offset.saturating_sub(1));
                let mut traceback =
                    format!("{reason}; at {}.{function} line {number}", module.name);
                if let Some(line) = find_line(&code.definition.body, number) {
                    traceback.push_str(&format!(": {}", line.statement));
                }
                traceback
            });
        self.stack.truncate(base);
        self.depth -= 1;
        result
    }

    fn execute(
        &mut self,
        module: &'r Module,
        code: &'r CodeObject,
        base: usize,
        offset: &mut usize,
    ) -> Result<Value, String> {
        loop {
            self.operations_left = self
                .operations_left
                .checked_sub(1)
                .ok_or_else(|| format!("the request took {OPERATIONS_MAX} operations"))?;
            let operation = Operation::ALL
                .get(usize::from(byte(code, offset)?))
                .ok_or("an unknown operation")?;
            match operation {
                Operation::Constant => {
                    let index = wide(code, offset)?;
                    let value = code.constants.get(index).ok_or("a missing constant")?;
                    self.stack.push(value.clone());
                }
                Operation::Load => {
                    let local = base + usize::from(byte(code, offset)?);
                    let value = self.stack.get(local).ok_or("a missing local")?.clone();
                    self.stack.push(value);
                }
                Operation::Store => {
                    let local = base + usize::from(byte(code, offset)?);
                    let value = self.pop()?;
                    *self.stack.get_mut(local).ok_or("a missing local")? = value;
                }
                Operation::Negate => {
                    let value = self.pop_integer()?;
                    self.stack.push(Value::Integer(value.wrapping_neg()));
                }
                Operation::Binary => {
                    let (operator, ..) = BinaryOperator::ALL
                        .get(usize::from(byte(code, offset)?))
                        .ok_or("an unknown operator")?;
                    let right = self.pop()?;
                    let left = self.pop()?;
                    self.stack
                        .push(Value::Integer(binary(*operator, &left, &right)?));
                }
                Operation::Index => {
                    let index = self.pop_integer()?;
                    let Value::List(items) = self.pop()? else {
                        return Err("only a list has elements".into());
                    };
                    let item = usize::try_from(index)
                        .ok()
                        .and_then(|index| items.get(index));
                    let item = item.ok_or_else(|| {
                        format!("index {index} is outside of a list of {}", items.len())
                    })?;
                    self.stack.push(Value::Integer(*item));
                }
                Operation::Jump => *offset = wide(code, offset)?,
                Operation::JumpIfZero => {
                    let target = wide(code, offset)?;
                    if self.pop_integer()? == 0 {
                        *offset = target;
                    }
                }
                Operation::CallBuiltin => {
                    let (builtin, ..) = Builtin::ALL
                        .get(usize::from(byte(code, offset)?))
                        .ok_or("an unknown builtin")?;
                    byte(code, offset)?;
                    let value = self.builtin(*builtin)?;
                    self.stack.push(value);
                }
                Operation::CallOwn => {
                    let function = name(code, offset)?;
                    let arguments = usize::from(byte(code, offset)?);
                    let value = self.call_in(module, function, arguments)?;
                    self.stack.push(value);
                }
                Operation::CallImported => {
                    let function = name(code, offset)?;
                    let imported = name(code, offset)?;
                    let arguments = usize::from(byte(code, offset)?);
                    let value = self.call_imported(imported, function, arguments)?;
                    self.stack.push(value);
                }
                Operation::Return => return self.pop(),
            }
        }
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_integer(&mut self) -> Result<i64, String> {
        match self.pop()? {
            Value::Integer(value) => Ok(value),
            other => Err(format!("{other:?} is no integer")),
        }
    }

    fn pop_text(&mut self) -> Result<Rc<str>, String> {
        match self.pop()? {
            Value::Text(text) => Ok(text),
            other => Err(format!("{other:?} is no text")),
        }
    }

    /// Takes the arguments of a builtin, the last one first, and returns its result.
    fn builtin(&mut self, builtin: Builtin) -> Result<Value, String> {
        Ok(match builtin {
            Builtin::Length => Value::Integer(self.pop_text()?.len() as i64),
            Builtin::Code => {
                let index = self.pop_integer()?;
                let text = self.pop_text()?;
                let byte = usize::try_from(index)
                    .ok()
                    .and_then(|at| text.as_bytes().get(at));
                Value::Integer(byte.copied().map_or(0, i64::from))
            }
            Builtin::Hash => Value::Integer(fnv1a(self.pop_text()?.as_bytes()) as i64),
            Builtin::Concat => {
                let right = self.pop_text()?;
                let left = self.pop_text()?;
                if left.len() + right.len() > TEXT_BYTES_MAX {
                    return Err(format!("a text is longer than {TEXT_BYTES_MAX} bytes"));
                }
                let mut text = String::with_capacity(left.len() + right.len());
                text.push_str(&left);
                text.push_str(&right);
                Value::Text(Rc::from(text))
            }
            Builtin::Decimal => Value::Text(Rc::from(format!("{}", self.pop_integer()?))),
            Builtin::Find => {
                let part = self.pop_text()?;
                let text = self.pop_text()?;
                Value::Integer(text.find(&*part).map_or(-1, |position| position as i64))
            }
            Builtin::Upper => Value::Text(Rc::from(self.pop_text()?.to_ascii_uppercase())),
            Builtin::Slice => {
                let end = usize::try_from(self.pop_integer()?).unwrap_or(0);
                let start = usize::try_from(self.pop_integer()?).unwrap_or(usize::MAX);
                let text = self.pop_text()?;
                Value::Text(Rc::from(text.get(start..end).unwrap_or("")))
            }
            Builtin::Minimum => Value::Integer(self.pop_integer()?.min(self.pop_integer()?)),
            Builtin::Maximum => Value::Integer(self.pop_integer()?.max(self.pop_integer()?)),
            Builtin::Mix => {
                let right = self.pop_integer()? as u64;
                let left = self.pop_integer()? as u64;
                Value::Integer(scramble(left.rotate_left(17) ^ scramble(right)) as i64)
            }
        })
    }
}

fn byte(code: &CodeObject, offset: &mut usize) -> Result<u8, String> {
    let byte = code
        .instructions
        .get(*offset)
        .ok_or("the instructions end early")?;
    *offset += 1;
    Ok(*byte)
}

fn wide(code: &CodeObject, offset: &mut usize) -> Result<usize, String> {
    let low = byte(code, offset)?;
    let high = byte(code, offset)?;
    Ok(usize::from(u16::from_le_bytes([low, high])))
}

fn name<'c>(code: &'c CodeObject, offset: &mut usize) -> Result<&'c str, String> {
    let index = wide(code, offset)?;
    Ok(code.names.get(index).ok_or("a missing name")?)
}

fn binary(operator: BinaryOperator, left: &Value, right: &Value) -> Result<i64, String> {
    let (left, right) = match (left, right) {
        (Value::Integer(left), Value::Integer(right)) => (*left, *right),
        (Value::Text(left), Value::Text(right)) => {
            return match operator {
                BinaryOperator::Equal => Ok(i64::from(left == right)),
                BinaryOperator::Unequal => Ok(i64::from(left != right)),
                _ => Err("texts are only compared by == and !=".into()),
            };
        }
        _ => return Err("the operands are of different kinds".into()),
    };
    Ok(match operator {
        BinaryOperator::Or => left | right,
        BinaryOperator::Xor => left ^ right,
        BinaryOperator::And => left & right,
        BinaryOperator::Equal => i64::from(left == right),
        BinaryOperator::Unequal => i64::from(left != right),
        BinaryOperator::Less => i64::from(left < right),
        BinaryOperator::LessOrEqual => i64::from(left <= right),
        BinaryOperator::Greater => i64::from(left > right),
        BinaryOperator::GreaterOrEqual => i64::from(left >= right),
        BinaryOperator::ShiftLeft => left.wrapping_shl(right as u32),
        BinaryOperator::ShiftRight => left.wrapping_shr(right as u32),
        BinaryOperator::Add => left.wrapping_add(right),
        BinaryOperator::Subtract => left.wrapping_sub(right),
        BinaryOperator::Multiply => left.wrapping_mul(right),
        BinaryOperator::Divide | BinaryOperator::Remainder if right == 0 => {
            return Err("division by 0".into());
        }
        BinaryOperator::Divide => left.wrapping_div(right),
        BinaryOperator::Remainder => left.wrapping_rem(right),
    })
}
