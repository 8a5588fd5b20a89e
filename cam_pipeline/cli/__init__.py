"""The command line: parse, call, print. `cam_pipeline.cli:main` is the console script."""

from cam_pipeline.cli.main import main

__all__ = ["main"]
