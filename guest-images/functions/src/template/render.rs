//! Nodes and data to HTML.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::{Filter, Node, Path, Templates};
use crate::serde_json::Value;

/// How deep templates include each other at most.
const INCLUDE_DEPTH_MAX: u32 = 8;

/// Renders the template called `name`.
pub(super) fn render(
    templates: &Templates,
    name: &str,
    data: &Value,
    html: &mut String,
) -> Result<(), String> {
    Renderer {
        templates,
        data,
        variables: Vec::new(),
        html,
    }
    .template(name, 0)
}

struct Renderer<'d> {
    templates: &'d Templates,
    data: &'d Value,
    /// The variables of the loops around, innermost last.
    variables: Vec<(&'d str, &'d Value)>,
    html: &'d mut String,
}

impl<'d> Renderer<'d> {
    fn template(&mut self, name: &str, depth: u32) -> Result<(), String> {
        if depth > INCLUDE_DEPTH_MAX {
            return Err(format!(
                "includes nest deeper than {INCLUDE_DEPTH_MAX} at {name:?}"
            ));
        }
        let templates = self.templates;
        let nodes = templates.templates.get(name);
        self.nodes(
            nodes.ok_or_else(|| format!("there is no template {name:?}"))?,
            depth,
        )
    }

    fn nodes(&mut self, nodes: &'d [Node], depth: u32) -> Result<(), String> {
        nodes.iter().try_for_each(|node| self.node(node, depth))
    }

    fn node(&mut self, node: &'d Node, depth: u32) -> Result<(), String> {
        match node {
            Node::Text(text) => self.html.push_str(text),
            Node::Output { path, filter } => {
                let value = self.value(path)?;
                self.output(value, *filter, path)?;
            }
            Node::For {
                variable,
                list,
                body,
            } => {
                let Value::Array(items) = self.value(list)? else {
                    return Err(format!("{} is no list", list.join(".")));
                };
                for item in items {
                    self.variables.push((variable, item));
                    self.nodes(body, depth)?;
                    self.variables.pop();
                }
            }
            Node::If {
                condition,
                then,
                otherwise,
            } => {
                let chosen = if holds(self.value(condition)?) {
                    then
                } else {
                    otherwise
                };
                self.nodes(chosen, depth)?;
            }
            Node::Include(name) => self.template(name, depth + 1)?,
        }
        Ok(())
    }

    fn value(&self, path: &Path) -> Result<&'d Value, String> {
        let mut names = path.iter();
        let missing = || format!("{} has no value", path.join("."));
        let first = names.next().ok_or_else(missing)?;
        let variable = self
            .variables
            .iter()
            .rev()
            .find(|(name, _)| *name == &**first);
        let start = variable
            .map(|&(_, value)| value)
            .or_else(|| self.data.get(&**first));
        names
            .try_fold(start.ok_or_else(missing)?, |value, name| value.get(&**name))
            .ok_or_else(missing)
    }

    fn output(&mut self, value: &Value, filter: Filter, path: &Path) -> Result<(), String> {
        match value {
            Value::String(text) if filter == Filter::Raw => self.html.push_str(text),
            Value::String(text) => {
                for character in text.chars() {
                    let shown = match filter {
                        Filter::Upper => character.to_ascii_uppercase(),
                        Filter::Escape | Filter::Raw => character,
                    };
                    match shown {
                        '<' => self.html.push_str("&lt;"),
                        '>' => self.html.push_str("&gt;"),
                        '&' => self.html.push_str("&amp;"),
                        '"' => self.html.push_str("&quot;"),
                        '\'' => self.html.push_str("&#39;"),
                        shown => self.html.push(shown),
                    }
                }
            }
            Value::Number(number) => {
                // Writing to a String cannot fail.
                let _ = write!(self.html, "{number}");
            }
            _ => return Err(format!("{} is neither a text nor a number", path.join("."))),
        }
        Ok(())
    }
}

/// Whether a condition with this value holds.
fn holds(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}
