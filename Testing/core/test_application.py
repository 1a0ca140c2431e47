"""``drdm apply``: other files follow a saved deformation, compared with what SimpleITK makes of it."""

import csv
import json
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from command_helpers import boxes
from support import rotation, smooth_image

import DRDMLib
from DRDMLib.application import apply_field, kind_of, read_deformation
from DRDMLib.errors import FallbackWarning, ImageError
from DRDMLib.io.label_maps import looks_like_label
from DRDMLib.io.meshes import read_mesh
from DRDMLib.io.points import read_points
from DRDMLib.spatial.coordinates import to_index, to_points

RAS = np.array([-1.0, -1.0, 1.0])


def oblique(size=(24, 22, 18)):
    """An image with anisotropic voxels and turned axes."""
    image = smooth_image(size, (1.0, 1.2, 2.0)[: len(size)], pixel=sitk.sitkInt16)
    if len(size) == 3:
        image.SetDirection(rotation(17, 11, 6).ravel().tolist())
        image.SetOrigin([5.0, -20.0, 40.0])
    return image


def bump(image, height=3.0):
    """A displacement field on the grid of an image: smooth, invertible, not zero at its border."""
    size = np.array(image.GetSize())
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1).reshape(-1, len(size))
    along = index / (size - 1) * np.pi
    waves = np.stack([np.cos(along[:, k]) + 0.3 * np.sin(along[:, k - 1]) for k in range(len(size))], axis=1)
    vectors = (height * waves / 2).reshape(*size, len(size))
    field = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(vectors, -1, 0).T), isVector=True)
    field.CopyInformation(image)
    return field


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A scan, its label, and a field in files."""
    folder = tmp_path_factory.mktemp("case")
    image = oblique()
    field = bump(image)
    for name, one in (("scan", image), ("organ", boxes(image)), ("ddf", sitk.Cast(field, sitk.sitkVectorFloat32))):
        sitk.WriteImage(one, str(folder / f"{name}.nii.gz"))
    transform = sitk.DisplacementFieldTransform(sitk.Image(field))
    return folder, image, transform


def some_points(image, count=40):
    """Random points in the middle of an image."""
    size = np.array(image.GetSize())
    return to_points(np.random.default_rng(1).uniform(0.25, 0.75, (count, len(size))) * (size - 1), image)


def through(transform, points):
    return np.array([transform.TransformPoint(p) for p in points.tolist()])


def test_images_and_labels_are_pulled_as_by_simpleitk(case, tmp_path, drdm):
    folder, image, transform = case
    made = drdm("apply", folder / "ddf.nii.gz", folder / "scan.nii.gz", folder / "organ.nii.gz", "-o", tmp_path / "out")
    assert made.status == 0, made.err
    assert "1 image, 1 label map are in" in made.err
    result = sitk.ReadImage(str(tmp_path / "out" / "scan.nii.gz"))
    expected = sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), image, transform, sitk.sitkLinear, np.nan)
    ours, theirs = map(sitk.GetArrayFromImage, (result, expected))
    inside = np.isfinite(theirs)
    assert result.GetPixelID() == image.GetPixelID() and inside.mean() > 0.6
    assert np.abs(ours - theirs)[inside].max() <= 0.6
    label = sitk.ReadImage(str(tmp_path / "out" / "organ.nii.gz"))
    nearest = sitk.Resample(boxes(image), image, transform, sitk.sitkNearestNeighbor, 0)
    same = sitk.GetArrayFromImage(label) == sitk.GetArrayFromImage(nearest)
    assert same.mean() > 0.97 and set(np.unique(sitk.GetArrayFromImage(label))) == {0, 1, 3}


def test_points_are_carried_with_the_inverse_and_back_with_the_field(case, tmp_path):
    folder, image, transform = case
    points = some_points(image)
    rows = [("name", "x", "y", "z"), *((f"p{k}", *p) for k, p in enumerate(points.tolist()))]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    apply_field(folder / "ddf.nii.gz", [tmp_path / "p.csv"], tmp_path / "new")
    new = read_points(tmp_path / "new" / "p.csv", 3)
    assert new.names == [f"p{k}" for k in range(len(points))]
    assert np.abs(new.points - points).max() > 1
    # The field takes a point of the new version to the original.
    assert np.abs(through(transform, new.points) - points).max() < 1e-3
    apply_field(folder / "ddf.nii.gz", [tmp_path / "new" / "p.csv"], tmp_path / "back", inverse=True)
    assert np.abs(read_points(tmp_path / "back" / "p.csv", 3).points - points).max() < 1e-3


def test_points_and_labels_move_together(case, tmp_path):
    """The middle of an organ lies in the middle of the deformed organ: not twice as far, and not the other way."""
    folder, image, _ = case
    organ = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    organ.CopyInformation(image)
    organ[9:13, 9:13, 7:11] = 1
    sitk.WriteImage(organ, str(tmp_path / "organ.nrrd"))
    middle = to_points(np.array([[10.5, 10.5, 8.5]]), image)
    (tmp_path / "p.csv").write_text("x,y,z\n" + ",".join(map(str, middle[0])) + "\n")
    for inverse in (False, True):
        out = tmp_path / str(inverse)
        files = [tmp_path / "organ.nrrd", tmp_path / "p.csv"]
        assert [one.kind for one in apply_field(folder / "ddf.nii.gz", files, out, inverse=inverse)] == [
            "label",
            "points",
        ]
        moved = sitk.ReadImage(str(out / "organ.nrrd"))
        index = np.argwhere(sitk.GetArrayFromImage(moved))[:, ::-1].mean(axis=0, keepdims=True)
        assert np.linalg.norm(to_points(index, moved) - read_points(out / "p.csv", 3).points) < 0.5
        assert np.linalg.norm(to_points(index, moved) - middle) > 0.7, "the organ does not move"


def test_there_and_back_gives_the_scan_again(case, tmp_path):
    folder, _image, _ = case
    apply_field(folder / "ddf.nii.gz", [folder / "scan.nii.gz"], tmp_path / "new")
    apply_field(folder / "ddf.nii.gz", [tmp_path / "new" / "scan.nii.gz"], tmp_path / "back", inverse=True)
    inner = (slice(5, -5),) * 3
    before, new, back = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(where / "scan.nii.gz"))).astype(float)[inner]
        for where in (folder, tmp_path / "new", tmp_path / "back")
    )
    assert np.abs(back - before).mean() < 0.25 * np.abs(new - before).mean()


def test_each_file_keeps_its_own_grid_and_the_field_goes_on_beyond_its_own(case, tmp_path):
    folder, image, _transform = case
    coarse = sitk.Resample(
        image,
        [16, 12, 10],
        sitk.Transform(),
        sitk.sitkLinear,
        image.TransformIndexToPhysicalPoint((-2, -2, -1)),
        (1.9, 2.3, 2.4),
        image.GetDirection(),
    )
    sitk.WriteImage(coarse, str(tmp_path / "t2.mha"))
    apply_field(folder / "ddf.nii.gz", [tmp_path / "t2.mha"], tmp_path / "out")
    result = sitk.ReadImage(str(tmp_path / "out" / "t2.mha"))
    assert result.GetSize() == coarse.GetSize() and np.allclose(result.GetOrigin(), coarse.GetOrigin())
    # A point just outside of the field moves like its neighbor inside, and what is far away stays.
    field = read_deformation(folder / "ddf.nii.gz")
    at = to_points(np.array([[-1.0, 8, 8], [0.0, 8, 8], [-300.0, 8, 8]]), image)
    steps = field.to_original(at) - at
    assert np.linalg.norm(steps[0] - steps[1]) < 0.3 * np.linalg.norm(steps[1]) and not steps[2].any()
    there, wrong = field.to_new(at)
    assert wrong == 0 and np.abs(field.to_original(there) - at).max() < 1e-3


def test_transforms_of_itk_and_slicer(case, tmp_path):
    folder, image, transform = case
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, 0.0, 0.1, (2.0, 1.0, 0.0))
    both = sitk.CompositeTransform([turn, transform])
    sitk.WriteTransform(both, str(tmp_path / "both.h5"))
    points = some_points(image)
    field = read_deformation(tmp_path / "both.h5")
    assert np.abs(field.to_original(points) - through(both, points)).max() < 1e-3
    new, wrong = field.to_new(points)
    assert wrong == 0 and np.abs(through(both, new) - points).max() < 1e-3
    apply_field(tmp_path / "both.h5", [folder / "scan.nii.gz"], tmp_path / "out")
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "scan.nii.gz")))
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, image, both, sitk.sitkLinear))
    assert np.abs(ours - theirs)[4:-4, 6:-6, 6:-6].max() <= 1


def test_markups_keep_everything_else(case, tmp_path):
    folder, image, transform = case
    points = some_points(image, 3)
    control = [{"label": f"a{k}", "position": (p * RAS).tolist(), "locked": True} for k, p in enumerate(points)]
    control.append({"label": "unset", "position": [0, 0, 0], "positionStatus": "undefined"})
    content = {"markups": [{"type": "Curve", "coordinateSystem": "RAS", "controlPoints": control, "display": {"a": 1}}]}
    (tmp_path / "c.mrk.json").write_text(json.dumps(content))
    header = "# Markups fiducial file version = 4.11\n# CoordinateSystem = 0\n# columns = id,x,y,z,ow,label\n"
    lines = [f"{k},{x},{y},{z},0,p{k}" for k, (x, y, z) in enumerate((points * RAS).tolist())]
    (tmp_path / "f.fcsv").write_text(header + "\n".join(lines) + "\n")
    apply_field(folder / "ddf.nii.gz", [tmp_path / "c.mrk.json", tmp_path / "f.fcsv"], tmp_path / "out")
    made = json.loads((tmp_path / "out" / "c.mrk.json").read_text())
    new = np.array([c["position"] for c in made["markups"][0]["controlPoints"][:3]]) * RAS
    assert np.abs(through(transform, new) - points).max() < 1e-3
    for one, old in zip(made["markups"][0]["controlPoints"], control, strict=True):
        assert one["label"] == old["label"] and one.get("locked") == old.get("locked")
    assert made["markups"][0]["controlPoints"][3] == control[3] and made["markups"][0]["display"] == {"a": 1}
    text = (tmp_path / "out" / "f.fcsv").read_text()
    assert text.startswith(header) and text.splitlines()[-1].endswith(",0,p2")
    assert np.abs(read_points(tmp_path / "out" / "f.fcsv", 3).points - new).max() < 1e-3


def meshes(vertices, normals, space=b""):
    """The same triangles (3, 3) in every format that can be written by hand: name -> bytes."""
    numbers = "\n".join(" ".join(f"{x:.6f}" for x in row) for row in vertices)
    facets = np.zeros(1, [("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")])
    facets["v"], facets["a"] = vertices, 7
    ply = "element vertex 3\n" + "".join(f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz"))
    ply += "property uchar red\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    rows = np.zeros(3, [("v", "<f4", 3), ("n", "<f4", 3), ("red", "u1")])
    rows["v"], rows["n"], rows["red"] = vertices, normals, 200
    faces = struct.pack("<Biii", 3, 0, 1, 2)
    vtk = b"# vtk DataFile Version 4.2\nmade by hand " + space + b"\n%s\nDATASET POLYDATA\nPOINTS 3 float\n"
    polygons = b"\nPOLYGONS 1 4\n"
    data = b"\nPOINT_DATA 3\nNORMALS n float\n"
    normal_text = "\n".join(" ".join(f"{x:.6f}" for x in row) for row in normals)
    array = '<DataArray type="Float32" Name="{}" NumberOfComponents="3" format="ascii">{}</DataArray>'
    return {
        "b.stl": space.ljust(80) + struct.pack("<I", 1) + facets.tobytes(),
        "t.stl": b"solid a "
        + space
        + b"\nfacet normal 0 0 1\nouter loop\n"
        + "".join(f"vertex {' '.join(map(str, row))}\n" for row in vertices.tolist()).encode()
        + b"endloop\nendfacet\nendsolid a\n",
        "b.ply": b"ply\nformat binary_little_endian 1.0\ncomment "
        + space
        + b"\n"
        + ply.encode()
        + rows.tobytes()
        + faces,
        "t.ply": b"ply\nformat ascii 1.0\ncomment "
        + space
        + b"\n"
        + ply.encode()
        + "".join(
            " ".join(map(str, [*v, *n, 200])) + "\n" for v, n in zip(vertices.tolist(), normals.tolist(), strict=True)
        ).encode()
        + b"3 0 1 2\n",
        "b.vtk": vtk % b"BINARY"
        + vertices.astype(">f4").tobytes()
        + polygons
        + struct.pack(">4i", 3, 0, 1, 2)
        + data
        + normals.astype(">f4").tobytes()
        + b"\n",
        "t.vtk": vtk % b"ASCII" + numbers.encode() + polygons + b"3 0 1 2" + data + normal_text.encode() + b"\n",
        "t.vtp": (
            '<?xml version="1.0"?>\n<VTKFile type="PolyData" byte_order="LittleEndian"><PolyData>'
            + (
                '<FieldData><Array type="String" Name="SPACE" format="ascii">82 65 83 0</Array></FieldData>'
                if space
                else ""
            )
            + '<Piece NumberOfPoints="3"><PointData Normals="Normals">'
            + array.format("Normals", normal_text)
            + "</PointData><Points>"
            + array.format("Points", numbers)
            + "</Points></Piece></PolyData></VTKFile>\n"
        ).encode(),
    }


@pytest.mark.parametrize("space", [b"", b"SPACE=RAS"])
def test_meshes_move_with_their_normals(case, tmp_path, space):
    folder, image, transform = case
    sign = RAS if space else np.ones(3)
    vertices = to_points(np.array([[9.0, 9, 8], [14.0, 10, 8], [10.0, 13, 10]]), image)
    normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
    normals = np.repeat(normal[None] / np.linalg.norm(normal), 3, axis=0)
    for name, data in meshes(vertices * sign, normals * sign, space).items():
        path = tmp_path / name
        path.write_bytes(data)
        (made,) = apply_field(folder / "ddf.nii.gz", [path], tmp_path / f"out-{name}")
        before, after = read_mesh(path), read_mesh(made.path)
        assert np.abs(before.vertices - vertices).max() < 1e-4 and made.kind == "mesh", name
        assert np.abs(through(transform, after.vertices) - vertices).max() < 1e-3, name
        new = made.path.read_bytes()
        if name.endswith("stl"):
            assert b"SPACE=RAS" in new if space else b"SPACE" not in new
        else:
            # The tangents of a small triangle around a vertex stay at right angles to its normal.
            assert np.allclose(np.linalg.norm(after.normals, axis=1), 1, atol=1e-4)
            assert 0.9 < (after.normals * normals).sum(axis=1).min() < 1, name
            u = np.cross(normals[0], [0.3, 0.2, 0.9])
            field = read_deformation(folder / "ddf.nii.gz")
            pair = field.to_new(np.stack([vertices[0] + 0.05 * u, vertices[0] - 0.05 * u]))[0]
            step = (pair[0] - pair[1]) / np.linalg.norm(pair[0] - pair[1])
            assert abs(step @ after.normals[0]) < 0.02, name
        if name == "b.ply":
            kind = np.dtype([("v", "<f4", 3), ("n", "<f4", 3), ("red", "u1")])
            start = new.index(b"end_header\n") + 11
            assert (np.frombuffer(new, kind, 3, start)["red"] == 200).all() and new.endswith(data[-13:])
        if name == "b.vtk":
            assert len(new) == len(data) and new[: data.index(b"float\n")] == data[: data.index(b"float\n")]


def test_what_cannot_be_used_is_left_out_and_named(case, tmp_path):
    folder, image, _ = case
    far = sitk.Image(image)
    far.SetOrigin([500.0, 500.0, 500.0])
    sitk.WriteImage(far, str(tmp_path / "far.nii.gz"))
    (tmp_path / "a.stl").write_bytes(b"nothing")
    (tmp_path / "far.csv").write_text("x,y,z\n900,900,900\n")
    files = [
        tmp_path / "far.nii.gz",
        tmp_path / "a.stl",
        folder / "organ.nii.gz",
        tmp_path / "far.csv",
        folder / "ddf.nii.gz",
    ]
    with pytest.warns(FallbackWarning) as caught:
        made = apply_field(folder / "ddf.nii.gz", files, tmp_path / "out")
    assert [one.path.name for one in made] == ["organ.nii.gz"]
    texts = [str(w.message) for w in caught]
    assert len(texts) == 4 and all(text.startswith("Left out: '") for text in texts)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["organ.nii.gz"]
    with pytest.raises(ImageError, match="None of the 2 files"):
        apply_field(folder / "ddf.nii.gz", files[:2], tmp_path / "none")
    with pytest.raises(ImageError, match="does not lie where"):
        apply_field(folder / "ddf.nii.gz", files[:1], tmp_path / "none2")


def test_names_and_kinds(case, tmp_path):
    folder, image, _ = case
    (tmp_path / "b").mkdir()
    sitk.WriteImage(boxes(image), str(tmp_path / "b" / "organ.nii.gz"))
    out = tmp_path / "out"
    made = apply_field(folder / "ddf.nii.gz", [folder / "organ.nii.gz"], out, images=[tmp_path / "b" / "organ.nii.gz"])
    assert [one.kind for one in made] == ["label", "image"]
    assert len({one.path.name for one in made}) == 2 and all(one.path.is_file() for one in made)
    values = [set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(one.path))))) for one in made]
    assert values[0] == {0, 1, 3} and 2 in values[1]
    assert looks_like_label(boxes(image)) and not looks_like_label(image)
    eight_bits = sitk.Cast(sitk.RescaleIntensity(image, 0, 255), sitk.sitkUInt8)
    assert not looks_like_label(eight_bits)
    assert kind_of(tmp_path / "x.mrk.json") == "points" and kind_of(tmp_path / "x.seg.nrrd") == "image"


def test_flat_images_and_their_points(tmp_path):
    image = oblique((30, 28))
    field = bump(image, 2.0)
    sitk.WriteImage(image, str(tmp_path / "flat.nrrd"))
    points = some_points(image, 5)
    (tmp_path / "p.csv").write_text("x,y,z\n" + "".join(f"{x},{y},7\n" for x, y in points.tolist()))
    made = apply_field(field, [tmp_path / "flat.nrrd", tmp_path / "p.csv"], tmp_path / "out")
    assert [one.kind for one in made] == ["image", "points"]
    new = read_points(tmp_path / "out" / "p.csv", 3).points
    assert (new[:, 2] == 7).all()
    assert np.abs(through(sitk.DisplacementFieldTransform(sitk.Image(field)), new[:, :2]) - points).max() < 1e-3


def test_the_files_of_deform_follow_its_own_label(tmp_path, tiny_models, drdm):
    """The label that ``deform`` makes and the one that ``apply`` makes of its field are the same."""
    image = smooth_image((26, 22, 18), (1.0, 1.2, 2.0), pixel=sitk.sitkInt16)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    sitk.WriteImage(boxes(image), str(tmp_path / "organs.nii.gz"))
    common = ["--model", tiny_models[3], "--level", 60, "--device", "cpu", "--steps", 2]
    deform = drdm(
        "deform", tmp_path / "scan.nii.gz", "-o", tmp_path / "made", "--label", tmp_path / "organs.nii.gz", *common
    )
    assert deform.status == 0, deform.err
    field = tmp_path / "made" / "scan_000_ddf.nii.gz"
    done = drdm("apply", field, tmp_path / "scan.nii.gz", tmp_path / "organs.nii.gz", "-o", tmp_path / "again")
    assert done.status == 0, done.err
    for name, other in (("scan", "image"), ("organs", "label")):
        a = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "again" / f"{name}.nii.gz"))).astype(float)
        b = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "made" / f"scan_000_{other}.nii.gz"))).astype(float)
        assert (np.abs(a - b) <= 1).mean() > 0.999, name
    assert DRDMLib.apply_field is apply_field


def test_segmentations_of_slicer_keep_their_names(case, tmp_path):
    folder, image, _ = case
    layers = sitk.Compose(boxes(image) == 1, boxes(image))
    keys = {"Segment0_Name": "liver", "Segment0_Extent": "3 4 3 4 3 4", "Segment0_Layer": "1"}
    for key, value in keys.items():
        layers.SetMetaData(key, value)
    sitk.WriteImage(layers, str(tmp_path / "organs.seg.nrrd"), True)
    (made,) = apply_field(folder / "ddf.nii.gz", [tmp_path / "organs.seg.nrrd"], tmp_path / "out")
    result = sitk.ReadImage(str(made.path))
    assert made.kind == "label" and made.path.name == "organs.seg.nrrd"
    assert result.GetMetaData("Segment0_Name") == "liver" and result.GetMetaData("Segment0_Extent") == "0 23 0 21 0 17"
    assert set(np.unique(sitk.GetArrayFromImage(result)[..., 1])) == {0, 1, 3}


def test_the_field_of_a_single_slice(tmp_path):
    """ITK reads one layer of vectors as it is written by other programs."""
    image = smooth_image((24, 22, 1), (1.0, 1.2, 3.0))
    vectors = np.zeros((1, 22, 24, 3))
    vectors[..., 0] = 1.5 * np.sin(np.linspace(0, np.pi, 24))
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(image)
    sitk.WriteImage(image, str(tmp_path / "slice.nrrd"))
    points = to_points(np.array([[11.0, 10.0, 0.0]]), image)
    (tmp_path / "p.csv").write_text(",".join(map(str, points[0])))
    apply_field(field, [tmp_path / "slice.nrrd", tmp_path / "p.csv"], tmp_path / "out")
    new = read_points(tmp_path / "out" / "p.csv", 3).points
    assert np.linalg.norm(new - points) > 1
    back = new + [np.interp(to_index(new, image)[0, 0], np.arange(24), vectors[0, 0, :, 0]), 0, 0]
    assert np.abs(back - points).max() < 1e-3
    moved = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "slice.nrrd")))
    assert moved.shape == (1, 22, 24) and (moved != sitk.GetArrayFromImage(image)).any()
