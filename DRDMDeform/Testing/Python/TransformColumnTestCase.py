"""Transforms that are chosen elsewhere, as in the Transform column of the module Data; the panel follows."""

import slicer
from modulesupport import ModuleTestCase, processEvents


class TransformColumnTestCase(ModuleTestCase):
    def setUp(self):
        super().setUp()
        self.volume, self.segmentation = self.choosePhantom(steps=1)
        self.ui.variantsSpinBox.value = 2
        self.ui.sequenceCheckBox.checked = False
        self.deform()
        self.first, self.second = self.logic.deformations(self.volume)

    def choose(self, transform, node=None):
        """Choose a transform for a node in the Transform column, which acts on its branch."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.GetItemByDataNode(node or self.volume)
        logic = slicer.vtkSlicerSubjectHierarchyModuleLogic
        logic.TransformBranch(hierarchy, item, transform, False)
        processEvents(0.1)

    def clickRow(self, row):
        """Click a row, also if it is selected already."""
        table = self.ui.variantsTable
        table.selectRow(row)
        table.cellClicked(row, 1)

    def assertShown(self, transform):
        self.assertTrue(self.ui.previewCheckBox.checked)
        self.assertIs(self.volume.GetParentTransformNode(), transform)
        self.assertIs(self.segmentation.GetParentTransformNode(), transform)
        self.assertIs(self.panel.parameter.deformations, transform)

    def testTakenOut(self):
        self.assertShown(self.first)
        self.choose(None)
        self.assertFalse(self.ui.previewCheckBox.checked)
        self.assertIsNone(self.segmentation.GetParentTransformNode())
        self.assertEqual(self.ui.variantsTable.currentRow(), 0)
        self.clickRow(0)
        self.assertShown(self.first)
        self.choose(None)
        self.clickRow(1)
        self.assertShown(self.second)

    def testAnotherVariant(self):
        self.choose(self.second)
        self.assertShown(self.second)
        self.assertEqual(self.ui.variantsTable.currentRow(), 1)
        self.assertIsNone(self.first.GetParentTransformNode())
        self.ui.previewCheckBox.checked = False
        self.choose(self.first)
        self.assertShown(self.first)

    def testUnderAnotherTransform(self):
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Table")
        self.choose(table)
        self.assertFalse(self.ui.previewCheckBox.checked)
        self.choose(table, self.segmentation)
        # The deformation moves with its volume.
        self.clickRow(0)
        self.assertShown(self.first)
        self.assertIs(self.first.GetParentTransformNode(), table)
        self.ui.previewCheckBox.checked = False
        self.assertIs(self.volume.GetParentTransformNode(), table)

    def testAVolumeThatCannotBeShownDeformed(self):
        inner = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Inner")
        inner.SetAndObserveTransformNodeID(self.first.GetID())
        self.choose(inner)
        self.clickRow(0)
        self.assertIn("Inner", self.ui.statusLabel.text)
        self.assertFalse(self.ui.previewCheckBox.checked)
        self.assertIsNone(self.first.GetParentTransformNode())

    def testEveryVariantIsApplied(self):
        self.ui.variantChoiceComboBox.currentIndex = 1
        self.ui.applyButton.click()
        processEvents(0.1)
        self.assertIn("2 variants", self.ui.applyLabel.text)
        self.assertFalse(self.ui.previewCheckBox.checked)
        self.assertIsNone(self.volume.GetParentTransformNode())
