"""`python -m cam_pipeline.cli`, for torchrun."""

from cam_pipeline.cli import main

main()
