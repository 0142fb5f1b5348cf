"""What is known of a pipeline that is known by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    """Of the model card's call what is not the pipeline's default."""
    image_size: tuple[int, int] | None = None
    """Width and height of the image that the model card's call is given."""

    def call(self) -> dict[str, object]:
        """The model card's call: its arguments, and a blank image of that size where it is given one."""
        if self.image_size is None:
            return dict(self.call_kwargs)
        from PIL import Image

        return {**self.call_kwargs, "image": Image.new("RGB", self.image_size)}
