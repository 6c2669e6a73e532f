//! Characters to tokens.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A token of the library's language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'s> {
    Integer(i64),
    /// A text between double quotes; the language has no escapes.
    Text(&'s str),
    Name(&'s str),
    Symbol(&'static str),
    End,
}

/// Longer symbols first, so that `<` does not hide `<<`.
const SYMBOLS: [&str; 28] = [
    "<<", ">>", "==", "!=", "<=", ">=", "<", ">", "=", "+", "-", "*", "/", "%", "&", "|", "^", "!",
    "(", ")", "{", "}", "[", "]", ",", ";", ".", ":",
];

/// Splits `source`; each token comes with its line, counted from 1.
pub(crate) fn tokens(source: &str) -> Result<Vec<(Token<'_>, u32)>, String> {
    let mut tokens = Vec::with_capacity(source.len() / 4);
    let mut rest = source;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        if first == '\n' {
            line += 1;
        }
        if first.is_ascii_whitespace() {
            rest = &rest[1..];
        } else if first.is_ascii_digit() {
            let (digits, after) = split(rest, |c| c.is_ascii_digit());
            let value = digits
                .parse()
                .map_err(|_| format!("line {line}: {digits} does not fit 64 bits"))?;
            tokens.push((Token::Integer(value), line));
            rest = after;
        } else if first.is_ascii_alphabetic() || first == '_' {
            let (name, after) = split(rest, |c| c.is_ascii_alphanumeric() || c == '_');
            tokens.push((Token::Name(name), line));
            rest = after;
        } else if first == '"' {
            let (text, after) = rest[1..]
                .split_once('"')
                .ok_or_else(|| format!("line {line}: a text has no closing quote"))?;
            tokens.push((Token::Text(text), line));
            line += text.bytes().filter(|&byte| byte == b'\n').count() as u32;
            rest = after;
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            tokens.push((Token::Symbol(symbol), line));
            rest = &rest[symbol.len()..];
        } else {
            return Err(format!("line {line}: {first:?} is no part of the language"));
        }
    }
    tokens.push((Token::End, line));
    Ok(tokens)
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_token_is_found() {
        let found = tokens("let a_1 = 40 << b;\n\"two words\"").unwrap();
        let expected = [
            (Token::Name("let"), 1),
            (Token::Name("a_1"), 1),
            (Token::Symbol("="), 1),
            (Token::Integer(40), 1),
            (Token::Symbol("<<"), 1),
            (Token::Name("b"), 1),
            (Token::Symbol(";"), 1),
            (Token::Text("two words"), 2),
            (Token::End, 2),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn wrong_characters_are_refused_with_their_line() {
        assert!(tokens("a\n?").unwrap_err().contains("line 2"));
        assert!(tokens("\"open").is_err());
        assert!(tokens("99999999999999999999").is_err());
    }
}
