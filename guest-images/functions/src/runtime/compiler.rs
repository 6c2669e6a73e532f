//! Syntax tree to bytecode.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;

use super::ast::{Definition, Expression, Line, Statement, Unit};
use super::code::{Builtin, CodeObject, Module, Operation, Value};
use super::table::NameTable;

/// Compiles a parsed module.
pub(crate) fn compile(name: Rc<str>, unit: Unit) -> Result<Module, String> {
    let mut functions = NameTable::with_capacity(unit.functions.len());
    for definition in unit.functions {
        let function_name = Rc::clone(&definition.name);
        let code = compile_function(definition, &unit.imports)
            .map_err(|reason| format!("function {function_name}: {reason}"))?;
        functions.insert(function_name, Box::new(code));
    }
    Ok(Module { name, functions })
}

struct Compiler<'u> {
    instructions: Vec<u8>,
    constants: Vec<Value>,
    names: Vec<Rc<str>>,
    lines: Vec<(u16, u32)>,
    locals: Vec<Rc<str>>,
    imports: &'u [Rc<str>],
}

fn compile_function(definition: Definition, imports: &[Rc<str>]) -> Result<CodeObject, String> {
    let mut compiler = Compiler {
        instructions: Vec::new(),
        constants: Vec::new(),
        names: Vec::new(),
        lines: Vec::new(),
        locals: definition.parameters.clone(),
        imports,
    };
    compiler.block(&definition.body)?;
    // A function whose last statement does not return gives 0.
    compiler.constant(Value::Integer(0))?;
    compiler.operation(Operation::Return);
    if compiler.instructions.len() > usize::from(u16::MAX) {
        return Err("it is too long: 65535 bytes of instructions at most".into());
    }
    let local_count =
        u8::try_from(compiler.locals.len()).map_err(|_| "it has more than 255 locals")?;
    Ok(CodeObject {
        instructions: compiler.instructions.into_boxed_slice(),
        constants: compiler.constants.into_boxed_slice(),
        names: compiler.names.into_boxed_slice(),
        lines: compiler.lines.into_boxed_slice(),
        local_count,
        calls: Cell::new(0),
        definition: Box::new(definition),
    })
}

impl Compiler<'_> {
    fn operation(&mut self, operation: Operation) {
        self.instructions.push(operation as u8);
    }

    fn wide(&mut self, operand: usize) -> Result<(), String> {
        let operand = u16::try_from(operand).map_err(|_| "an operand is past 65535")?;
        self.instructions.extend_from_slice(&operand.to_le_bytes());
        Ok(())
    }

    fn constant(&mut self, value: Value) -> Result<(), String> {
        let known = self
            .constants
            .iter()
            .position(|constant| *constant == value);
        let index = known.unwrap_or_else(|| {
            self.constants.push(value);
            self.constants.len() - 1
        });
        self.operation(Operation::Constant);
        self.wide(index)
    }

    fn name(&mut self, name: &Rc<str>) -> Result<(), String> {
        let known = self.names.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(Rc::clone(name));
            self.names.len() - 1
        });
        self.wide(index)
    }

    fn local(&self, name: &str) -> Result<u8, String> {
        let index = self.locals.iter().position(|local| &**local == name);
        let index = index.ok_or_else(|| format!("{name:?} is not defined"))?;
        u8::try_from(index).map_err(|_| "it has more than 255 locals".into())
    }

    /// Emits a jump whose target [`Self::land`] fills in.
    fn jump(&mut self, operation: Operation) -> usize {
        self.operation(operation);
        self.instructions.extend_from_slice(&[0, 0]);
        self.instructions.len() - 2
    }

    fn land(&mut self, operand_at: usize) -> Result<(), String> {
        let target = u16::try_from(self.instructions.len()).map_err(|_| "it is too long")?;
        self.instructions[operand_at..operand_at + 2].copy_from_slice(&target.to_le_bytes());
        Ok(())
    }

    fn block(&mut self, body: &[Line]) -> Result<(), String> {
        body.iter().try_for_each(|line| {
            self.lines.push((
                u16::try_from(self.instructions.len()).unwrap_or(u16::MAX),
                line.number,
            ));
            self.statement(&line.statement)
        })
    }

    fn statement(&mut self, statement: &Statement) -> Result<(), String> {
        match statement {
            Statement::Let { name, value } => {
                self.expression(value)?;
                if self.locals.iter().all(|local| local != name) {
                    self.locals.push(Rc::clone(name));
                }
                self.store(name)
            }
            Statement::Assign { name, value } => {
                self.expression(value)?;
                self.store(name)
            }
            Statement::If {
                condition,
                then,
                otherwise,
            } => {
                self.expression(condition)?;
                let to_otherwise = self.jump(Operation::JumpIfZero);
                self.block(then)?;
                if otherwise.is_empty() {
                    return self.land(to_otherwise);
                }
                let to_end = self.jump(Operation::Jump);
                self.land(to_otherwise)?;
                self.block(otherwise)?;
                self.land(to_end)
            }
            Statement::While { condition, body } => {
                let start = self.instructions.len();
                self.expression(condition)?;
                let to_end = self.jump(Operation::JumpIfZero);
                self.block(body)?;
                self.operation(Operation::Jump);
                self.wide(start)?;
                self.land(to_end)
            }
            Statement::Return(value) => {
                self.expression(value)?;
                self.operation(Operation::Return);
                Ok(())
            }
        }
    }

    fn store(&mut self, name: &str) -> Result<(), String> {
        let local = self.local(name)?;
        self.operation(Operation::Store);
        self.instructions.push(local);
        Ok(())
    }

    fn expression(&mut self, expression: &Expression) -> Result<(), String> {
        match expression {
            Expression::Integer(value) => self.constant(Value::Integer(*value)),
            Expression::Text(text) => self.constant(Value::Text(Rc::clone(text))),
            Expression::List(items) => self.constant(Value::List(Rc::clone(items))),
            Expression::Name(name) => {
                let local = self.local(name)?;
                self.operation(Operation::Load);
                self.instructions.push(local);
                Ok(())
            }
            Expression::Negate(operand) => {
                self.expression(operand)?;
                self.operation(Operation::Negate);
                Ok(())
            }
            Expression::Binary {
                operator,
                left,
                right,
            } => {
                self.expression(left)?;
                self.expression(right)?;
                self.operation(Operation::Binary);
                self.instructions.push(*operator as u8);
                Ok(())
            }
            Expression::Index { list, index } => {
                self.expression(list)?;
                self.expression(index)?;
                self.operation(Operation::Index);
                Ok(())
            }
            Expression::Call {
                module,
                function,
                arguments,
            } => self.call(module.as_ref(), function, arguments),
        }
    }

    fn call(
        &mut self,
        module: Option<&Rc<str>>,
        function: &Rc<str>,
        arguments: &[Expression],
    ) -> Result<(), String> {
        for argument in arguments {
            self.expression(argument)?;
        }
        let count = u8::try_from(arguments.len()).map_err(|_| "a call has over 255 arguments")?;
        let builtin = Builtin::ALL
            .iter()
            .find(|(_, name, _)| *name == &**function);
        match (module, builtin) {
            (Some(module), _) => {
                if !self.imports.contains(module) {
                    return Err(format!("module {module:?} is not imported"));
                }
                self.operation(Operation::CallImported);
                self.name(function)?;
                self.name(module)?;
            }
            (None, Some(&(builtin, name, expected))) => {
                if count != expected {
                    return Err(format!("{name} takes {expected} arguments, not {count}"));
                }
                self.operation(Operation::CallBuiltin);
                self.instructions.push(builtin as u8);
            }
            (None, None) => {
                self.operation(Operation::CallOwn);
                self.name(function)?;
            }
        }
        self.instructions.push(count);
        Ok(())
    }
}
