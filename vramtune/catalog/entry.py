"""What is known of a pipeline that is known by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A pipeline that is known by name."""

    name: str
    title: str
    pipeline_class: str
    num_parameters: int
    """Numbers in the weight files of all components together; tied weights once."""
    dtype: str
    """As the model card recommends; a component that differs is named."""
    source: str
    """Where the configurations are published."""
    aliases: tuple[str, ...] = ()
    call_kwargs: Mapping[str, object] = field(default_factory=dict)
    """The model card's call, where the pipeline's defaults are not it; benchmarks use it."""
    image_size: tuple[int, int] | None = None
    """Width and height of the image that the model card's call is given."""

    def images(self) -> "dict[str, Image]":
        """A blank one of that size, as an argument of the call; nothing where the call is given none."""
        if self.image_size is None:
            return {}
        from PIL import Image

        return {"image": Image.new("RGB", self.image_size)}
