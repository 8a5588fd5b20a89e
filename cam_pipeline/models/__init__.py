"""Networks: the classifier adapter over timm, weights from files, and the segmenters."""
