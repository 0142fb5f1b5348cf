"""Run the notebooks here and keep what they show: no GPU, no network, no weights.

python -m notebooks.remake
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm import tqdm
from traitlets.config import Config

FOLDER = Path(__file__).parent
PARAMETERS = {
    "quickstart": "",
    "on_your_gpu": "from notebooks import simulated\nMODEL, VRAM_GB, CALL = simulated.prepare()",
    "choosing_a_gpu": "",
}
"""By notebook: what runs behind its cell with the tag `parameters`."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # the simulated GPU's operations are tiny: threads would wait for one another
    "TQDM_DISABLE": "1",  # bars would show how fast this machine is
    "TRANSFORMERS_VERBOSITY": "error",  # torchvision is not installed
    "PYTHONWARNINGS": "ignore:IProgress not found",  # nor is ipywidgets
}


def main() -> None:
    """Write every notebook with what it shows now."""
    for name, parameters in tqdm(PARAMETERS.items(), unit="notebook"):
        nbformat.write(executed(name, parameters=parameters), path_of(name))


def path_of(name: str) -> Path:
    """Where a notebook is."""
    return FOLDER / f"{name}.ipynb"


def executed(name: str, *, parameters: str) -> NotebookNode:
    """A notebook run from top to bottom in an empty folder; `parameters` run in it, but are not written into it."""
    notebook = nbformat.read(path_of(name), as_version=4)
    sources, metadata = [cell.source for cell in notebook.cells], {**notebook.metadata}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += f"\n{parameters}"
    with TemporaryDirectory() as folder:
        environment = {"PYTHONPATH": str(FOLDER.parent), "IPYTHONDIR": folder}
        _client(notebook, folder).execute(env={**os.environ, **ENVIRONMENT, **environment})
    for cell, source in zip(notebook.cells, sources, strict=True):
        cell.source = source
    return NotebookNode({**notebook, "metadata": metadata})


def _client(notebook: NotebookNode, folder: str) -> NotebookClient:
    """With a kernel that works in `folder` and is spoken to through files in it, not through ports."""
    files = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
    return NotebookClient(
        notebook, resources={"metadata": {"path": folder}}, config=Config(KernelManager=files), record_timing=False
    )


if __name__ == "__main__":
    main()
