"""Damaged transforms, meshes and lists of points are used or refused in one sentence, and crash nothing."""

import base64
import json
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import run_process, scene
from fuzzers import damaged_bytes, damaged_json, damaged_text
from test_application import bump, meshes

from DRDMLib.application import apply_field, read_deformation
from DRDMLib.challenge.transforms import read_result
from DRDMLib.errors import DRDMError, ImageError
from DRDMLib.io import apart
from DRDMLib.io.images import read_image
from DRDMLib.io.meshes import read_mesh
from DRDMLib.io.points import read_points
from DRDMLib.io.transforms import read_transform
from DRDMLib.runtime import programs

POINTS = {
    "a.csv": b"name,x,y,z\np,3,3,4\nq,4,4,5\n",
    "a.fcsv": b"# Markups fiducial file version = 4.11\n# CoordinateSystem = 0\n# columns = id,x,y,z\n1,-3,-3,4\n",
    "a.mrk.json": json.dumps(
        {
            "markups": [
                {
                    "type": "Curve",
                    "coordinateSystem": "LPS",
                    "controlPoints": [{"id": "1", "label": "a", "position": [3.0, 3.0, 4.0]}],
                    "measurements": [{"name": "length", "value": 3.0}],
                }
            ]
        }
    ).encode(),
}


@pytest.fixture(scope="module")
def field():
    image = scene((8, 7, 6))
    image.SetOrigin((0, 0, 0))
    return sitk.Cast(bump(image, 0.5), sitk.sitkVectorFloat64)


def used_or_refused(field, path, out):
    try:
        apply_field(field, [path], out)
    except DRDMError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        return False
    return True


@pytest.mark.filterwarnings("ignore")
def test_damaged_meshes_and_points(tmp_path, field):
    vertices = np.array([[2.0, 3, 3], [4.0, 3, 4], [3.0, 5, 5]])
    samples = meshes(vertices, np.repeat([[0.0, 0, 1]], 3, axis=0)) | POINTS | {"z.vtp": packed_vtp(vertices)}
    chance, counts = random.Random(3), [0, 0]
    for number in range(400):
        name = chance.choice(sorted(samples))
        if name.endswith(".json") and chance.random() < 0.8:
            data = json.dumps(damaged_json(json.loads(samples[name]), chance)).encode()
        else:
            data = chance.choice((damaged_bytes, damaged_text))(samples[name], chance)
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(data)
        counts[used_or_refused(field, path, tmp_path / f"out-{number}")] += 1
    assert min(counts) > 80, counts


def test_other_errors_are_of_this_file(tmp_path, field):
    made = {
        "deep.mrk.json": b"[" * 100_000 + b"]" * 100_000,
        "long.csv": b'x,y,z\n1,2,"' + b"3" * 200_000 + b'"\n',
        "list.mrk.json": POINTS["a.mrk.json"].replace(b'[{"name": "length", "value": 3.0}]', b'"x"'),
        "count.vtk": b"# vtk DataFile Version 4.2\na\nBINARY\nDATASET POLYDATA\nPOINTS 9" + b"9" * 30 + b" float\n1234",
        "count.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 9" + b"9" * 30 + b"\nproperty float x\n"
        b"property float y\nproperty float z\nend_header\n1234",
        "empty.vtp": b"",
        "empty.mrk.json": b"",
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
        assert not used_or_refused(field, tmp_path / name, tmp_path / f"out-{name}"), name
    for name in ("x" * 300 + ".csv", "x" * 300 + ".stl", "x" * 300 + ".nii", "a\0.vtk", "a\0.csv", "a\0.nii"):
        assert not used_or_refused(field, tmp_path / name, tmp_path / f"out-{len(name)}-{name[-3:]}")
        with pytest.raises(ImageError):
            read_deformation(tmp_path / name)


def packed_vtp(vertices, blocks=None):
    """A surface whose points are compressed; ``blocks`` are packed already."""
    raw = np.asarray(vertices, "<f4").tobytes()
    blocks = blocks or [zlib.compress(raw)]
    lengths = struct.pack(f"<{3 + len(blocks)}I", len(blocks), len(raw), 0, *map(len, blocks))
    content = base64.b64encode(lengths) + base64.b64encode(b"".join(blocks))
    return (
        b'<VTKFile type="PolyData" byte_order="LittleEndian" compressor="vtkZLibDataCompressor"><PolyData>'
        b'<Piece NumberOfPoints="3"><Points><DataArray type="Float32" Name="Points" NumberOfComponents="3" '
        b'format="binary">' + content + b"</DataArray></Points></Piece></PolyData></VTKFile>"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
@pytest.mark.parametrize("parts", [1, 300])
def test_a_mesh_does_not_unpack_to_all_the_memory(tmp_path, parts):
    path = tmp_path / "bomb.vtp"
    path.write_bytes(packed_vtp(np.zeros((3, 3)), [zlib.compress(bytes(600 * 2**20 // parts), 1)] * parts))
    code = """
import resource, sys
from pathlib import Path
from DRDMLib.errors import ImageError
from DRDMLib.io.meshes import read_mesh
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_mesh(Path(sys.argv[1]))
except ImageError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ended = run_process(path, code=code)
    message, grown = ended.stdout.splitlines()
    assert "The mesh" in message and "asks for more values than it can hold" in message and int(grown) < 400


def test_a_packed_mesh_is_read(tmp_path):
    vertices = np.array([[2.0, 3, 3], [4.0, 3, 4], [3.0, 5, 5]])
    raw = vertices.astype("<f4").tobytes()
    (tmp_path / "a.vtp").write_bytes(packed_vtp(vertices, [zlib.compress(raw[:20]), zlib.compress(raw[20:])]))
    assert (read_mesh(tmp_path / "a.vtp").vertices == vertices).all()
    (tmp_path / "b.vtp").write_bytes(packed_vtp(vertices, [zlib.compress(raw)[:-4]]))
    with pytest.raises(ImageError, match="not a mesh"):
        read_mesh(tmp_path / "b.vtp")


# Transforms.


def transforms(folder, field):
    """A transform of each kind, in each format."""
    affine = sitk.AffineTransform(3)
    affine.SetTranslation((1, 2, 3))
    composite = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(sitk.Image(field))])
    made = []
    for name, transform in (("a.tfm", affine), ("a.txt", affine), ("a.mat", affine), ("a.xfm", affine)):
        sitk.WriteTransform(transform, str(folder / name))
        made.append(folder / name)
    sitk.WriteTransform(composite, str(folder / "c.h5"))
    return [*made, folder / "c.h5"]


def test_damaged_transforms(tmp_path, field):
    """Read in another process, because some crash ITK."""
    chance, counts = random.Random(5), [0, 0]
    for sample in transforms(tmp_path, field):
        data = sample.read_bytes()
        assert read_deformation(sample).dimension == 3
        for number in range(12):
            path = tmp_path / f"{number}-{sample.name}"
            damage = damaged_bytes if sample.suffix in (".mat", ".h5") else damaged_text
            path.write_bytes(damage(data, chance))
            for read in (read_deformation, lambda path: read_result([path], field)):
                try:
                    read(path)
                    counts[0] += 1
                except DRDMError as error:
                    assert len(str(error).splitlines()) == 1, error
                    counts[1] += 1
    assert min(counts) > 20, counts


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_transforms_of_numbers_only(tmp_path, field, value):
    bad = sitk.Image(field)
    bad[3, 3, 3] = (float(value), 0, 0)
    affine = sitk.AffineTransform(3)
    affine.SetTranslation((float(value), 2, 3))
    for name, transform in (
        ("a.tfm", affine),
        ("f.h5", sitk.DisplacementFieldTransform(bad)),
        ("c.h5", sitk.CompositeTransform([sitk.AffineTransform(3), affine])),
    ):
        sitk.WriteTransform(transform, str(tmp_path / name))
        for read in (read_deformation, lambda path: read_result([path], field)):
            # Some versions of ITK do not read such numbers at all.
            with pytest.raises(ImageError, match=r"NaN or infinite|not a transform that ITK knows"):
                read(tmp_path / name)


def test_no_transform_or_field_is_read_here_when_the_other_process_cannot(tmp_path, monkeypatch, field):
    """It might crash this process."""
    path = tmp_path / "a.tfm"
    sitk.WriteTransform(sitk.AffineTransform(3), str(path))
    image = tmp_path / "a.nrrd"
    sitk.WriteImage(field, str(image))
    image.write_bytes(image.read_bytes().replace(b"endian:", b"Endian :"))
    monkeypatch.setattr(apart._READER, "read", lambda *_: apart.ReadApart(""))
    monkeypatch.setattr(sitk, "ReadTransform", None)
    monkeypatch.setattr(sitk, "ReadImage", None)
    with pytest.raises(ImageError, match="not a transform that ITK knows"):
        read_transform(path)
    for name in (path, image):
        with pytest.raises(ImageError):
            read_result([name], field)


def test_arrays_are_not_larger_than_their_image(tmp_path, field):
    zeros = np.zeros((6, 7, 8, 3))
    np.save(tmp_path / "a.npy", zeros)
    np.savez_compressed(tmp_path / "a.npz", zeros)
    for name in ("a.npy", "a.npz"):
        assert read_result([tmp_path / name], field).TransformPoint((3, 3, 3)) == (3, 3, 3)
    np.savez_compressed(tmp_path / "bomb.npz", np.zeros((60, 70, 80, 3)))
    with pytest.raises(ImageError, match="asks for more values than it can hold"):
        read_result([tmp_path / "bomb.npz"], field)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(data.replace(b"(6, 7, 8, 3), }        ", b"(6, 7, 80000000, 3), } "))
    (tmp_path / "c.npy").write_bytes(data[:-100])
    (tmp_path / "d.npz").write_bytes(b"PK\3\4" + data)
    for name in ("b.npy", "c.npy", "d.npz"):
        with pytest.raises(ImageError):
            read_result([tmp_path / name], field)


# The process that reads.


def test_a_reader_that_cannot_be_started_is_named(tmp_path, monkeypatch):
    """The file is not called damaged."""
    path = tmp_path / "a.tif"
    sitk.WriteImage(scene(pixel=sitk.sitkFloat32), str(path))
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'library is missing' >&2\nexit 3\n")
    program.chmod(0o755)
    apart._READER.close()
    for other, says in ((program, "library is missing"), (tmp_path / "none", "No such file")):
        monkeypatch.setattr(apart, "python_program", lambda other=other: str(other))
        with pytest.raises(ImageError, match=f"cannot be started.*{says}") as caught:
            read_image(path)
        assert "damaged" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    assert read_image(path).GetSize() == scene().GetSize()


def test_words_of_a_launcher_are_no_answers(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    sitk.WriteImage(scene(pixel=sitk.sitkFloat32), str(path))
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\necho "Welcome"\necho "again" >&2\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    apart._READER.close()
    monkeypatch.setattr(apart, "python_program", lambda: str(program))
    assert read_image(path).GetSize() == scene().GetSize()
    apart._READER.close()


def test_slicers_launcher_is_for_slicer(tmp_path, monkeypatch):
    launcher = tmp_path / ("PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer")
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "slicer", raising=False)
    monkeypatch.delenv("SLICER_HOME", raising=False)
    assert programs.python_program() == sys.executable
    monkeypatch.setenv("SLICER_HOME", str(tmp_path))
    assert programs.python_program() == sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python-real"))
    assert programs.python_program() == str(launcher)
    monkeypatch.delenv("SLICER_HOME")
    assert programs.python_program() == str(tmp_path / "bin" / "python-real")
    monkeypatch.setitem(sys.modules, "slicer", programs)
    assert programs.python_program() == str(launcher)
    monkeypatch.delitem(sys.modules, "slicer")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "SlicerApp-real"))
    assert programs.python_program() == str(launcher)


def test_entries_of_a_header_come_from_the_other_process_too(tmp_path):
    image = scene((8, 7, 6))
    image.SetMetaData("Segment0_Name", "liver")
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    found = apart.read_apart(tmp_path / "a.nrrd", "image")
    assert found is not None and found.image.GetMetaData("Segment0_Name") == "liver"


def test_the_reader_is_a_script():
    """It needs nothing of DRDM, and starts in a folder with modules of ordinary names."""
    done = subprocess.run(
        [sys.executable, str(apart._SCRIPT), json.dumps(sys.path)], input=b"", capture_output=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.strip() == b'{"ready": true}' and done.stderr == b""


def test_points_with_names_that_are_no_numbers(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImageError, match="list of points"):
        read_points(tmp_path / "a.csv", 3)
