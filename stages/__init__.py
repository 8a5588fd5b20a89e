"""The pipeline's stages, one short file per cached artefact.

This folder is installed as `cam_pipeline.stages` (`package_dir` in setup.cfg), so that the generic name
`stages` never lands in site-packages. Imported from the repository root as plain `stages` the same file
would exist twice under two names, so that is refused.
"""

if __name__ == "stages":
    raise ImportError("import cam_pipeline.stages, not stages; if that is missing: make install")
