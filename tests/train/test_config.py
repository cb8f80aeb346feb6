from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale.errors import ConfigError, RescaleError, UnknownModelError
from rescale.variants import VARIANTS
from rescale_train.config import (
    ALPHA_BASES,
    ALPHA_SPLITS,
    SIZES,
    SUBNET_DTYPES,
    LossConfig,
    NetConfig,
    Recipe,
    TrainConfig,
    net_config,
    size_name,
)
from rescale_train.recipe import load_recipe, recipe_names
from rescale_train.tables import from_dict, to_dict

GOOD = '[net]\nmodel = "dlv_irn_m"\nscale = 2\nsize = "lite"\n[train]\nsteps = 10\n'

unit = st.floats(0.0, 1.0)
positive = st.floats(1e-9, 1e9)


@st.composite
def net_configs(draw: st.DrawFn) -> NetConfig:
    v = VARIANTS[draw(st.sampled_from(sorted(VARIANTS)))]
    scale = draw(st.sampled_from([2, 4]))
    return NetConfig(
        v.name,
        scale,
        tuple(draw(st.lists(st.integers(1, 64), min_size=scale // 2, max_size=scale // 2))),
        draw(st.integers(1, 256)),
        draw(st.booleans()),
        draw(st.integers(0, 16)) if v.dlv else 0,
        draw(st.sampled_from(ALPHA_SPLITS)),
        draw(st.booleans()),
        draw(st.floats(0.01, 64.0)),
        draw(st.sampled_from(ALPHA_BASES)),
        draw(st.sampled_from([2, 4])),
        draw(st.booleans()),
        draw(st.floats(1e-3, 4096.0)),
    )


train_configs = st.builds(
    TrainConfig,
    steps=st.integers(1, 10**7),
    batch=st.integers(1, 512),
    final_fraction=unit,
    lr_peak=st.floats(1e-7, 0.99),
    lr_end=unit,
    warmup=st.integers(0, 10**5),
    betas=st.tuples(st.floats(0.0, 0.999), st.floats(0.0, 0.999)),
    clip=positive,
    ema=st.floats(0.0, 0.9999),
    subnet_dtype=st.sampled_from(SUBNET_DTYPES),
    ae_frozen=st.booleans(),
    seed=st.integers(0, 2**31),
    loss=st.builds(LossConfig, hr=positive, lr=positive, z=positive, z_mse=positive),
)


@settings(deadline=None, max_examples=50)
@given(net=net_configs(), train=train_configs)
def test_dictionaries_round_trip_through_json(net: NetConfig, train: TrainConfig) -> None:
    assert from_dict(NetConfig, json.loads(json.dumps(to_dict(net))), "net") == net
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(train))), "train") == train


@settings(deadline=None, max_examples=50)
@given(net=net_configs())
def test_channels_are_conserved(net: NetConfig) -> None:
    assert net.z_channels + net.variant.lr_channels == (12 + net.dlv_channels) * (1 if net.scale == 2 else 4)


def test_z_channels_of_the_paper() -> None:
    assert [net_config("irn_m", s, "full").z_channels for s in (2, 4)] == [9, 45]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert name.startswith(f"{recipe.net.model}_x{recipe.net.scale}")


def test_recipes_ship() -> None:
    assert len(recipe_names()) >= 2
    assert recipe_names() == sorted(recipe_names())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("model", VARIANTS)
def test_named_sizes(model: str, scale: int, size: str) -> None:
    net = net_config(model, scale, size)
    assert net.blocks == (SIZES[size]["blocks_per_level"],) * (scale // 2)
    row = SIZES[size]
    first, last = row["growth"], row.get("lr_growth", row["growth"])
    assert net.growths == ((last,) if scale == 2 else (first, last))
    assert net.shared_trunk == row["shared_trunk"]
    assert net.dlv_channels == (3 if model.startswith("dlv") else 0)
    assert size_name(net) == size
    assert net_config(model, scale, size, growth=7).growth == 7
    assert size_name(net_config(model, scale, size, growth=7)) == "custom"


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return str(path)


def test_a_size_in_the_net_table_is_a_base_for_its_other_keys(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("[train]", "growth = 5\n[train]")))
    assert recipe.net == net_config("dlv_irn_m", 2, "lite", growth=5)
    assert recipe.train == TrainConfig(steps=10)


def test_a_base_gives_what_the_recipe_does_not_state(tmp_path: Path) -> None:
    text = 'base = "irn_x4_lite"\n[net]\nmodel = "dlv_irn"\n[train]\nsteps = 7\n[train.loss]\nlr = 3.0\n'
    recipe, base = load_recipe(write(tmp_path, text), {"train.loss.hr": "2"}), load_recipe("irn_x4_lite")
    assert recipe.net == net_config("dlv_irn", 4, "lite")
    assert recipe.train == replace(base.train, steps=7, loss=LossConfig(lr=3.0, hr=2.0))
    # A base's own base, two levels down.
    assert base.train.lr_peak == load_recipe("irn_x2_lite").train.lr_peak != TrainConfig(steps=1).lr_peak


def test_of_several_bases_the_later_wins_and_parts_are_only_bases(tmp_path: Path) -> None:
    text = 'base = ["irn_x4_lite", "parts/robust"]\n[train.mix]\ntext = 0.5\n'
    recipe, plain, shipped = load_recipe(write(tmp_path, text)), load_recipe("irn_x4_lite"), load_recipe("irn_x2_lite_robust")
    assert recipe.net == plain.net
    assert (recipe.train.batch, recipe.train.loss) == (plain.train.batch, shipped.train.loss)
    assert recipe.train.loss != plain.train.loss
    # Both state the warm-up: the later base decides, whichever that is.
    assert recipe.train.warmup == shipped.train.warmup != plain.train.warmup
    other = load_recipe(write(tmp_path, 'base = ["parts/robust", "irn_x4_lite", "dlv_irn_x4_lite"]'))
    assert (other.train.warmup, other.train.mix, other.net.model) == (plain.train.warmup, shipped.train.mix, "dlv_irn")
    assert recipe.train.mix == replace(shipped.train.mix, text=0.5)
    with pytest.raises(ConfigError, match="unknown recipe 'parts/robust'"):
        load_recipe("parts/robust")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "nowhere"', "r.toml: base: unknown recipe 'nowhere': one of dlv_irn_a_x2_full, "),
        ('base = "other.toml"', "base: unknown recipe 'other.toml'"),
        ("base = 3", "r.toml: base: the name of a recipe or a list of names was expected, got 3"),
        ("base = []", r"r.toml: base: the name of a recipe or a list of names was expected, got \[\]"),
        ('base = ["irn_x2_lite", 3]', "r.toml: base: the name of a recipe or a list of names was expected, got 3"),
        ('base = ["irn_x2_lite", "parts/none"]', "r.toml: base: unknown recipe 'parts/none': one of .*, parts/robust"),
        ('base = "irn_x2_lite"\nnet = 3', "net: a table was expected, got 3"),
        ('base = "irn_x2_lite"\n[nets]', r"unknown table\(s\) nets"),
    ],
)
def test_a_wrong_base_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, text))


def test_bases_in_a_circle_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    for a, b in (("one", "two"), ("two", "one")):
        (tmp_path / "recipes" / f"{a}.toml").write_text(f'base = "{b}"\n')
    monkeypatch.setattr("rescale_train.recipe.resources.files", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="two: base: 'one' is derived from this recipe"):
        load_recipe("one")


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("model", VARIANTS)
def test_every_variant_has_a_lite_recipe(model: str, scale: int) -> None:
    recipe = load_recipe(f"{model}_x{scale}_lite")
    assert size_name(recipe.net) == "lite"
    assert recipe.net.alpha_gain == (8.0 if recipe.net.variant.alpha else 1.0)


def test_overrides_replace_values_and_reach_nested_tables(tmp_path: Path) -> None:
    overrides = {
        "net.alpha_gain": "2",
        "train.steps": "77",
        "train.betas": "[0.5, 0.6]",
        "train.loss.hr": "3",
        "train.subnet_dtype": '"bfloat16"',
    }
    recipe = load_recipe(write(tmp_path, GOOD), overrides)
    assert recipe.net.alpha_gain == 2.0
    assert (recipe.train.steps, recipe.train.betas, recipe.train.subnet_dtype) == (77, (0.5, 0.6), "bfloat16")
    assert recipe.train.loss == LossConfig(hr=3.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("net.colour", "1", "net.colour: unknown key; known are model"),
        ("train.stepz", "1", "train.stepz: unknown key"),
        ("train.loss.rgb", "1", "train.loss.rgb: unknown key; known are hr, lr, z, z_mse"),
        ("train.steps", '"many"', "train.steps: int was expected, got 'many'"),
        ("train.steps", "2.5", "train.steps: int was expected, got 2.5"),
        ("train.steps", "true", "train.steps: int was expected, got True"),
        ("train.lr_peak", "true", "train.lr_peak: float was expected, got True"),
        ("train.ae_frozen", "1", "train.ae_frozen: bool was expected, got 1"),
        ("train.betas", "0.9", "train.betas: a list was expected, got 0.9"),
        ("train.betas", "[0.9]", "train.betas: 2 values were expected"),
        ("train.betas", '[0.9, "x"]', "train.betas: float was expected, got 'x'"),
        ("train.loss", "3", "train.loss: a table was expected, got 3"),
        ("net.scale", "2.0", "net.scale: int was expected, got 2.0"),
        ("net.blocks", "[1, 2]", "net.blocks: dlv_irn_m x2 has 1 Haar level(s), got (1, 2)"),
        ("net.blocks", "[0]", "net.blocks: each level takes 0 to 64 blocks, the last at least 1, got (0,)"),
        ("net.growth", "0", "net.growth: 1 to 256, got 0"),
        ("net.lr_growth", "257", "net.lr_growth: 0 to 256, got 257"),
        ("net.lr_growth", "8", "net.lr_growth: dlv_irn_m x2 has one Haar level; give net.growth, and 0 here, got 8"),
        ("net.dlv_channels", "17", "net.dlv_channels: 0 to 16, got 17"),
        ("net.alpha_split", '"mid"', "net.alpha_split: one of pre, post, got 'mid'"),
        ("net.alpha_basis", '"odd"', "net.alpha_basis: one of paper, orthonormal, got 'odd'"),
        ("net.alpha_gain", "0", "net.alpha_gain: above 0, at most 64, got 0.0"),
        ("net.alpha_gain", "nan", "net.alpha_gain: above 0, at most 64, got nan"),
        ("net.ae_layers", "3", "net.ae_layers: one of 2, 4, got 3"),
        ("train.steps", "0", "train.steps: 1 to 1000000000, got 0"),
        ("train.batch", "0", "train.batch: 1 to 65536, got 0"),
        ("train.batch", "10000000000", "train.batch: 1 to 65536, got 10000000000"),
        ("train.final_batch", "65537", "train.final_batch: 1 to 65536, got 65537"),
        ("train.patch", "16384", "train.patch: 1 to 8192, got 16384"),
        ("train.warmup", "-1", "train.warmup: 0 to 1000000000, got -1"),
        ("train.seed", "-1", "train.seed: 0 to 4294967295, got -1"),
        ("train.seed", "4294967296", "train.seed: 0 to 4294967295, got 4294967296"),
        ("train.final_fraction", "1.5", "train.final_fraction: 0 to 1, got 1.5"),
        ("train.area_power", "-0.5", "train.area_power: 0 to 1, got -0.5"),
        ("train.hard_crops", "1.5", "train.hard_crops: 0 to 1, got 1.5"),
        ("train.float32_fraction", "-0.5", "train.float32_fraction: 0 to 1, got -0.5"),
        ("train.lr_noise_share", "2", "train.lr_noise_share: 0 to 1, got 2.0"),
        ("train.lr_end", "nan", "train.lr_end: 0 to 1, got nan"),
        ("train.ema", "1", "train.ema: 0 to below 1, got 1.0"),
        ("train.subnet_dtype", '"int8"', "train.subnet_dtype: one of float32, tf32, bfloat16, float16, got 'int8'"),
        ("train.z", '"one"', "train.z: one of zero, random, got 'one'"),
        ("train.z", '"random"', "train.z: random z is for the plain variants, not dlv_irn_m"),
        ("train.patch", "60", "train.patch: a multiple of 8, at least 64, got 60"),
        ("train.final_patch", "56", "train.final_patch: a multiple of 8, at least 64, got 56"),
        ("data.folder", "1", "--set data.folder: the key is net.NAME, train.NAME or train.loss.NAME"),
        ("train", "1", "--set train: the key is net.NAME"),
        ("train.steps", "=", "--set train.steps: '=' is not a TOML value; quote text"),
        ("train.steps", "[" * 5000, "--set train.steps: '[[[["),
        ("train.steps", "0x" + "f" * 9000, "--set train.steps: '0xff"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_is_wanted(tmp_path: Path, key: str, value: str, message: str) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(ConfigError) as e:
        load_recipe(path, {key: value})
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[net\n", "not valid TOML"),
        (f"a = {'[' * 5000}", "r.toml: not valid TOML: tables or lists nested too deep"),
        (f"[train]\n{'.'.join('a' * 5000)} = 1", "r.toml: not valid TOML: tables or lists nested too deep"),
        (f"[train]\nsteps = {'1' * 5000}", "r.toml: not valid TOML: "),
        (f"[train]\nsteps = 0x{'1' * 9000}", "r.toml: not valid TOML: "),
        ("[net]\nmodel='irn'\n[train]\nsteps=1", "net.scale: missing"),
        ("[net]\nscale=2\nsize='lite'\n[train]\nsteps=1", "net.model: missing"),
        ("[net]\nmodel='irn'\nscale=2\ngrowth=4\n[train]\nsteps=1", "net.blocks: missing"),
        (GOOD.replace("steps = 10", ""), "train.steps: missing"),
        (GOOD.replace("[train]\nsteps = 10", ""), "r.toml: no table [train], which every recipe has"),
        ("train = 3\n" + GOOD.replace("[train]\nsteps = 10", ""), "train: a table was expected, got 3"),
        ("[train]\nsteps=1", "net.model: missing"),
        ("net = 3\n[train]\nsteps=1", "net: a table was expected, got 3"),
        (GOOD + "[data]\nfolder='x'", "unknown table(s) data; known are net, train"),
    ],
)
def test_a_wrong_recipe_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as e:
        load_recipe(path)
    assert message in str(e.value)


def test_what_is_wrong_in_a_recipe_file_is_told_with_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("steps = 10", "steps = 0"))
    with pytest.raises(ConfigError) as e:
        load_recipe(path)
    assert str(e.value) == f"{path}: train.steps: 1 to 1000000000, got 0"
    with pytest.raises(ConfigError) as e:
        load_recipe(write(tmp_path, GOOD), {"train.steps": "0"})
    assert str(e.value) == f"{path} with what overrides it: train.steps: 1 to 1000000000, got 0"
    with pytest.raises(ConfigError) as e:
        load_recipe("irn_x2_lite", {"train.steps": "0"})
    assert str(e.value) == "train.steps: 1 to 1000000000, got 0"


def test_an_unknown_recipe_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'nope': give a .toml file or one of .*irn_x2_lite"):
        load_recipe("nope")


def test_a_recipe_may_begin_with_the_mark_that_some_editors_write(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    (tmp_path / "plain.toml").write_bytes(GOOD.encode())
    assert load_recipe(str(tmp_path / "marked.toml")) == load_recipe(str(tmp_path / "plain.toml"))


def test_an_unreadable_recipe_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot read the recipe: No such file"):
        load_recipe(str(tmp_path / "gone.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n" + GOOD.encode())
    with pytest.raises(ConfigError, match=r"latin.toml: cannot read the recipe: .*utf-8"):
        load_recipe(str(tmp_path / "latin.toml"))


def test_a_size_stated_later_decides_over_what_was_listed_before(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("[train]", "blocks = [3]\ngrowth = 5\n[train]"))
    lite, full = (net_config("dlv_irn_m", 2, size) for size in ("lite", "full"))
    assert load_recipe(path).net.blocks == (3,), "beside a size in one table, what is listed wins"
    assert load_recipe(path, {"net.size": "'full'"}).net == full
    assert load_recipe(path, {"net.growth": "7", "net.size": "'full'"}).net == net_config("dlv_irn_m", 2, "full", growth=7)
    assert load_recipe(path, {"net.size": "'lite'"}).net == lite
    derived = tmp_path / "derived.toml"
    derived.write_text("base = 'dlv_irn_m_x2_lite'\n[net]\nsize = 'full'\n")
    assert load_recipe(str(derived)).net.blocks == full.blocks


@pytest.mark.parametrize(("key", "value"), [("model", "'esrgan'"), ("scale", "3"), ("size", "'huge'")])
def test_an_unknown_model_scale_or_size_names_the_file_and_lists_those_that_exist(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UnknownModelError, match=rf"r\.toml with what overrides it: unknown {key} .*: choose one of"):
        load_recipe(write(tmp_path, GOOD), {f"net.{key}": value})


@pytest.mark.parametrize("train", [{"ae_frozen": True}, {"ae_pretrain_steps": 5}])
def test_autoencoder_options_need_an_autoencoder(train: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train.ae_\*: irn_a has no autoencoder"):
        Recipe(net_config("irn_a", 2, "lite"), TrainConfig(steps=1, **train))


def test_dlv_channels_need_a_dlv_variant() -> None:
    with pytest.raises(ConfigError, match=r"net.dlv_channels: irn has no dual latent variable, got 3"):
        net_config("irn", 2, "lite", dlv_channels=3)


@pytest.mark.parametrize(("model", "allowed"), [(m, not (v.alpha or v.latent)) for m, v in VARIANTS.items()])
def test_random_z_is_for_the_plain_variants(model: str, allowed: bool) -> None:
    try:
        Recipe(net_config(model, 2, "lite"), TrainConfig(steps=1, z="random"))
    except RescaleError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "-1"),
        ("betas", "[2.0, 0.9]"),
        ("lr_peak", "nan"),
        ("lr_peak", "inf"),
        ("lr_peak", "-1e-3"),
        ("weight_decay", "-1.0"),
        ("clip", "-1.0"),
        ("lr_noise", "nan"),
        ("ae_pretrain_steps", "-5"),
    ],
)
def test_values_out_of_range_are_refused_by_key(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.{key}: "):
        load_recipe(write(tmp_path, GOOD), {f"train.{key}": value})


def test_an_override_below_what_is_not_a_table_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"--set train\.steps\.x: what it would go into is not a table"):
        load_recipe(path, {"train.steps.x": "1"})
