"""What only those need who have a pipeline: `vramtune[pipelines]`."""

from importlib.util import find_spec

from vramtune.errors import UsageError

PIPELINES = ("torch", "diffusers", "accelerate", "transformers")


def expect_pipelines(doing: str, instead: str = "") -> None:
    """Refuse what needs torch and diffusers where one of them is missing, without importing them.

    `doing` begins the sentence, and `instead` is what would do without them.
    """
    if missing := [name for name in PIPELINES if not _is_there(name)]:
        number = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{doing} needs {' and '.join(missing)}, which {number} not installed. "
            f'Install {"it" if len(missing) == 1 else "them"}: `pip install "vramtune[pipelines]"`.{instead}'
        )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: a module without a spec, made by hand
        return False
