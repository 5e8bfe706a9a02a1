"""Where the time of a launch goes: the marks of caller, launcher and task on one line of time, and the task's own steps."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.figures import median
from tests.bench.launch_caller import Timed


def stages(title: str, launches: Sequence[Timed]) -> str:
    """Medians. Marks stand in the order in which they come; a step is the median of the differences to the mark before."""
    names = {name for one in launches for name in one.marks_us}
    complete = [one for one in launches if one.marks_us.keys() >= names]
    order = sorted(names, key=lambda name: median([one.marks_us[name] for one in complete]))
    width = max(len(title), *map(len, order))
    head = f"{title:<{width}}  {'at':>11}  {'after the last':>14}"
    lines = [head, "-" * len(head)]
    for before, name in zip((order[0], *order), order, strict=False):
        at = median([one.marks_us[name] for one in complete])
        step = median([one.marks_us[name] - one.marks_us[before] for one in complete])
        lines.append(f"{name:<{width}}  {_ms(at)}  {_ms(step):>14}")
    lines.append("steps inside the task, by its own word")
    for name in sorted({name for one in complete for name in one.task_us}):
        lines.append(f"  {name:<{width - 2}}  {_ms(median([one.task_us.get(name, 0) for one in complete]))}")
    return "\n".join(lines)


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:>8.2f} ms"
