"""Halves whose music differs in key, or for keys in chord progression, and hold as many clips each."""

from collections import Counter

import pytest

from musae_jax.compose import concepts as c
from musae_jax.compose.composer import compose
from musae_jax.compose.dataset import SEEDS_PER_CORPUS, write_dataset
from musae_jax.compose.halves import LABEL_PROGRESSIONS, LABEL_TONICS, balanced_clips, half_of, style_of
from musae_jax.errors import MusaeError
from musae_jax.files import read_json_lines


def test_quarters_are_equal_and_grow_without_changing():
    numbers = balanced_clips(40, 7)
    quarters = Counter((half_of(s, "key"), half_of(s, "dynamics")) for s in (style_of(7, n) for n in numbers))
    assert len(quarters) == 4 and set(quarters.values()) == {10}
    assert numbers == sorted(set(numbers)) and set(balanced_clips(20, 7)) <= set(numbers)
    assert style_of(7, numbers[3]) == compose(7 * SEEDS_PER_CORPUS + numbers[3], 1.0).style
    with pytest.raises(MusaeError, match="multiple of four"):
        balanced_clips(6, 7)


def test_both_halves_hold_every_concept():
    """What one half cannot hold could never be judged: keys need both kinds of progression, roots both of keys."""
    for mode in c.MODES:
        progressions = [name for name, (of, _) in c.PROGRESSIONS.items() if of == mode]
        assert 0 < sum(name in LABEL_PROGRESSIONS for name in progressions) < len(progressions)
    for tonics in (set(LABEL_TONICS), set(c.TONICS) - set(LABEL_TONICS)):
        roots = {
            (tonic + c.MODES[mode][degree]) % 12
            for tonic in tonics
            for mode, degrees in c.PROGRESSIONS.values()
            for degree in degrees
        }
        assert roots == set(range(12))


def test_a_dataset_of_chosen_clips(tmp_path):
    write_dataset(tmp_path, seed=7, seconds=1.0, numbers=[5, 9])
    assert [row["id"] for row in read_json_lines(tmp_path / "manifest.jsonl")] == ["007-00005", "007-00009"]
    write_dataset(tmp_path, seed=7, seconds=1.0, numbers=[5, 9])
    with pytest.raises(MusaeError, match="already holds"):
        write_dataset(tmp_path, seed=7, seconds=1.0, numbers=[5, 10])
