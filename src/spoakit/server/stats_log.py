"""The workers' figures as lines of the log."""

import logging

from spoakit.metrics.counters import Counters

logger = logging.getLogger("spoakit.server")


def log_counters(counters: Counters, workers: int, *, zeros: bool) -> None:
    """Log a line of figures for each worker, the supervisor, and all of them.

    What is counted for each frame is carried over about once a second, so the figures are as old.

    Args:
        counters: those of the service.
        workers: how many there are.
        zeros: name what is 0, too.
    """
    rows = [(f"worker {index + 1}", counters.row(index)) for index in range(workers)]
    rows.append(("supervisor", counters.row(workers)))
    figures = [
        (name, {metric.name: row.get(metric.slot) for metric in counters.metrics})
        for name, row in rows
    ]
    figures.append(("all", counters.totals()))
    for name, values in figures:
        shown = [f"{_short(key)}={value}" for key, value in values.items() if value or zeros]
        logger.info("%s: %s", name, " ".join(shown) or "nothing yet")


def _short(name: str) -> str:
    return name.removeprefix("spoakit_").removesuffix("_total")
