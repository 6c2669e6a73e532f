//! A small HTML template engine: templates are parsed once and rendered often.
//!
//! ```text
//! {{ path }}  {{ path|upper }}  {{ path|raw }}       output, escaped unless raw
//! {% for name in path %} ... {% endfor %}
//! {% if path %} ... {% else %} ... {% endif %}
//! {% include "template" %}
//! ```
//!
//! A path is names joined by dots, looked up in the loops' variables and then in the data.

mod parse;
mod render;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;

use crate::FunctionError;
use crate::runtime::NameTable;

/// What an output does with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// Escapes the characters that HTML gives a meaning.
    Escape,
    /// Escapes, in upper case.
    Upper,
    /// Copies the value as it is.
    Raw,
}

/// Names joined by dots.
type Path = Box<[Rc<str>]>;

/// A part of a template.
#[derive(Debug, PartialEq)]
enum Node {
    Text(Box<str>),
    Output {
        path: Path,
        filter: Filter,
    },
    For {
        variable: Rc<str>,
        list: Path,
        body: Vec<Node>,
    },
    If {
        condition: Path,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Include(Rc<str>),
}

/// Parsed templates by their names.
pub(crate) struct Templates {
    templates: NameTable<Vec<Node>>,
}

impl Templates {
    /// Room for about `capacity` templates.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            templates: NameTable::with_capacity(capacity),
        }
    }

    /// Parses `source` and keeps it as `name`.
    pub(crate) fn add(&mut self, name: &str, source: &str) -> Result<(), FunctionError> {
        let nodes = parse::parse(source).map_err(|reason| FunctionError::Source {
            message: alloc::format!("template {name:?}: {reason}"),
        })?;
        self.templates.insert(Rc::from(name), nodes);
        Ok(())
    }

    /// Renders the template called `name` with `data` to the end of `html`.
    pub(crate) fn render(
        &self,
        name: &str,
        data: &crate::serde_json::Value,
        html: &mut String,
    ) -> Result<(), FunctionError> {
        render::render(self, name, data, html).map_err(|message| FunctionError::Data {
            operation: "rendering a template",
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serde_json::json;
    use alloc::string::ToString;

    fn rendered(sources: &[(&str, &str)]) -> Result<String, String> {
        let mut templates = Templates::with_capacity(4);
        for (name, source) in sources {
            templates
                .add(name, source)
                .map_err(|error| error.to_string())?;
        }
        let data = json!({
            "title": "a<b & \"c\"",
            "rows": [{"cells": [1, 2]}, {"cells": []}],
            "yes": true, "no": false, "empty": "", "zero": 0, "none": null,
        });
        let mut html = String::new();
        templates
            .render("page", &data, &mut html)
            .map_err(|error| error.to_string())?;
        Ok(html)
    }

    #[test]
    fn outputs_are_escaped_unless_raw() {
        let page = "{{ title }}|{{title|upper}}|{{ title|raw }}";
        assert_eq!(
            rendered(&[("page", page)]).unwrap(),
            "a&lt;b &amp; &quot;c&quot;|A&lt;B &amp; &quot;C&quot;|a<b & \"c\""
        );
    }

    #[test]
    fn loops_nest_and_conditions_choose() {
        let page = "{% for row in rows %}[{% for cell in row.cells %}{{ cell }},{% endfor %}]\
                    {% endfor %}{% if yes %}y{% else %}n{% endif %}{% if no %}y{% endif %}\
                    {% if empty %}y{% endif %}{% if zero %}y{% endif %}{% if none %}y{% endif %}\
                    {% if rows %}r{% endif %}";
        assert_eq!(rendered(&[("page", page)]).unwrap(), "[1,2,][]yr");
    }

    #[test]
    fn includes_see_the_variables_of_loops() {
        let page = "{% for row in rows %}{% include \"part\" %}{% endfor %}";
        let part = "{% for cell in row.cells %}<{{ cell }}>{% endfor %}";
        assert_eq!(
            rendered(&[("page", page), ("part", part)]).unwrap(),
            "<1><2>"
        );
    }

    #[test]
    fn wrong_templates_are_refused() {
        for source in [
            "{{ title",
            "{{ }}",
            "{{ a..b }}",
            "{{ title|unknown }}",
            "{% for x in rows %}",
            "{% for x rows %}{% endfor %}",
            "{% endfor %}",
            "{% else %}",
            "{% if yes %}{% endfor %}",
            "{% include page %}",
            "{% what %}",
            "{{ missing }}",
            "{{ rows }}",
            "{% for x in title %}{% endfor %}",
            "{% include \"missing\" %}",
            "{% include \"page\" %}",
        ] {
            assert!(rendered(&[("page", source)]).is_err(), "{source}");
        }
    }
}
