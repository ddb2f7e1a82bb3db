"""Music longer than what a model was trained on: windows that slide, each keeping the end of the one before.

audiocraft's rule (`BaseGenModel._generate_tokens`): windows of `max_duration` (30 s) begin every `extend_stride`
(18 s), so each has its first 12 s given and makes 18 s more. What is already there (a prompt, or the window before) is
kept.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames `start` … of the clips; of each row `known` frames are given and those up to `frames` are to be made.

    Both count from `start`, and both are 0 in a row for which this window has nothing to do.
    """

    start: int
    known: tuple[int, ...]
    frames: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Up to which frame, from `start`, anything is made."""
        return max(self.frames)

    @property
    def given(self) -> int:
        """The frames, from `start`, that every row with something to do is given."""
        return min(known for known, frames in zip(self.known, self.frames) if frames)


def plan_windows(known: Sequence[int], frames: Sequence[int], length: int, stride: int) -> list[Window]:
    """The windows that take each row from its `known` frames to its `frames`, in order.

    They begin at multiples of `stride`, whatever else is in the batch, and hold `length` frames at most; those in which
    nothing is left to do (they would lie inside a prompt) are left out.
    """
    done, windows, start = list(known), [], 0
    while any(now < end for now, end in zip(done, frames)):
        ends = [min(end, start + length) for end in frames]
        busy = [now < end for now, end in zip(done, ends)]
        if any(busy):
            windows.append(
                Window(
                    start=start,
                    known=tuple(max(0, now - start) if b else 0 for now, b in zip(done, busy)),
                    frames=tuple(end - start if b else 0 for end, b in zip(ends, busy)),
                )
            )
        done = [end if b else now for now, end, b in zip(done, ends, busy)]
        start += stride
    return windows
