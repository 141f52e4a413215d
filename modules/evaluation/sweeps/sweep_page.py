"""A sweep as one HTML file that needs nothing else, in the look of an evaluation's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from .. import report
from ..report.page import difference, number
from .sweep_charts import importance_chart, parallel_chart, progress_chart, response_chart

if TYPE_CHECKING:
    from .sweep_result import SweepResult


def sweep_page(result: SweepResult, made_by: Mapping[str, str]) -> str:
    """The whole page. The same result gives the same page."""
    style = Markup((Path(report.__file__).parent / "report.css").read_text(encoding="utf-8"))
    charts = [progress_chart(result), *(response_chart(result, dimension) for dimension in result.dimensions)]
    charts += [parallel_chart(result), importance_chart(result)]
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": number, "difference": difference}
    order = result.ranked + [one for one in result.outcomes if one.state != "finished"]
    pictures = [(chart.title, chart.svg()) for chart in charts if chart.draw]
    template = page.get_template("sweep.html.j2")
    return template.render(result=result, style=style, pictures=pictures, order=order, made_by=made_by)
