"""The arithmetic of sliding windows, for every length."""

from hypothesis import given
from hypothesis import strategies as st

from musae_jax.models.windows import plan_windows


@st.composite
def plans(draw):
    length = draw(st.integers(2, 60))
    stride = draw(st.integers(1, length - 1))
    known = draw(st.lists(st.integers(0, 150), min_size=1, max_size=4))
    return known, [k + draw(st.integers(1, 200)) for k in known], length, stride


@given(plans())
def test_every_frame_is_made_once_in_order_and_windows_keep_their_overlap(plan):
    known, frames, length, stride = plan
    windows = plan_windows(known, frames, length, stride)
    for row, (first, last) in enumerate(zip(known, frames)):
        made = first
        for window in windows:
            given, end = window.known[row], window.frames[row]
            if not end:
                assert given == 0
                continue
            assert window.start + given == made  # goes on exactly where the row stands
            assert given < end <= length
            # A window is given all that it shares with what there is, which is a stride less than a window or more.
            assert given >= min(made, length - stride)
            made = window.start + end
        assert made == last
        alone = [w for w in windows if w.frames[row]]
        assert [(w.start, w.known[row], w.frames[row]) for w in alone] == [
            (w.start, w.known[0], w.frames[0]) for w in plan_windows([first], [last], length, stride)
        ]  # the others in the batch change nothing
    assert all(w.start % stride == 0 and w.longest <= length for w in windows)
    assert all(w.given < w.longest for w in windows)


def test_the_windows_of_audiocraft():
    """A minute and a half at 50 Hz: 30 s, then 18 s more from every 12 s kept."""
    windows = plan_windows([0], [4500], 1500, 900)
    assert [(w.start, w.known[0], w.frames[0]) for w in windows] == [
        (0, 0, 1500), (900, 600, 1500), (1800, 600, 1500), (2700, 600, 1500), (3600, 600, 900),
    ]  # fmt: skip
    assert [w.start for w in plan_windows([2000], [2100], 1500, 900)] == [
        900
    ]  # inside the prompt there is nothing to do
