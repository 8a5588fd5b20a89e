"""The stage engine: stages, whether their results are current, and how they are run and resumed."""

from cam_pipeline.pipeline.run import Pipeline
from cam_pipeline.pipeline.stage import Earlier, Inputs, Output, Stage, load_stages
from cam_pipeline.pipeline.state import State, source_of

__all__ = ["Earlier", "Inputs", "Output", "Pipeline", "Stage", "State", "load_stages", "source_of"]
