from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

# ipykernel and zmq warn about their own event loops
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=NOTEBOOKS, ids=lambda file: file.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_one_for_each_room():
    names = ["01_check_dataset", "02_train_lora", "03_sample_video", "04_attention"]
    assert [file.stem for file in NOTEBOOKS] == names


def test_a_notebook_is_short_stripped_and_free_of_functions(notebook):
    assert len(notebook.cells) <= 15
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    source = "\n".join(cell.source for cell in code(notebook))
    assert "def " not in source
    assert '"/' not in source, "no absolute paths"
    assert '"google.colab" in sys.modules' in code(notebook)[0].source


def test_a_notebook_runs_on_a_cpu(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{root / 'kernels/torch-ext'}")
    nbclient.NotebookClient(
        notebook, timeout=150, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    errors = [o for cell in code(notebook) for o in cell.outputs if o.output_type == "error"]
    assert not errors
    widgets = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    shown = [widget["state"] for widget in widgets]
    kinds = [state["_model_name"] for state in shown]
    if any("sample_panel(" in cell.source for cell in code(notebook)):
        assert [state["value"] for state in shown if "Done." in str(state.get("value"))] == [
            "Done. The videos are in runs/samples."
        ] * 2
        assert sorted(file.name for file in (tmp_path / "runs/samples").glob("*.mp4")) == [
            "sample-0001.mp4", "sample-0002.mp4",
        ]  # fmt: skip
        assert kinds.count("VideoModel") == 2
    if any("dial_panel(" in cell.source for cell in code(notebook)):
        assert kinds.count("ImageModel") == 5
        assert any("auto took" in str(state.get("value")) for state in shown)
    if any("train_panel(" in cell.source for cell in code(notebook)):
        assert any("<b>Finished</b> step 4 of 4" in str(state.get("value")) for state in shown), "it kept up by itself"
        buttons = [state for state in shown if state["_model_name"] == "ButtonModel"]
        assert [state["description"] for state in buttons] == [
            "Stop after this step",
            "Pause",
            "Sample now",
            "Save now",
        ]
        assert all(state["disabled"] for state in buttons)
