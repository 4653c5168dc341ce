"""Write docs/reference/metrics.md from the declarations of all metrics.

    python scripts/metrics_page.py [FILE]        default: docs/reference/metrics.md

Run it after a metric was declared, changed or removed; a test holds the page to the declarations.
"""

import importlib
import sys
from pathlib import Path

from spoakit.metrics.families import Family, Gauge, declared

# Where metrics are declared, and whose they are.
PARTS = (
    ("All agents", "spoakit.server.service"),
    ("spoa-mirror", "spoakit.apps.mirror.agent"),
    ("spoa-iprep", "spoakit.apps.iprep.agent"),
)

HEAD = """\
# Metrics

This page is made from the declarations by `scripts/metrics_page.py`.

Each process counts in its own memory and publishes that once a second, between two rounds of its
event loop; a reader gets what all of them have published last, added up. So figures are at most a
second old, and add up: for each target of spoa-mirror, requests = responses + failures + dropped +
waiting + in flight + not copied. A worker that is killed loses at most its last second; what it had
in its hands, as it last published, is logged and counted as lost.

Counters only grow, and a worker's successor counts on. Gauges are the state of the living workers,
added up, unless a line says otherwise. Histograms have 48 buckets to a decade inside, 3 to 7 %
wide, by which the log shows percentiles, and 25 bounds (1, 2, 5, 10, ...) outside. Where a label
has more values than there is room for, the rest are counted as "other"; a value is cut to 63 bytes.

SIGUSR2 logs everything, `--monitor-interval TIME` what has changed in the interval: a line
for each message, target, source and zone, for each worker, and for the rest.

An agent of your own declares its metrics at the top level of its module:

```python
from spoakit import metrics

LOGINS = metrics.counter("logins_total", "Logins by result.", labels=("result",))
OPEN = metrics.gauge("sessions_open", "Sessions that are open.")
LOOKUP = metrics.histogram("lookup_seconds", "Time of a lookup in the directory.")


@agent.message("check-login")
async def check(user: str) -> Action:
    LOGINS.add(result="ok")
```

They work in handlers of every kind, in resources and reload functions, under any number of
workers, and `Engine.metrics` shows them to tests:
`engine.metrics.value("logins_total", result="ok")`. Outside of an agent that runs they count
nothing.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    shown: set[Family] = set()
    for title, module in PARTS:
        importlib.import_module(module)
        families = [family for family in declared() if family not in shown]
        shown.update(families)
        parts.append(f"\n## {title}\n\n| metric | kind | labels | |\n|---|---|---|---|\n")
        parts += [_line(family) for family in sorted(families, key=lambda each: each.name)]
    return "".join(parts)


def _line(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    more = ""
    if family.labels:
        labels += f" (up to {family.limit} series)"
    if isinstance(family, Gauge) and family.merge == "worker":
        labels = ", ".join(["`worker`", labels]) if labels else "`worker`"
    elif isinstance(family, Gauge) and family.merge == "max":
        more = " The highest of all workers."
    return f"| `{family.name}` | {family.kind.value} | {labels} | {family.help}{more} |\n"


if __name__ == "__main__":
    default = Path(__file__).parent.parent / "docs/reference/metrics.md"
    (Path(sys.argv[1]) if len(sys.argv) > 1 else default).write_text(page())
