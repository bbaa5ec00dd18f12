"""Vision towers: pixels to VisionFeatures."""
