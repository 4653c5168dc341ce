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

Each metric of spoakit, and how an agent declares its own. `scripts/metrics_page.py` makes this
page.

```
kill -USR2 PID                                # log all metrics
spoakit run hello:agent --monitor-interval 1m # log the changes of a minute
```

The log has a line for each message, target, source and zone, for each worker, and for the rest. An
agent of your own declares its metrics at the top level of its module:

```python
from spoakit import metrics

LOGINS = metrics.counter("logins_total", "Logins by result.", labels=("result",))
OPEN = metrics.gauge("sessions_open", "Sessions that are open.")
LOOKUP = metrics.histogram("lookup_seconds", "Time of a lookup in the directory.")


@agent.message("check-login")
async def check(user: str) -> Action:
    LOGINS.add(result="ok")
```

They work in handlers of every kind, in resources and reload functions, with any number of workers,
and `Engine.metrics` shows them to tests: `engine.metrics.value("logins_total", result="ok")`.
Outside of a running agent they count nothing.

| kind | value |
|---|---|
| counter | only grows; the successor of a worker goes on with its values |
| gauge | the sum over the living workers, unless its line says otherwise |
| histogram | 48 buckets for each factor of ten; readers get 25 bounds: 1, 2, 5, 10, ... |

Each process counts in its own memory and publishes all values once a second, between two rounds of
its event loop; a reader gets the sum of the published values. Values are at most a second old, and
consistent: for each target of spoa-mirror, requests = responses + failures + dropped + waiting + in
flight + not copied. A killed worker loses at most its last second; the frames and copies that it
had, as last published, are logged and counted as lost. A label has a limited number of values,
further ones count as "other"; a value is cut to 63 bytes.
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    shown: set[Family] = set()
    for title, module in PARTS:
        importlib.import_module(module)
        families = [family for family in declared() if family not in shown]
        shown.update(families)
        parts.append(f"\n## {title}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n")
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
