"""Run the examples in the docstrings of the scripting interface."""

import doctest
import os
from unittest import mock

import slicer
from DRDMDeformLib.batch_results import BatchResultLogic
from DRDMDeformLib.batches import BatchLogic
from DRDMDeformLib.logic import Logic
from DRDMDeformLib.models import ModelLogic
from DRDMDeformLib.previews import PreviewLogic
from DRDMDeformLib.registration_tests import RegistrationTestLogic
from modulesupport import ModuleTestCase

OWNERS = (Logic, ModelLogic, BatchLogic, BatchResultLogic, PreviewLogic, RegistrationTestLogic)


def examples():
    """The example of every method that has one, by name."""
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = [test for owner in OWNERS for test in finder.find(owner, owner.__name__, globs={})]
    return {test.name: test for test in found if test.examples}


class ExamplesTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        # Neither use nor change the user's own models on this computer.
        change = mock.patch.dict(os.environ, {"DRDM_HOME": str(self.folder / "home")})
        change.start()
        self.addCleanup(change.stop)

    def names(self, code):
        """The names that the examples use; see the docstring of the class."""
        volume, segmentation = self.addPhantom()
        nodes = {"volume": volume, "segmentation": segmentation}
        # Examples of batches and models need no deformation in the scene.
        if any(word in code for word in ("transform", "ariant", "deformations", "applyAll")):
            nodes["transform"] = self.logic.deform(volume, level=48, seed=1, steps=1)
        if "toward=other)" in code:
            nodes["other"] = self.addPhantom("Other")[0]
        folders = {"scans": self.writeScans(count=2), "people": self.writePeople(count=2), "out": self.folder / "out"}
        return {"slicer": slicer, "logic": self.logic, **nodes, **folders}

    def testMostOfTheInterfaceHasAnExample(self):
        methods = {name for owner in OWNERS for name in vars(owner) if not name.startswith("_")}
        documented = {name.split(".")[-1] for name in examples()}
        plain = {"scene", "mrmlScene", "downloadModel", "shownVariant", "transformOf", "summary", "canResume"}
        self.assertEqual(methods - documented - plain, set())

    def check(self, name):
        test = examples()[name]
        test.globs.update(self.names("".join(example.source for example in test.examples)))
        report = []
        runner = doctest.DocTestRunner(verbose=False)
        failed = runner.run(test, out=report.append, clear_globs=True).failed
        self.assertEqual(failed, 0, "".join(report))


def _method(name):
    return lambda self: self.check(name)


for _name in examples():
    setattr(ExamplesTestCase, f"test_{_name.replace('.', '_')}", _method(_name))
