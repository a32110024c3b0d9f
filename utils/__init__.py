"""Helpers without a network in them: boxes, label files, photos, plain blur, training data."""
