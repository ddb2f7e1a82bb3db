"""What a verb of the `musae` command is, and where all of them talk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Verb:
    """What a verb takes, what it does with it (the answer is printed), and its line in the list."""

    flags: type
    call: Callable[[Any], str]
    help: str
