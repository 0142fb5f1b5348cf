"""The notebooks run, show what they promise, and were saved with what they show."""

import ast
import re
from functools import cache

import nbformat
import pytest
from filelock import FileLock

import vramtune
from notebooks.remake import FOLDER, PARAMETERS, executed, path_of

RUNS = {**PARAMETERS, "choosing_a_gpu": 'MODELS, GPUS = ["sdxl"], ["RTX 4060", "RTX 4090"]'}
"""What runs here: of the notebook that takes more than a minute, a part."""
SHOWN = {
    "quickstart": {
        "profile": ["card"],
        "plan": ["card"],
        "memory": ["picture"],
        "compare": ["card"],
        "flux": ["card"],
        "modes": ["picture"],
        "frontier": ["picture"],
        "frame": ["html"],
        "save": ["text"],
    },
    "on_your_gpu": {
        "parameters": ["html"],
        "autotune": ["stderr"],
        "call": ["picture"],
        "tuned": ["card"],
        "measured-plot": ["picture"],
        "measured": ["card"],
        "compare": ["card"],
        "edit": ["picture"],
        "remove": ["text"],
    },
    "choosing_a_gpu": {"profiles": ["card"], "table": ["html"], "plot": ["picture"]},
}
"""By cell; the others show nothing, and none an error or a warning."""
PARTS = {"vramtune": {"catalog"}}
"""What is public and not in `vramtune.__all__`."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/)+[\w.-]*|[A-Z]:\\")
FIGURE = re.compile(r"\d[\d.]*")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, worker_id):
    """A notebook as it is after a run, one run for all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent

    @cache
    def run(name):
        path = folder / f"{name}.ipynb"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                nbformat.write(executed(name, parameters=RUNS[name]), path)
            return nbformat.read(path, as_version=4)

    return run


@cache
def saved(name):
    return nbformat.read(path_of(name), as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kind(output):
    if output.output_type in ("stream", "error"):
        return output.get("name", "error")
    if "image/png" in output.data:
        return "picture"
    if "text/html" in output.data:
        return "card" if '<div class="vramtune">' in output.data["text/html"] else "html"
    return "text"


def texts(cell):
    """What a cell shows, but for pictures."""
    for output in cell.outputs:
        data = output.get("data", {})
        yield from filter(None, (output.get("text"), data.get("text/plain"), data.get("text/html")))


def shown(notebook):
    return {cell.id: [kind(output) for output in cell.outputs] for cell in code_cells(notebook) if cell.outputs}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_shows_what_is_promised_and_no_warning(fresh, name):
    assert shown(fresh(name)) == SHOWN[name]
    assert shown(saved(name)) == SHOWN[name]


@pytest.mark.parametrize("name", RUNS)
def test_saved_outputs_are_those_of_a_run_from_top_to_bottom(name):
    counts = [cell.execution_count for cell in code_cells(saved(name))]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.slow
def test_the_quick_start_shows_what_is_saved(fresh):
    for now, before in zip(code_cells(fresh("quickstart")), code_cells(saved("quickstart")), strict=True):
        assert list(texts(now)) == list(texts(before)), "run `make notebooks`"


@pytest.mark.slow
def test_the_simulated_gpu_shows_what_is_saved_but_for_figures(fresh):
    for now, before in zip(code_cells(fresh("on_your_gpu")), code_cells(saved("on_your_gpu")), strict=True):
        assert without_figures(now) == without_figures(before), "run `make notebooks`"


def without_figures(cell):
    return [FIGURE.sub("#", text) for text in texts(cell)]


@pytest.mark.slow
def test_cards_that_are_asked_for_show_what_is_saved(fresh):
    for now, before in zip(code_cells(fresh("choosing_a_gpu")), code_cells(saved("choosing_a_gpu")), strict=True):
        assert lines(now) <= lines(before), "run `make notebooks`"


def lines(cell):
    """Of plain text, each as its words."""
    plain = [output.data["text/plain"] for output in cell.outputs if kind(output) != "picture"]
    return {tuple(line.split()) for text in plain for line in text.splitlines()}


@pytest.mark.slow
def test_all_cards_show_what_is_saved():
    whole = executed("choosing_a_gpu", parameters="")
    for now, before in zip(code_cells(whole), code_cells(saved("choosing_a_gpu")), strict=True):
        assert list(texts(now)) == list(texts(before)), "run `make notebooks`"


def test_nothing_simulated_passes_for_real():
    cells = {cell.id: "\n".join(texts(cell)) for cell in code_cells(saved("on_your_gpu"))}
    assert "No figure is one of a real GPU" in cells["parameters"]
    for cell_id in ("autotune", "tuned", "measured"):
        assert "simulated accelerator" in cells[cell_id]


@pytest.mark.parametrize("name", RUNS)
def test_saved_files_are_small_and_name_no_place_on_a_machine(name):
    assert path_of(name).stat().st_size < 400_000
    for cell in code_cells(saved(name)):
        for text in texts(cell):
            assert not ABSOLUTE_PATH.findall(text)


@pytest.mark.parametrize("name", RUNS)
def test_only_the_public_face_is_used(name):
    source = "\n".join(cell.source for cell in code_cells(saved(name))).replace("%matplotlib inline", "")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vramtune"):
            assert {alias.name for alias in node.names} <= PARTS[node.module]
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
            if isinstance(node.value, ast.Name) and node.value.id == "vramtune":
                assert node.attr in vramtune.__all__


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_nothing_in_the_tree(fresh, name):
    fresh(name)
    found = {path.name for path in FOLDER.iterdir()} - {"__pycache__"}
    assert found == {"README.md", "remake.py", "simulated.py", *(f"{notebook}.ipynb" for notebook in RUNS)}
