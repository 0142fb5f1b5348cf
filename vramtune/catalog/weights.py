"""A pipeline with its weights left in their files, which are mapped and never written to."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import GGUFQuantizationConfig
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from vramtune.catalog.cast_weights import CastComponent, cast_once
from vramtune.catalog.folder import CONFIG, find_class, read_index, read_json
from vramtune.catalog.gguf_file import mapped_gguf
from vramtune.catalog.weight_files import check_safetensors, check_weights, component_dtypes, dtype_of, weight_files
from vramtune.errors import FileError, UsageError, VramtuneError
from vramtune.paths import user_path
from vramtune.schema import checked_path

Dtypes = Mapping[str, torch.dtype]
"""By component; "default" for those that are not named."""


def load_mapped(
    pipeline_class: Any,
    source: str | Path,
    *,
    torch_dtype: torch.dtype | Dtypes | None = None,
    variant: str | None = None,
    files: Mapping[str, str | Path] | None = None,
    cast_folder: str | Path | None = None,
    config: str | Path | None = None,
) -> Any:
    """The pipeline of a local folder, a Hub id whose files are in the Hub's cache, or one safetensors file; as `vramtune.load`.

    No weights are read but those that are cast, or put together otherwise than they lie in a file.
    """
    if not hasattr(pipeline_class, "from_pretrained"):
        raise UsageError(
            f"A pipeline is loaded by its class, such as diffusers.FluxPipeline; got {type(pipeline_class).__name__}."
        )
    _check_dtype(torch_dtype)
    path = user_path(checked_path(source))
    if path.is_file():
        if variant or files or cast_folder:
            raise UsageError(
                "`variant`, `files` and `cast_folder` go with a folder of components; a single file was given."
            )
        return _from_file(pipeline_class, path, torch_dtype, config)
    if config is not None:
        raise UsageError("`config` goes with a single file; a folder has its configurations in it.")
    folder = path if path.is_dir() else _from_hub_cache(str(source))
    return _from_folder(pipeline_class, folder, torch_dtype, variant, files or {}, cast_folder)


def _check_dtype(torch_dtype: object) -> None:
    dtypes = torch_dtype.values() if isinstance(torch_dtype, Mapping) else [torch_dtype]
    if torch_dtype is not None and not all(isinstance(dtype, torch.dtype) for dtype in dtypes):
        raise UsageError(
            f"`torch_dtype` is a dtype, such as torch.bfloat16, or one for each component by name; got {torch_dtype!r}."
        )


def _from_folder(
    pipeline_class: Any,
    folder: Path,
    torch_dtype: torch.dtype | Dtypes | None,
    variant: str | None,
    files: Mapping[str, str | Path],
    cast_folder: str | Path | None,
) -> Any:
    index = read_index(folder)
    if unknown := files.keys() - index.keys():
        raise UsageError(f"`files` names components that the pipeline does not have: {', '.join(sorted(unknown))}.")
    names = check_weights(folder, index, variant, files)
    dtypes: Dtypes = _by_component(torch_dtype, component_dtypes(folder, names, variant))
    made: dict[str, Any] = {}
    for name, file in files.items():
        dtype = None if torch_dtype is None else _dtype(dtypes, name)
        made[name] = _component_from_file(folder, name, index[name], user_path(checked_path(file)), dtype)
    if cast_folder is not None:
        cache = user_path(checked_path(cast_folder))
        for name in names:
            cls, own = _class_of(name, index[name]), folder / name
            cast = CastComponent(folder=own, files=weight_files(own, variant), cls=cls, dtype=_dtype(dtypes, name))
            if cast.is_needed and "quantization_config" not in read_json(own / CONFIG):
                made[name] = _from_pretrained(cls, cast_once(cast, cache), torch_dtype=cast.dtype)
    return _from_pretrained(pipeline_class, folder, torch_dtype=dict(dtypes), variant=variant, **made)


def _from_pretrained(cls: Any, folder: Path, **options: Any) -> Any:
    return _loaded(folder, cls.from_pretrained, folder, use_safetensors=True, local_files_only=True, **options)


def _from_file(
    pipeline_class: Any, file: Path, torch_dtype: torch.dtype | Dtypes | None, config: str | Path | None
) -> Any:
    """All components from one safetensors file."""
    if not hasattr(pipeline_class, "from_single_file"):
        raise UsageError(f"{pipeline_class.__name__} cannot be loaded from a single file: give a folder of components.")
    if isinstance(torch_dtype, Mapping):
        raise UsageError("A single file has one dtype for all components; got one by component.")
    _expect_safetensors(file)
    options = {} if config is None else {"config": str(user_path(config))}
    dtype = torch_dtype or dtype_of([file])
    return _loaded(
        file, pipeline_class.from_single_file, str(file), torch_dtype=dtype, local_files_only=True, **options
    )


def _component_from_file(folder: Path, name: str, listed: Any, file: Path, dtype: torch.dtype | None) -> Any:
    """A component whose weights are in a file of its own, and its configuration in the pipeline's folder.

    `dtype`: as asked; None: that of a safetensors file, of a GGUF file what its layers compute in, bfloat16.
    """
    if not file.is_file():
        raise FileError(f"The weights of {name!r} are missing: there is no file {str(file)!r}.")
    cls = _class_of(name, listed)
    if not hasattr(cls, "from_single_file"):
        raise UsageError(
            f"{name!r} is a {cls.__name__}, which is not loaded from a single file: leave it out of `files`."
        )
    options: dict[str, Any] = {"config": str(folder), "subfolder": name, "local_files_only": True}
    if file.suffix == ".gguf":
        dtype = dtype or torch.bfloat16
        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
        return _loaded(file, cls.from_single_file, mapped_gguf(file), torch_dtype=dtype, **options)
    _expect_safetensors(file)
    return _loaded(file, cls.from_single_file, str(file), torch_dtype=dtype or dtype_of([file]), **options)


def _expect_safetensors(file: Path) -> None:
    if file.suffix != ".safetensors":
        raise UsageError(
            f"Weights stay in safetensors files, of a component (`files`) in GGUF files too; got {str(file)!r}."
        )
    check_safetensors(file)


def _from_hub_cache(repo_id: str) -> Path:
    """The folder of a Hub repository in the Hub's cache; nothing is downloaded."""
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, local_files_only=True))
    except HFValidationError as error:
        raise UsageError(
            f"{repo_id!r} is no folder, no file and no Hub id. Give a folder written by `save_pretrained`, or a Hub id such as "
            "org/name whose files are here."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"{repo_id!r} is no folder, no file and not in the Hub's cache. Weights stay in files that are here: download it "
            f"first (`hf download {repo_id}`)."
        ) from error


def _loaded(place: Path, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a library loads; its errors as one of ours that names the place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch_dtype.*")
        try:
            return load(*args, **kwargs)
        except VramtuneError:
            raise
        except Exception as error:  # what a file of something else leads to
            if "meta tensor" in str(error):  # `from_single_file` leaves weights that it does not find without values
                raise FileError(
                    f"{str(place)!r} lacks weights of its model: it is damaged, or of another one."
                ) from error
            raise UsageError(f"Cannot load {str(place)!r}: {str(error) or type(error).__name__}.") from error


def _class_of(name: str, listed: tuple[str, str]) -> Any:
    library, class_name = listed
    return find_class(name, library=library, class_name=class_name)


def _by_component(asked: torch.dtype | Dtypes | None, found: Dtypes) -> Dtypes:
    if asked is None:
        return {"default": torch.float32, **found}
    return {"default": torch.float32, **asked} if isinstance(asked, Mapping) else {"default": asked}


def _dtype(dtypes: Dtypes, component: str) -> torch.dtype:
    return dtypes.get(component, dtypes.get("default", torch.float32))
