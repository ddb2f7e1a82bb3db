"""The names a run's configuration may use for a recipe, and the presets that are written with them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from planted_store import POSITIONS, D, planted_store

from musae_jax.config import RunConfig, TrainConfig, from_record, read_yaml, to_record
from musae_jax.errors import MusaeError
from musae_jax.sae.recipes import RECIPES, recipe_name, train_recipe
from musae_jax.sae.train import train_saes

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_a_configuration_can_set_every_field_of_every_recipe():
    of_recipes = {field.name for recipe in RECIPES.values() for field in dataclasses.fields(recipe)}
    of_config = {field.name for field in dataclasses.fields(TrainConfig)}
    assert of_recipes - of_config == {"d_in", "seed"}
    assert of_config - of_recipes == {"architecture", "drop_start", "splice_clips", "log", "model_parallel"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_records_that_make_a_recipe(path):
    config = read_yaml(RunConfig, path)
    recipe = train_recipe(config.train, 1024, seed=5)
    assert type(recipe) is RECIPES[config.train.architecture]
    assert (recipe.d_in, recipe.seed, recipe.d_sae) == (1024, 5, config.train.d_sae)
    assert from_record(RunConfig, json.loads(json.dumps(to_record(config))), "record") == config


def test_there_is_a_preset_for_every_architecture():
    assert {read_yaml(RunConfig, path).train.architecture for path in PRESETS} == set(RECIPES)


def test_names_say_what_the_sae_is():
    def name(*args, width=192, **settings) -> str:
        return recipe_name(TrainConfig(*args, **settings), width)

    assert name() == "matryoshka-batchtopk-512-k32"
    assert [name("topk", width=width) for width in (64, 65, 1024)] == ["topk-128-k32", "topk-256-k32", "topk-2048-k32"]
    assert name(group_fractions=()) == "batchtopk-512-k32"
    assert name(d_sae=7, k=4) == "batchtopk-7-k4"
    assert name("topk", 64, 8, group_fractions=(0.5, 0.5)) == "matryoshka-topk-64-k8"
    assert name("gated", 64, l1_coefficient=0.25) == "gated-64-l1-0.25"


def test_lists_of_active_latents_are_for_rules_that_limit_them():
    with pytest.raises(MusaeError, match="sparse is set, but a relu SAE does not limit its active latents"):
        train_recipe(TrainConfig("relu", sparse=True), 64, 0)
    assert train_recipe(TrainConfig("topk", sparse=True), 64, 0).sparse_used


def test_a_field_of_another_architecture_is_refused():
    with pytest.raises(MusaeError, match="bandwidth of train is set, but the architecture topk has no such field"):
        train_recipe(TrainConfig("topk", bandwidth=1.0), 64, 0)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"architecture": "top_k"}, "must be one of batch_topk, topk"),
        ({"group_fractions": [0.5, "half"]}, "a list of numbers"),
        ({"lr": "fast"}, "must be float, not 'fast'"),
        ({"scale": 1}, "must be bool, not 1"),
        ({"k": 2.5}, "must be int, not 2.5"),
        ({"k": True}, "must be int, not True"),
    ],
)
def test_values_of_another_type_are_refused(record, words):
    with pytest.raises(MusaeError, match=words):
        from_record(TrainConfig, record, "here")


def test_the_papers_recipe_trains_at_a_small_size(tmp_path):
    """All positions, no scaling, the geometric median as centre, L1 in the loss: as the preset says."""
    preset = read_yaml(RunConfig, next(path for path in PRESETS if path.stem == "paper")).train
    recipe = train_recipe(dataclasses.replace(preset, d_sae=32, k=4, steps=40, lr_decay_steps=8, lr=5e-3), D, 0)
    store = planted_store(tmp_path / "store")
    (sae,) = train_saes(store, {tmp_path / "sae": recipe}, drop_start=preset.drop_start, log_every=10)
    measures = json.loads((tmp_path / "sae" / "metrics.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "sae" / "train.jsonl").read_text().splitlines()]
    assert measures["tokens"] == measures["clips"] * POSITIONS
    assert measures["training"]["scale"] == 1.0
    x = np.concatenate([residuals for _, residuals in store.shards()])
    assert np.linalg.norm(sae.params["b_dec"] - x.mean((0, 1))) < 0.2 * np.linalg.norm(x.mean((0, 1)))
    assert rows[-1]["fvu"] < rows[0]["fvu"] and rows[-1]["auxk"] == 0
    assert rows[0]["lr"] == pytest.approx(5e-3)
    assert (sae.config.architecture, sae.config.k, sae.config.metadata["trained_as"]) == ("topk", 4, "topk")
