"""Bars on standard error for what takes over a second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def tracing_bar(*, is_shown: bool) -> Iterator[Callable[[str], None] | None]:
    """A bar, and what tells it which component's call is traced now; None where it is not shown."""
    if not is_shown:
        yield None
        return

    from tqdm.auto import tqdm  # which warns in notebooks without widgets

    with tqdm(unit=" calls", leave=False) as bar:

        def show(name: str) -> None:
            bar.set_description_str(f"Tracing {name} ")
            bar.update()

        yield show


@contextmanager
def counting_bar(unit: str, *, is_shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar, and what tells it what is done now, how much of it is done, and of how much."""
    if not is_shown:
        yield lambda doing, done, total: None
        return

    from tqdm.auto import tqdm

    with tqdm(unit=f" {unit}", leave=False) as bar:  # `disable=False` would go before TQDM_DISABLE

        def show(doing: str, done: int, total: int) -> None:
            bar.total, bar.n = total or None, done
            bar.set_description(doing)

        yield show
