//! Tokens to a syntax tree, by recursive descent.
//!
//! ```text
//! module     = { "import" name ";" } { function }
//! function   = "fn" name "(" [ name { "," name } ] ")" "{" text ";" { statement } "}"
//! statement  = "let" name "=" expression ";" | name "=" expression ";"
//!            | "return" expression ";" | "while" expression block
//!            | "if" expression block [ "else" block ]
//! expression = binary operators over: integer | text | "[" integers "]" | "-" operand | name
//!            | name "(" arguments ")" | name "." name "(" arguments ")" | "(" expression ")",
//!              each followed by any "[" expression "]"
//! ```

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::ast::{BinaryOperator, Definition, Expression, Line, Statement, Unit};
use super::lexer::{Token, tokens};
use super::table::Interner;

/// How deep blocks and expressions nest at most: bounds the parser's recursion.
const DEPTH_MAX: u32 = 64;

/// Parses one module.
pub(crate) fn parse(source: &str, interner: &mut Interner) -> Result<Unit, String> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        position: 0,
        depth: 0,
        interner,
    };
    let mut unit = Unit {
        imports: Vec::new(),
        functions: Vec::new(),
    };
    while parser.accept_name("import") {
        unit.imports.push(parser.name()?);
        parser.expect(";")?;
    }
    while parser.peek() != Token::End {
        unit.functions.push(parser.function()?);
    }
    Ok(unit)
}

struct Parser<'s, 'i> {
    tokens: Vec<(Token<'s>, u32)>,
    position: usize,
    depth: u32,
    interner: &'i mut Interner,
}

impl<'s> Parser<'s, '_> {
    fn peek(&self) -> Token<'s> {
        self.tokens
            .get(self.position)
            .map_or(Token::End, |&(token, _)| token)
    }

    fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens
            .get(self.position.min(last))
            .map_or(0, |&(_, line)| line)
    }

    fn next(&mut self) -> Token<'s> {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn accept(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(next) if next == symbol);
        self.position += usize::from(found);
        found
    }

    fn accept_name(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Token::Name(next) if next == name);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: &str) -> Result<(), String> {
        if self.accept(symbol) {
            return Ok(());
        }
        Err(format!(
            "line {}: expected {symbol:?}, found {:?}",
            self.line(),
            self.peek()
        ))
    }

    fn name(&mut self) -> Result<Rc<str>, String> {
        let line = self.line();
        match self.next() {
            Token::Name(name) => Ok(self.interner.intern(name)),
            other => Err(format!("line {line}: expected a name, found {other:?}")),
        }
    }

    fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        if self.depth == DEPTH_MAX {
            return Err(format!(
                "line {}: nested deeper than {DEPTH_MAX}",
                self.line()
            ));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn function(&mut self) -> Result<Definition, String> {
        if !self.accept_name("fn") {
            return Err(format!(
                "line {}: expected \"fn\", found {:?}",
                self.line(),
                self.peek()
            ));
        }
        let name = self.name()?;
        self.expect("(")?;
        let mut parameters = Vec::new();
        while !self.accept(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            parameters.push(self.name()?);
        }
        self.expect("{")?;
        let line = self.line();
        let Token::Text(documentation) = self.next() else {
            return Err(format!(
                "line {line}: function {name:?} has no documentation"
            ));
        };
        self.expect(";")?;
        let body = self.statements()?;
        Ok(Definition {
            name,
            parameters,
            documentation: Box::from(documentation),
            body,
        })
    }

    /// Statements up to the closing brace of their block, which is taken.
    fn statements(&mut self) -> Result<Vec<Line>, String> {
        let mut statements = Vec::new();
        while !self.accept("}") {
            let number = self.line();
            let statement = self.nested(Self::statement)?;
            statements.push(Line { number, statement });
        }
        statements.shrink_to_fit();
        Ok(statements)
    }

    fn block(&mut self) -> Result<Vec<Line>, String> {
        self.expect("{")?;
        self.statements()
    }

    fn statement(&mut self) -> Result<Statement, String> {
        if self.accept_name("if") {
            let condition = self.boxed_expression()?;
            let then = self.block()?;
            let otherwise = if self.accept_name("else") {
                self.block()?
            } else {
                Vec::new()
            };
            return Ok(Statement::If {
                condition,
                then,
                otherwise,
            });
        }
        if self.accept_name("while") {
            return Ok(Statement::While {
                condition: self.boxed_expression()?,
                body: self.block()?,
            });
        }
        let statement = if self.accept_name("return") {
            Statement::Return(self.boxed_expression()?)
        } else {
            let declares = self.accept_name("let");
            let name = self.name()?;
            self.expect("=")?;
            let value = self.boxed_expression()?;
            if declares {
                Statement::Let { name, value }
            } else {
                Statement::Assign { name, value }
            }
        };
        self.expect(";")?;
        Ok(statement)
    }

    fn boxed_expression(&mut self) -> Result<Box<Expression>, String> {
        self.expression(0).map(Box::new)
    }

    /// An expression whose operators bind tighter than `floor`.
    fn expression(&mut self, floor: u8) -> Result<Expression, String> {
        let mut left = self.nested(Self::operand)?;
        while let Token::Symbol(symbol) = self.peek() {
            let Some(&(operator, _, precedence)) = BinaryOperator::ALL
                .iter()
                .find(|&&(_, candidate, precedence)| candidate == symbol && precedence > floor)
            else {
                break;
            };
            self.position += 1;
            let right = self.nested(|parser| parser.expression(precedence))?;
            left = Expression::Binary {
                operator,
                left: Box::new(left),
                right: Box::new(right),
            };
        }
        Ok(left)
    }

    fn operand(&mut self) -> Result<Expression, String> {
        let line = self.line();
        let mut operand = match self.next() {
            Token::Integer(value) => Expression::Integer(value),
            Token::Text(text) => Expression::Text(self.interner.intern(text)),
            Token::Symbol("-") => Expression::Negate(Box::new(self.nested(Self::operand)?)),
            Token::Symbol("[") => self.list()?,
            Token::Symbol("(") => {
                let inner = self.nested(|parser| parser.expression(0))?;
                self.expect(")")?;
                inner
            }
            Token::Name(name) => self.name_or_call(name)?,
            other => {
                return Err(format!(
                    "line {line}: expected an expression, found {other:?}"
                ));
            }
        };
        while self.accept("[") {
            let index = Box::new(self.nested(|parser| parser.expression(0))?);
            self.expect("]")?;
            operand = Expression::Index {
                list: Box::new(operand),
                index,
            };
        }
        Ok(operand)
    }

    fn list(&mut self) -> Result<Expression, String> {
        let mut items = Vec::new();
        while !self.accept("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            let negative = self.accept("-");
            let line = self.line();
            let Token::Integer(value) = self.next() else {
                return Err(format!("line {line}: a list holds integers only"));
            };
            items.push(if negative { -value } else { value });
        }
        Ok(Expression::List(Rc::from(items)))
    }

    fn name_or_call(&mut self, name: &str) -> Result<Expression, String> {
        let name = self.interner.intern(name);
        let (module, function) = if self.accept(".") {
            (Some(name), self.name()?)
        } else {
            (None, name)
        };
        if !self.accept("(") {
            return match module {
                None => Ok(Expression::Name(function)),
                Some(module) => Err(format!(
                    "line {}: {module}.{function} is not called",
                    self.line()
                )),
            };
        }
        let mut arguments = Vec::new();
        while !self.accept(")") {
            if !arguments.is_empty() {
                self.expect(",")?;
            }
            arguments.push(self.nested(|parser| parser.expression(0))?);
        }
        arguments.shrink_to_fit();
        Ok(Expression::Call {
            module,
            function,
            arguments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn first_statement(expression: &str) -> String {
        let source = format!("fn f(a) {{ \"d\"; return {expression}; }}");
        let unit = parse(&source, &mut Interner::new()).unwrap();
        unit.functions[0].body[0].statement.to_string()
    }

    #[test]
    fn operators_bind_by_precedence_and_to_the_left() {
        assert_eq!(
            first_statement("1 + 2 * a - 4"),
            "return ((1 + (2 * a)) - 4);"
        );
        assert_eq!(
            first_statement("a << 1 + 2 == 3 & 4"),
            "return (((a << (1 + 2)) == 3) & 4);"
        );
        assert_eq!(first_statement("(1 + 2) * -a"), "return ((1 + 2) * -a);");
        assert_eq!(
            first_statement("[1, -2][a] % m.g(a, \"t\")"),
            "return ([1, -2][a] % m.g(a, \"t\"));"
        );
    }

    #[test]
    fn wrong_sources_are_refused() {
        for source in [
            "fn",
            "fn f() {}",
            "fn f() { \"d\"; return 1 }",
            "fn f() { \"d\"; 1 = 2; }",
            "fn f() { \"d\"; return a.b; }",
            "fn f() { \"d\"; return [a]; }",
            "fn f() { \"d\"; return 1;",
            "import a",
            "let a = 1;",
        ] {
            assert!(parse(source, &mut Interner::new()).is_err(), "{source}");
        }
        let deep = format!("fn f() {{ \"d\"; return {}1; }}", "(".repeat(10_000));
        assert!(
            parse(&deep, &mut Interner::new())
                .unwrap_err()
                .contains("nested deeper")
        );
    }
}
