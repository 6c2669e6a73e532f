//! Template source to nodes.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Filter, Node, Path};

/// How deep blocks nest at most: bounds the recursion of parsing and rendering.
const DEPTH_MAX: u32 = 16;

/// What ended a sequence of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    SourceEnded,
    ForClosed,
    ElseReached,
    IfClosed,
}

/// Parses a whole template.
pub(super) fn parse(source: &str) -> Result<Vec<Node>, String> {
    let mut rest = source;
    match nodes(&mut rest, 0)? {
        (nodes, End::SourceEnded) => Ok(nodes),
        (_, end) => Err(format!("{end:?} ends no block")),
    }
}

fn nodes(rest: &mut &str, depth: u32) -> Result<(Vec<Node>, End), String> {
    if depth > DEPTH_MAX {
        return Err(format!("blocks nest deeper than {DEPTH_MAX}"));
    }
    let mut nodes = Vec::new();
    loop {
        let Some(start) = find_tag(rest) else {
            push_text(&mut nodes, rest);
            *rest = "";
            return Ok((nodes, End::SourceEnded));
        };
        let (text, tag) = rest.split_at(start);
        push_text(&mut nodes, text);
        let close = if tag.starts_with("{{") { "}}" } else { "%}" };
        let (inner, after) = tag[2..]
            .split_once(close)
            .ok_or_else(|| format!("a tag lacks its {close:?}"))?;
        *rest = after;
        let inner = inner.trim();
        if close == "}}" {
            nodes.push(output(inner)?);
            continue;
        }
        let (word, arguments) = inner.split_once(' ').unwrap_or((inner, ""));
        let node = match (word, arguments.trim()) {
            ("for", arguments) => {
                let (variable, list) = arguments
                    .split_once(" in ")
                    .ok_or_else(|| format!("{inner:?} is not \"for name in path\""))?;
                let (body, end) = self::nodes(rest, depth + 1)?;
                expect(end, End::ForClosed)?;
                Node::For {
                    variable: Rc::from(variable.trim()),
                    list: path(list.trim())?,
                    body,
                }
            }
            ("if", condition) => {
                let condition = path(condition)?;
                let (then, end) = self::nodes(rest, depth + 1)?;
                let otherwise = if end == End::ElseReached {
                    let (otherwise, end) = self::nodes(rest, depth + 1)?;
                    expect(end, End::IfClosed)?;
                    otherwise
                } else {
                    expect(end, End::IfClosed)?;
                    Vec::new()
                };
                Node::If {
                    condition,
                    then,
                    otherwise,
                }
            }
            ("include", name) => {
                let name = name
                    .strip_prefix('"')
                    .and_then(|name| name.strip_suffix('"'));
                Node::Include(Rc::from(
                    name.ok_or_else(|| format!("{inner:?} names no template in quotes"))?,
                ))
            }
            ("endfor", "") => return Ok((nodes, End::ForClosed)),
            ("else", "") => return Ok((nodes, End::ElseReached)),
            ("endif", "") => return Ok((nodes, End::IfClosed)),
            _ => return Err(format!("{inner:?} is no known tag")),
        };
        nodes.push(node);
    }
}

fn find_tag(source: &str) -> Option<usize> {
    match (source.find("{{"), source.find("{%")) {
        (Some(output), Some(block)) => Some(output.min(block)),
        (output, block) => output.or(block),
    }
}

fn push_text(nodes: &mut Vec<Node>, text: &str) {
    if !text.is_empty() {
        nodes.push(Node::Text(Box::from(text)));
    }
}

fn expect(found: End, expected: End) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("a block ends with {found:?}, not {expected:?}"))
}

fn output(inner: &str) -> Result<Node, String> {
    let (name, filter) = match inner.split_once('|') {
        None => (inner, Filter::Escape),
        Some((name, filter)) => {
            let filter = match filter.trim() {
                "upper" => Filter::Upper,
                "raw" => Filter::Raw,
                other => return Err(format!("{other:?} is no filter")),
            };
            (name, filter)
        }
    };
    Ok(Node::Output {
        path: path(name.trim())?,
        filter,
    })
}

fn path(text: &str) -> Result<Path, String> {
    text.split('.')
        .map(|name| {
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if is_name {
                Ok(Rc::from(name))
            } else {
                Err(format!("{text:?} is no path"))
            }
        })
        .collect()
}
