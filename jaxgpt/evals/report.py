"""The last stage of a run: one page that shows what it did, to look at, to keep, to send to somebody."""

from __future__ import annotations

from dataclasses import dataclass

from jaxgpt.core.experiment import Context, Stage
from jaxgpt.core.files import write_text
from jaxgpt.evals.report_data import collect
from jaxgpt.evals.report_html import html_page
from jaxgpt.evals.report_markdown import markdown_page


@dataclass(frozen=True)
class Report(Stage):
    """Put the whole run on one page.

    Attributes:
      of: stages that must be complete first. Whatever else was completed before this stage is shown, too.
    """

    name: str = "report"
    of: tuple[str, ...] = ()

    def inputs(self) -> tuple[str, ...]:
        return self.of

    def run(self, context: Context) -> dict:
        run = collect(context.experiment, context.workdir, before=self.name)
        write_text(context.directory / "report.html", html_page(run))
        write_text(context.directory / "report.md", markdown_page(run))
        return {"html": "report.html", "markdown": "report.md"}
