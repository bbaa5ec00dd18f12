"""Vision towers, which turn pixels into VisionFeatures."""
