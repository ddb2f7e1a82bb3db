"""Progress bars with rate and ETA, as the callbacks `progress(done, total, unit)` that every stage takes."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:.1f} {unit}/s" if task.speed >= 0.1 else f"{1 / task.speed:.0f} s each", "cyan")


@contextlib.contextmanager
def progress_bar(title: str, console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on `console` for one stage; a new unit starts a new bar. Silent where the console is no terminal."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks: dict[str, int] = {}
        totals: dict[str, int] = {}

        def show(done: int, total: int, unit: str) -> None:
            if unit not in tasks or done < totals[unit]:
                tasks[unit] = bar.add_task(title, total=total, unit=unit, completed=done)
            totals[unit] = done
            bar.update(tasks[unit], completed=done, total=total)

        yield show
