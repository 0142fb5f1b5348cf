"""Many answers in one file: each that of a plan by itself, whoever computes it, and however often it was cut."""

from functools import partial

import pandas
import pytest

import vramtune
from tests.cli.cli_runner import refused, run
from vramtune import sweeps
from vramtune.errors import UsageError
from vramtune.machine.gpus import gpu_names
from vramtune.schema import Plan

SWEEP = partial(
    vramtune.sweep,
    ["sd15", "sdxl"],
    vram_gb=[2, 5, 8],
    gpus=["4060", "4090", "A100 80GB", "RTX 3060", "H100 PCIe"],
    call_kwargs=[{}, {"num_inference_steps": 20}],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a sweep in this process."""
    path = tmp_path_factory.mktemp("sweep") / "sweep.csv"
    assert SWEEP(path) == 2 * 2 * 5 * 3
    return path


def test_a_row_says_what_a_plan_says(whole, tmp_path):
    rows = pandas.read_csv(whole)
    row = rows[(rows.model == "sdxl") & (rows.gpu == "RTX 4060") & (rows.asked_bytes == 5 * 2**30) & (rows.steps == 20)]
    command = ["plan", "sdxl", "--vram-gb", 5, "--gpu", "4060", "--steps", 20, "--save", tmp_path / "plan.json"]
    assert run(*command).exit_code == 0
    estimate = Plan.load(tmp_path / "plan.json").estimate
    assert (row.seconds.item(), row.peak_bytes.item()) == (estimate.seconds, estimate.peak_bytes)
    assert (row.bound_seconds.item(), row.moved_bytes.item()) == (estimate.bound_seconds, estimate.moved_bytes)
    assert row.role.item() == "streamed"


def test_where_nothing_fits_a_row_says_what_would_do(whole):
    rows = pandas.read_csv(whole)
    unfit = rows[~rows.fits]
    assert not unfit.empty
    assert (unfit.least_bytes > unfit.limit_bytes).all()
    assert unfit.seconds.isna().all()
    assert (rows[rows.fits].least_bytes <= rows[rows.fits].limit_bytes).all()


def test_processes_write_the_same_file(whole, tmp_path):
    SWEEP(tmp_path / "sweep.csv", jobs=2)
    assert (tmp_path / "sweep.csv").read_bytes() == whole.read_bytes()


def test_a_sweep_that_was_cut_goes_on_where_it_was(whole, tmp_path, monkeypatch):
    original, again = sweeps.planned_rows, partial(SWEEP, tmp_path / "sweep.csv")

    def interrupt(content, devices, budgets, allow, row):
        if row.model == "sdxl":
            raise KeyboardInterrupt
        return original(content, devices, budgets, allow, row)

    monkeypatch.setattr(sweeps, "planned_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        again()
    assert not (tmp_path / "sweep.csv").exists()
    assert len(list((tmp_path / "sweep.csv.parts").iterdir())) == 2

    def only_what_is_left(content, devices, budgets, allow, row):
        assert row.model == "sdxl"
        return original(content, devices, budgets, allow, row)

    monkeypatch.setattr(sweeps, "planned_rows", only_what_is_left)
    again()
    assert (tmp_path / "sweep.csv").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "sweep.csv.parts").exists()


def test_a_dask_cluster_writes_the_same_file(whole, tmp_path):
    joblib, distributed = pytest.importorskip("joblib"), pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.worker.daemon": False}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        SWEEP(tmp_path / "sweep.csv")
        done = [len(tasks) for tasks in client.run(lambda dask_worker: dask_worker.state.log).values()]
    assert sum(map(bool, done)) == 2  # both workers did some of it
    assert (tmp_path / "sweep.csv").read_bytes() == whole.read_bytes()


def test_parquet_holds_the_same_rows(whole, tmp_path):
    pytest.importorskip("pyarrow")
    SWEEP(tmp_path / "sweep.parquet")
    assert pandas.read_parquet(tmp_path / "sweep.parquet").to_csv(index=False) == whole.read_text()


def test_without_its_library_parquet_is_refused_before_anything_is_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Parquet needs pyarrow.*vramtune\[parquet\]"):
        SWEEP(tmp_path / "sweep.parquet")


def test_a_model_that_cannot_be_followed_has_a_row_with_the_error(tmp_path):
    assert vramtune.sweep(["sd15", "./nothing"], tmp_path / "s.csv", vram_gb=[8], gpus=["4060"]) == 2
    rows = pandas.read_csv(tmp_path / "s.csv")
    assert rows.model.tolist() == ["sd15", "./nothing"]
    assert "does not exist" in rows.error.iloc[1]
    assert rows.fits.iloc[0]


def test_other_arguments_than_columns_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"differ in height, width, frames, steps; got guidance_scale"):
        vramtune.sweep(["sd15"], tmp_path / "s.csv", vram_gb=[8], call_kwargs=[{"guidance_scale": 1.0}])


def test_the_command_writes_it_too(tmp_path):
    result = run("sweep", tmp_path / "s.csv", "--model", "sd15", "--vram-gb", "4,8")
    assert (result.exit_code, result.stdout) == (
        0,
        f"{2 * len(gpu_names())} rows (predicted) in {tmp_path / 's.csv'}.\n",
    )
    assert {*pandas.read_csv(tmp_path / "s.csv").gpu} == {*gpu_names()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s.txt"], "must end in .csv or .parquet"),
        (["s.csv", "--size", "1024"], "--size takes WIDTHxHEIGHT"),
        (["s.csv", "--vram-gb", "8,much"], "--vram-gb"),
        (["s.csv", "--gpu", "GTX 9"], "Unknown GPU"),
    ],
)
def test_wrong_usage_is_said(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    refused(run("sweep", *arguments, "--model", "sd15"), said)
