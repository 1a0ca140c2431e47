"""Creating and removing deformations repeatedly leaks neither nodes, observers nor memory."""

import gc

import pytest
import slicer
import vtk
from DRDMDeformLib.mrml import (
    addVariants,
    apply,
    disablePreview,
    enablePreview,
    fieldFromTransform,
    imageFromVolume,
    jacobianVolume,
    labelFromSegmentation,
    removeNode,
    selectVariant,
    showDeformation,
)
from scenes import add_points, add_segmentation, image_of, inner_points, placed_volume, smooth_field, two_structures


def alive() -> dict[str, int]:
    """Number of VTK objects that Python holds, by class."""
    gc.collect()
    kinds = (vtk.vtkImageData, vtk.vtkAbstractTransform, vtk.vtkPolyData, vtk.vtkMatrix4x4, slicer.vtkMRMLNode)
    return {k.__name__: sum(issubclass(type(o), k) for o in gc.get_objects()) for k in kinds}


def observers(scene) -> int:
    """Number of observers of the scene and its nodes."""
    count = 0
    for owner in [scene, *(scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes()))]:
        text = str(owner)
        count += text.count("vtkObserver (")
    return count


@pytest.mark.parametrize("rounds", [40, pytest.param(200, marks=pytest.mark.long)])
def test_many_rounds_leave_no_nodes_no_observers_and_no_memory(scene, rounds):
    image = image_of("plain")[8:32, 8:32, 8:28]
    volume = placed_volume(scene, image)
    segmentation = add_segmentation(scene, two_structures(image))
    points = add_points(scene, inner_points(image, 5))
    nodes = [volume, segmentation, points]
    fields = [smooth_field(image, 2.0, nodes=10, seed=n) for n in range(2)]
    record = {"level": 1, "seed": 1}

    def one_round(number):
        as_sequence = number % 4 == 0
        made = addVariants(scene, volume, fields, [record, record], as_sequence)
        transform = made[0]
        if as_sequence:
            selectVariant(made[1], 1)
        enablePreview(transform, nodes)
        showDeformation(transform, ("grid", "glyph", "contour")[number % 3])
        imageFromVolume(volume)
        labelFromSegmentation(segmentation, volume)
        fieldFromTransform(transform)
        disablePreview(transform, nodes)
        copies = apply(transform, nodes, originalGrid=number % 2 == 0)
        copies.append(jacobianVolume(scene, transform, volume))
        sequence = made[1].GetMasterSequenceNode() if as_sequence else None
        for node in [*copies, *made, sequence]:
            if node is not None:
                removeNode(node)

    one_round(0)
    one_round(1)
    removed = vtk.vtkCollection()
    count, seen, objects = scene.GetNumberOfNodes(), observers(scene), alive()
    assert seen > 0
    memory = resident()
    for number in range(rounds):
        one_round(number)
    assert scene.GetNumberOfNodes() == count
    assert observers(scene) == seen
    after = alive()
    # Caches of Python and VTK may keep a few objects, in all rounds together.
    assert all(after[k] - objects[k] <= rounds / 5 for k in objects), (objects, after)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    hierarchy.GetDataNodesInBranch(hierarchy.GetSceneItemID(), removed)
    assert removed.GetNumberOfItems() <= 2
    if memory is not None:
        # A round creates about 0.5 MB of data.
        assert resident() - memory < 8 + 0.16 * rounds


def resident() -> float | None:
    """Memory of this process in MB; ``None`` where the system does not report it."""
    from pathlib import Path

    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
