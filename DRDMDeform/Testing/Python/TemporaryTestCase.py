"""Copies of scans in the temporary folder: found and removed after a crash, and never mistaken for one another."""

import json
import os
import shutil
import socket
import subprocess
import sys
import unittest
from pathlib import Path

import slicer
from DRDMDeformLib.batches import BatchSettings
from DRDMDeformLib.temporary import removeLeftovers, temporaryFolder
from modulesupport import ModuleTestCase


class TemporaryFolderTestCase(unittest.TestCase):
    """Only folders of this module are removed, and only those of processes that have ended."""

    def folder(self, name, **owner):
        folder = Path(slicer.app.temporaryPath) / name
        folder.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        (folder / "scan.nrrd").write_bytes(b"a scan")
        if owner:
            (folder / "drdm-owner.json").write_text(json.dumps(owner), encoding="utf-8")
        return folder

    def testLeftoversOfACrash(self):
        crashed = subprocess.Popen([sys.executable, "-c", "import os; os.abort()"], stderr=subprocess.DEVNULL)
        crashed.wait()
        own = {"program": "DRDM Deform", "host": socket.gethostname(), "process": crashed.pid}
        left = self.folder("drdm-left", **own)
        kept = [
            self.folder("drdm-running", **own | {"process": os.getpid()}),
            self.folder("drdm-elsewhere", **own | {"host": "another computer"}),
            self.folder("drdm-program", **own | {"program": "Another"}),
            self.folder("drdm-unknown"),
            self.folder("drdm-odd", **own | {"process": "1"}),
            self.folder("other-left", **own),
            temporaryFolder(),
        ]
        self.addCleanup(shutil.rmtree, kept[-1], ignore_errors=True)
        self.assertEqual(removeLeftovers(), [left])
        self.assertFalse(left.exists())
        self.assertTrue(all(folder.is_dir() for folder in kept))

    def testFoldersOfTheSameMillisecond(self):
        """A test case was removed with the copy of its scan, because both were in one folder."""
        folders = [temporaryFolder() for _ in range(100)]
        for folder in folders:
            self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.assertEqual(len(set(folders)), len(folders))

    def testALinkIsNotFollowed(self):
        crashed = subprocess.Popen([sys.executable, "-c", ""])
        crashed.wait()
        own = {"program": "DRDM Deform", "host": socket.gethostname(), "process": crashed.pid}
        target = self.folder("elsewhere", **own)
        link = target.with_name("drdm-link")
        try:
            link.symlink_to(target, target_is_directory=True)
        except OSError:
            self.skipTest("links are not allowed here")
        self.addCleanup(link.unlink)
        self.assertEqual(removeLeftovers(), [])
        self.assertTrue((target / "scan.nrrd").is_file())


class ExportedVolumesTestCase(ModuleTestCase):
    """Volumes of a scene as files."""

    needsTorch = False

    def testNamesThatDifferInCaseOnly(self):
        """On Windows and macOS, one file would overwrite the other."""
        volumes = [self.addPhantom(name)[0] for name in ("T1", "t1", "a/b")]
        folder = self.logic._exportVolumes(volumes, BatchSettings(), needLabels=True)
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        names = sorted(path.name.lower() for path in (folder / "images").iterdir())
        self.assertEqual(names, ["a-b.nrrd", "t1-2.nrrd", "t1.nrrd"])
        self.assertEqual(len(list((folder / "labels").iterdir())), 3)
