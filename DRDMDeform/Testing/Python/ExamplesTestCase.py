"""The examples in the documentation of the scripting interface, run as they stand there."""

import doctest
import os
from unittest import mock

import slicer
from DRDMDeformLib.batches import BatchLogic
from DRDMDeformLib.logic import Logic
from modulesupport import ModuleTestCase


def examples():
    """Name and example of every method that has one."""
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = [test for owner in (Logic, BatchLogic) for test in finder.find(owner, owner.__name__, globs={})]
    return {test.name: test for test in found if test.examples}


class ExamplesTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        # The user's own models of this computer are not seen, and stay as they are.
        change = mock.patch.dict(os.environ, {"DRDM_HOME": str(self.folder / "home")})
        change.start()
        self.addCleanup(change.stop)

    def names(self):
        """What the examples take for granted; see the documentation of the class."""
        volume, segmentation = self.addPhantom()
        transform = self.logic.deform(volume, level=48, seed=1, steps=1)
        scans = self.writeScans(count=2)
        nodes = {"volume": volume, "segmentation": segmentation, "transform": transform}
        return {"slicer": slicer, "logic": self.logic, **nodes, "scans": scans, "out": self.folder / "out"}

    def testMostOfTheInterfaceHasAnExample(self):
        methods = {name for owner in (Logic, BatchLogic) for name in vars(owner) if not name.startswith("_")}
        told = {name.split(".")[-1] for name in examples()}
        plain = {"scene", "mrmlScene", "downloadModel", "shownVariant", "transformOf", "summary", "canResume"}
        self.assertEqual(methods - told - plain, set())

    def check(self, name):
        test = examples()[name]
        test.globs.update(self.names())
        said = []
        runner = doctest.DocTestRunner(verbose=False)
        failed = runner.run(test, out=said.append, clear_globs=True).failed
        self.assertEqual(failed, 0, "".join(said))


def _method(name):
    return lambda self: self.check(name)


for _name in examples():
    setattr(ExamplesTestCase, f"test_{_name.replace('.', '_')}", _method(_name))
