"""Training state on disk: it comes back as it was, and the state of another training is refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musae_jax.checkpoint import TrainingCheckpoints
from musae_jax.errors import MusaeError


@pytest.mark.parametrize("other", [{"a": jnp.zeros(3), "b": jnp.zeros(2)}, {"a": jnp.zeros(4)}, {"b": jnp.zeros(3)}])
def test_the_state_of_another_training_is_refused(tmp_path, other):
    checkpoints = TrainingCheckpoints(tmp_path / "run")
    checkpoints.save(7, {"a": jnp.arange(3.0)}, {"at": 5})
    step, state = checkpoints.restore({"a": jnp.zeros(3)})
    assert step == 7 and np.array_equal(state["a"], [0, 1, 2]) and checkpoints.note() == {"at": 5}
    with pytest.raises(MusaeError, match=r"run holds the state of another training, or a damaged one; delete it"):
        checkpoints.restore(other)
    checkpoints.close()


def test_a_step_takes_what_comes_back_without_compiling_anew(tmp_path):
    checkpoints, step = TrainingCheckpoints(tmp_path / "run"), jax.jit(lambda state: jax.tree.map(jnp.sin, state))
    free, bound = jnp.arange(3.0), jax.device_put(jnp.arange(3.0), jax.devices()[0])
    for number, before in enumerate(({"a": free}, {"a": bound})):
        checkpoints.save(number, step(before), {})
        compiled = step._cache_size()
        step(checkpoints.restore(before)[1])
        assert step._cache_size() == compiled
    checkpoints.close()
