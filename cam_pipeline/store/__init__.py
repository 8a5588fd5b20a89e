"""Files that last: HDF5 artefacts, models and checkpoints; all written to the side and renamed."""
