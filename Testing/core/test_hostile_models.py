"""Model files that ask for more memory or time than any network needs are refused before they get it."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_helpers import run_process

from DRDMLib.errors import ModelError
from DRDMLib.models.catalogue import user_models
from DRDMLib.models.metadata import ModelMetadata, read_header
from DRDMLib.models.model import load_model_file, read_metadata
from DRDMLib.networks import RecResACNet, build_network, shapes_of_network

ROOT = Path(__file__).resolve().parents[2]

# Loads a model and prints the kind of its error, and by how many megabytes the process has grown at most.
LOAD = """
import resource, sys
from DRDMLib.errors import DRDMError
from DRDMLib.models.model import load_model_file, read_metadata
import DRDMLib.models.weights_file, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for use in (read_metadata, lambda path: load_model_file(path, "cpu")):
    try:
        use(sys.argv[1])
        print("loaded")
    except DRDMError as error:
        print(type(error).__name__, len(str(error).splitlines()))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def safetensors_of(path, tensors=None, **described):
    values = {"name": "x", "architecture": "compact", "ndim": 3, "size": 24, "options": {"width": 8}} | described
    safetensors.torch.save_file(tensors or {"a": torch.zeros(3)}, path, metadata={"drdm": json.dumps(values)})
    return path


def archive(path, pickled, members=(), how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as made:
        made.writestr("x/data.pkl", pickled)
        for name, data in members:
            made.writestr(f"x/data/{name}", data)
    return path


def pickled_tensor(shape, strides, storage=b"X\x01\x00\x00\x000"):
    """A pickle of a table with one tensor, in the words of PyTorch."""

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in values) + b"t"

    key = b"X" + struct.pack("<I", 15) + b"conv_out.weight"
    kind = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + storage + b"X\x03\x00\x00\x00cpuJ\x04\x00\x00\x00tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + kind + b"J\x00\x00\x00\x00" + numbers(shape) + numbers(strides)
    return b"\x80\x02}(" + key + tensor + b"\x89N" + b"tRu."


def bomb(path):
    """1 GB of zeros in an archive of one megabyte; the attack of the test had 3.3."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr("x/data.pkl", pickled_tensor((2, 10, 3, 3), (90, 9, 3, 1)))
        with made.open("x/data/0", "w") as stream:
            for _ in range(64):
                stream.write(bytes(2**24))
    return path


def declared_small(path):
    """A compressed member of 512 MB that declares a hundred bytes."""
    archive(path, pickled_tensor((2, 10, 3, 3), (90, 9, 3, 1)), [("0", bytes(2**29))], zipfile.ZIP_DEFLATED)
    size = struct.pack("<I", 2**29)
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<I", 100)))
    return path


def nameless(path):
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/version", b"3")
    return path


def damaged_member(path):
    archive(path, pickled_tensor((2, 10, 3, 3), (90, 9, 3, 1)), [("0", bytes(720))], zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    at = data.index(b"x/data.pkl") + 20
    path.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    return path


def many_names(path):
    """80 names for one tensor of 12 MB."""
    one = pickled_tensor((3 * 2**20,), (1,)).removesuffix(b"u.") + b"q\x01"
    names = b"".join(b"X" + struct.pack("<I", 3) + b"%03d" % k + b"h\x01" for k in range(80))
    return archive(path, one + names + b"u.", [("0", bytes(12 * 2**20))])


def long_list(path):
    """A list of 400,000 members, all of which are one."""
    archive(path, pickled_tensor((2, 10, 3, 3), (90, 9, 3, 1)), [("0", bytes(720))])
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    listed = data[start:end] * 200_000
    counts = struct.pack("<HHHHHHII", 0x4B50, 0x605, 0, 0, 0xFFFF, 0xFFFF, len(listed), start)
    path.write_bytes(data[:start] + listed + counts + b"\0\0")
    return path


def nested_key(path):
    """A name of a storage that is a pair of pairs, and would be a text of 2^30 characters."""
    key = b"K\x01" + b"q\x05h\x05\x86" * 30
    return archive(path, pickled_tensor((2,), (1,), key), [("0", bytes(8))])


def copied_tables(path):
    """A table of 10,000 entries that is copied as often."""
    table = b"}(" + b"".join(b"X" + struct.pack("<I", 5) + b"%05dN" % k for k in range(10_000)) + b"uq\x01"
    once = b"ccollections\nOrderedDict\nq\x02(h\x01tR"
    return archive(path, b"\x80\x02" + table + once + b"h\x02h\x01\x85R" * 9_999 + b".")


def sparse(path):
    """A header for a tensor of a terabyte, in a file with a hole of this size."""
    described = json.dumps({"name": "x", "architecture": "compact", "ndim": 3, "size": 24, "options": {"width": 8}})
    header = {"__metadata__": {"drdm": described}, "a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        try:
            stream.truncate(8 + len(text) + 2**40)
        except OSError:
            stream.truncate(8 + len(text))
    return path


HOSTILE = {
    "wide.safetensors": lambda path: safetensors_of(path, options={"width": 10**6}),
    "deep.safetensors": lambda path: safetensors_of(path, options={"depth": 10**9}),
    "passes.safetensors": lambda path: safetensors_of(path, architecture="recresacnet", options={"passes": 10**9}),
    "large.safetensors": lambda path: safetensors_of(path, size=8 * 10**6),
    "both.safetensors": lambda path: safetensors_of(path, size=512, options={"width": 1024}),
    "times.safetensors": lambda path: safetensors_of(path, timesteps=10**9),
    "grids.safetensors": lambda path: safetensors_of(path, noise_grids=[10**5]),
    # Doubled again and again, these never meet the control grid.
    "odd grids.safetensors": lambda path: safetensors_of(path, noise_grids=[5, 3]),
    "large control grid.safetensors": lambda path: safetensors_of(path, control_size=1024),
    "control.safetensors": lambda path: safetensors_of(path, control_size=10**6),
    "nan.safetensors": lambda path: safetensors_of(path, velocity_scale=float("nan")),
    "inf.safetensors": lambda path: safetensors_of(path, amplitude=float("inf")),
    "truth.safetensors": lambda path: safetensors_of(path, size=True),
    "text.safetensors": lambda path: safetensors_of(path, size="24"),
    "options.safetensors": lambda path: safetensors_of(path, options=[1]),
    "training.safetensors": lambda path: safetensors_of(path, training="x"),
    "name.safetensors": lambda path: safetensors_of(path, name={"a": 1}),
    "policy.safetensors": lambda path: safetensors_of(path, geometry=["isotropic"]),
    "nested.safetensors": lambda path: safetensors_of(path, training=json.loads("[" * 900 + "]" * 900)),
    "sparse.safetensors": sparse,
    "bomb.pth": bomb,
    "expanded.pth": lambda path: archive(path, pickled_tensor((2**20, 2**20), (0, 0)), [("0", bytes(4))]),
    "claims.pth": lambda path: archive(path, pickled_tensor((2**30, 3), (3, 1)), [("0", bytes(400))]),
    "memo.pth": lambda path: archive(path, b"\x80\x02}r\xff\xff\xff\x7f."),
    "bytes.pth": lambda path: archive(path, b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R."),
    "long.pth": lambda path: archive(path, b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "frame.pth": lambda path: archive(path, b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f."),
    "nameless.pth": nameless,
    "member.pth": damaged_member,
    "state.pth": lambda path: archive(path, pickled_tensor((2,), (1,))[:-2] + b"}b" + b"u."),
    "bytearray.pth": lambda path: archive(path, b"\x80\x05\x96" + struct.pack("<Q", 700 * 2**20) + b"."),
    "small.pth": declared_small,
    "names.pth": many_names,
    "nested.pth": nested_key,
    "hashed.pth": lambda path: archive(path, b"\x80\x02}K\x01" + b"q\x05h\x05\x86" * 60 + b"Ns."),
    "copied.pth": copied_tables,
    "members.pth": lambda path: archive(path, b"\x80\x02}.", [(str(k), b"") for k in range(12_000)]),
    "list.pth": long_list,
    "storage.pth": lambda path: archive(path, pickled_tensor((2,), (1,), b"K\x01"), [("1", bytes(8))]),
    "popped.pth": lambda path: archive(path, b"\x80\x02}2" + b"0" * 9 + b"."),
    "order.pth": lambda path: archive(path, pickled_tensor((2,), (1,)), [("0", bytes(8)), ("../byteorder", b"big")]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_in_one_sentence(tmp_path, name):
    path = HOSTILE[name](tmp_path / name)
    for use in (read_metadata, lambda path: load_model_file(path, "cpu")):
        try:
            use(path)
        except ModelError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        else:
            assert use is read_metadata


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
@pytest.mark.parametrize(
    "name",
    [
        *("bomb.pth", "sparse.safetensors", "both.safetensors", "memo.pth"),
        *("bytearray.pth", "small.pth", "names.pth", "nested.pth", "copied.pth", "list.pth"),
    ],
)
def test_memory_is_not_used_for_them(tmp_path, name):
    ended = run_process(HOSTILE[name](tmp_path / name), code=LOAD)
    assert ended.returncode == 0, ended.stderr
    *outcomes, grown = ended.stdout.splitlines()
    assert outcomes[-1] == "ModelError 1" and int(grown) < 200


def test_a_folder_with_hostile_models_can_be_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("DRDM_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    for name, make in HOSTILE.items():
        if name.endswith("safetensors"):
            make(tmp_path / "models" / name)
    assert {entry.name for entry in user_models()} <= {"wide", "deep", "passes", "both", "sparse"}


def test_code_in_an_archive_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, (f'touch "{tmp_path / "sprung"}"',)

    path = archive(tmp_path / "trap.pth", pickle.dumps({"conv_out.weight": Trap()}, protocol=2))
    with pytest.raises(ModelError, match="refused"):
        load_model_file(path, "cpu")
    assert not (tmp_path / "sprung").exists()


def test_shapes_are_those_of_the_network(tiny_model_path, tiny_model):
    m = read_header(tiny_model_path)
    state = tiny_model.network.state_dict()
    shapes = shapes_of_network(m.architecture, m.ndim, m.size, m.timesteps, m.options)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    published = RecResACNet(2, 80).state_dict()
    assert shapes_of_network("recresacnet", 2, 256, 80) == {name: tuple(t.shape) for name, t in published.items()}


def test_later_versions_may_add_values():
    values = {"name": "x", "architecture": "compact", "ndim": 2, "size": 16, "new": {"a": [1]}}
    assert ModelMetadata.from_dict(values).size == 16


def test_a_header_without_offsets_is_refused(tmp_path):
    """Found by the fuzzer."""
    header = {"__metadata__": {"drdm": json.dumps({"name": "m"})}, "a": {"data_offsets": []}}
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ModelError, match="not a readable DRDM model file"):
        read_header(path)


def test_checking_shapes_does_not_load_the_compiler():
    """It takes seconds, and may crash a program that has other parts of LLVM, such as 3D Slicer."""
    code = "import sys; from DRDMLib import load_model; load_model('hippocampus-mr-3d', 'cpu'); "
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("options", [{"width": True}, {"width": 8.5}, {"depth": "2"}, {"whole": 1}, {"coarse": None}])
def test_options_of_a_network_have_their_types(options):
    good = {"width": 8, "depth": 1, "whole": True, "coarse": True, "places": True}
    build_network("compact", 3, 80, good)
    with pytest.raises(ModelError):
        build_network("compact", 3, 80, good | options)
