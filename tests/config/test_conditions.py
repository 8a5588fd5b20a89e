"""When a setting matters: what conditions say, that they name what exists, and what fingerprints make of them."""

import json
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cam_pipeline.config import FILES, Config, ObjectiveSettings, load_config, shipped_configs, to_toml
from cam_pipeline.config.__main__ import reference
from cam_pipeline.config.conditions import AnyOf, Condition, If, IfAbove, IfNot, conditions_of, only_if
from cam_pipeline.config.section import Section
from cam_pipeline.pipeline import load_stages

FIELDS = {
    f"{name}.{key}": field
    for name, section in Config.model_fields.items()
    for key, field in section.annotation.model_fields.items()  # type: ignore[union-attr]
}
CONDITIONAL = {path: field for path, field in FIELDS.items() if conditions_of(field)} | {
    name: field for name, field in Config.model_fields.items() if conditions_of(field)
}


def named_in(condition: Condition) -> Iterator[If]:
    """The conditions on one key that a condition is made of."""
    if isinstance(condition, AnyOf):
        for part in condition.conditions:
            yield from named_in(part)
    else:
        assert isinstance(condition, If)
        yield condition


def all_named(field: FieldInfo) -> list[If]:
    return [one for condition in conditions_of(field) for one in named_in(condition)]


def config_of(*overrides: str) -> Config:
    return load_config("demo", overrides)


def section_of(path: str) -> type[Section]:
    return Config.model_fields[path.partition(".")[0]].annotation  # type: ignore[return-value]


# Words


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (If("refine.crf", True), "`refine.crf = true`"),
        (If("cam.propagate", "features"), '`cam.propagate = "features"`'),
        (If("refine.merge_with", ()), "`refine.merge_with = []`"),
        (IfNot("refine.kernel", "none"), '`refine.kernel` is not `"none"`'),
        (IfAbove("cam.border", 0), "`cam.border` is above 0"),
        (
            If("cam.propagate", "features") | IfAbove("cam.border", 0),
            '`cam.propagate = "features"` or `cam.border` is above 0',
        ),
    ],
)
def test_condition_in_words(condition: Condition, text: str) -> None:
    assert condition.text == text


@pytest.mark.parametrize(
    ("overrides", "path", "reason"),
    [
        ((), "refine.crf_iterations", ""),
        (("refine.crf=false",), "refine.crf_iterations", "refine.crf is false"),
        (("refine.crf=false",), "refine.gaussian_sxy", "refine.crf is false"),  # it depends on gaussian_weight
        (("refine.gaussian_weight=0",), "refine.gaussian_sxy", "refine.gaussian_weight is 0.0"),
        (("refine.gaussian_weight=0",), "refine.bilateral_sxy", ""),
        ((), "cam.walk_levels", 'cam.propagate is "none" and cam.border is 0.0 and cam.keep_features is 0'),
        (("cam.keep_features=32",), "cam.walk_levels", ""),
        (("cam.border=0.1",), "cam.walk_levels", ""),
        (("cam.border=0.1",), "cam.walk_steps", 'cam.propagate is "none"'),
        (("cam.propagate=features",), "cam.walk_levels", ""),
        ((), "refine.background_images", "refine.background is 0.38"),  # said once, though it has two alternatives
        (("refine.background=auto",), "refine.background_images", ""),
        (("refine.background=auto",), "refine.background_split", 'refine.background is "auto"'),
        ((), "cam.background_over", 'cam.calibration is "none"'),
        (("cam.calibration=sfc",), "cam.background_over", ""),
        (
            ("cam.calibration=sfc", "cam.source=class_token_gradient"),
            "cam.background_over",
            'cam.source is "class_token_gradient"',
        ),
        (("cam.calibration=sfc",), "refine.prototype_share", ""),  # of another section
        (("refine.merge_with=['a/cams.h5']",), "refine.normalize", 'refine.merge_with is ["a/cams.h5"]'),
        ((), "sfc.draws", "objectives.sfc is false"),  # the whole section
        ((), "sfc.extra", "objectives.sfc is false"),
        (("objectives.sfc=true",), "sfc.extra", ""),
        (
            ("objectives.sfc=true", "sfc.prototype_weight=0", "sfc.scale_weight=0"),
            "sfc.extra",
            "sfc.prototype_weight is 0.0 and sfc.scale_weight is 0.0",
        ),
        (("data.format=coco",), "data.table", 'data.format is "coco"'),
        ((), "classifier.trunk_args", 'classifier.trunk is ""'),
        (("classifier.trunk=resnet18",), "classifier.trunk_args", ""),
    ],
)
def test_reason(overrides: tuple[str, ...], path: str, reason: str) -> None:
    assert config_of(*overrides).why_idle(path) == reason
    assert config_of(*overrides).idle().get(path, "") == reason


def test_settings_in_vain_are_those_that_somebody_changed() -> None:
    assert config_of("refine.crf=false", "refine.crf_iterations=10").in_vain() == []  # the default
    assert config_of("refine.crf=false", "refine.crf_iterations=5", "cam.walk_steps=4").in_vain() == [
        'cam.walk_steps = 4 has no effect because cam.propagate is "none"',
        "refine.crf_iterations = 5 has no effect because refine.crf is false",
    ]
    assert config_of("refine.crf_iterations=5").in_vain() == []


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_set_nothing_in_vain(name: str) -> None:
    assert load_config(name).in_vain() == []


def test_config_written_by_the_program_is_no_reason_to_warn(tmp_path: Any) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config_of("refine.crf=false")))  # it names every key
    assert "crf_iterations = 10" in path.read_text()
    assert load_config(path).in_vain() == []


def test_reference_says_only_if_once() -> None:
    rows = {row.split("`")[1]: row for row in reference().splitlines() if row.startswith("| `")}
    assert rows.keys() == FIELDS.keys()
    for path, row in rows.items():
        words = only_if(FIELDS[path])
        assert row.count("only if") == (1 if words else 0) and words in row
    assert reference().count("This section matters only if `objectives.") == 2


def test_no_description_repeats_a_condition() -> None:
    doubled = [path for path, field in FIELDS.items() if "` only" in (field.description or "")]
    assert doubled == []


# Conditions name what exists


@pytest.mark.parametrize("path", CONDITIONAL)
def test_condition_names_keys_and_values_that_exist(path: str) -> None:
    for condition in all_named(CONDITIONAL[path]):
        assert condition.key in FIELDS, f"{path}: there is no key {condition.key}"
        key = condition.key.partition(".")[2]
        if isinstance(condition, IfAbove):
            assert FIELDS[condition.key].annotation in (int, float)
            assert type(condition.value) in (int, float)
        else:
            valid = getattr(section_of(condition.key).model_validate({key: condition.value}), key)
            assert (valid, type(valid)) == (condition.value, type(condition.value))


@pytest.mark.parametrize("name", ObjectiveSettings.model_fields)
def test_section_of_an_objective_matters_if_that_is_on(name: str) -> None:
    assert conditions_of(Config.model_fields[name]) == [If(f"objectives.{name}", True)]


@pytest.mark.parametrize("path", CONDITIONAL)
def test_condition_is_not_on_the_key_itself(path: str) -> None:
    def behind(one: str, seen: tuple[str, ...]) -> None:
        assert one not in seen, f"{path} depends on itself: {' -> '.join([*seen, one])}"
        fields = [FIELDS[one], Config.model_fields[one.partition(".")[0]]] if one in FIELDS else [CONDITIONAL[one]]
        for condition in (condition for field in fields for condition in all_named(field)):
            behind(condition.key, (*seen, one))

    behind(path, ())


@pytest.mark.parametrize("name", load_stages())
def test_what_conditions_of_a_stage_are_on_is_in_its_fingerprint_or_before_it(name: str) -> None:
    """Else a setting could begin to matter without making a result stale."""
    stages, config = load_stages(), Config()

    def params(stage: str) -> set[str]:
        return set(stages[stage].params).union(*(params(need) for need in stages[stage].needs(config)))

    for path, field in CONDITIONAL.items():
        if path.partition(".")[0] in stages[name].params:
            for condition in all_named(field):
                assert condition.key.partition(".")[0] in params(name), f"{path} depends on {condition.key}"


# Fingerprints

CANDIDATES = [
    *(
        True,
        False,
        -1,
        0,
        1,
        2,
        8,
        500,
        20_000,
        0.2,
        0.7,
        1.5,
        "x",
        "",
        "none",
        "pretrained",
        "auto",
        "cpu",
        "from-split",
    ),
    *([], [1], [0], ["x"], ["train", "val"], [0.5], [0.5, 1.0], [0.5, 0.5, 0.5], ["vflip"], ["#ff0000"], {}, {"a": 1}),
]


@cache
def values_of(path: str) -> list[Any]:
    """Some values that a key can have."""
    section, key = section_of(path), path.partition(".")[2]
    found = [getattr(section(), key)]
    for candidate in [*CANDIDATES, *get_args(FIELDS[path].annotation)]:
        try:
            value = getattr(section.model_validate({key: candidate}), key)
        except (ValidationError, TypeError):
            continue
        if value not in found:
            found.append(value)
    return found


def with_value(config: Config, path: str, value: Any) -> Config:
    name, _, key = path.partition(".")
    return config.model_copy(update={name: getattr(config, name).model_copy(update={key: value})})


def random_config(random: Random) -> Config:
    """A config in which half of the keys have any of their values; the checks across keys are left out."""
    config = Config()
    for path in FIELDS:
        if random.random() < 0.5:
            config = with_value(config, path, random.choice(values_of(path)))
    return config


def picked(config: Config, *paths: str, without: tuple[str, ...] = ()) -> str:
    return json.dumps(config.pick(paths, without), sort_keys=True)


@pytest.mark.parametrize("path", FIELDS)
def test_every_key_has_another_value_here(path: str) -> None:
    assert len(values_of(path)) > 1


@pytest.mark.parametrize("seed", range(50))
def test_a_key_changes_fingerprints_just_if_it_matters(seed: int) -> None:
    random, stages = Random(seed), load_stages().values()
    config = random_config(random)
    whole = picked(config, *Config.model_fields)
    for path in random.sample(sorted(FIELDS), 40):
        name, _, key = path.partition(".")
        now = getattr(getattr(config, name), key)
        changed = with_value(config, path, random.choice([value for value in values_of(path) if value != now]))
        if reason := config.why_idle(path):
            assert picked(changed, *Config.model_fields) == whole, f"{path}, though {reason}"
        elif key not in FILES:
            for stage in stages:
                if {name, path} & {*stage.params} and path not in stage.ignores:
                    before, after = (picked(one, *stage.params, without=stage.ignores) for one in (config, changed))
                    assert before != after, f"{stage.name}, {path}"


def test_half_of_the_keys_with_conditions_are_idle_in_random_configs() -> None:
    """So that the test above looks at both cases."""
    configs = [random_config(Random(seed)) for seed in range(240)]
    for path in CONDITIONAL.keys() & FIELDS.keys():
        idle = sum(bool(config.why_idle(path)) for config in configs)
        assert 2 <= idle <= len(configs) - 2, f"{path}: {idle} of {len(configs)}"
