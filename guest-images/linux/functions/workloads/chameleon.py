"""`chameleon`: compiles a page template and renders an HTML table with it.

The template is compiled at every invocation, as in FunctionBench.
"""

import hashlib
import random

from chameleon import PageTemplate

from .parameters import Size, parse

SIZES = (Size("rows", 120, 1, 1000), Size("columns", 10, 1, 40))

_TABLE = """\
<table xmlns="http://www.w3.org/1999/xhtml" xmlns:tal="http://xml.zope.org/namespaces/tal">
  <caption tal:content="options['title']">title</caption>
  <tr tal:repeat="row options['rows']" tal:attributes="class 'odd' if repeat.row.odd else 'even'">
    <td tal:repeat="cell row.values()">
      <span tal:define="next python: cell + 1"
            tal:attributes="class python: 'column-' + str(next)" tal:content="python: next"/>
    </td>
  </tr>
</table>
"""


def setup() -> None:
    """Renders once, which imports the template compiler."""
    PageTemplate(_TABLE).render(options={"title": "", "rows": []})


def handle(fields: dict) -> dict:
    """Renders a table of `rows` times `columns` numbers that follow from the seed."""
    seed, row_count, column_count = parse(fields, SIZES)
    generator = random.Random(seed)
    rows = [
        {f"c{column}": generator.randrange(1_000_000) for column in range(column_count)}
        for _ in range(row_count)
    ]
    # Markup in a value has to come out escaped.
    options = {"title": f"<{seed}> & its table", "rows": rows}
    page = PageTemplate(_TABLE).render(options=options).encode()
    return {
        "cells": page.count(b"</span>"),
        "page_bytes": len(page),
        "sha256": hashlib.sha256(page).hexdigest(),
    }
