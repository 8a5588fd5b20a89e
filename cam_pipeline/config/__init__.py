"""Typed settings. One rule of precedence: default < TOML file < `--set section.key=value`."""

from cam_pipeline.config.acr import AcrSettings
from cam_pipeline.config.cams import CamSettings
from cam_pipeline.config.classifier import ClassifierSettings, ObjectiveSettings
from cam_pipeline.config.data import Colour, DataSettings, shown_colour
from cam_pipeline.config.loading import default_config, load_config, shipped_configs, to_toml
from cam_pipeline.config.prediction import PredictSettings
from cam_pipeline.config.refinement import LabelSettings, RefineSettings
from cam_pipeline.config.run import OutputSettings, RunSettings
from cam_pipeline.config.section import FILES
from cam_pipeline.config.segmenter import SegmenterSettings
from cam_pipeline.config.settings import Config
from cam_pipeline.config.sfc import SfcSettings
from cam_pipeline.config.toml import toml_value
from cam_pipeline.config.training import TrainE2eSettings, TrainSegSettings, TrainSettings

__all__ = [
    "FILES",
    "AcrSettings",
    "CamSettings",
    "ClassifierSettings",
    "Colour",
    "Config",
    "DataSettings",
    "LabelSettings",
    "ObjectiveSettings",
    "OutputSettings",
    "PredictSettings",
    "RefineSettings",
    "RunSettings",
    "SegmenterSettings",
    "SfcSettings",
    "TrainE2eSettings",
    "TrainSegSettings",
    "TrainSettings",
    "default_config",
    "load_config",
    "shipped_configs",
    "shown_colour",
    "to_toml",
    "toml_value",
]
