"""Tiny pipelines built from code, one for each family of architectures and for each cause that blocked some."""

from tests.classes.families import audio, blocked, blocked_by_values, combined, image, known, unet, video  # noqa: F401  each file registers its own
from tests.classes.families.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
