"""Traces that were made here are kept by all that they depend on."""

import json
import os

import pytest

from tests import tiny_pipelines
from vramtune import catalog, predict
from vramtune.catalog import kept
from vramtune.paths import cache_folder


@pytest.fixture
def folder(tmp_path):
    """A tiny pipeline in a folder."""
    tiny_pipelines.build("sd15").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def traced(monkeypatch):
    """A function that traces a folder's call with some settings; `built` counts the pipelines that it took."""
    original, built = catalog.load, []

    def load(model, *, quantize=None):
        built.append(model)
        return original(model, quantize=quantize)

    monkeypatch.setattr(catalog, "load", load)

    def trace(folder, **settings):
        call = predict.ModelCall(model=str(folder), settings={"steps": 4, "height": 64, "width": 64, **settings})
        return predict.trace_model(call, arguments=predict.as_call_kwargs)

    trace.built = built
    return trace


def test_the_same_call_is_traced_once(folder, traced):
    first = traced(folder)
    assert traced(folder) == first
    assert len(traced.built) == 1


def test_other_settings_are_another_call(folder, traced):
    traced(folder)
    assert traced(folder, height=128) != traced(folder)
    assert len(traced.built) == 2


def test_a_folder_whose_configuration_changes_is_traced_again(folder, traced):
    traced(folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.5}))
    traced(folder)
    assert len(traced.built) == 2


def test_large_files_count_by_their_time_small_ones_by_their_content(folder, monkeypatch):
    def names():
        (weights,) = (folder / "unet").glob("*.safetensors")
        before = kept.name_of("", folder, {})
        os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 1))
        return {before, kept.name_of("", folder, {})}

    monkeypatch.setattr(kept, "READ_BYTES", 2**30)
    assert len(names()) == 1
    monkeypatch.setattr(kept, "READ_BYTES", 0)
    assert len(names()) == 2


def test_other_libraries_or_code_of_ours_make_another_name(folder, monkeypatch):
    names = {kept.name_of("sdxl", None, {"height": 512})}
    monkeypatch.setattr(kept, "_version", lambda library: "0.0")
    names.add(kept.name_of("sdxl", None, {"height": 512}))
    monkeypatch.setattr(kept, "own_code", lambda: "other")
    names.add(kept.name_of("sdxl", None, {"height": 512}))
    assert len(names) == 3


def test_a_damaged_file_is_made_anew(folder, traced):
    first = traced(folder)
    (file,) = (cache_folder() / "traces").iterdir()
    file.write_bytes(b"nothing")
    assert traced(folder) == first
    assert len(traced.built) == 2


def test_the_oldest_go_first(folder, traced, monkeypatch):
    monkeypatch.setattr(kept, "MOST_FILES", 2)
    trace = traced(folder)
    for number in range(3):
        kept.keep(f"{number}", trace)
        os.utime(cache_folder() / "traces" / f"{number}.trace", ns=(number, number))
    assert len(list((cache_folder() / "traces").iterdir())) == 2


def test_where_nothing_can_be_written_nothing_is_kept(folder, traced, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VRAMTUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert traced(folder) == traced(folder)
    assert len(traced.built) == 2
