"""Many answers in one file: each that of a plan by itself, whoever computes it, and however often it was cut."""

import os
import sys
from functools import partial

import joblib
import pandas
import pytest

import vramtune
from tests.cli.cli_runner import refused, run
from vramtune import sweeps
from vramtune.errors import FileError, UsageError
from vramtune.machine.gpus import find_gpu, gpu_names
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
    import dask
    import distributed

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


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Ray has no wheel for this Python")
@pytest.mark.filterwarnings("ignore")  # of what Ray imports and leaves open
def test_a_ray_cluster_writes_the_same_file(whole, tmp_path, monkeypatch):
    import ray
    from ray.util.joblib import register_ray

    original = sweeps.planned_rows

    def signed(*arguments):
        (tmp_path / f"by_{os.getpid()}").touch()
        return original(*arguments)

    monkeypatch.setattr(sweeps, "planned_rows", signed)
    register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with joblib.parallel_config("ray", n_jobs=2):  # left out, Ray's is one, in this process
            SWEEP(tmp_path / "sweep.csv")
    finally:
        ray.shutdown()
    workers = {path.name for path in tmp_path.glob("by_*")}
    assert workers - {f"by_{os.getpid()}"} == workers != set()
    assert (tmp_path / "sweep.csv").read_bytes() == whole.read_bytes()


def test_parquet_holds_the_same_rows(whole, tmp_path):
    SWEEP(tmp_path / "sweep.parquet")
    assert pandas.read_parquet(tmp_path / "sweep.parquet").to_csv(index=False) == whole.read_text()
    assert sweeps.read_sweep(tmp_path / "sweep.parquet") == sweeps.read_sweep(whole)


def test_a_file_is_read_as_it_was_written(whole, tmp_path):
    rows = sweeps.read_sweep(whole)
    sweeps._write(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_bytes() == whole.read_bytes()
    plan = next(row for row in rows if row.fits)
    assert sum(stage.seconds for stage in plan.swept_stages) == pytest.approx(plan.seconds, rel=1e-3)
    assert max(stage.peak_bytes for stage in plan.swept_stages) == plan.peak_bytes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "No columns"),
        ("a,b\n1,2\n", "missing required field `model`"),
        ("model,gpu\n", "no rows"),
        ("model,gpu\nsd15,RTX 4060\n", "without its GPU, budget or verdict"),
        ("model,gpu,asked_bytes,limit_bytes,fits\nsd15,RTX 4060,8,8,True\n", "without its seconds, peak or stages"),
        (
            "model,gpu,asked_bytes,limit_bytes,fits,seconds,peak_bytes,stages\nsd15,RTX 4060,8,8,True,1,8,[1]\n",
            "Expected `object`, got `int`",
        ),
        ("model,gpu,asked_bytes\nsd15,RTX 4060,much\n", "much"),
        ("\0\1\2", ""),
    ],
)
def test_what_is_no_sweep_is_said(tmp_path, content, said):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(FileError, match=r"Expected a sweep in .*as `vramtune sweep` writes it") as caught:
        vramtune.explore(tmp_path / "s.csv", tmp_path / "site")
    assert said in str(caught.value)
    assert not (tmp_path / "site").exists()


def test_a_page_of_a_sweep_has_its_file_beside_it(whole, tmp_path):
    page = vramtune.explore(whole, tmp_path / "site" / "deep")
    assert page == tmp_path / "site" / "deep" / "index.html"
    assert (page.parent / "sweep.csv").read_bytes() == whole.read_bytes()
    assert '<a href="sweep.csv">' in page.read_text()


def test_the_command_explores_a_file(whole, tmp_path):
    result = run("explore", whole, "--out", tmp_path / "site")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'site' / 'index.html'} (predicted).\n")


def test_without_a_file_all_models_are_swept_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("vramtune.catalog.names", lambda: ["sd15"])
    monkeypatch.setattr("vramtune.machine.gpus.gpus", lambda: [find_gpu("4060"), find_gpu("4090")])
    assert run("explore", "--out", tmp_path / "site").exit_code == 0
    rows = sweeps.read_sweep(tmp_path / "site" / "sweep.csv")
    assert {(row.model, row.gpu) for row in rows} == {("sd15", "RTX 4060"), ("sd15", "RTX 4090")}
    assert (tmp_path / "site" / "index.html").exists()


def test_a_page_that_cannot_be_written_is_said(whole, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("explore", whole, "--out", tmp_path / "file")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Cannot write the folder" in result.stderr
    assert run("explore", "--out", tmp_path / "file").exit_code == 2


def test_without_its_library_parquet_is_refused_before_anything_is_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Parquet needs pyarrow.*vramtune\[parquet\]"):
        SWEEP(tmp_path / "sweep.parquet")


def test_a_model_that_cannot_be_followed_has_a_row_with_the_error(tmp_path):
    ways = [{}, {"transformer": "nf4"}]
    assert vramtune.sweep("sd15", tmp_path / "s.csv", vram_gb=8, gpus="4060", quantizations=ways) == 2
    rows = pandas.read_csv(tmp_path / "s.csv")
    assert rows.model.tolist() == ["sd15", "sd15"]
    assert "transformer" in rows.error.iloc[1]
    assert rows.fits.iloc[0]
    result = run("sweep", tmp_path / "s.csv", "--model", "sd15", "--gpu", "4060", "--quantize", "transformer=nf4")
    assert (result.exit_code, result.stdout) == (0, f"7 rows (predicted) in {tmp_path / 's.csv'}.\n")
    assert "1 of them with an error, such as sd15: " in result.stderr


@pytest.mark.parametrize(("model", "said"), [("sdlx", "Did you mean: .*sdxl"), ("./nothing", "does not exist")])
def test_what_names_no_model_is_refused_before_anything_is_planned(tmp_path, model, said):
    with pytest.raises(UsageError, match=said):
        vramtune.sweep(["sd15", model], tmp_path / "s.csv", vram_gb=[8])
    assert list(tmp_path.iterdir()) == []


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
