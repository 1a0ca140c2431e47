"""Run a module of DRDM in such a way that no file in the working folder is taken for a library.

``python DRDMLib/start.py DRDMLib deform scan.nii.gz -o out`` is like ``python -m DRDMLib deform ...``, but that makes
Python look for ``torch.py`` and ``numpy.py`` in the working folder first. From Python 3.11 on, ``python -P`` does
the same; this file also works with 3.10. It is run as a script, never imported.

The environment variable ``DRDM_FOLDER`` names the folder from which the user's paths start. The process itself is
started elsewhere, so that nothing there is read before this file runs.
"""

import sys

if __name__ == "__main__":
    # The first entry is the folder of this file, which has modules with ordinary names, such as "io".
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]

    import os
    import runpy

    # An empty entry, or a relative one, stands for the working folder.
    sys.path[:] = [part for part in sys.path if os.path.isabs(part)]  # noqa: PTH117
    if sys.platform == "win32":
        import ctypes

        # Libraries are not taken from the working folder either.
        getattr(ctypes, "WinDLL")("kernel32").SetDllDirectoryW("")  # noqa: B009
    if os.environ.get("DRDM_FOLDER"):
        os.chdir(os.environ.pop("DRDM_FOLDER"))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
