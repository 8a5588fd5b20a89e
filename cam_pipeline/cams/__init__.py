"""Class activation maps (CAMs): sources, views, propagation, calibration and comparison of cells."""
