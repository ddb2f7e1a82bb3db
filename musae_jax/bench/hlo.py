"""What a compiled program says between devices: its collectives, read from the text of its optimised HLO."""

import collections
import dataclasses
import re

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
MOVING = ("all-gather", "all-to-all", "collective-permute", "ragged-all-to-all", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|reduce-scatter|all-gather|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(-start)?\("
)
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|true_computation=([^,]*), false_computation=([^,\s]*))")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    kind: as in "all-reduce".  elements, bytes: of its result on one device.  origin: the traced operation it serves.
    """

    kind: str
    elements: int
    bytes: int
    origin: str

    @property
    def moves(self) -> bool:
        """Whether it carries parts of arrays elsewhere, and does not only add arrays up."""
        return self.kind in MOVING


def collectives(text: str) -> list[Collective]:
    """The collectives that one call of an optimised program makes.

    Of a conditional's branches those of the dearest count; those in a loop count once, however often it turns.
    """
    own: dict[str, list[Collective]] = {}
    calls: dict[str, list[list[str]]] = {}  # per computation, for every call: the computations one of which is run
    entry = name = ""
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line.strip()):
            name = begin[2]
            entry = name if begin[1] else entry
            own[name], calls[name] = [], []
        elif found := _COLLECTIVE.search(line):
            own[name].append(_collective(*found.groups(), line))
        elif name and " = " in line:
            if branches := _BRANCHES.search(line):
                calls[name].append(
                    [one.strip().lstrip("%") for one in ",".join(filter(None, branches.groups())).split(",")]
                )
            calls[name] += [[one] for one in _CALLED.findall(line)]

    def of(name: str) -> list[Collective]:
        below = (max((of(one) for one in branches), key=total_bytes) for branches in calls.get(name, ()))
        return own.get(name, []) + [one for each in below for one in each]

    return of(entry)


def _collective(result: str, kind: str, start: str | None, line: str) -> Collective:
    shapes = [(dtype, _product(dims)) for dtype, dims in _SHAPE.findall(result)]
    if start and kind != "all-reduce":  # (operands, results, scalars of the runtime)
        shapes = [shape for shape in shapes if shape != ("u32", 1)]
        shapes = shapes[len(shapes) // 2 :]
    origin = re.search(r'op_name="([^"]*)"', line)
    elements = sum(count for _, count in shapes)
    return Collective(
        kind, elements, sum(count * ITEM_BYTES.get(t, 4) for t, count in shapes), origin[1] if origin else ""
    )


def _product(dims: str) -> int:
    product = 1
    for size in filter(None, dims.split(",")):
        product *= int(size)
    return product


def total_bytes(found: list[Collective]) -> int:
    return sum(one.bytes for one in found)


def by_kind(found: list[Collective]) -> dict[str, tuple[int, int]]:
    """Kind -> (how many, bytes of all)."""
    kinds: dict[str, list[Collective]] = collections.defaultdict(list)
    for one in found:
        kinds[one.kind].append(one)
    return {kind: (len(ones), total_bytes(ones)) for kind, ones in sorted(kinds.items())}


def gathers_of_features(found: list[Collective], d_in: int, tokens: int, d_sae: int) -> list[Collective]:
    """The collectives that move half or more of the dictionary [D, F] or of the pre-activations [N, F] onto a device.

    `tokens` is N of one device. What the step gathers on purpose (`shards.largest`), some candidates for each token, is
    measured by the pre-activations alone: a huge batch has more candidates than a small dictionary has weights.
    """
    least = min(d_in, tokens)
    return [
        one
        for one in found
        if one.moves and 2 * one.elements >= (tokens if one.origin.endswith("/all_gather") else least) * d_sae
    ]
