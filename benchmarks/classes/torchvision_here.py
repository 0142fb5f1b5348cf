"""torchvision as far as pipelines need it, whichever torch it was built for; to be loaded before transformers."""

import sys

import torch

LIBRARIES: list[torch.library.Library] = []
"""What was declared in its place: it is gone when nobody holds it."""


def load_torchvision() -> None:
    """Built for another torch it still has its transforms; only its compiled operations are missing."""
    try:
        import torchvision
    except ModuleNotFoundError:
        print("No torchvision: classes that need it are not built.", file=sys.stderr)
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            LIBRARIES[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
