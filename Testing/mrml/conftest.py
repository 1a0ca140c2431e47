"""A new MRML scene for each test; an error reported by VTK fails the test."""

from __future__ import annotations

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core (Slicer's MRML without Qt) is not installed")
pytest.importorskip("vtk", reason="VTK is not installed")


def new_scene(cache):
    """Create a scene with color tables, the node classes of the modules, and a folder to unpack scene bundles."""
    scene = slicer.vtkMRMLScene()
    for logic in (
        slicer.vtkMRMLApplicationLogic(),
        slicer.vtkMRMLColorLogic(),
        slicer.vtkSlicerSequencesLogic(),
        slicer.vtkSlicerMarkupsLogic(),
    ):
        logic.SetMRMLScene(scene)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    # The class of the Colors module.
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    manager = slicer.vtkDataIOManager()
    manager.SetCacheManager(slicer.vtkCacheManager())
    manager.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    scene.SetDataIOManager(manager)
    return scene


@pytest.fixture
def scene(tmp_path):
    scene = new_scene(tmp_path)
    yield scene
    scene.Clear(1)


@pytest.fixture
def make_scene(tmp_path):
    """Return a function that creates further empty scenes, to load a saved scene into."""
    made = []

    def make():
        made.append(new_scene(tmp_path))
        return made[-1]

    yield make
    for scene in made:
        scene.Clear(1)


@pytest.fixture(autouse=True)
def no_vtk_errors(capfd):
    yield
    reported = [line for line in capfd.readouterr().err.splitlines() if "ERR|" in line]
    assert not reported, "\n".join(reported[:3])
