"""Typed settings. One rule of precedence: default < TOML file < `--set section.key=value`."""

from cam_pipeline.config.loading import load_config, shipped_configs, to_toml, toml_value
from cam_pipeline.config.settings import (
    FILES,
    AcrSettings,
    CamSettings,
    ClassifierSettings,
    Config,
    DataSettings,
    LabelSettings,
    ObjectiveSettings,
    OutputSettings,
    RefineSettings,
    RunSettings,
    SegmenterSettings,
    SfcSettings,
    TrainSegSettings,
    TrainSettings,
)

__all__ = [
    "FILES",
    "AcrSettings",
    "CamSettings",
    "ClassifierSettings",
    "Config",
    "DataSettings",
    "LabelSettings",
    "ObjectiveSettings",
    "OutputSettings",
    "RefineSettings",
    "RunSettings",
    "SegmenterSettings",
    "SfcSettings",
    "TrainSegSettings",
    "TrainSettings",
    "load_config",
    "shipped_configs",
    "to_toml",
    "toml_value",
]
