from pathlib import Path

import pytest
import yaml

from mec.errors import InputError
from mec.objectives.mec import default_distortion
from mec.pretraining import load_recipe, packaged_recipes
from mec.pretraining.recipe_files import make_recipe


def test_packaged_recipes_load_and_round_trip_through_yaml() -> None:
    assert packaged_recipes() == [
        "adapt", "cifar10-cpu", "cifar10-resnet18", "digits", "distill", "imagenet-multicrop", "imagenet-resnet50",
        "small", "small-cpu",
    ]  # fmt: skip
    for name in packaged_recipes():
        recipe = load_recipe(name)
        settings = yaml.safe_load(yaml.safe_dump(recipe.as_dict()))
        assert make_recipe(settings).as_dict() == recipe.as_dict() == settings
        assert settings["objective"].pop("rate_weight") == 1.0  # recipes of earlier versions have none
        assert make_recipe(settings).as_dict() == recipe.as_dict()


def test_a_run_records_the_default_distortion_of_its_form() -> None:
    ends = default_distortion("reduction")
    assert isinstance(ends, tuple)
    assert make_recipe({}).setting("objective.distortion") == [*ends]
    for form in ("pooled", "cross"):
        assert make_recipe({"objective": {"form": form}}).setting("objective.distortion") == 1 / 32
    for distortion in (0.1, [0.001, 1]):
        recipe = make_recipe({"objective": {"distortion": distortion}})
        assert recipe.setting("objective.distortion") == distortion
        assert make_recipe(yaml.safe_load(yaml.safe_dump(recipe.as_dict()))) == recipe
    assert make_recipe({"objective": {"name": "simclr"}}).setting("objective.distortion") is None
    assert load_recipe("small").setting("objective.distortion") == [*ends]


def test_the_imagenet_recipe_equals_the_papers_code() -> None:
    """ResNet-50, 100 epochs, batch size 1024, SGD, 4 terms, distortion 1/32."""
    r = load_recipe("imagenet-resnet50")
    assert (r.backbone, r.image_size, r.epochs, r.batch_size, r.precision) == ("resnet50", 224, 100, 1024, "32-true")
    o = r.objective
    assert (o.form, o.order, o.distortion, o.warmup_factor) == ("cross", 4, 1 / 32, 8)
    assert (r.projector.hidden_dim, r.projector.output_dim) == (2048, 2048)
    assert (r.teacher.enabled, r.teacher.momentum, r.teacher.predictor_hidden_dim) == (True, 0.996, 512)
    s = r.optimizer
    assert (s.name, s.lr, s.weight_decay, s.momentum, s.warmup_epochs) == ("sgd", 0.5, 1e-5, 0.9, 10)
    for view, blur, solarize in ((r.view_1, 1.0, 0.0), (r.view_2, 0.1, 0.2)):
        assert (view.blur, view.solarize, view.blur_sigma) == (blur, solarize, (0.1, 2.0))
        assert (view.crop_scale, view.color_jitter, view.grayscale, view.flip) == ((0.2, 1.0), 0.8, 0.2, 0.5)
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)


def test_digits_are_neither_flipped_nor_solarized() -> None:
    recipe = load_recipe("digits")
    assert all(v.flip == v.solarize == v.blur == 0 for v in (recipe.view_1, recipe.view_2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs: expected at least 1, got -1"),
        ({"batch_size": 1}, "batch_size: expected at least 2, got 1"),
        ({"epochs": "many"}, "epochs"),
        ({"objective": {"nonsense": 1}}, "nonsense"),
        ({"objective": {"distortion": 0}}, "objective.distortion: expected a positive finite number, got 0.0"),
        ({"objective": {"distortion": [0.1, 0]}}, "objective.distortion: expected a positive finite number, got 0.0"),
        ({"objective": {"distortion": [0.1]}}, r"objective.distortion: expected .* 2 numbers, .*got \[0.1\]"),
        ({"objective": {"distortion": [0.1, 1], "name": "simclr"}}, "objective.distortion: expected none with"),
        ({"objective": {"rate_weight": -1}}, "objective.rate_weight: expected a positive number"),
        ({"objective": {"order": 0}}, "objective.order: expected at least 1"),
        ({"objective": {"form": "other"}}, "objective.form"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr"),
        ({"teacher": {"momentum": 1.5}}, "teacher.momentum"),
        ({"view_1": {"hue": 1}}, "hue: expected"),
    ],
)
def test_invalid_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(settings)


def test_yaml_files_are_read_and_invalid_ones_named(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("epochs: 7\nview_2: {blur: 0}\n")
    assert load_recipe(tmp_path / "own.yaml").epochs == 7
    (tmp_path / "invalid.yaml").write_text("epochs: [7")
    (tmp_path / "list.yaml").write_text("- 7\n")
    for name, message in (
        ("invalid.yaml", "not YAML"),
        ("list.yaml", "expected a mapping"),
        ("none", "neither a YAML"),
    ):
        with pytest.raises(InputError, match=message):
            load_recipe(tmp_path / name)
