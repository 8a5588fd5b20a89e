"""The shipped configs (*.toml). Installed as `cam_pipeline.configs` (`package_dir` in setup.cfg)."""
