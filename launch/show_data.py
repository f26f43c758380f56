"""``trireme data``: show the data that a recipe trains on, with some samples, on the terminal and, if asked, as an HTML
page. No model is built and no rank is started.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ..trainer.spinner import say, spinning
from .compose import compose
from .compose_plan import compose_plan
from .make_report import page_file
from .quick_imports import quick_imports
from .train import checked

if TYPE_CHECKING:
    from ..trainer.data_report import DataReport
    from .composed import Composed


def run(options: argparse.Namespace) -> None:
    """Print the report, and write it as a page if asked to.

    Raises:
        UserError: the recipe has problems, or its data are not usable.
    """
    page = None if options.html is None else page_file(options.html, "--html")
    with spinning("reading the recipe"):
        report = _report(options)
    from .data_terminal import print_report

    print_report(report)
    if page:
        from .data_page import write_page

        write_page(report, page, f"Data of {options.recipe}")
        print(f"the page is {page}", flush=True)


def _report(options: argparse.Namespace) -> DataReport:
    composed = compose(options.recipe, options.overrides, options.recipe_dir)
    recipe, _ = checked(_on_one_process(composed), 1)
    with quick_imports():
        from ..trainer.data_report import report_data
        from ..trainer.log_files import log_alone, tear_down_logging

    say("preparing data")
    handlers = log_alone(recipe.run)
    try:
        return report_data(recipe, options.samples, options.set)
    finally:
        tear_down_logging(handlers)


def _on_one_process(composed: Composed) -> Composed:
    """The recipe with the plan ``single`` and without averages: data are the same under every plan."""
    return replace(composed, raw={**composed.raw, "plan": compose_plan("single"), "ema": None})
