"""The identities that a run found: their numbers, how sure they are, and files for other programs.

Clusters and answers become one identity for each image (`identities`), with a confidence
(`margins`, `confidence`) and a mark where to review them (`review`). Identities keep the
numbers of an earlier table (`numbers`). They are written as a table (`table`), as folders of images
(`folders`), or for annotation tools (`tools`).
"""

from .identities import Identities, identities_by_answers
from .table import LabelTable, read_numbers, write_table

__all__ = ["Identities", "LabelTable", "identities_by_answers", "read_numbers", "write_table"]
