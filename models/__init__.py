"""Blur generator, RetinaFace critic, their losses, and how they are applied."""
