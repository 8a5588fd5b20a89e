"""The stage engine: what a stage is, when its result is current, and how it is run so that it can be resumed."""

from cam_pipeline.pipeline.run import Pipeline
from cam_pipeline.pipeline.stage import STAGES, Inputs, Output, Stage, load_stages
from cam_pipeline.pipeline.state import State

__all__ = ["STAGES", "Inputs", "Output", "Pipeline", "Stage", "State", "load_stages"]
