"""Demonstrations for supervised fine-tuning: recorded by the scripted expert, or LIBERO's own files.

    srpo demos --config CONFIG --out DIR --scratch DIR --workers N

writes one HDF5 file per task (format: `srpo.demos.hdf5`).
"""

from srpo.demos.hdf5 import Demonstration, DemonstrationError, file_name, read_demonstrations

__all__ = ["Demonstration", "DemonstrationError", "file_name", "read_demonstrations"]
