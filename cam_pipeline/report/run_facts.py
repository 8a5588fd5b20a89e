"""What was run: data, settings, versions, weights, and what each stage took, as plain values."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cam_pipeline.config import Config, toml_value
from cam_pipeline.data.table import Table
from cam_pipeline.errors import UserError
from cam_pipeline.machine.atomic import read_json
from cam_pipeline.pipeline.state import Results, State, libraries
from cam_pipeline.version import __version__

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Weights:
    """What a network started from: the key that says so, the network, the weights' name, and their licence."""

    key: str
    network: str
    weights: str
    licence: str


@dataclass(frozen=True)
class StageFact:
    """What is known of a stage's result. `forecast` is in seconds, for the stage's time; None: not known."""

    stage: str
    file: str
    state: str
    reason: str
    seconds: float | None
    bytes: int | None
    forecast: float | None = None


@dataclass(frozen=True)
class RunFacts:
    """What was run. `settings` are all, by key, as TOML; `defaults` those of the keys that differ from them.

    `images` and `masks` are numbers by split.
    """

    name: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    masks: Mapping[str, int]
    settings: Mapping[str, str]
    defaults: Mapping[str, str]
    versions: Mapping[str, str]
    device: str
    weights: tuple[Weights, ...]
    stages: tuple[StageFact, ...]


def run_facts(results: Results, states: Mapping[str, State]) -> RunFacts:
    """The facts of a run folder whose stages are in the given states. Raises DataError if the data cannot be read."""
    config, table = results.config, results.dataset.table
    settings = dict(_settings(config))
    defaults = dict(_settings(Config()))
    return RunFacts(
        name=str(results.folder),
        classes=table.classes,
        images=_by_split(table, masks=False),
        masks=_by_split(table, masks=True),
        settings=settings,
        defaults={
            key: defaults.get(key, "")
            for key, value in settings.items()
            if value != defaults.get(key) and key != "output.dir"
        },
        versions={"cam-pipeline": __version__, **libraries()},
        device=_device(config),
        weights=tuple(_weights(config)),
        stages=tuple(_stages(results, states)),
    )


def _settings(config: Config) -> Iterator[tuple[str, str]]:
    """Every key and its value, as TOML."""
    for section, values in config.model_dump(mode="json").items():
        for key, value in values.items():
            yield f"{section}.{key}", "not set" if value is None else toml_value(value)


def _by_split(table: Table, masks: bool) -> dict[str, int]:
    return dict(Counter(sample.split for sample in table.samples if not masks or sample.mask is not None))


def _device(config: Config) -> str:
    from cam_pipeline.machine.device import pick_device  # late: it imports torch

    try:
        found = str(pick_device(config.run))
    except UserError:
        return f"run.device = {config.run.device}; this machine, which made the page, has none"
    return found if found == config.run.device else f"{found} (run.device = {config.run.device})"


def _weights(config: Config) -> Iterator[Weights]:
    """What each pretrained half started from."""
    classifier, segmenter = config.classifier, config.segmenter
    starts = [("classifier.weights", classifier.backbone, classifier.weights)]
    if classifier.trunk:
        starts.append(("classifier.trunk_weights", classifier.trunk, classifier.trunk_weights))
    if not config.single_stage:
        starts.append(("segmenter.weights", segmenter.encoder, segmenter.weights))
    for key, network, weights in starts:
        if weights == "none":
            yield Weights(key, network, "none: it started from random numbers", "none needed")
        elif weights == "pretrained":
            yield Weights(key, network, *_of_timm(network))
        else:
            yield Weights(key, network, f"file {weights}", f"{UNKNOWN}: the file does not say")


def _of_timm(network: str) -> tuple[str, str]:
    """The name of timm's weights for a network, and their licence, as timm states it."""
    from timm.models import get_pretrained_cfg  # late: it imports torch

    try:
        facts: Any = get_pretrained_cfg(network)
    except Exception:  # a name that only timm can judge; a report must not fail for it
        facts = None
    if facts is None:
        return "pretrained", UNKNOWN
    name = ".".join(filter(None, (facts.architecture or network, facts.tag)))
    return name, facts.license or f"{UNKNOWN}: timm states none"


def _stages(results: Results, states: Mapping[str, State]) -> Iterator[StageFact]:
    forecast = read_json(results.folder / "logs" / "forecast.json")
    for name, state in states.items():
        path = results.path(name)
        there = state.kind == "current"
        manifest = read_json(path.with_name(f"{path.name}.manifest.json")) if there else {}
        yield StageFact(
            name,
            path.name,
            state.kind,
            state.reason,
            _number(manifest.get("seconds")),
            path.stat().st_size if there else None,
            _number(_of_stage(forecast, name)),
        )


def _of_stage(forecast: Mapping[str, Any], name: str) -> Any:
    """The seconds that a forecast names for a stage: by its name, or within "stages"."""
    stages = forecast.get("stages", forecast)
    found = stages.get(name) if isinstance(stages, dict) else None
    return found.get("seconds") if isinstance(found, dict) else found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
